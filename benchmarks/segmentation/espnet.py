"""ESPNet (Mehta et al., ECCV 2018, arXiv 1803.06815) with p = 2 and q = 8, for street scenes of CamVid.

Names of modules are those of the published weights. A module reduces the number of channels with a convolution, applies
five dilated convolutions in parallel, and sums their results up step by step, which removes the grid that dilation
leaves (section 3 of the paper).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from acclimate.vision.models.preprocess import Preprocess
from acclimate.vision.models.torch_adapter import TorchModel

CLASSES: Final = 11
"""Sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, cyclist. The network has a twelfth output
for pixels without label, which is left out."""

MEANS: Final = (110.5, 108.7, 105.6)
DEVIATIONS: Final = (78.2, 79.3, 78.2)
"""Of blue, green and red in the training images."""

_OUTPUTS: Final = 12
_EPSILON: Final = 1e-3
_DILATIONS: Final = (1, 2, 4, 8, 16)


class Conv(nn.Module):
    """A convolution that keeps the size, or halves it with a stride of 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 * dilation
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class Activation(nn.Module):
    """Batch normalisation and PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=_EPSILON)
        self.act = nn.PReLU(channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.bn(images))


class ConvActivation(nn.Module):
    """A 3 x 3 convolution, batch normalisation and PReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.act = nn.PReLU(outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(images)))


class Pyramid(nn.Module):
    """Reduction, and the pyramid of dilated convolutions with hierarchical fusion of features (figure 1)."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        width = outputs // len(_DILATIONS)
        first = outputs - (len(_DILATIONS) - 1) * width
        self.c1 = Conv(inputs, width, kernel, stride=stride)
        for dilation in _DILATIONS:
            setattr(self, f"d{dilation}", Conv(width, first if dilation == 1 else width, 3, dilation=dilation))

    def fused(self, images: Tensor) -> Tensor:
        reduced = self.c1(images)
        branches = [getattr(self, f"d{dilation}")(reduced) for dilation in _DILATIONS]
        found = branches[:2]
        for branch in branches[2:]:
            found.append(found[-1] + branch)
        return torch.cat(found, 1)


class DownSampler(Pyramid):
    """The module that halves the size; it has no shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel=3, stride=2)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.act = nn.PReLU(outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.bn(self.fused(images)))


class Module(Pyramid):
    """The module that keeps the size, with a shortcut where ``shortcut`` is true."""

    def __init__(self, inputs: int, outputs: int, *, shortcut: bool = True) -> None:
        super().__init__(inputs, outputs, kernel=1, stride=1)
        self.bn = Activation(outputs)
        self.shortcut = shortcut

    def forward(self, images: Tensor) -> Tensor:
        found = self.fused(images)
        return self.bn(images + found if self.shortcut else found)


class Encoder(nn.Module):
    """The encoder: three levels at a half, a quarter and an eighth of the image's size."""

    def __init__(self, p: int, q: int) -> None:
        super().__init__()
        self.level1 = ConvActivation(3, 16, stride=2)
        self.b1 = Activation(16 + 3)
        self.level2_0 = DownSampler(16 + 3, 64)
        self.level2 = nn.ModuleList([Module(64, 64) for _ in range(p)])
        self.b2 = Activation(128 + 3)
        self.level3_0 = DownSampler(128 + 3, 128)
        self.level3 = nn.ModuleList([Module(128, 128) for _ in range(q)])
        self.b3 = Activation(256)
        self.classifier = Conv(256, _OUTPUTS, 1)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of the three levels."""
        half = self.pool(images)
        first = self.b1(torch.cat([self.level1(images), half], 1))
        begun = second = self.level2_0(first)
        for module in self.level2:
            second = module(second)
        second = self.b2(torch.cat([second, begun, self.pool(half)], 1))
        begun = third = self.level3_0(second)
        for module in self.level3:
            third = module(third)
        return first, second, self.classifier(self.b3(torch.cat([begun, third], 1)))


class EspNet(nn.Module):
    """The network: returns logits ``(B, 11, H, W)`` for images ``(B, 3, H, W)`` whose sides are multiples of 8."""

    def __init__(self, p: int = 2, q: int = 8) -> None:
        super().__init__()
        self.encoder = Encoder(p, q)
        self.br = nn.BatchNorm2d(_OUTPUTS, eps=_EPSILON)
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(_OUTPUTS, _OUTPUTS, 2, stride=2, bias=False))
        self.level3_C = Conv(131, _OUTPUTS, 1)
        self.combine_l2_l3 = nn.Sequential(Activation(2 * _OUTPUTS), Module(2 * _OUTPUTS, _OUTPUTS, shortcut=False))
        self.up_l2 = nn.Sequential(
            nn.ConvTranspose2d(_OUTPUTS, _OUTPUTS, 2, stride=2, bias=False), Activation(_OUTPUTS)
        )
        self.conv = ConvActivation(_OUTPUTS + 19, _OUTPUTS)
        self.classifier = nn.ConvTranspose2d(_OUTPUTS, _OUTPUTS, 2, stride=2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        first, second, third = self.encoder(images)
        found = self.up_l3(self.br(third))
        found = self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(second), found], 1)))
        logits: Tensor = self.classifier(self.conv(torch.cat([found, first], 1)))
        return logits[:, :CLASSES]


def camvid() -> TorchModel:
    """Return the network as ``--adapter torch --model espnet:camvid`` takes it, for a ``--checkpoint``."""
    # Blue, green, red from 0 to 255, normalised, and divided by 255 as in the authors' code.
    deviations = tuple(255 * deviation for deviation in DEVIATIONS)
    prepare = Preprocess(channels="bgr", highest=255, mean=MEANS, std=deviations)
    return TorchModel(module=EspNet(), kind="segmenter", preprocess=prepare)

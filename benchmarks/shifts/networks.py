"""Networks without BatchNorm for ``benchmarks/shifts``: a ResNet-20 with GroupNorm.

``train.py`` trains it; its weights are in ``weights/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
GROUP_CHANNELS: Final = 4
WEIGHTS: Final = Path(__file__).parent / "weights"


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


class _Block(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut that has no parameters, as in the ResNet-20 of He et al."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = _group_norm(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``(B, out_channels, H / stride, W / stride)``."""
        shortcut = inputs
        if self.stride != 1 or self.padding:
            shortcut = F.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        hidden = F.relu(self.norm1(self.conv1(inputs)))
        return F.relu(self.norm2(self.conv2(hidden)) + shortcut)


class _Beginning(nn.Module):
    """The first two of the three stages of the ResNet-20, with GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = _group_norm(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(B, 32, 16, 16)`` for images ``(B, 3, 32, 32)`` in [0, 1]."""
        hidden = F.relu(self.norm1(self.conv1((images - self.mean) / self.std)))
        return self.layer2(self.layer1(hidden))


class GroupNormResNet20(nn.Module):
    """Takes images ``(B, 3, 32, 32)`` in [0, 1] and returns logits ``(B, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.beginning = _Beginning()
        self.layer3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        return self.linear(self.layer3(self.beginning(images)).mean((2, 3)))


NETWORKS: Final = {"group_norm": GroupNormResNet20}


def load_without_batch_norm(name: str) -> nn.Module:
    """Return one of ``NETWORKS`` with its trained weights, in eval mode."""
    model = NETWORKS[name]()
    stored = load_file(str(WEIGHTS / f"{name}.safetensors"))
    model.load_state_dict({key: value.float() for key, value in stored.items()})
    return model.eval()

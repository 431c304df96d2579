"""The CIFAR ResNet-20 of He et al. 2016 (option A shortcuts), with normalisation inside the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut that has no parameters."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = norm(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``(B, out_channels, H / stride, W / stride)``."""
        shortcut = inputs
        if self.stride != 1 or self.padding:
            shortcut = F.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNet20(nn.Module):
    """Takes images ``(B, 3, 32, 32)`` in [0, 1] and returns logits ``(B, 10)``.

    Args:
        norm: makes a normalisation layer for a number of channels; it has the name that the published weights give it.
    """

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()

        def block(in_channels: int, out_channels: int, stride: int = 1) -> BasicBlock:
            return BasicBlock(in_channels, out_channels, stride, norm)

        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = norm(16)
        self.layer1 = nn.Sequential(*(block(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(block(16, 32, 2), block(32, 32), block(32, 32))
        self.layer3 = nn.Sequential(block(32, 64, 2), block(64, 64), block(64, 64))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        hidden = F.relu(self.bn1(self.conv1((images - self.mean) / self.std)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(hidden.mean((2, 3)))


def load(weights: Path) -> ResNet20:
    """Return the network with the published weights, in eval mode."""
    model = ResNet20()
    tensors = load_file(str(weights))
    # The published file has no batch counters; they play no part in prediction.
    missing = model.load_state_dict(tensors, strict=False)
    unexpected = [name for name in missing.missing_keys if not name.endswith("num_batches_tracked")]
    if unexpected or missing.unexpected_keys:
        raise ValueError(f"{weights} does not fit: missing {unexpected}, unexpected {missing.unexpected_keys}")
    return model.eval()

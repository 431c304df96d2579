"""Networks without BatchNorm for ``benchmarks/shifts``: a ResNet-20 with GroupNorm, and a small hybrid transformer.

``train.py`` trains both; their weights are in ``weights/``.
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


class _TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(B, T, width)``."""
        batch, count, width = tokens.shape
        parts = self.qkv(self.norm1(tokens)).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + self.out(found)
        return tokens + self.shrink(F.gelu(self.grow(self.norm2(tokens))))


class HybridTransformer(nn.Module):
    """A transformer whose tokens are activations of the first stages of a ResNet; see Dosovitskiy et al., ICLR 2021.

    Takes images ``(B, 3, H, W)`` in [0, 1], at 32 x 32 as 64 tokens, and returns logits ``(B, 10)``. Positions are
    interpolated for images of another size.
    """

    def __init__(self, width: int = 96, blocks: int = 3, heads: int = 3) -> None:
        super().__init__()
        self.beginning = _Beginning()
        self.tokens = nn.Conv2d(32, width, 2, stride=2)
        self.positions = nn.Parameter(torch.zeros(1, width, 8, 8))
        self.blocks = nn.Sequential(*(_TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        hidden = self.tokens(self.beginning(images))
        positions = self.positions
        if hidden.shape[2:] != positions.shape[2:]:
            positions = F.interpolate(positions, hidden.shape[2:], mode="bilinear", align_corners=False)
        tokens = (hidden + positions).flatten(2).transpose(1, 2)
        return self.linear(self.norm(self.blocks(tokens)).mean(1))


NETWORKS: Final = {"group_norm": GroupNormResNet20, "transformer": HybridTransformer}


def load_without_batch_norm(name: str) -> nn.Module:
    """Return one of ``NETWORKS`` with its trained weights, in eval mode."""
    model = NETWORKS[name]()
    stored = load_file(str(WEIGHTS / f"{name}.safetensors"))
    model.load_state_dict({key: value.float() for key, value in stored.items()})
    return model.eval()

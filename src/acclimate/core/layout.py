"""The memory layout of image batches on the CPU, which accounts for up to a third of the computing time.

Convolutions and BatchNorm are fastest in channels-last, which is safe without gradients. With gradients it is not: in
torch 2.13's CPU kernels two backward passes write out of bounds in channels-last and corrupt the heap, namely that of a
1x1 convolution with stride 2 (every ResNet's shortcut) for its weights, and that of GroupNorm where only its affine
parameters require a gradient. So batches to learn from are in channels-first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acclimate.core.outputs import map_tensors


def for_prediction(batch: Any) -> Any:
    """Return ``batch`` with its images in the fastest layout for a pass without gradient."""
    return map_tensors(_channels_last, batch)


def for_learning(batch: Any) -> Any:
    """Return ``batch`` with its images in the layout in which gradients are safe."""
    return map_tensors(_channels_first, batch)


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4 or tensor.device.type != "cpu":
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.contiguous() if tensor.dim() == 4 and tensor.device.type == "cpu" else tensor

"""The memory layout of image batches on the CPU, where it decides up to a third of the time.

Convolutions and BatchNorm are fastest in channels-last, and without a gradient that layout is safe. With one it is
not: in torch 2.13's CPU kernels the backward passes of a 1x1 convolution with stride 2 (every ResNet's shortcut), for
its weights, and of GroupNorm, for its affine parameters alone, write out of bounds in channels-last and corrupt
the heap. So whatever is learned from is in channels-first.
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

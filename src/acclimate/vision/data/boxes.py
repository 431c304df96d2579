"""Operations on boxes ``(cx, cy, w, h)``, as fractions of the image unless stated otherwise (centre boxes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """Return ``(..., 4)`` centre boxes as ``(x0, y0, x1, y1)``."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def from_coco(boxes: Sequence[Sequence[float]], *, width: float, height: float) -> Tensor:
    """Return COCO boxes ``[x, y, w, h]`` in pixels as centre boxes ``(N, 4)``."""
    fractions = torch.tensor(boxes) / torch.tensor([width, height, width, height])
    return torch.cat([fractions[:, :2] + fractions[:, 2:] / 2, fractions[:, 2:]], dim=1)


def from_detections(detections: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return the boxes of an entry's detections as centre boxes ``(N, 4)``."""
    return torch.tensor([[detection["bbox"][key] for key in ("cx", "cy", "w", "h")] for detection in detections])


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of centre boxes: ``(N, 4)``, ``(M, 4)`` -> ``(N, M)``."""
    a, b = corners(first), corners(second)
    overlap = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    intersection = overlap.clamp(min=0).prod(-1)
    areas_a, areas_b = first[:, 2:].clamp(min=0).prod(-1), second[:, 2:].clamp(min=0).prod(-1)
    return intersection / (areas_a[:, None] + areas_b[None] - intersection).clamp(min=1e-9)


def mirrored(boxes: Tensor) -> Tensor:
    """Return centre boxes mirrored left to right."""
    cx, rest = boxes[..., :1], boxes[..., 1:]
    return torch.cat([1 - cx, rest], dim=-1)

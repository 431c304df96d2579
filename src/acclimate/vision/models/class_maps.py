"""From a segmenter's logits, which may be coarser than the image and of a part of it, to a class for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from acclimate.vision.models.preprocess import BoxMap, Size

_MOST_VALUES: Final = 1 << 24
"""How many values of logits are resampled at once, so that memory does not grow with the image."""


@torch.no_grad()
def class_map(
    logits: Tensor, *, size: Size, classes: Sequence[int], placed: BoxMap | None = None
) -> tuple[Tensor, Tensor]:
    """Return the position in ``classes`` of each pixel's most probable class, and its probability: ``(H, W)`` each.

    Logits are interpolated bilinearly. A pixel outside of the network's input has position -1.

    Args:
        logits: of one image, ``(K, h, w)``.
        size: width and height of the image in pixels.
        classes: the channels to choose from; probabilities are among all channels.
        placed: how fractions of the network's input are mapped to fractions of the image; None where they are the same.
    """
    width, height = size
    logits = logits.detach()
    if placed is None:
        placed = BoxMap()
    whole = placed == BoxMap()
    if whole and logits.shape[-2:] == (height, width):
        return _best(logits, classes)
    if whole and logits.shape[0] * height * width <= _MOST_VALUES:
        # The same interpolation as below, and faster.
        return _best(F.interpolate(logits[None], size=(height, width), mode="bilinear")[0], classes)
    columns, inside_columns = _fractions(width, placed.scale[0], placed.offset[0], logits.device)
    rows, inside_rows = _fractions(height, placed.scale[1], placed.offset[1], logits.device)
    strips = []
    for part in rows.split(max(1, _MOST_VALUES // (logits.shape[0] * width))):
        grid = torch.stack([columns.expand(len(part), -1), part[:, None].expand(-1, width)], dim=-1) * 2 - 1
        values = F.grid_sample(
            logits[None], grid[None].to(logits.dtype), mode="bilinear", padding_mode="border", align_corners=False
        )
        strips.append(_best(values[0], classes))
    found, probability = (torch.cat(parts) for parts in zip(*strips, strict=True))
    found[~(inside_rows[:, None] & inside_columns)] = -1
    return found, probability


def _best(logits: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    chosen = logits if len(classes) == len(logits) else logits[list(classes)]
    highest, found = chosen.max(0)
    return found, (highest - logits.logsumexp(0)).exp()


def _fractions(side: int, scale: float, offset: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where the centres of an image's pixels lie in the network's input, in [0, 1], and which lie inside."""
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    fractions = (centres - offset) / scale
    inside = (fractions >= 0) & (fractions <= 1)
    return fractions.to(device), inside.to(device)

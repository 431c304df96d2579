"""Whether a model's outputs are logits: probabilities and plain numbers have the same shapes, and would be misread."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

ENOUGH_VALUES: Final = 64
"""From so many values on, that all of them lie in [0, 1] is taken for a proof that they are no logits."""

_SUM_TOLERANCE: Final = 1e-3
_HALF_PRECISION_TOLERANCE: Final = 1e-2
_LARGEST_LIKELY_LOGIT: Final = 1000.0


@torch.no_grad()
def rows_sum_to_one(values: Tensor) -> bool:
    """Return whether ``(..., K)`` values are non-negative and each row sums to one, as after a softmax."""
    if values.numel() == 0 or values.shape[-1] < 2:
        return False
    tolerance = _SUM_TOLERANCE if values.element_size() > 2 else _HALF_PRECISION_TOLERANCE
    rows = values.float()
    return bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() <= tolerance).all())


@torch.no_grad()
def all_in_unit_interval(values: Tensor) -> bool:
    """Return whether all values lie in [0, 1], as after a sigmoid."""
    return values.numel() > 0 and bool(((values >= 0) & (values <= 1)).all())


@torch.no_grad()
def to_logits(probabilities: Tensor) -> Tensor:
    """Return the logarithm of ``(..., K)`` softmax probabilities, which softmax turns into the same probabilities."""
    values = probabilities.float()
    return values.clamp(min=torch.finfo(values.dtype).tiny).log()


@torch.no_grad()
def remarks(logits: Tensor) -> tuple[str, ...]:
    """Return what makes it likely that ``(B, K)`` outputs are no logits of exclusive classes; empty where nothing does.

    A network that was trained with softmax and cross-entropy keeps the sum of its logits near that of its first
    weights, because the gradient's components sum to zero. One that was trained with a sigmoid for each class has
    logits far below zero, because most classes are absent from most images.
    """
    values = logits.float()
    if values.numel() == 0 or not bool(torch.isfinite(values).all()):
        return ()
    found = []
    if all_in_unit_interval(values) and values.numel() >= ENOUGH_VALUES:
        found.append(
            "all outputs lie in [0, 1]: they are probably the probabilities of several labels after a sigmoid; return "
            "their logits, with kind='multilabel' (the task Multilabel)"
        )
    elif float(values.abs().max()) > _LARGEST_LIKELY_LOGIT:
        found.append(
            f"an output of {float(values.abs().max()):.3g} is unusual for a logit: if this model predicts numbers "
            "(regression), do not adapt it, because methods minimise the uncertainty of class probabilities"
        )
    elif values.numel() >= ENOUGH_VALUES and _like_sigmoid_logits(values):
        found.append(
            "nearly all outputs are negative, as those of a model with a sigmoid for each class: if an image may "
            "have several labels or none, use kind='multilabel' (the task Multilabel)"
        )
    return tuple(found)


def _like_sigmoid_logits(values: Tensor) -> bool:
    # The logarithms of probabilities are negative too, and are logits of exclusive classes.
    logarithms = bool((values.logsumexp(-1).abs() < _HALF_PRECISION_TOLERANCE).all())
    return not logarithms and float(values.mean()) < -2 and float((values < 0).float().mean()) > 0.9

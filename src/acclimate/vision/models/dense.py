"""Detectors with a score for every cell or anchor: their logits, and the suppression of duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from acclimate.errors import ConfigError
from acclimate.vision.data import boxes as box_ops


def objectness_logits(objectness: Tensor, classes: Tensor) -> Tensor:
    """Return the logits of objectness times class scores, ``(..., K)``, without rounding errors of the product.

    Args:
        objectness: the logit that there is an object, ``(...)`` or ``(..., 1)``.
        classes: the logits of the classes, ``(..., K)``.
    """
    if objectness.dim() < classes.dim():
        objectness = objectness[..., None]
    # log p = log sigmoid(o) + log sigmoid(c), and logit p = log p - log(1 - p).
    log_score = F.logsigmoid(objectness) + F.logsigmoid(classes)
    # Scores that round to 1 would have an infinite logit.
    log_score = log_score.clamp(max=-torch.finfo(log_score.dtype).eps)
    return log_score - torch.log(-torch.expm1(log_score))


@dataclass(frozen=True, slots=True, kw_only=True)
class NonMaximumSuppression:
    """Removes detections that overlap one with a higher score.

    Attributes:
        iou: the overlap (IoU) above which a detection is removed.
        class_wise: whether only detections of the same class remove each other.
        candidates: the number of detections with the highest scores that are looked at; the others are removed.

    Raises:
        ConfigError: a value is out of range.
    """

    iou: float = 0.6
    class_wise: bool = True
    candidates: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise ConfigError(f"iou must lie in (0, 1], got {self.iou}")
        if self.candidates < 1:
            raise ConfigError(f"candidates must be at least 1, got {self.candidates}")

    def __call__(self, scores: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """Return the positions of the detections to keep, the highest score first.

        Args:
            scores: ``(N,)``.
            labels: the classes, ``(N,)``.
            boxes: ``(N, 4)`` as ``(cx, cy, w, h)``, in any unit.
        """
        order = scores.argsort(descending=True, stable=True)[: self.candidates]
        removes = box_ops.pairwise_iou(boxes[order], boxes[order]) > self.iou
        if self.class_wise:
            removes &= labels[order][:, None] == labels[order][None]
        removes = removes.triu(diagonal=1).cpu()
        kept = torch.ones(len(order), dtype=torch.bool)
        for row in range(len(order)):
            if kept[row]:
                kept &= ~removes[row]
        return order[kept.to(order.device)]

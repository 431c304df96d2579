"""The task of a classifier with a sigmoid for each class, whose images may have several labels or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from acclimate.core.losses import soft_cross_entropy
from acclimate.core.output_kinds import ENOUGH_VALUES, all_in_unit_interval, rows_sum_to_one
from acclimate.core.outputs import at_least_float32
from acclimate.core.task import Classification, Decisions, logits_of
from acclimate.errors import ConfigError, TTTNotSupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Multilabel(Classification):
    """The task of a classifier that returns logits ``(B, K)`` of K independent labels, or ``(B,)`` of a single one.

    Each label of each image is a decision of its own, between "present" and "absent". Images, views and mirroring are
    those of :class:`Classification`.
    """

    exclusive = False

    def forward(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """Return the model's logits ``(B, K)``; those of half precision as float32.

        Raises:
            ConfigError: the model returns no logits, or logits of another shape.
        """
        logits = at_least_float32(logits_of(model(batch)))
        if logits.dim() == 1:
            return logits[:, None]
        if logits.dim() != 2:
            raise ConfigError(
                f"the shape of the logits of several labels is (B, K), and this model returned {tuple(logits.shape)}"
            )
        return logits

    def decisions(self, outputs: Any) -> Decisions:
        """Return one row for each label of each image: its logit, and zero for "absent"."""
        return Decisions(_rows(logits_of(outputs)), background=True)

    def divergence(self, student_outputs: Any, teacher_outputs: Any) -> Tensor:
        """Return the cross-entropy of student to teacher in nats for each label of each image: ``(B * K,)``."""
        return soft_cross_entropy(_rows(logits_of(student_outputs)), _rows(logits_of(teacher_outputs)))

    def merge(self, outputs: Sequence[Any], reference: Any | None) -> Tensor:
        """Return the mean of the logits ``(B, K)``."""
        return torch.stack([logits_of(output) for output in outputs]).mean(0)

    def check_outputs(self, outputs: Any) -> tuple[str, ...]:
        """Return why outputs are probably no logits of several labels.

        Raises:
            TTTNotSupportedError: they certainly are none.
        """
        logits = logits_of(outputs)
        if rows_sum_to_one(logits):
            raise TTTNotSupportedError(
                "the outputs of this model sum to one for each image: they are the probabilities of exclusive classes "
                "after a softmax, not logits of several labels; return the values before the softmax, with "
                "kind='classifier' (the task Classification)"
            )
        if not all_in_unit_interval(logits):
            return ()
        said = "all outputs of this model lie in [0, 1]: they are probabilities after a sigmoid, and not logits"
        remedy = "return the values before the sigmoid"
        if logits.numel() >= ENOUGH_VALUES:
            raise TTTNotSupportedError(f"{said}; {remedy}")
        return (f"{said}, if that is no coincidence; {remedy}",)


def _rows(logits: Tensor) -> Tensor:
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, 1)

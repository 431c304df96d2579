"""Losses on logits that more than one method uses.

They take softmax logits ``(N, K)``, one column for each class. Sigmoid heads are converted by
:func:`sigmoid_to_softmax`, so that entropies, margins and class mixtures mean the same for every head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax_entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy in nats of each row: logits ``(N, K)`` -> ``(N,)``."""
    log_probabilities = logits.log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def sigmoid_entropy(logits: Tensor) -> Tensor:
    """Return the sum of the binary entropies in nats of independent classes: ``(N, K)`` -> ``(N,)``."""
    probabilities = logits.sigmoid()
    positive = torch.nn.functional.logsigmoid(logits)
    negative = torch.nn.functional.logsigmoid(-logits)
    return -(probabilities * positive + (1 - probabilities) * negative).sum(-1)


def sigmoid_to_softmax(logits: Tensor) -> Tensor:
    """Append the no-object column that turns sigmoid logits ``(..., K)`` into softmax logits ``(..., K + 1)``.

    For independent sigmoids of which at most one is on, ``P(class k) = odds_k / (1 + sum odds)`` and
    ``P(none) = 1 / (1 + sum odds)``: a softmax with a constant zero logit for "none". For one class it is
    the sigmoid itself.
    """
    return torch.cat([logits, logits.new_zeros((*logits.shape[:-1], 1))], dim=-1)


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the cross-entropy of student to teacher rows in nats: two ``(N, K)`` -> ``(N,)``."""
    return -(teacher_logits.softmax(-1) * student_logits.log_softmax(-1)).sum(-1)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of ``values`` ``(N,)``, weighted by ``weights`` ``(N,)`` where given: a scalar."""
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum()


def entropy_margin_nats(fraction: float, columns: int) -> float:
    """Return ``fraction`` of the largest entropy that ``columns`` classes can have (E0 of EATA and SAR)."""
    return fraction * math.log(columns)

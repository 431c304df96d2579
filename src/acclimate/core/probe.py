"""The probe: a fixed batch on which entropy is measured after every step.

Losses of different batches cannot be compared.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from acclimate.core import layout
from acclimate.core.guards import decided_classes
from acclimate.core.losses import softmax_entropy, weighted_mean
from acclimate.core.method import Method
from acclimate.core.task import Task


class Probe:
    """Measures the mean entropy on the probe batch, and agreement with the first decisions on it.

    Attributes:
        batch: the images; None disables the probe.
        loss: mean entropy in nats with the weights of the last kept step; None without a batch.
        seconds: wall-clock seconds spent on measuring.
    """

    def __init__(self, model: nn.Module, method: Method, task: Task) -> None:
        self._model, self._method, self._task = model, method, task
        self._first_classes: tuple[int, ...] = ()
        self.batch: Any = None
        self.loss: float | None = None
        self.seconds = 0.0

    def begin(self, batch: Any, state: Any) -> None:
        """Take ``batch`` as the probe; later decisions are compared with those of the model as it is now."""
        self.batch = batch
        if batch is not None:
            self.loss, self._first_classes = self._measure(state)

    def measure_again(self, state: Any) -> None:
        """Update ``loss`` with the model's present weights."""
        if self.batch is not None:
            self.loss, _ = self._measure(state)

    def after(self, state: Any) -> tuple[float | None, float | None]:
        """Return loss and agreement with the model's present weights, without changing ``loss``."""
        if self.batch is None:
            return None, None
        loss, classes = self._measure(state)
        decided = max(len(classes), len(self._first_classes))
        same = sum(a == b for a, b in zip(classes, self._first_classes, strict=False))
        # No object was detected, neither at first nor now: the two agree.
        return loss, same / decided if decided else 1.0

    @torch.no_grad()
    def _measure(self, state: Any) -> tuple[float, tuple[int, ...]]:
        started = time.perf_counter()
        outputs = self._method.predict(self._model, layout.for_prediction(self.batch), state, task=self._task)
        decisions = self._task.decisions(outputs)
        loss = 0.0
        if len(decisions):
            loss = float(weighted_mean(softmax_entropy(decisions.logits), decisions.weights))
        classes = decided_classes(self._task, outputs)
        self.seconds += time.perf_counter() - started
        return loss, classes

"""BatchNorm statistics of each batch, mixed with the source's (Schneider et al., NeurIPS 2020, arXiv 2006.16971)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from acclimate.core import layout
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach, sample_count
from acclimate.core.selection import statistics_only
from acclimate.core.task import Task
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormStats:
    """Normalise each batch with a mixture of its own statistics and the source's; no gradient, no weight is updated.

    Attributes:
        source_strength: N of eq. 1, the number of samples that the source statistics count for, where a batch counts
            for its n samples. 0 uses the batch alone (Nado et al. 2020). In the paper the best N depends on the batch
            size; None takes N = n (equal weights), which was within one point of the best N at every batch size from 4
            to 200 on the tuning images of ``benchmarks/bn_strength``.

    Raises:
        ConfigError: the strength is negative.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="bn",
        title="Batch statistics",
        paper=Paper(authors="Schneider et al.", venue="NeurIPS", year=2020, arxiv="2006.16971"),
        cost=1.0,
        needs_gradient=False,
        needs_one_of=("batch_norm",),
        also_predicts_with="batch statistics",
        presets=(Preset(name="bn_safe", settings={"update_filter": "norm_only"}),),
        safe_rank={"segmenter": 2, "detector": 2},
        auto={"segmenter": ({},), "detector": ({},)},
    )

    source_strength: float | None = None

    def __post_init__(self) -> None:
        if self.source_strength is not None and not self.source_strength >= 0:
            raise ConfigError(f"bn: source_strength must not be negative, got {self.source_strength}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select no parameter, only the statistics."""
        return statistics_only(model, source_strength=self.source_strength)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: no gradient is computed."""

    def start(self, model: nn.Module, selection: Selection) -> None:
        """Return None: there is no state."""

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: None,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer | None,
        rng: torch.Generator,
    ) -> Step:
        """Return the outputs under mixed statistics."""
        with torch.no_grad():
            outputs = task.forward(model, layout.for_prediction(batch))
        return Step(state, detach(outputs), None, sample_count(batch))

    def predict(self, model: nn.Module, inputs: Any, state: None, *, task: Task) -> Any:
        """Return the outputs under mixed statistics."""
        return task.forward(model, inputs)

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return that batches are independent."""
        return ("bn: each batch is predicted with its own statistics; no weight is updated",)

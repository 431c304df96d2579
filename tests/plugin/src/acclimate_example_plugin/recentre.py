"""Recentre: subtract from the logits their moving mean over the stream, so that no class is favoured for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from acclimate.core import Selection, Step, Task
from acclimate.core.selection import nothing_selected
from acclimate.registry import MethodInfo, Preset


@dataclass(frozen=True, slots=True)
class RecentreState:
    """Moving mean of the logits ``(K,)``; None before the first batch."""

    mean: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recentre:
    """Subtract a moving mean from the logits.

    Attributes:
        momentum: of the moving mean.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="recentre",
        title="Recentred logits",
        kinds=("classifier",),
        needs_gradient=False,
        also_predicts_with="the mean of the stream's logits",
        presets=(Preset(name="recentre_slow", settings={"method_options": {"momentum": 0.5}}),),
    )
    state_types: ClassVar[tuple[type, ...]] = (RecentreState,)

    momentum: float = 0.9

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select nothing: no weight moves."""
        return nothing_selected(model)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: there is no gradient."""

    def start(self, model: nn.Module, selection: Selection) -> RecentreState:
        """Return a state without a mean."""
        return RecentreState()

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: RecentreState,
        *,
        task: Task,
        selection: Selection,
        optimizer: Any,
        rng: torch.Generator,
    ) -> Step:
        """Take the batch into the mean, and return the recentred logits."""
        with torch.no_grad():
            logits = task.decisions(task.forward(model, batch)).logits
        mean = logits.mean(0)
        if state.mean is not None:
            mean = self.momentum * state.mean + (1 - self.momentum) * mean
        return Step(RecentreState(mean), logits - mean, None, len(logits))

    def predict(self, model: nn.Module, inputs: Any, state: RecentreState, *, task: Task) -> Any:
        """Return the logits, recentred by the mean so far."""
        logits = task.decisions(task.forward(model, inputs)).logits
        return logits if state.mean is None else logits - state.mean

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return nothing."""
        return ()

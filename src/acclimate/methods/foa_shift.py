"""Activation shifting of FOA: embeddings moved back to the source (Niu et al., ICML 2024, arXiv 2404.01650)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn

from acclimate.core import embeddings, layout
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach, sample_count
from acclimate.core.programs import refuse_programs
from acclimate.core.selection import nothing_selected
from acclimate.core.source_images import FROM_SOURCE_IMAGES, SourceImages
from acclimate.core.task import Task, require_classifier
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.registry import MethodInfo, Paper, Preset

_SOURCE_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class FoaShiftState:
    """Moving average of the stream's mean embedding ``(D,)``; None before the first batch."""

    mean: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoaShift:
    """Move embeddings by the difference of the source's mean embedding and the stream's (eqs. 7 to 9).

    This is the part of FOA that needs no search: its learned prompt takes tens of forward passes a batch. There is no
    gradient, and a step costs nothing beyond the prediction.

    Attributes:
        source_mean: mean of the source images' embeddings ``(D,)``; required.
        step_size: the share of the difference by which embeddings are moved (gamma, 1).
        rate: the weight of the newest batch in the stream's moving average (alpha, 0.1).

    Raises:
        ConfigError: a field is out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="foa_shift",
        title="FOA, activation shifting",
        paper=Paper(authors="Niu et al.", venue="ICML", year=2024, arxiv="2404.01650"),
        kinds=("classifier",),
        cost=1.0,
        needs_gradient=False,
        needs_one_of=("source_images",),
        uses_source_images=True,
        also_predicts_with="the stream's mean embedding",
        presets=(Preset(name="foa_shift_safe", settings={"update_filter": "norm_only"}),),
    )
    state_types: ClassVar[tuple[type, ...]] = (FoaShiftState,)

    source_mean: Tensor | None = field(default=None, repr=False, compare=False, metadata=FROM_SOURCE_IMAGES)
    step_size: float = 1.0
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ConfigError(f"foa_shift: step_size must be positive, got {self.step_size}")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"foa_shift: rate must lie in (0, 1], got {self.rate}")

    def with_source(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with the mean embedding of the source images; itself where there are none."""
        if source.batches is None:
            return self
        total: list[Tensor] = []
        count = [0]

        def add(found: Tensor) -> Tensor:
            total[:] = [found.sum(0) + (total[0] if total else 0)]
            count[0] += len(found)
            return torch.zeros_like(found)

        with torch.no_grad(), embeddings.shifted(model, add, method=self.info.name):
            for inputs in source.batches(_SOURCE_BATCH):
                task.forward(model, layout.for_prediction(inputs))
        return replace(self, source_mean=total[0] / count[0]) if total else self

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select no parameter.

        Raises:
            TTTNotSupportedError: the model is a program, whose layers cannot be watched.
        """
        refuse_programs(model, changes_layers=True)
        return nothing_selected(model)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: no gradient is computed."""

    def start(self, model: nn.Module, selection: Selection) -> FoaShiftState:
        """Return the state before the first batch.

        Raises:
            TTTNotSupportedError: the source's mean embedding is unknown.
        """
        self._source()
        return FoaShiftState()

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: FoaShiftState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer | None,
        rng: torch.Generator,
    ) -> Step:
        """Move the stream's mean towards the batch's, and return the outputs of shifted embeddings.

        Raises:
            TTTNotSupportedError: the task is no classifier's, or the logits are not those of a linear layer.
        """
        require_classifier(task, self.info.name)
        seen = [state]

        def shift(found: Tensor) -> Tensor:
            mean = found.mean(0)
            if state.mean is not None:
                mean = torch.lerp(state.mean, mean, self.rate)
            seen[:] = [FoaShiftState(mean)]
            return self._shift(mean)

        with torch.no_grad(), embeddings.shifted(model, shift, method=self.info.name):
            outputs = task.forward(model, layout.for_prediction(batch))
        return Step(seen[0], detach(outputs), None, sample_count(batch))

    def predict(self, model: nn.Module, inputs: Any, state: FoaShiftState, *, task: Task) -> Any:
        """Return the outputs of embeddings shifted by the difference of the means so far."""
        with self.installed(model, state, task=task):
            return task.forward(model, inputs)

    @contextmanager
    def installed(self, model: nn.Module, state: FoaShiftState, *, task: Task) -> Iterator[None]:
        """Inside the block, ``model`` predicts from shifted embeddings.

        Raises:
            TTTNotSupportedError: the task is no classifier's.
        """
        require_classifier(task, self.info.name)
        mean = state.mean
        if mean is None:
            yield
            return
        with embeddings.shifted(model, lambda _: self._shift(mean), method=self.info.name):
            yield

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return that only embeddings are moved."""
        return ("foa_shift: embeddings are moved to the source's mean; no weight is updated",)

    def _shift(self, mean: Tensor) -> Tensor:
        return self.step_size * (self._source().to(mean) - mean)

    def _source(self) -> Tensor:
        if self.source_mean is None:
            raise TTTNotSupportedError(
                "foa_shift needs the mean embedding of source images; give unlabelled source images with "
                "--ttt-source, or use neo"
            )
        return self.source_mean

"""NEO: embeddings moved so that their mean is the origin (Murphy et al., ICLR 2026, arXiv 2510.05635)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from acclimate.core import embeddings, layout
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach, sample_count
from acclimate.core.programs import refuse_programs
from acclimate.core.selection import nothing_selected
from acclimate.core.task import Task, require_classifier
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True)
class NeoState:
    """Mean embedding of the stream ``(D,)``, and the number of images in it; None before the first."""

    mean: Tensor | None = None
    images: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Neo:
    """Subtract the stream's mean embedding from the inputs of the last linear layer.

    A change of the images moves the embeddings of all classes in the same direction. After training, the embeddings of
    a transformer lie around the origin; moving their mean there undoes that part of the change. There is no gradient,
    and a step costs nothing beyond the prediction.

    Attributes:
        window_images: the mean is over about so many of the newest images, for streams that change; None takes all
            images, as the paper does.

    Raises:
        ConfigError: ``window_images`` is below 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="neo",
        title="NEO",
        paper=Paper(authors="Murphy et al.", venue="ICLR", year=2026, arxiv="2510.05635"),
        kinds=("classifier",),
        cost=1.0,
        needs_gradient=False,
        also_predicts_with="the stream's mean embedding",
        # Shorter embeddings have a higher entropy.
        certainty_allowance=1.3,
        presets=(Preset(name="neo_safe", settings={"update_filter": "norm_only"}),),
        auto={"classifier": ({},)},
        auto_without_batch_norm=True,
        auto_reason="the most accurate method without BatchNorm and source images, and all checks passed",
    )
    state_types: ClassVar[tuple[type, ...]] = (NeoState,)

    window_images: int | None = None

    def __post_init__(self) -> None:
        if self.window_images is not None and self.window_images < 1:
            raise ConfigError(f"neo: window_images must be at least 1, got {self.window_images}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select no parameter.

        Raises:
            TTTNotSupportedError: the model is a program, whose layers cannot be watched.
        """
        refuse_programs(model, changes_layers=True)
        return nothing_selected(model)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: no gradient is computed."""

    def start(self, model: nn.Module, selection: Selection) -> NeoState:
        """Return the state before the first batch, in which nothing is moved."""
        return NeoState()

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: NeoState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer | None,
        rng: torch.Generator,
    ) -> Step:
        """Add the batch's embeddings to the mean, and return the outputs without it.

        Raises:
            TTTNotSupportedError: the task is no classifier's, or the logits are not those of a linear layer.
        """
        require_classifier(task, self.info.name)
        seen = [state]

        def shift(found: Tensor) -> Tensor:
            seen[:] = [self._with(state, found)]
            return -_mean(seen[0], found)

        with torch.no_grad(), embeddings.shifted(model, shift, method=self.info.name):
            outputs = task.forward(model, layout.for_prediction(batch))
        return Step(seen[0], detach(outputs), None, sample_count(batch))

    def predict(self, model: nn.Module, inputs: Any, state: NeoState, *, task: Task) -> Any:
        """Return the outputs without the mean embedding of the stream so far."""
        with self.installed(model, state, task=task):
            return task.forward(model, inputs)

    @contextmanager
    def installed(self, model: nn.Module, state: NeoState, *, task: Task) -> Iterator[None]:
        """Inside the block, ``model`` predicts without the mean embedding.

        Raises:
            TTTNotSupportedError: the task is no classifier's.
        """
        require_classifier(task, self.info.name)
        if state.mean is None:
            yield
            return
        with embeddings.shifted(model, lambda found: -_mean(state, found), method=self.info.name):
            yield

    def _with(self, state: NeoState, found: Tensor) -> NeoState:
        """Return the state with the embeddings of a batch added."""
        kept = state.images
        if self.window_images is not None:
            kept = min(kept, max(0.0, self.window_images - len(found)))
        total = kept + len(found)
        if total == 0:
            return state
        mean = found.mean(0) if state.mean is None else (kept * state.mean + found.sum(0)) / total
        return NeoState(mean, total)

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return that only embeddings are moved."""
        return ("neo: the mean embedding of the stream is subtracted; no weight is updated",)


def _mean(state: NeoState, found: Tensor) -> Tensor:
    return found.new_zeros(found.shape[1]) if state.mean is None else state.mean

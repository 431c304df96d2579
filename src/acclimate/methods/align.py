"""Align: align the statistics of activations with the source's (ActMAD: Mirza et al., CVPR 2023, arXiv 2211.12870).

ActMAD aligns mean and variance of activations with those of the training set by gradient descent. Here the activations
are the inputs of BatchNorm layers, whose source statistics are stored in every network (as in Yin et al., CVPR 2020,
arXiv 1912.08795), so that no training images are needed. The paper also uses statistics of each position, which
require training images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from acclimate.core import layout, norm
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach, sample_count
from acclimate.core.programs import refuse_programs
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.source_images import FROM_SOURCE_IMAGES, SourceImages
from acclimate.core.spectrum import Sums
from acclimate.core.task import Task
from acclimate.errors import ConfigError, EmptySelectionError
from acclimate.methods.spectrum import SpectrumFilter, SpectrumState
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Align:
    """Minimise the distance between the statistics of BatchNorm's inputs and its running statistics.

    The loss is the mean over layers and channels of ``|mean - source mean| + |std - source std|``, in source standard
    deviations (the paper's L1 distance, eq. 3, made independent of scale). It does not depend on predictions, so it
    works with any head.

    Attributes:
        lr: of Adam. Not from the paper: tuned on ``benchmarks/pose_scenes``, where 5e-4 and more lower the accuracy on
            clean images.
        update: the trainable parameters; the paper's are all parameters.
        batch_statistics: whether to normalise with the batch's statistics.
        spectrum: filters images first (see :class:`~acclimate.methods.SpectrumFilter`); None leaves them unfiltered.

    Raises:
        ConfigError: the rate is negative.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="align",
        title="Align",
        paper=Paper(authors="Mirza et al.", venue="CVPR", year=2023, arxiv="2211.12870"),
        cost=5.1,
        parameters_of_paper="all",
        needs_one_of=("batch_norm",),
        uses_source_images=True,
        also_predicts_with="a filter",
        presets=(Preset(name="align_safe", settings={"update_filter": "all", "lr": 2e-4, "max_drift": 0.2}),),
        auto={"detector": ({},)},
    )
    state_types: ClassVar[tuple[type, ...]] = (SpectrumState, Sums)

    lr: float = 2e-4
    update: TensorFilter = TensorFilter(kind="all")
    batch_statistics: bool = True
    spectrum: SpectrumFilter | None = field(default=None, metadata=FROM_SOURCE_IMAGES)

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ConfigError(f"align: lr must not be negative, got {self.lr}")

    def with_source(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with a filter towards the source images' spectrum; itself where that is unknown."""
        spectrum = (self.spectrum or SpectrumFilter()).with_spectrum(model, source, task=task)
        return self if spectrum.source is None else replace(self, spectrum=spectrum)

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses.

        Raises:
            EmptySelectionError: no BatchNorm layer keeps running statistics.
            TTTNotSupportedError: the model is a program, whose layers cannot be changed.
        """
        refuse_programs(model, changes_layers=True)
        if not _layers(model):
            raise EmptySelectionError(
                "align needs BatchNorm layers that keep running statistics, and this model has none; "
                "use tent, eata, sar, cotta or mim"
            )
        return selecting(model, self.update, batch_statistics=self.batch_statistics)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> SpectrumState:
        """Return the state of the filter; alignment itself has none."""
        return SpectrumState()

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: SpectrumState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Make one gradient step on the distance; the outputs are those before the update."""
        if self.spectrum is not None:
            state, batch = self.spectrum.observe(batch, state, task=task)
            batch = layout.for_learning(batch)
        distances: list[Tensor] = []
        with _measured(model, distances):
            outputs = task.forward(model, batch)
        if not distances:
            return Step(state, detach(outputs), None, 0)
        loss = torch.stack(distances).mean()
        loss.backward()
        optimizer.step()
        return Step(state, detach(outputs), loss.detach(), sample_count(batch))

    def predict(self, model: nn.Module, inputs: Any, state: SpectrumState, *, task: Task) -> Any:
        """Return the adapted model's outputs, on filtered images if ``spectrum`` is set."""
        if self.spectrum is not None:
            inputs = layout.for_prediction(self.spectrum.cleaned(inputs, state, task=task))
        return task.forward(model, inputs)

    def installed(self, model: nn.Module, state: SpectrumState, *, task: Task) -> AbstractContextManager[None]:
        """Inside the block, the inputs of ``model`` are filtered if ``spectrum`` is set."""
        return nullcontext() if self.spectrum is None else self.spectrum.filtering(model, state, task=task)

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return the number of aligned layers, and the notes of the filter."""
        first = f"align: the inputs of {len(_layers(model))} BatchNorm layers"
        return (first, *(() if self.spectrum is None else self.spectrum.notes(model, task)))


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers with running statistics, frozen BatchNorm included."""
    kept = ("running_mean", "running_var")
    return [module for module in model.modules() if all(module._buffers.get(name) is not None for name in kept)]


@contextmanager
def _measured(model: nn.Module, distances: list[Tensor]) -> Iterator[None]:
    """Inside the block, each BatchNorm layer appends the distance of its inputs from its running statistics."""

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values, source_mean, source_var = inputs[0], layer._buffers["running_mean"], layer._buffers["running_var"]
        if source_mean is None or source_var is None or not values.requires_grad:
            return
        mean, var = norm.moments(values)
        epsilon = float(getattr(layer, "eps", 1e-5))
        scale = (source_var + epsilon).sqrt()
        distances.append((((mean - source_mean).abs() + ((var + epsilon).sqrt() - scale).abs()) / scale).mean())

    handles = [layer.register_forward_pre_hook(measure) for layer in _layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Blend: filter images, mix running statistics of the stream with the source's, and average over flips.

A method of this project, without gradients. It builds on mixed statistics (Schneider et al., NeurIPS 2020, arXiv
2006.16971), running target statistics (RoTTA: Yuan et al., CVPR 2023, arXiv 2303.13899) and the filter of
:mod:`acclimate.methods.spectrum`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from acclimate.core import layout, norm
from acclimate.core.method import Selection, Step
from acclimate.core.norm import Moments
from acclimate.core.outputs import detach, map_tensors, sample_count
from acclimate.core.programs import refuse_programs
from acclimate.core.selection import nothing_selected
from acclimate.core.signals import Certainty, SignalPair
from acclimate.core.source_images import FROM_SOURCE_IMAGES, SourceImages
from acclimate.core.spectrum import Sums
from acclimate.core.task import Task
from acclimate.core.views import with_content
from acclimate.errors import ConfigError, EmptySelectionError
from acclimate.methods.spectrum import SpectrumFilter, SpectrumState
from acclimate.registry import MethodInfo, Preset


@dataclass(frozen=True, slots=True)
class BlendState:
    """Statistics of the stream.

    Attributes:
        seen: the state of the filter, where images are filtered.
        memory: running mean and variance of the inputs of each BatchNorm layer, by name.
        classes: mean class probabilities of recent decisions ``(K,)``; None before the first.
        decisions: the number of decisions that ``classes`` averages, at most the window.
    """

    seen: SpectrumState = SpectrumState()
    memory: Mapping[str, Moments] = field(default_factory=dict)
    classes: Tensor | None = None
    decisions: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Normalise filtered images with a mixture of running and source statistics, and average predictions over flips.

    The running statistics start as the source's and are updated with each batch of n images at the rate
    ``n / (n + memory_images)``, which suits batches of one image as well as of hundreds. On a stream that is ordered by
    class they would become those of the present class, so the rate is lower when recent decisions have few classes.

    Attributes:
        memory_weight: weight of the running statistics in the mixture; that of the source's is one minus it.
        memory_images: the number of images that the running statistics count for when a batch is added.
        diversity_exponent: the rate is multiplied by the diversity of recent decisions to this power. Diversity is
            (effective number of classes - 1) / (number of classes - 1); an exponent of 0 ignores it.
        diversity_window: the number of recent decisions from which diversity is computed.
        certainty: detects a first batch with too few classes to take statistics from: with its statistics the model
            would be less certain.
        flip_averaging: whether to average the predictions on each image and on its mirror image, where the task allows
            it; this doubles the cost.
        spectrum: filters images first; None leaves them unfiltered.

    The defaults were tuned on ``tune_jpeg.npz`` of ``benchmarks/cifar``, with corruptions and severities that are not
    part of the reported benchmark.

    Raises:
        ConfigError: a field is out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="blend",
        title="Blend",
        cost=2.2,
        needs_gradient=False,
        needs_one_of=("batch_norm", "source_images"),
        uses_source_images=True,
        also_predicts_with="a filter and statistics of the stream",
        certainty_allowance=2.0,
        presets=(Preset(name="blend_safe", settings={"update_filter": "norm_only"}),),
        auto={"classifier": ({},)},
        auto_reason="the most accurate method on every kind of stream that was measured, and all checks passed",
    )
    state_types: ClassVar[tuple[type, ...]] = (BlendState, SpectrumState, Sums)

    memory_weight: float = 0.5
    memory_images: int = 64
    diversity_exponent: float = 4.0
    diversity_window: int = 64
    flip_averaging: bool = True
    certainty: Certainty = field(default=Certainty(energy_weight=1.0, lost_energy_weight=0.5), repr=False)
    spectrum: SpectrumFilter | None = field(default=None, metadata=FROM_SOURCE_IMAGES)

    def __post_init__(self) -> None:
        if not 0 <= self.memory_weight <= 1:
            raise ConfigError(f"blend: memory_weight must lie in [0, 1], got {self.memory_weight}")
        for name in ("memory_images", "diversity_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"blend: {name} must be at least 1, got {getattr(self, name)}")
        if not self.diversity_exponent >= 0:
            raise ConfigError(f"blend: diversity_exponent must not be negative, got {self.diversity_exponent}")

    def with_source(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with a filter towards the source images' spectrum; itself where that is unknown."""
        spectrum = (self.spectrum or SpectrumFilter()).with_source(model, source, task=task)
        return self if spectrum.source is None else replace(self, spectrum=spectrum)

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select no parameter; only statistics adapt.

        Raises:
            EmptySelectionError: there is neither BatchNorm nor a filter, so there is nothing to adapt.
            TTTNotSupportedError: there is no filter, and the model is a program, whose layers cannot be changed.
        """
        refuse_programs(model, changes_layers=self.spectrum is None)
        if self.spectrum is None and not norm.batch_norms(model):
            raise EmptySelectionError(
                "blend needs a model with BatchNorm layers, or source images (--ttt-source) for its filter, and has "
                "neither; use tent, eata, sar, cotta or mim"
            )
        return nothing_selected(model)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: no gradient is computed."""

    def start(self, model: nn.Module, selection: Selection) -> BlendState:
        """Return the initial state, in which statistics are the source's."""
        return BlendState()

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: BlendState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer | None,
        rng: torch.Generator,
    ) -> Step:
        """Update the running statistics with the batch, and return the outputs under the new statistics.

        Images of one colour (a lens cap, a dropped frame) are predicted but do not enter the statistics.
        """
        with torch.no_grad():
            usable = with_content(task.images(batch), pixel_range=task.pixel_range)
            if not bool(usable.all()):
                if bool(usable.any()):
                    rest = map_tensors(lambda tensor: tensor[usable], batch)
                    options: dict[str, Any] = {"task": task, "selection": selection, "optimizer": optimizer, "rng": rng}
                    state = self.step(model, rest, state, **options).state
                outputs = self.predict(model, layout.for_prediction(batch), state, task=task)
                return Step(state, detach(outputs), None, int(usable.sum()))
            if self.spectrum is not None:
                seen, batch = self.spectrum.observe(batch, state.seen, task=task)
                state = replace(state, seen=seen)
            batch = layout.for_prediction(batch)
            count = sample_count(batch)
            rate = count / (count + self.memory_images) * self._rate_factor(model, batch, state, task=task)
            with norm.running_statistics(model, state.memory, memory_weight=self.memory_weight, rate=rate) as memory:
                outputs = task.forward(model, batch)
            state = self._with_decisions(replace(state, memory=memory), task.decisions(outputs).class_probabilities())
            outputs = self._flip_averaged(model, batch, outputs, state, task=task)
        return Step(state, detach(outputs), None, count)

    def predict(self, model: nn.Module, inputs: Any, state: BlendState, *, task: Task) -> Any:
        """Return the outputs on filtered images under mixed statistics, averaged over flips."""
        if self.spectrum is not None:
            inputs = layout.for_prediction(self.spectrum.cleaned(inputs, state.seen, task=task))
        with self._blended(model, state):
            outputs = task.forward(model, inputs)
        return self._flip_averaged(model, inputs, outputs, state, task=task)

    @contextmanager
    def installed(self, model: nn.Module, state: BlendState, *, task: Task) -> Iterator[None]:
        """Inside the block, ``model`` gets filtered images and uses mixed statistics, without flip averaging."""
        with ExitStack() as stack:
            if self.spectrum is not None:
                stack.enter_context(self.spectrum.filtering(model, state.seen, task=task))
            stack.enter_context(self._blended(model, state))
            yield

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return the notes of the filter, and which parts of the method are not used on this model."""
        found = [] if self.spectrum is None else list(self.spectrum.notes(model, task))
        if self.spectrum is None:
            found.append("blend: no source images are known, so images are not filtered (see --ttt-source)")
        if self.flip_averaging and not task.flips:
            found.append("blend: mirrored images may have another class in this task, so flips are not averaged")
        return tuple(found)

    def diversity(self, state: BlendState) -> float:
        """Return the diversity of recent decisions, in [0, 1]; 1 while there are too few of them."""
        if state.classes is None or len(state.classes) < 2 or state.decisions < self.diversity_window / 4:
            return 1.0
        entropy_nats = float(-(state.classes * state.classes.clamp(min=1e-9).log()).sum())
        return min(1.0, max(0.0, (math.exp(entropy_nats) - 1) / (len(state.classes) - 1)))

    def _rate_factor(self, model: nn.Module, batch: Any, state: BlendState, *, task: Task) -> float:
        """Return the factor of the rate at which the running statistics are updated, in [0, 1]."""
        if state.classes is not None or sample_count(batch) < self.diversity_window / 4:
            return math.pow(self.diversity(state), self.diversity_exponent)
        # A stream may begin with one class, and then its statistics make the model less certain than the source's do.
        count = sample_count(batch)
        source = task.forward(model, batch)
        rate = count / (count + self.memory_images)
        with norm.running_statistics(model, {}, memory_weight=self.memory_weight, rate=rate):
            adapted = task.forward(model, batch)
        both = SignalPair.of(task, adapted, source, samples=count)
        if self.certainty.degradation_score(both) <= 1:
            return 1.0
        state = self._with_decisions(state, task.decisions(source).class_probabilities())
        return math.pow(self.diversity(state), self.diversity_exponent)

    def _blended(self, model: nn.Module, state: BlendState) -> AbstractContextManager[Any]:
        return norm.running_statistics(model, state.memory, memory_weight=self.memory_weight, rate=0.0)

    def _with_decisions(self, state: BlendState, probabilities: Tensor) -> BlendState:
        if len(probabilities) == 0:
            return state
        # The newest decisions count in full, and the earlier mean for the rest of the window.
        newest = probabilities[-self.diversity_window :]
        kept = 0.0 if state.classes is None else min(state.decisions, self.diversity_window - len(newest))
        total = newest.sum(0) if state.classes is None else newest.sum(0) + kept * state.classes
        count = len(newest) + kept
        return replace(state, classes=total / count, decisions=count)

    def _flip_averaged(self, model: nn.Module, batch: Any, outputs: Any, state: BlendState, *, task: Task) -> Any:
        view = task.mirrored(batch) if self.flip_averaging else None
        if view is None:
            return outputs
        with self._blended(model, state):
            other = view.undo(task.forward(model, layout.for_prediction(view.batch)))
        return task.merge([outputs, other], outputs)

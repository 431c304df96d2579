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
from typing import Any, ClassVar, Final, Self

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

_LEAST_TRIAL: Final = 32
"""Fewer images than this say nothing about the filter, which is used until then."""


@dataclass(frozen=True, slots=True)
class FilterTrial:
    """Evidence on whether the filter helps, from images that were predicted with and without it.

    Attributes:
        images: compared so far.
        gain: in how many more of them the classes of image and mirror image are equal with the filter than without.
        changes: in how many of them that equality differs between with and without.
        memory, flipped_memory: running statistics of the images without the filter, and of their mirror images.
    """

    images: int = 0
    gain: float = 0.0
    changes: float = 0.0
    memory: Mapping[str, Moments] = field(default_factory=dict)
    flipped_memory: Mapping[str, Moments] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlendState:
    """Statistics of the stream.

    Attributes:
        seen: the state of the filter, where images are filtered.
        memory: running mean and variance of the inputs of each BatchNorm layer, by name.
        classes: mean class probabilities of recent decisions ``(K,)``; None before the first.
        decisions: the number of decisions that ``classes`` averages, at most the window.
        flipped_memory: as ``memory``, of the mirror images.
        filters: whether images are filtered.
        trial: evidence on that, while it is not decided.
    """

    seen: SpectrumState = SpectrumState()
    memory: Mapping[str, Moments] = field(default_factory=dict)
    classes: Tensor | None = None
    decisions: float = 0.0
    flipped_memory: Mapping[str, Moments] = field(default_factory=dict)
    filters: bool = True
    trial: FilterTrial | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """Outputs merged over flips, on the images, and on their mirror images (None where not run); and the statistics."""

    outputs: Any
    unmerged: Any
    flipped: Any
    memory: Mapping[str, Moments]
    flipped_memory: Mapping[str, Moments]

    def agreements(self, task: Task) -> Tensor:
        """Return 1 for each image whose class equals that of its mirror image, else 0: ``(B,)``."""
        classes = [task.decisions(found).class_probabilities().argmax(-1) for found in (self.unmerged, self.flipped)]
        return (classes[0] == classes[1]).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Normalise filtered images with a mixture of running and source statistics, and average predictions over flips.

    The running statistics start as the source's and are updated with each batch of n images at the rate
    ``n / (n + memory_images)``, which suits batches of one image as well as of hundreds. On a stream that is ordered by
    class they would become those of the present class, so the rate is lower when recent decisions have few classes.
    Mirror images have running statistics of their own: oriented features have others there, above all under directional
    blur.

    The filter undoes damage that is alike in all directions and places. Where it is not (line noise, few grey levels),
    the filter does harm that the power spectrum does not show. The network shows it: predictions on an image and on its
    mirror image agree more often where a filter restored what the network knows. So at the beginning of a stream, and
    after a change of its spectrum, images are predicted with and without the filter until that is decided.

    Attributes:
        memory_weight: weight of the running statistics in the mixture; that of the source's is one minus it.
        memory_images: the number of images that the running statistics count for when a batch is added.
        diversity_exponent: the rate is multiplied by the diversity of recent decisions to this power. Diversity is
            (effective number of classes - 1) / (number of classes - 1); an exponent of 0 ignores it.
        first_diversity: a first batch whose decisions are more diverse than this is taken into the statistics in full.
        diversity_window: the number of recent decisions from which diversity is computed.
        certainty: detects a first batch with too few classes to take statistics from: with its statistics the model
            would be less certain.
        flip_averaging: whether to average the predictions on each image and on its mirror image, where the task allows
            it; this doubles the cost.
        filter_gain: by how much the share of images whose class equals that of their mirror image must rise with the
            filter for it to stay in use.
        filter_trial_images: the number of images after which that is decided at the latest; with 0, and without flip
            averaging, the filter is always used.
        trial_diversity: batches are compared with and without the filter only while recent decisions are more diverse
            than this: a model that gives few classes to everything agrees with itself, whatever it is shown.
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
        presets=(
            Preset(
                name="blend_safe",
                settings={"update_filter": "norm_only"},
                # A frame has thousands of pixels of many classes: a few frames are enough for the statistics, and one
                # class more or less in them says nothing about the stream.
                segmenter={
                    "method_options": {
                        "memory_images": 4,
                        "memory_weight": 0.8,
                        "diversity_exponent": 0.0,
                        "filter_trial_images": 0,
                    }
                },
            ),
        ),
        auto={"classifier": ({},)},
        auto_reason="the most accurate method on every kind of stream that was measured, and all checks passed",
    )
    state_types: ClassVar[tuple[type, ...]] = (BlendState, FilterTrial, SpectrumState, Sums)

    memory_weight: float = 0.5
    memory_images: int = 64
    diversity_exponent: float = 4.0
    first_diversity: float = 0.25
    diversity_window: int = 64
    flip_averaging: bool = True
    filter_gain: float = 0.05
    filter_trial_images: int = 128
    trial_diversity: float = 0.7
    certainty: Certainty = field(default=Certainty(energy_weight=1.0, lost_energy_weight=0.5), repr=False)
    spectrum: SpectrumFilter | None = field(default=None, metadata=FROM_SOURCE_IMAGES)

    def __post_init__(self) -> None:
        if not 0 <= self.memory_weight <= 1:
            raise ConfigError(f"blend: memory_weight must lie in [0, 1], got {self.memory_weight}")
        for name in ("memory_images", "diversity_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"blend: {name} must be at least 1, got {getattr(self, name)}")
        if not -1 <= self.filter_gain <= 1:
            raise ConfigError(f"blend: filter_gain must lie in [-1, 1], got {self.filter_gain}")
        if self.filter_trial_images < 0:
            raise ConfigError(f"blend: filter_trial_images must not be negative, got {self.filter_trial_images}")
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
            count = sample_count(batch)
            state, filtered = self._observed(batch, state, task=task)
            used = layout.for_prediction(filtered if state.filters else batch)
            rate = count / (count + self.memory_images) * self._rate_factor(model, used, state, task=task)
            run = self._run(model, used, state.memory, state.flipped_memory, rate=rate, task=task)
            state = replace(state, memory=run.memory, flipped_memory=run.flipped_memory)
            state = self._with_decisions(state, task.decisions(run.unmerged).class_probabilities())
            outputs = run.outputs
            if state.trial is not None:
                state, outputs = self._tried(model, batch, filtered, run, state, rate=rate, task=task)
        return Step(state, detach(outputs), None, count)

    def predict(self, model: nn.Module, inputs: Any, state: BlendState, *, task: Task) -> Any:
        """Return the outputs under mixed statistics, on filtered images where that helps, averaged over flips."""
        state = self._in_use(state)
        if self.spectrum is not None and state.filters:
            inputs = self.spectrum.cleaned(inputs, state.seen, task=task)
        inputs = layout.for_prediction(inputs)
        return self._run(model, inputs, state.memory, state.flipped_memory, rate=0.0, task=task).outputs

    @contextmanager
    def installed(self, model: nn.Module, state: BlendState, *, task: Task) -> Iterator[None]:
        """Inside the block, ``model`` gets filtered images and uses mixed statistics, without flip averaging."""
        state = self._in_use(state)
        with ExitStack() as stack:
            if self.spectrum is not None and state.filters:
                stack.enter_context(self.spectrum.filtering(model, state.seen, task=task))
            stack.enter_context(self._mixing(model, state.memory, rate=0.0))
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
        # So does strong damage, under which the source model gives one class to everything with certainty. Then the
        # decisions under the new statistics are of many classes.
        diversity = self.diversity(self._with_decisions(state, task.decisions(adapted).class_probabilities()))
        return 1.0 if diversity >= self.first_diversity else math.pow(diversity, self.diversity_exponent)

    def _mixing(
        self, model: nn.Module, memory: Mapping[str, Moments], *, rate: float
    ) -> AbstractContextManager[dict[str, Moments]]:
        return norm.running_statistics(model, memory, memory_weight=self.memory_weight, rate=rate)

    def _observed(self, batch: Any, state: BlendState, *, task: Task) -> tuple[BlendState, Any]:
        """Return the state with the batch added to the stream's spectrum, and the batch filtered where that is on."""
        if self.spectrum is None:
            return state, batch
        seen, filtered = self.spectrum.observe(batch, state.seen, task=task, filtering=state.filters)
        state = replace(state, seen=seen)
        began_again = seen.stream is not None and seen.stream.count == sample_count(batch)
        if not began_again or not self._can_try(task):
            return state, filtered
        trial = FilterTrial(memory=state.memory, flipped_memory=state.flipped_memory)
        if not state.filters:
            filtered = self.spectrum.cleaned(batch, seen, task=task)
        return replace(state, filters=True, trial=trial), filtered

    def _can_try(self, task: Task) -> bool:
        # Without flip averaging, mirror images would have to be predicted for this alone.
        return self.flip_averaging and self.filter_trial_images > 0 and task.flips and task.aligned and task.exclusive

    def _run(
        self,
        model: nn.Module,
        batch: Any,
        memory: Mapping[str, Moments],
        flipped_memory: Mapping[str, Moments],
        *,
        rate: float,
        task: Task,
    ) -> _Run:
        """Predict a batch and its mirror images, each with running statistics of its own."""
        with self._mixing(model, memory, rate=rate) as updated:
            outputs = task.forward(model, batch)
        view = task.mirrored(batch) if self.flip_averaging else None
        if view is None:
            return _Run(outputs, outputs, None, updated, flipped_memory)
        with self._mixing(model, flipped_memory, rate=rate) as flipped_updated:
            other = view.undo(task.forward(model, layout.for_prediction(view.batch)))
        return _Run(task.merge([outputs, other], outputs), outputs, other, updated, flipped_updated)

    def _tried(
        self,
        model: nn.Module,
        batch: Any,
        filtered: Any,
        run: _Run,
        state: BlendState,
        *,
        rate: float,
        task: Task,
    ) -> tuple[BlendState, Any]:
        """Predict the batch without the filter too; return the state with that evidence, and the outputs to use."""
        trial = state.trial
        if trial is None or filtered is batch:
            # Nothing was filtered yet, so both kinds of statistics are the same.
            if trial is not None:
                trial = replace(trial, memory=state.memory, flipped_memory=state.flipped_memory)
            return replace(state, trial=trial), run.outputs
        if self.diversity(state) < self.trial_diversity:
            return state, run.outputs
        unfiltered = layout.for_prediction(batch)
        plain = self._run(model, unfiltered, trial.memory, trial.flipped_memory, rate=rate, task=task)
        gains = run.agreements(task) - plain.agreements(task)
        trial = FilterTrial(
            images=trial.images + len(gains),
            gain=trial.gain + float(gains.sum()),
            changes=trial.changes + float(gains.abs().sum()),
            memory=plain.memory,
            flipped_memory=plain.flipped_memory,
        )
        state = replace(state, trial=trial)
        outputs = run.outputs if self._in_use(state).filters else plain.outputs
        return self._in_use(replace(state, trial=None), trial) if self._is_decided(trial) else state, outputs

    def _in_use(self, state: BlendState, trial: FilterTrial | None = None) -> BlendState:
        """Return the state with the filter off, and the statistics without it, where the evidence speaks against it."""
        trial = state.trial if trial is None else trial
        if trial is None or trial.images < _LEAST_TRIAL or trial.gain / trial.images > self.filter_gain:
            return state
        return replace(state, filters=False, memory=trial.memory, flipped_memory=trial.flipped_memory)

    def _is_decided(self, trial: FilterTrial) -> bool:
        """Say whether the gain is two standard errors from the limit, or enough images were tried."""
        distance = abs(trial.gain - trial.images * self.filter_gain)
        clear = trial.images >= _LEAST_TRIAL and distance > 2 * math.sqrt(max(trial.changes, 1.0))
        return clear or trial.images >= self.filter_trial_images

    def _with_decisions(self, state: BlendState, probabilities: Tensor) -> BlendState:
        if len(probabilities) == 0:
            return state
        # The newest decisions count in full, and the earlier mean for the rest of the window.
        newest = probabilities[-self.diversity_window :]
        kept = 0.0 if state.classes is None else min(state.decisions, self.diversity_window - len(newest))
        total = newest.sum(0) if state.classes is None else newest.sum(0) + kept * state.classes
        count = len(newest) + kept
        return replace(state, classes=total / count, decisions=count)

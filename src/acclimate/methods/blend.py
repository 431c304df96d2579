"""Blend: filter images, mix running statistics of the stream with the source's, and average over flips.

A method of this project, without gradients. It builds on mixed statistics (Schneider et al., NeurIPS 2020, arXiv
2006.16971), running target statistics (RoTTA: Yuan et al., CVPR 2023, arXiv 2303.13899) and the filter of
:mod:`acclimate.methods.spectrum`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn

from acclimate.core import layout, norm
from acclimate.core import spectrum as spectra
from acclimate.core.denoise import denoised, noise_power
from acclimate.core.method import Selection, Step
from acclimate.core.norm import Moments
from acclimate.core.outputs import detach, map_tensors, sample_count, tensors
from acclimate.core.programs import Program, refuse_programs
from acclimate.core.segmentation import Segmentation
from acclimate.core.selection import nothing_selected
from acclimate.core.signals import Certainty, SignalPair
from acclimate.core.source_images import FROM_SOURCE_IMAGES, SourceImages
from acclimate.core.source_model import partly_adapted_outputs
from acclimate.core.spectrum import Sums
from acclimate.core.task import Task, View
from acclimate.core.view_agreement import AgreementTest, ClassMixTest, ThreeDecisions, ViewDecisions
from acclimate.core.views import with_content
from acclimate.errors import ConfigError, EmptySelectionError
from acclimate.methods.spectrum import SpectrumFilter, SpectrumState, filtering, in_unit_range, with_unit_images
from acclimate.registry import MethodInfo, Preset

_SOURCE_BATCH: Final = 32
_SOURCE_IMAGES: Final = 512
"""So many source images are enough for means and variances by channel."""
_REPAIRS: Final = SpectrumFilter()
"""What is known of the filter without source images: it follows the stream, and removes spikes and stripes."""
_LEAST_NOISE: Final = 0.01
"""Standard deviation from which noise is removed; eight photographs or images of CIFAR have less than 0.001."""
_FOLLOWED_PIXELS: Final = 64
"""Without source images, only the middle of each image is looked at for a change of the stream, and for stripes."""
_LEAST_TRIAL: Final = 32
"""Fewer images than this say nothing about the filter, which is used until then. Of batches that are twice as large,
only the first half is predicted in other ways for trials."""
_LEAST_SAME: Final = 16
_CLEARLY: Final = 0.1
_REMEMBERED_STREAMS: Final = 4
"""The trials of so many streams say what the network is like; those after them are not tried."""
_LIKELY: Final = 1.0
"""So many standard errors of evidence are enough for the running statistics alone."""


@dataclass(frozen=True, slots=True)
class FilterTrial:
    """Evidence on whether the filter helps, from images that were predicted with and without it.

    Attributes:
        images: compared so far.
        gain: sum over them of the probability that image and mirror image are of different classes, without the filter
            and lessened by ``filter_gain``, minus the same with the filter.
        changes: sum of the squares of these differences.
        memory, flipped_memory: running statistics of the images without the filter, and of their mirror images.
        classes, plain_classes: sums of class probabilities with and without the filter ``(K,)``; None before the first.
    """

    images: int = 0
    gain: float = 0.0
    changes: float = 0.0
    memory: Mapping[str, Moments] = field(default_factory=dict)
    flipped_memory: Mapping[str, Moments] = field(default_factory=dict)
    classes: Tensor | None = None
    plain_classes: Tensor | None = None

    @property
    def class_ratio(self) -> float:
        """How many times as many classes are given without the filter as with it; 1 before the first image."""
        if self.classes is None or self.plain_classes is None:
            return 1.0
        entropies = [torch.special.entr(found / found.sum()).sum() for found in (self.plain_classes, self.classes)]
        return math.exp(float(entropies[0] - entropies[1]))


@dataclass(frozen=True, slots=True)
class AdaptationTrial:
    """Evidence on whether adaptation helps at all: the decisions of both models on the same images and mirror images.

    Attributes:
        adapted, unadapted: the decisions with mixed statistics, and with the source's.
    """

    adapted: ViewDecisions = field(default_factory=ViewDecisions.none)
    unadapted: ViewDecisions = field(default_factory=ViewDecisions.none)

    def same_share(self) -> float:
        """Return the share of images that both models give the same class; 0 for fewer than 16 images."""
        if len(self.adapted) < _LEAST_SAME:
            return 0.0
        return float((self.adapted.first == self.unadapted.first).float().mean())


@dataclass(frozen=True, slots=True)
class WeightTrial:
    """Evidence on whether the stream's statistics alone are better than their mixture with the source's.

    Attributes:
        images: predicted in both ways so far.
        gain: sum over them of the probability that image and mirror image are of different classes with the mixture,
            minus the same without the source's statistics.
        changes: sum of the squares of these differences.
        here: of the images, those of this stream.
    """

    images: int = 0
    gain: float = 0.0
    changes: float = 0.0
    here: int = 0

    def plus(self, gains: Tensor) -> WeightTrial:
        """Return the evidence with the differences ``(N,)`` on more images."""
        return WeightTrial(
            self.images + len(gains),
            self.gain + float(gains.sum()),
            self.changes + float(gains.square().sum()),
            self.here + len(gains),
        )

    def is_clear(self) -> bool:
        """Say whether the gain is two standard errors from zero."""
        return abs(self.gain) > 2 * math.sqrt(self.changes)


@dataclass(frozen=True, slots=True)
class Confidence:
    """How sure decisions are, to notice without source images that a stream has changed.

    Attributes:
        recent: mean probability of the decided class over recent decisions.
        decisions: the number of decisions that ``recent`` averages, at most the window.
        reference: ``recent`` of the first window; None before it is full.
    """

    recent: float = 0.0
    decisions: float = 0.0
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class UsedStatistics:
    """The mixed statistics of each layer that the newest batch was predicted with, and its mirror images."""

    images: Mapping[str, Moments] = field(default_factory=dict)
    flipped: Mapping[str, Moments] = field(default_factory=dict)


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
        unadapted: whether the unadapted model predicts, because it turned out to be better on these images.
        adaptation_trial: evidence on that, while it is not decided.
        departs: whether the network's own statistics show that images are not like the source's although their spectrum
            is; None while it is not known.
        hedged: whether mirror images are predicted by the unadapted model, because both models mostly agree.
        confidence: since that was decided; used where no source images are known.
        taken: the number of images that the running statistics count for, beside ``prior_images``; that of states which
            were saved before it was counted is infinite.
        damaged: whether images turned out to be damaged where the unadapted model gives them fewer classes.
        weight_trial: evidence on whether the stream's statistics alone are better than the mixture; it goes on over
            streams, since that is for the most part a property of the network.
        full_weight: whether they are.
        noise: the power of the noise in the newest batch of enough images, in each opponent colour ``(3,)``, where no
            source images are known; None where there is none.
        repaired: whether images of this stream were repaired, which is tried when it begins.
        resting: the statistics to predict the next batch with, which then is not added to those of the stream; None
            where it is added.
    """

    seen: SpectrumState = SpectrumState()
    memory: Mapping[str, Moments] = field(default_factory=dict)
    classes: Tensor | None = None
    decisions: float = 0.0
    flipped_memory: Mapping[str, Moments] = field(default_factory=dict)
    filters: bool = True
    trial: FilterTrial | None = None
    unadapted: bool = False
    adaptation_trial: AdaptationTrial | None = None
    confidence: Confidence = Confidence()
    taken: float = math.inf
    resting: UsedStatistics | None = None
    hedged: bool = False
    departs: bool | None = None
    damaged: bool = False
    weight_trial: WeightTrial | None = None
    full_weight: bool = False
    noise: Tensor | None = None
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class _Averaging:
    """How images are added to running statistics, and these are mixed with the source's.

    Attributes:
        weight: of each image, in [0, 1].
        kept: the number of images that the statistics count for before.
        taken: of these, the images of the stream.
        memory_weight: of the running statistics in the mixture.
    """

    weight: float
    kept: float
    taken: float
    memory_weight: float

    def rate(self, count: int) -> float:
        """Return the rate of the moving average for so many images."""
        return self.weight * count / (count + self.kept)

    def stream_share(self, count: int, prior_images: float) -> float:
        """Return the share of the stream in statistics that so many images are added to."""
        taken = self.taken + self.weight * count
        return 1.0 if math.isinf(taken) else taken / (taken + prior_images)


@dataclass(frozen=True, slots=True)
class _Run:
    """Outputs merged over flips, on the images, and on their mirror images (None where not run); and the statistics."""

    outputs: Any
    unmerged: Any
    flipped: Any
    memory: Mapping[str, Moments]
    flipped_memory: Mapping[str, Moments]
    used: UsedStatistics = UsedStatistics()

    def first(self, count: int) -> _Run:
        """Return the run on the first so many images, of which all were mirrored if any were for trials."""
        if sample_count(self.unmerged) == count:
            return self
        outputs, unmerged = (
            map_tensors(lambda tensor: tensor[:count], found) for found in (self.outputs, self.unmerged)
        )
        flipped = None if self.flipped is None else map_tensors(lambda tensor: tensor[:count], self.flipped)
        return replace(self, outputs=outputs, unmerged=unmerged, flipped=flipped)

    def disagreement(self, task: Task) -> Tensor:
        """Return the probability that image and mirror image are of different classes, for each image: ``(B,)``."""
        first, second = (task.decisions(found).class_probabilities() for found in (self.unmerged, self.flipped))
        return 1 - (first * second).sum(-1)

    def decisions(self, task: Task) -> ViewDecisions:
        """Return the decided classes of the images and of their mirror images."""
        return ViewDecisions.of(
            *(task.decisions(found).class_probabilities() for found in (self.unmerged, self.flipped))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Normalise filtered images with a mixture of running and source statistics, and average predictions over flips.

    The running statistics start as the source's, which count for ``prior_images``. Each batch of n images is added at
    the rate ``n / (n + m)``, where m is the number of images that the statistics count for so far, at most
    ``memory_images``: that suits batches of one image as well as of hundreds. Where the images' spectrum shows that
    another stream begins, they start again. On a stream that is ordered by class they would become those of the present
    class, so the rate is lower when recent decisions have few classes.
    Mirror images have running statistics of their own: oriented features have others there, above all under directional
    blur.

    Without BatchNorm, the outputs of the normalisation layers are realigned in its place: by channel from the mixture
    of running and source statistics to the source's.

    The filter undoes damage that is alike in all directions and places. Where it is not (line noise, few grey levels),
    the filter does harm that the power spectrum does not show. The network shows it: predictions on an image and on its
    mirror image agree better where a filter restored what the network knows. So at the beginning of a stream, and
    after a change of its spectrum, images are predicted with and without the filter until that is decided.

    The same images are predicted by the unadapted model too. It goes on predicting, averaged over flips, where it
    agrees with itself on mirror images better than the adapted model does. A stream whose spectrum is the source's is
    predicted exactly as by the unadapted model, without flip averaging.

    Attributes:
        memory_weight: weight of the running statistics in the mixture; that of the source's is one minus it.
        weight_trial_images: on so many images of each stream is tried whether the running statistics alone are better:
            some networks hardly lose by the chance in the statistics of a batch, and then the source's only hold them
            back. There, image and mirror image get the same class more often without them. With 0, and without flip
            averaging, the mixture is always used.
        full_shift: where the statistics of the layers so far differ from the source's by less than this, on average
            (:func:`acclimate.core.norm.shift`), the weight is smaller in proportion: a stream that is nearly the
            source's stays with the source's statistics. 0 uses ``memory_weight`` everywhere.
        departure: images whose spectrum is the source's are adapted to all the same where the statistics of the
            BatchNorm layers differ from the source's by more than this, on average, in the first large batch of a
            stream.
        memory_images: the most images that the running statistics count for when a batch is added.
        prior_images: the number of images that the source's statistics count for at the beginning of a stream.
        diversity_exponent: the rate is multiplied by the diversity of recent decisions to this power. Diversity is
            (effective number of classes - 1) / (number of classes - 1); an exponent of 0 ignores it.
        first_diversity: a first batch whose decisions are more diverse than this is taken into the statistics in full.
        class_mix: finds that a first batch is of few classes, to which its own statistics give many; then nothing of it
            is taken. ``first_layers``: the share of the BatchNorm layers whose statistics show that, the first ones.
        diversity_window: the number of recent decisions from which diversity is computed.
        certainty: detects a first batch with too few classes to take statistics from: with its statistics the model
            would be less certain.
        flip_averaging: whether to average the predictions on each image and on its mirror image, where the task allows
            it; this doubles the cost.
        hedge: where the adapted and the unadapted model give at least this share of images the same class, and the
            adapted one is not the more consistent one, it predicts the image and the unadapted one the mirror image:
            the average of two models that are about as good is seldom worse than either. Above 1, the adapted model
            predicts both. So it does where outputs of GroupNorm or LayerNorm are realigned: there the average was worse
            under each kind of damage of the half ``tune`` of benchmarks/shifts in which it was taken.
        sure: images whose class has at least this probability are not mirrored, except while trials need it; their
            prediction would hardly change.
        filter_gain: by which fraction the filter must lower the probability that an image and its mirror image are of
            different classes for it to stay in use.
        filter_trial_images: the number of images after which that is decided at the latest; with 0, and without flip
            averaging, the filter is always used.
        trial_diversity: batches are compared with and without the filter only while recent decisions are more diverse
            than this: a model that gives few classes to everything agrees with itself, whatever it is shown.
        adaptation_trial_images: the number of images after which it is decided whether adaptation helps; with 0, and
            without flip averaging, it is taken to help.
        agreement: finds that the unadapted model is better.
        confidence_change: without source images, that is tried again when the mean probability of the decided class has
            changed by more than this.
        spectrum: filters images first; None leaves them unfiltered.
        repairs: whether spikes, stripes and noise are removed from images (:mod:`acclimate.core.denoise`) where no
            source images are known; that is tried as the filter is.
        source_outputs: of a classifier without BatchNorm, the source's mean and variance of the outputs of each
            normalisation layer by name. Running statistics of these outputs take the place of BatchNorm's.

    The defaults were tuned on ``tune_jpeg.npz`` of ``benchmarks/cifar``, with corruptions and severities that are not
    part of the reported benchmark.

    Raises:
        ConfigError: a field is out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="blend",
        title="Blend",
        cost=2.2,
        averages_views=True,
        compares_itself=True,
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
    state_types: ClassVar[tuple[type, ...]] = (
        BlendState,
        FilterTrial,
        AdaptationTrial,
        WeightTrial,
        Confidence,
        UsedStatistics,
        ViewDecisions,
        SpectrumState,
        Sums,
    )

    memory_weight: float = 0.5
    weight_trial_images: int = 64
    full_shift: float = 0.015
    departure: float = 0.05
    memory_images: int = 64
    prior_images: int = 16
    diversity_exponent: float = 4.0
    first_diversity: float = 0.25
    diversity_window: int = 64
    flip_averaging: bool = True
    repairs: bool = True
    hedge: float = 0.75
    sure: float = 0.9
    filter_gain: float = 0.04
    filter_trial_images: int = 64
    trial_diversity: float = 0.7
    adaptation_trial_images: int = 128
    agreement: AgreementTest = field(default=AgreementTest(), repr=False)
    confidence_change: float = 0.1
    class_mix: ClassMixTest = field(default=ClassMixTest(), repr=False)
    first_layers: float = 0.5
    certainty: Certainty = field(default=Certainty(energy_weight=1.0, lost_energy_weight=0.5), repr=False)
    spectrum: SpectrumFilter | None = field(default=None, metadata=FROM_SOURCE_IMAGES)
    source_outputs: Mapping[str, Moments] = field(
        default_factory=dict, repr=False, compare=False, metadata=FROM_SOURCE_IMAGES
    )

    def __post_init__(self) -> None:
        if not 0 <= self.memory_weight <= 1:
            raise ConfigError(f"blend: memory_weight must lie in [0, 1], got {self.memory_weight}")
        for name in ("memory_images", "prior_images", "diversity_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"blend: {name} must be at least 1, got {getattr(self, name)}")
        if not self.full_shift >= 0:
            raise ConfigError(f"blend: full_shift must not be negative, got {self.full_shift}")
        if not 0 < self.sure <= 1:
            raise ConfigError(f"blend: sure must lie in (0, 1], got {self.sure}")
        if not -1 <= self.filter_gain <= 1:
            raise ConfigError(f"blend: filter_gain must lie in [-1, 1], got {self.filter_gain}")
        for name in ("filter_trial_images", "adaptation_trial_images", "weight_trial_images"):
            if getattr(self, name) < 0:
                raise ConfigError(f"blend: {name} must not be negative, got {getattr(self, name)}")
        if not self.diversity_exponent >= 0:
            raise ConfigError(f"blend: diversity_exponent must not be negative, got {self.diversity_exponent}")

    def with_source(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with a filter towards the source images' spectrum; itself where that is unknown."""
        spectrum = (self.spectrum or SpectrumFilter()).with_spectrum(model, source, task=task)
        method = self if spectrum.source is None else replace(self, spectrum=spectrum)
        if source.batches is None or not task.exclusive or norm.batch_norms(model) or isinstance(model, Program):
            return method
        batches = itertools.islice(source.batches(_SOURCE_BATCH), _SOURCE_IMAGES // _SOURCE_BATCH)

        def run() -> None:
            for inputs in batches:
                task.forward(model, layout.for_prediction(inputs))

        return replace(method, source_outputs=norm.output_moments(model, run))

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select no parameter; only statistics adapt.

        Raises:
            EmptySelectionError: there is neither BatchNorm nor a filter, so there is nothing to adapt.
            TTTNotSupportedError: there is no filter, and the model is a program, whose layers cannot be changed.
        """
        refuse_programs(model, changes_layers=self.spectrum is None)
        if self.spectrum is None and not self.source_outputs and not norm.batch_norms(model):
            raise EmptySelectionError(
                "blend needs a model with BatchNorm layers, or source images (--ttt-source) for its filter, and has "
                "neither; use tent, eata, sar, cotta or mim"
            )
        return nothing_selected(model)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: no gradient is computed."""

    def start(self, model: nn.Module, selection: Selection) -> BlendState:
        """Return the initial state, in which statistics are the source's."""
        return BlendState(taken=0.0)

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
            outputs = None
            if self._like_source(state):
                state, outputs = self._watched(model, layout.for_prediction(batch), state, task=task)
            if outputs is not None:
                state = self._with_decisions(state, task.decisions(outputs).class_probabilities())
                return Step(state, outputs, None, count, unadapted=outputs)
            if state.unadapted and state.adaptation_trial is None:
                plain = self._run_unadapted(model, layout.for_prediction(batch), state, task=task, mirrors_first=0)
                state = self._with_decisions(state, task.decisions(plain.unmerged).class_probabilities())
                return Step(state, detach(plain.outputs), None, count, unadapted=detach(plain.unmerged))
            part = _tried_part(batch)
            source: _Run | None = None
            if state.adaptation_trial is not None:
                source = self._run_unadapted(
                    model, layout.for_prediction(part), state, task=task, mirrors_first=sample_count(part)
                )
            used = filtered if state.filters else batch
            memories = state.memory, state.flipped_memory
            run, state, added = self._updated(model, used, batch, state, source, task=task)
            if self._tries_weight(state):
                used = layout.for_prediction(used)
                run, state = self._weighed(model, used, run, memories, state, added=added, task=task)
                # The filter is tried with the weight that is used from now on.
                added = replace(added, memory_weight=self._memory_weight(state))
            if state.trial is not None:
                run, state = self._tried(model, batch, filtered, run, state, added=added, task=task)
            if source is not None:
                run, state = self._compared(model, batch, run, source, state, task=task)
            state = self._with_decisions(state, task.decisions(run.unmerged).class_probabilities())
        unadapted = None if source is None else detach(source.unmerged)
        outputs, began = detach(run.outputs), state.seen.began
        return Step(state, outputs, None, count, unadapted=unadapted, new_stream=began, damage=state.damaged)

    def predict(self, model: nn.Module, inputs: Any, state: BlendState, *, task: Task) -> Any:
        """Return the outputs under mixed statistics, on filtered images where that helps, averaged over flips.

        Where the stream is like the source, or adaptation does not help, they are the unadapted model's.
        """
        if self._like_source(state):
            return task.forward(model, layout.for_prediction(inputs))
        if self._prefers_unadapted(state):
            inputs = layout.for_prediction(inputs)
            return self._run_unadapted(model, inputs, state, task=task, mirrors_first=0).outputs
        hedging = inputs if self._hedges(state) else None
        state = self._in_use(state)
        if state.filters and self._can_filter(inputs, task):
            inputs = self._cleaned(inputs, state, task=task)
        inputs = layout.for_prediction(inputs)
        return self._run(
            model,
            inputs,
            state.memory,
            state.flipped_memory,
            added=self._nothing(state),
            task=task,
            mirrors_first=0,
            hedging=hedging,
        ).outputs

    @contextmanager
    def installed(self, model: nn.Module, state: BlendState, *, task: Task) -> Iterator[None]:
        """Inside the block, ``model`` gets filtered images and uses mixed statistics, without flip averaging."""
        state = self._in_use(state)
        if self._like_source(state) or self._prefers_unadapted(state):
            yield
            return
        with ExitStack() as stack:
            if state.filters and (self.spectrum is not None or state.seen.stream is not None):
                stack.enter_context(filtering(model, partial(self._cleaned, state=state, task=task)))
            stack.enter_context(self._mixing(model, state.memory, added=self._nothing(state), count=0))
            yield

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return the notes of the filter, and which parts of the method are not used on this model."""
        found = [] if self.spectrum is None else list(self.spectrum.notes(model, task))
        if self.spectrum is None:
            found.append(
                "blend: no source images are known, so only spikes, stripes and noise are removed from images (see "
                "--ttt-source)"
            )
        if self.flip_averaging and not task.flips:
            found.append("blend: mirrored images may have another class in this task, so flips are not averaged")
        return tuple(found)

    def diversity(self, state: BlendState) -> float:
        """Return the diversity of recent decisions, in [0, 1]; 1 while there are too few of them."""
        if state.classes is None or len(state.classes) < 2 or state.decisions < self.diversity_window / 4:
            return 1.0
        entropy_nats = float(-(state.classes * state.classes.clamp(min=1e-9).log()).sum())
        # A window of decisions cannot show more classes than it has decisions.
        most = max(2, min(len(state.classes), self.diversity_window // 2))
        return min(1.0, max(0.0, (math.exp(entropy_nats) - 1) / (most - 1)))

    def _watched(self, model: nn.Module, batch: Any, state: BlendState, *, task: Task) -> tuple[BlendState, Any | None]:
        """Return the unadapted model's outputs on images with the source's spectrum; None where they are not like it.

        Some damage does not show in the mean spectrum, and in the network's own statistics it does.
        """
        if state.departs is not None or not self._tells_classes(batch) or not self._can_try(task):
            return state, detach(task.forward(model, batch))
        with norm.measured_shifts(model) as shifts:
            outputs = detach(task.forward(model, batch))
        departs = bool(shifts) and norm.mean_shift(shifts) > self.departure
        return replace(state, departs=departs), None if departs else outputs

    def _like_source(self, state: BlendState) -> bool:
        """Say whether the images are like the source's, so that there is nothing to undo."""
        return (
            self.spectrum is not None
            and not state.departs
            and state.seen.stream is not None
            and not state.seen.striped
            and self.spectrum.strength(state.seen.stream) == 0
        )

    def _prefers_unadapted(self, state: BlendState) -> bool:
        trial = state.adaptation_trial
        return state.unadapted if trial is None else self.agreement.favours(trial.unadapted, trial.adapted)

    def _hedges(self, state: BlendState) -> bool:
        trial = state.adaptation_trial
        if trial is None:
            return state.hedged
        if self.source_outputs:
            return False
        # An adapted model that is the more consistent one would lose by the average.
        return trial.same_share() >= self.hedge and not self.agreement.has_fewer(trial.adapted, trial.unadapted)

    def _updated(
        self, model: nn.Module, batch: Any, plain: Any, state: BlendState, source: _Run | None, *, task: Task
    ) -> tuple[_Run, BlendState, _Averaging]:
        """Return the run that updates the running statistics, the state with them, and how the batch was added.

        ``plain`` is the batch without the filter.
        """
        hedging = plain if state.hedged else None
        batch = layout.for_prediction(batch)
        kept = min(self.memory_images, self.prior_images + state.taken)
        added = _Averaging(1.0, kept, state.taken, self._memory_weight(state))
        tries = self._tries(state)
        mirrors_first = sample_count(_tried_part(batch)) if tries else 0
        if state.resting is not None and not tries:
            run = self._run(
                model,
                batch,
                state.memory,
                state.flipped_memory,
                added=self._nothing(state),
                task=task,
                mirrors_first=0,
                known=state.resting,
                hedging=hedging,
            )
            return run, replace(state, resting=None), added
        first = state.classes is None and self._tells_classes(batch)
        if (first and tries) or self._tries_weight(state):
            # All mirror images may be needed to tell few classes from damage, and are to weigh the statistics.
            mirrors_first = sample_count(batch)
        if not first:
            added = replace(added, weight=math.pow(self.diversity(state), self.diversity_exponent))
        memories = state.memory, state.flipped_memory
        run = self._run(model, batch, *memories, added=added, task=task, mirrors_first=mirrors_first, hedging=hedging)
        if first:
            weight, damaged = self._first_weight(model, batch, run, state, source, task=task)
            state = replace(state, damaged=damaged)
            if weight < 1:
                added = replace(added, weight=weight)
                run = self._run(
                    model, batch, *memories, added=added, task=task, mirrors_first=mirrors_first, hedging=hedging
                )
        rests = state.taken >= self.memory_images and not tries
        taken = min(self.memory_images, state.taken + added.weight * sample_count(batch))
        state = replace(state, memory=run.memory, flipped_memory=run.flipped_memory, taken=taken)
        return run, replace(state, resting=run.used if rests else None), added

    def _tries(self, state: BlendState) -> bool:
        """Say whether images are predicted in several ways, for which they are mirrored."""
        return state.trial is not None or state.adaptation_trial is not None or self._tries_weight(state)

    def _tries_weight(self, state: BlendState) -> bool:
        """Say whether it is open if the running statistics alone are better."""
        trial = state.weight_trial
        if trial is None or state.hedged or trial.here >= self.weight_trial_images:
            return False
        most_images = _REMEMBERED_STREAMS * self.weight_trial_images
        return trial.images < _LEAST_TRIAL or (trial.images < most_images and not trial.is_clear())

    def _memory_weight(self, state: BlendState) -> float:
        return 1.0 if state.full_weight else self.memory_weight

    def _nothing(self, state: BlendState) -> _Averaging:
        """Return how nothing is added to the statistics."""
        return _Averaging(0.0, 1.0, state.taken, self._memory_weight(state))

    def _tells_classes(self, batch: Any) -> bool:
        """Say whether a batch has enough images to say something about the classes of a stream."""
        return sample_count(batch) >= self.diversity_window / 4

    def _first_weight(
        self, model: nn.Module, batch: Any, run: _Run, state: BlendState, source: _Run | None, *, task: Task
    ) -> tuple[float, bool]:
        """Return the weight of the images of the first batch, in [0, 1], from a run with a weight of 1.

        And whether it was found that they are damaged, where the unadapted model gives them fewer classes.
        """
        # A stream may begin with one class, and then its statistics make the model less certain than the source's do.
        unadapted = task.forward(model, batch) if source is None else source.unmerged
        # The unadapted model may have been run on the first images alone.
        count = sample_count(unadapted)
        both = SignalPair.of(task, run.first(count).unmerged, unadapted, samples=count)
        unsure = self.certainty.degradation_score(both) > 1
        if not unsure and not self.class_mix.is_due(*(torch.tensor(m.decided) for m in (both.adapted, both.source))):
            return 1.0, False
        # So does strong damage, under which the source model gives one class to everything with certainty. Then the
        # decisions under the new statistics are of many classes.
        damaged = self._is_damage(model, batch, run, unadapted, task=task)
        if damaged is False:
            return 0.0, False
        if not unsure:
            return 1.0, bool(damaged)
        diversity = self.diversity(self._with_decisions(state, task.decisions(run.unmerged).class_probabilities()))
        weight = 1.0 if diversity >= self.first_diversity else math.pow(diversity, self.diversity_exponent)
        return weight, bool(damaged)

    def _is_damage(self, model: nn.Module, batch: Any, run: _Run, unadapted: Any, *, task: Task) -> bool | None:
        """Say why a batch's own statistics give it more classes: damage, or few classes (False); None if that is open.

        ``unadapted`` are the unadapted model's outputs on the batch or its first images.
        """
        if run.flipped is None or not task.exclusive:
            return None
        if sample_count(unadapted) < sample_count(batch):
            unadapted = task.forward(model, batch)
        both = (run.unmerged, unadapted)
        adapted, source = (task.decisions(found).class_probabilities().argmax(-1) for found in both)
        if not self.class_mix.is_due(adapted, source):
            return None
        outputs = partly_adapted_outputs(model, batch, {}, share=self.first_layers, task=task)
        if outputs is None:
            return None
        between = task.decisions(outputs).class_probabilities().argmax(-1)
        return self.class_mix.is_damage(ThreeDecisions(adapted, source, between), run.decisions(task))

    def _mixing(
        self,
        model: nn.Module,
        memory: Mapping[str, Moments],
        *,
        added: _Averaging,
        count: int,
        used: dict[str, Moments] | None = None,
        weights: dict[str, Tensor] | None = None,
    ) -> AbstractContextManager[dict[str, Moments]]:
        # While the statistics are still the source's in part, the stream is further away than they are, and the
        # divergence grows with the square of the distance.
        share = added.stream_share(count, min(self.prior_images, self.memory_images))
        return norm.running_statistics(
            model,
            memory,
            memory_weight=added.memory_weight,
            rate=added.rate(count),
            sampled=True,
            full_shift=self.full_shift * share**2,
            outputs_of=self.source_outputs,
            used=used,
            weights=weights,
        )

    def _forward(
        self,
        model: nn.Module,
        batch: Any,
        memory: Mapping[str, Moments],
        known: Mapping[str, Moments],
        *,
        added: _Averaging,
        weights: dict[str, Tensor],
        task: Task,
    ) -> tuple[Any, Mapping[str, Moments], Mapping[str, Moments]]:
        """Return the outputs, the running statistics, and the mixed ones that were used; ``known`` ones are used."""
        if known:
            with norm.fixed_statistics(model, known, outputs_of=self.source_outputs):
                return task.forward(model, batch), memory, known
        used: dict[str, Moments] = {}
        count = sample_count(batch)
        with self._mixing(model, memory, added=added, count=count, used=used, weights=weights) as updated:
            return task.forward(model, batch), updated, used

    def _observed(self, batch: Any, state: BlendState, *, task: Task) -> tuple[BlendState, Any]:
        """Return the state with the batch added to the stream's spectrum, and the batch filtered where that is on.

        Trials begin on the first batch of a stream, and of each new one.
        """
        if self.spectrum is None:
            return self._repaired(batch, state, task=task)
        seen, filtered = self.spectrum.observe(batch, state.seen, task=task, filtering=state.filters)
        state = replace(state, seen=seen)
        if not seen.began:
            return state, filtered
        state = _begun_again(state)
        if not state.filters and self._can_try(task):
            filtered = self.spectrum.cleaned(batch, seen, task=task)
            state = replace(state, filters=True)
        if self._can_try(task) and self.spectrum.are_of_many_kinds(batch, task=task):
            # Noise may have one class to the unadapted model, and that in every view: among other images, this looks
            # like recognising them.
            return replace(state, trial=None, adaptation_trial=None, unadapted=False, hedged=False), filtered
        return self._with_filter_trial(self._with_trials(state, task=task), task=task), filtered

    def _repaired(self, batch: Any, state: BlendState, *, task: Task) -> tuple[BlendState, Any]:
        """Return what :meth:`_observed` does where no source images are known.

        Spikes, stripes and noise are removed, and trials begin anew where images or the certainty of decisions change.
        """
        another = state.classes is None or self._confidence_changed(state)
        filtered = batch
        if self._can_filter(batch, task):
            images = in_unit_range(_middle(task.images(batch)), task)
            coefficients = spectra.transformed(images)
            seen = _REPAIRS.continued(Sums.of(images, coefficients), state.seen)
            striped = state.seen.striped and not seen.began
            if len(images) >= _REPAIRS.least_images:
                striped = spectra.is_striped(coefficients, excess_nats=_REPAIRS.stripe_excess_nats)
            # A state that was saved without a spectrum goes on.
            if seen.began and state.seen.stream is not None:
                state, another = _begun_again(state), True
            filters = state.filters or (another and self._can_try(task))
            state = replace(state, seen=replace(seen, striped=striped), filters=filters)
            if self.repairs and len(images) >= _REPAIRS.least_images:
                noise = noise_power(_REPAIRS.repaired(images, state.seen))
                state = replace(state, noise=noise if float(noise.max()) >= _LEAST_NOISE**2 else None)
            if filters:
                filtered = self._cleaned(batch, state, task=task)
        if another:
            state = replace(self._with_trials(state, task=task), trial=None, repaired=False)
        if filtered is batch or state.repaired:
            return state, filtered
        return self._with_filter_trial(replace(state, repaired=True), task=task), filtered

    def _cleaned(self, batch: Any, state: BlendState, *, task: Task) -> Any:
        """Return the batch filtered; without source images, without spikes, stripes and noise."""
        if self.spectrum is not None:
            return self.spectrum.cleaned(batch, state.seen, task=task)
        if not self.repairs:
            return batch
        cleaned = _REPAIRS.cleaned(batch, state.seen, task=task)
        if state.noise is None:
            return cleaned
        found = denoised(in_unit_range(task.images(cleaned), task), state.noise)
        return with_unit_images(cleaned, found, task)

    def _can_filter(self, batch: Any, task: Task) -> bool:
        # A filter that was given is to say why it cannot be used.
        return self.spectrum is not None or (task.pixel_range is not None and task.images(batch).shape[1] == 3)

    def _with_filter_trial(self, state: BlendState, *, task: Task) -> BlendState:
        if self.filter_trial_images == 0 or not self._can_try(task):
            return state
        return replace(state, trial=FilterTrial(memory=state.memory, flipped_memory=state.flipped_memory))

    def _with_trials(self, state: BlendState, *, task: Task) -> BlendState:
        if not (self._can_try(task) and task.exclusive):
            return state
        if self.weight_trial_images > 0 and not self.source_outputs:
            known = WeightTrial() if state.weight_trial is None else state.weight_trial
            state = replace(state, weight_trial=replace(known, here=0))
        if self.adaptation_trial_images == 0:
            return state
        return replace(state, adaptation_trial=AdaptationTrial(), confidence=Confidence())

    def _confidence_changed(self, state: BlendState) -> bool:
        found = state.confidence
        if found.reference is None or state.adaptation_trial is not None:
            return False
        return abs(found.recent - found.reference) > self.confidence_change

    def _can_try(self, task: Task) -> bool:
        # Without flip averaging, mirror images would have to be predicted for this alone.
        # Trials count images, and a segmenter's decisions are pixels.
        return self.flip_averaging and task.flips and task.aligned and not isinstance(task, Segmentation)

    def _run(
        self,
        model: nn.Module,
        batch: Any,
        memory: Mapping[str, Moments],
        flipped_memory: Mapping[str, Moments],
        *,
        added: _Averaging,
        task: Task,
        mirrors_first: int,
        known: UsedStatistics = UsedStatistics(),
        hedging: Any | None = None,
    ) -> _Run:
        """Predict a batch and its mirror images, each with running statistics of its own, or with ``known`` ones.

        Images that are surely of one class are not mirrored, apart from the first ``mirrors_first``. Given the
        unfiltered batch as ``hedging``, mirror images are those of it, and the unadapted model predicts them.
        """
        weights: dict[str, Tensor] = {}
        outputs, memory, used = self._forward(
            model, batch, memory, known.images, added=added, weights=weights, task=task
        )
        rows, view = self._mirrored(outputs, batch if hedging is None else hedging, mirrors_first, task=task)
        if view is None:
            return _Run(outputs, outputs, None, memory, flipped_memory, UsedStatistics(used))
        mirrored, flipped_used = layout.for_prediction(view.batch), known.flipped
        if hedging is not None:
            found = task.forward(model, mirrored)
        else:
            found, flipped_memory, flipped_used = self._forward(
                model, mirrored, flipped_memory, known.flipped, added=added, weights=weights, task=task
            )
        merged, flipped = _merged(outputs, view.undo(found), rows, mirrors_first, task=task)
        return _Run(merged, outputs, flipped, memory, flipped_memory, UsedStatistics(used, flipped_used))

    def _mirrored(self, outputs: Any, batch: Any, first: int, *, task: Task) -> tuple[Tensor | None, View | None]:
        """Return the rows to mirror, None for all, and their mirror images, None where nothing is mirrored."""
        rows = self._to_mirror(outputs, first, task=task)
        if not self.flip_averaging or (rows is not None and len(rows) == 0):
            return rows, None
        return rows, task.mirrored(batch if rows is None else map_tensors(lambda tensor: tensor[rows], batch))

    def _to_mirror(self, outputs: Any, first: int, *, task: Task) -> Tensor | None:
        """Return the rows of the images to mirror, the first ones among them; None for all."""
        if first >= sample_count(outputs) or not task.exclusive or not isinstance(outputs, Tensor):
            return None
        mirrored = task.decisions(outputs).class_probabilities().amax(-1) < self.sure
        mirrored[:first] = True
        return mirrored.nonzero().flatten()

    def _run_unadapted(
        self, model: nn.Module, batch: Any, state: BlendState, *, task: Task, mirrors_first: int
    ) -> _Run:
        """Predict images and mirror images with the source's statistics; ``mirrors_first`` is that of ``_run``."""
        outputs = task.forward(model, batch)
        rows, view = self._mirrored(outputs, batch, mirrors_first, task=task)
        if view is None:
            return _Run(outputs, outputs, None, state.memory, state.flipped_memory)
        other = view.undo(task.forward(model, layout.for_prediction(view.batch)))
        merged, flipped = _merged(outputs, other, rows, mirrors_first, task=task)
        return _Run(merged, outputs, flipped, state.memory, state.flipped_memory)

    def _tried(
        self,
        model: nn.Module,
        batch: Any,
        filtered: Any,
        run: _Run,
        state: BlendState,
        *,
        added: _Averaging,
        task: Task,
    ) -> tuple[_Run, BlendState]:
        """Predict the batch without the filter too; return the run to use, and the state with that evidence."""
        trial = state.trial
        if trial is None or filtered is batch:
            # Nothing was filtered yet, so both kinds of statistics are the same.
            if trial is not None:
                trial = replace(trial, memory=state.memory, flipped_memory=state.flipped_memory)
            return run, replace(state, trial=trial)
        if self.diversity(state) < self.trial_diversity:
            return run, state
        unfiltered = layout.for_prediction(_tried_part(batch))
        memories = trial.memory, trial.flipped_memory
        count = sample_count(unfiltered)
        plain = self._run(model, unfiltered, *memories, added=added, task=task, mirrors_first=count)
        with_filter = run.first(count)
        gains = (1 - self.filter_gain) * plain.disagreement(task) - with_filter.disagreement(task)
        trial = FilterTrial(
            images=trial.images + len(gains),
            gain=trial.gain + float(gains.sum()),
            changes=trial.changes + float(gains.square().sum()),
            memory=plain.memory,
            flipped_memory=plain.flipped_memory,
            classes=_added(trial.classes, task.decisions(with_filter.unmerged).class_probabilities()),
            plain_classes=_added(trial.plain_classes, task.decisions(plain.unmerged).class_probabilities()),
        )
        state = replace(state, trial=trial)
        used = run
        if not self._in_use(state).filters:
            used = plain
            if count < sample_count(batch):
                # The rest was predicted with the filter, which would make a difference to few images.
                parts = ((plain.outputs, run.outputs), (plain.unmerged, run.unmerged))
                outputs, unmerged = (_joined(*both) for both in parts)
                used = replace(plain, outputs=outputs, unmerged=unmerged)
        return used, self._in_use(replace(state, trial=None), trial) if self._is_decided(trial) else state

    def _weighed(
        self,
        model: nn.Module,
        batch: Any,
        run: _Run,
        memories: tuple[Mapping[str, Moments], Mapping[str, Moments]],
        state: BlendState,
        *,
        added: _Averaging,
        task: Task,
    ) -> tuple[_Run, BlendState]:
        """Predict the batch with the other weight too; return the run to use, and the state with that evidence.

        All of the batch is predicted, since it is the chance in its statistics that is weighed, and since the
        statistics of each layer depend on the weight in those before.
        """
        trial, count = state.weight_trial, sample_count(batch)
        if trial is None or run.flipped is None or added.weight == 0 or self.diversity(state) < self.trial_diversity:
            return run, state
        other = replace(added, memory_weight=self.memory_weight if state.full_weight else 1.0)
        found = self._run(model, batch, *memories, added=other, task=task, mirrors_first=count)
        gains = run.disagreement(task) - found.disagreement(task)
        trial = trial.plus(-gains if state.full_weight else gains)
        full_weight = trial.gain > _LIKELY * math.sqrt(trial.changes)
        state, stays = replace(state, weight_trial=trial, full_weight=full_weight), full_weight == state.full_weight
        if stays:
            return run, state
        return found, replace(state, memory=found.memory, flipped_memory=found.flipped_memory)

    def _compared(
        self, model: nn.Module, batch: Any, run: _Run, source: _Run, state: BlendState, *, task: Task
    ) -> tuple[_Run, BlendState]:
        """Return the run to use, adapted or not, and the state with the evidence for that.

        ``source`` is the unadapted model's run on the first images of the batch.
        """
        before = state.adaptation_trial
        if before is None:
            return run, state
        count = sample_count(source.unmerged)
        trial = AdaptationTrial(
            before.adapted.plus(run.first(count).decisions(task)), before.unadapted.plus(source.decisions(task))
        )
        state = replace(state, adaptation_trial=trial)
        unadapted, hedged = self._prefers_unadapted(state), self._hedges(state)
        if self._is_compared(trial):
            state = replace(state, adaptation_trial=None, unadapted=unadapted, hedged=hedged and not unadapted)
        whole = count == sample_count(batch)
        if unadapted:
            if not whole:
                source = self._run_unadapted(model, layout.for_prediction(batch), state, task=task, mirrors_first=0)
            return source, state
        if not hedged:
            return run, state
        if whole:
            other = source.flipped
        else:
            view = task.mirrored(batch)
            if view is None:
                return run, state
            other = view.undo(task.forward(model, layout.for_prediction(view.batch)))
        return replace(run, outputs=task.merge([run.unmerged, other], run.unmerged)), state

    def _is_compared(self, trial: AdaptationTrial) -> bool:
        """Say whether it is decided if the unadapted model predicts, or the average of both."""
        images = len(trial.adapted)
        if images >= self.adaptation_trial_images:
            return True
        if images < _LEAST_TRIAL or self.agreement.could_favour(trial.unadapted, trial.adapted):
            return False
        return images >= self.agreement.least_images or abs(trial.same_share() - self.hedge) > _CLEARLY

    def _in_use(self, state: BlendState, trial: FilterTrial | None = None) -> BlendState:
        """Return the state with the filter off, and the statistics without it, where the evidence speaks against it."""
        trial = state.trial if trial is None else trial
        if trial is None or trial.images < _LEAST_TRIAL or trial.gain > 0:
            return state
        # A model that gives few classes to everything agrees with itself.
        if trial.class_ratio < self.agreement.class_ratio:
            return state
        return replace(state, filters=False, memory=trial.memory, flipped_memory=trial.flipped_memory)

    def _is_decided(self, trial: FilterTrial) -> bool:
        """Say whether the gain is two standard errors from the limit, or enough images were tried."""
        clear = trial.images >= _LEAST_TRIAL and abs(trial.gain) > 2 * math.sqrt(trial.changes)
        return clear or trial.images >= self.filter_trial_images

    def _with_decisions(self, state: BlendState, probabilities: Tensor) -> BlendState:
        if len(probabilities) == 0:
            return state
        # The newest decisions count in full, and the earlier mean for the rest of the window.
        newest = probabilities[-self.diversity_window :]
        kept = 0.0 if state.classes is None else min(state.decisions, self.diversity_window - len(newest))
        total = newest.sum(0) if state.classes is None else newest.sum(0) + kept * state.classes
        count = len(newest) + kept
        state = replace(state, classes=total / count, decisions=count)
        if self.spectrum is not None or state.adaptation_trial is not None:
            return state
        return replace(state, confidence=self._with_confidence(state.confidence, newest.amax(-1)))

    def _with_confidence(self, found: Confidence, newest: Tensor) -> Confidence:
        kept = min(found.decisions, self.diversity_window - len(newest))
        count = len(newest) + kept
        recent = (float(newest.sum()) + kept * found.recent) / count
        reference = found.reference
        if reference is None and count >= self.diversity_window:
            reference = recent
        return Confidence(recent, count, reference)


def _tried_part(batch: Any) -> Any:
    """Return the images of a batch that are also predicted in other ways for trials: the first half of a large one."""
    count = sample_count(batch)
    return map_tensors(lambda tensor: tensor[: count // 2], batch) if count >= 2 * _LEAST_TRIAL else batch


def _merged(outputs: Any, other: Any, rows: Tensor | None, first: int, *, task: Task) -> tuple[Any, Any]:
    """Return outputs averaged with those on the mirror images of ``rows``, and the latter for the first images."""
    if rows is None:
        return task.merge([outputs, other], outputs), other
    merged = outputs.clone()
    merged[rows] = task.merge([outputs[rows], other], None)
    return merged, other[:first] if first else None


def _joined(first: Any, whole: Any) -> Any:
    """Return the outputs ``whole`` with those on the first images replaced."""
    parts = list(tensors(first))

    def with_first(tensor: Tensor) -> Tensor:
        part = parts.pop(0)
        return torch.cat([part, tensor[len(part) :]])

    return map_tensors(with_first, whole)


def _begun_again(state: BlendState) -> BlendState:
    """Return the state without the statistics of the stream before."""
    return replace(
        state,
        memory={},
        flipped_memory={},
        classes=None,
        decisions=0.0,
        taken=0.0,
        resting=None,
        departs=None,
        damaged=False,
        noise=None,
        repaired=False,
    )


def _added(total: Tensor | None, probabilities: Tensor) -> Tensor:
    return probabilities.sum(0) if total is None else total + probabilities.sum(0)


def _middle(images: Tensor) -> Tensor:
    """Return the middle of images ``(B, C, H, W)``."""
    top, left = (max(0, (size - _FOLLOWED_PIXELS) // 2) for size in images.shape[-2:])
    return images[..., top : top + _FOLLOWED_PIXELS, left : left + _FOLLOWED_PIXELS]

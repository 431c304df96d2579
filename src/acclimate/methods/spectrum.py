"""Spectrum filter: change a stream's mean power spectrum to the source's, and mix BatchNorm statistics.

A method of this project. Aligning amplitudes by frequency comes from Fourier domain adaptation (Yang & Soatto, CVPR
2020, arXiv 2004.05498), which does it to source images in training; the filter is Wiener's (1949); the mixed statistics
are those of Schneider et al. (NeurIPS 2020, arXiv 2006.16971).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn

from acclimate.core import layout, norm
from acclimate.core import spectrum as spectra
from acclimate.core.determinism import device_of
from acclimate.core.losses import softmax_entropy
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach, map_tensors, sample_count
from acclimate.core.programs import Program
from acclimate.core.scenes import MOST_IMAGES, SourceScenes
from acclimate.core.segmentation import Segmentation
from acclimate.core.selection import nothing_selected
from acclimate.core.signals import Signals
from acclimate.core.source_images import FROM_SOURCE_IMAGES, SourceImages
from acclimate.core.spectrum import PowerSpectrum, Sums
from acclimate.core.task import Task
from acclimate.core.views import bounds
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.registry import MethodInfo, Preset

_SOURCE_BATCH: Final = 32
_CHOOSING_IMAGES: Final = 2
_LESS_ENTROPY: Final = 0.05
"""The filter lowers the entropy of decisions by this fraction where frames are brighter or darker scenes, and raises it
on clean ones (by 15 % by day, and 4 % and more at dusk)."""
_LEAST_DECISIONS: Final = 1000
"""The mean entropies of fewer decisions differ by chance."""
_SURE_IMAGES: Final = 16
"""On so many scenes of a detector the mean entropies of two ways differ by a tenth by chance (benchmarks/shifts)."""
_SHIFT_IMAGES: Final = 32
"""On so many source images, spread over all of them, a segmenter's statistics are measured."""
_LEAST_USUAL_SHIFT: Final = 1e-4
"""Less is rounding."""
_LEAST_FOUND: Final = 0.5
"""A way of predicting that gives fewer decisions than this share of the most may only have lost the uncertain ones."""

FILTER: Final = "filter"
STATISTICS: Final = "statistics"
UNADAPTED: Final = "unadapted"
_WAYS: Final = (FILTER, STATISTICS, UNADAPTED)


@dataclass(frozen=True, slots=True)
class WayTrial:
    """Evidence on how to predict, from images that were predicted in each way.

    Attributes:
        images: compared so far.
        entropies_nats: sum of the entropies of decisions with filter and mixed statistics, with mixed statistics alone,
            and unadapted.
        decisions: their numbers.
    """

    images: int = 0
    entropies_nats: tuple[float, ...] = (0.0, 0.0, 0.0)
    decisions: tuple[int, ...] = (0, 0, 0)

    def plus(self, found: Sequence[Signals]) -> WayTrial:
        """Return the evidence with that of one more batch, predicted in each way."""
        return WayTrial(
            self.images + found[0].samples,
            tuple(a + b.entropy_sum_nats for a, b in zip(self.entropies_nats, found, strict=True)),
            tuple(a + b.decisions for a, b in zip(self.decisions, found, strict=True)),
        )

    def best(self, *, less_entropy: float) -> str:
        """Return the way with the most certain decisions.

        ``less_entropy``: the fraction by which mixed statistics alone must lower the mean entropy of decisions against
        the filter, more where images are few, and either of the two against the unadapted model.
        """
        enough = _LEAST_FOUND * max(self.decisions)
        means = [
            entropy / count if count and count >= enough else math.inf
            for entropy, count in zip(self.entropies_nats, self.decisions, strict=True)
        ]
        if means == [math.inf] * len(means):
            return FILTER
        filtered, statistics, unadapted = means
        margin = less_entropy * (1 + _SURE_IMAGES / max(1, self.images))
        adapted = FILTER if filtered != math.inf and statistics > (1 - margin) * filtered else STATISTICS
        lowest = filtered if adapted == FILTER else statistics
        return adapted if unadapted == math.inf or lowest <= (1 - less_entropy) * unadapted else UNADAPTED


@dataclass(frozen=True, slots=True)
class SpectrumState:
    """Running sums of the stream's power spectrum.

    Attributes:
        stream: the sums; None before the first batch.
        reference: which spectrum the filter aims at: 0 for that of all source images, 1 and 2 for those of the groups;
            None where that was not decided.
        recent: the sums of the newest images, while they are too few to be compared with the stream.
        began: whether the stream began with the newest batch.
        shifted: whether the stream is a shift although its spectrum may be the source's.
        way: how images are predicted: with ``filter`` and mixed statistics, with mixed ``statistics`` alone, or
            ``unadapted``.
        trial: evidence on that, while it is not decided.
        striped: whether the newest batch of enough images had stripes.
        shift: how far the statistics of BatchNorm's inputs are from the source's; a detector's as a moving average over
            batches, a segmenter's as the mean over the first images.
        shift_images: the number of images that the latter averages.
        departure: how far a segmenter's are beyond those on similar source images, in [0, 1]; None while that is not
            known.
    """

    stream: Sums | None = None
    reference: int | None = None
    recent: Sums | None = None
    began: bool = False
    shifted: bool = False
    way: str = FILTER
    trial: WayTrial | None = None
    striped: bool = False
    shift: float = 0.0
    shift_images: int = 0
    departure: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumFilter:
    """Filter images so that the stream's mean power spectrum matches the source's; no gradient, no weight is updated.

    Source images may be of two groups, such as day and dusk. Where the stream is of one scene and a batch has thousands
    of decisions (a segmenter), the filter aims at the group, or the mean of all, with which the first images of the
    stream have the lowest mean entropy of decisions.

    The strength of filter and mixing depends on the distance between the two spectra: 0 below ``tolerance_nats``, 1
    from twice that on, linear in between. A stream like the source is predicted exactly as by the unadapted model.

    Light and contrast change the statistics of a segmenter's layers where the spectrum hardly shows it. So a stream
    whose spectrum is the source's is compared with the source images most like it in these statistics too, and they are
    mixed with the stream's the more, the farther they are off.

    Some damage is made worse by the filter (blocks of compression look like blur), and some is not seen in the spectrum
    (snow). So a detector's first images are predicted with the filter and mixed statistics, with mixed statistics
    alone, and by the unadapted model, and the way is kept whose decisions have the lowest mean entropy. Where nothing
    is filtered, statistics are tried only if those of the batch are far from the source's.

    Attributes:
        source: the spectrum of source images, from :func:`acclimate.core.spectrum.measure`; required.
        scenes: the spectra of single source images, with which a stream of one scene is compared too; None leaves that
            out. ``groups``: the spectra of two groups of source images; empty where there are none.
        max_gain: the largest amplification of a band.
        sharpening: exponent of the power ratio with which single bands are amplified, see
            :func:`acclimate.core.spectrum.gains`. Tuned on ``benchmarks/pose_scenes``: 0.5 causes ringing, 0 does not
            reduce blur.
        spike_deviations: the threshold for spikes, which are removed before filtering; see
            :func:`acclimate.core.spectrum.despiked`.
        spike_share: spikes are removed only where they are at least this share of a batch's values; clean scenes have
            less than one in 10,000.
        tolerance_nats: the distance of spectra (mean ``|log ratio|`` over colours and bands, without sampling error)
            up to which a stream counts as unchanged; 0.3 lies between other clean scenes of ``benchmarks/pose_scenes``
            and their weakest corruptions.
        chance_factor: sampling error is taken to be this times the expected one, because that of a few images varies:
            on images like the source's it is larger in one case of 20.
        restart_factor: the same where a batch is compared with the stream so far.
        least_images: so many images are compared with the stream so far, in one batch or several; in one batch, so many
            show stripes and the statistics of a stream.
        memory_images: the number of images over which the stream's spectrum is averaged.
        batch_weight: weight of the batch's own statistics in BatchNorm at full strength; that of the source's is one
            minus it. ``early_weight``: so much more is it in the first layer, and less in the last.
        lowers_contrast: whether to undo too much contrast too, see :func:`acclimate.core.spectrum.gains`.
        stripe_excess_nats: from how much more power than beside them stripes along rows or columns are removed, see
            :func:`acclimate.core.spectrum.destriped`. Batches of 8 images have at most 2.5 (images of 32 pixels; larger
            photographs 1.0), line noise 4 to 6. Single images vary too much, so batches of fewer than
            ``least_images`` are destriped only after a larger one was.
        trial_images: the number of images of a detector's stream on which is tried how to predict; 0 always uses the
            filter. ``less_entropy``: by this fraction the mean entropy must fall for another way than the filter,
            and for an adapted one (see :meth:`WayTrial.best`).
        least_shift: where the mean :func:`acclimate.core.norm.shift` of the BatchNorm layers is smaller, in a moving
            average over batches that begins at 0, and nothing is filtered, a stream is taken for the source's. On
            scenes of ``benchmarks/shifts`` it is 0.008 where they are clean, and 0.03 to 0.05 under few grey levels,
            snow and compression.
        least_departure: a segmenter's statistics are mixed if their mean shift is more than this times that on the
            source images most like the stream; ``full_departure``: in full from this on, linear in between. On street
            scenes of ``benchmarks/segmentation``, by day and at dusk, it is 0.8 to 1.1 times on eight clean frames, 1.4
            and more on frames with other exposure, and 3 to 20 times under most other damage.

    Raises:
        ConfigError: a field is out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="spectrum",
        title="Spectrum filter",
        cost=1.2,
        needs_gradient=False,
        needs_one_of=("source_images",),
        uses_source_images=True,
        also_predicts_with="a filter and statistics of the stream",
        unchanged_on_source=True,
        certainty_allowance=2.0,
        presets=(
            Preset(
                name="spectrum_safe",
                settings={"update_filter": "norm_only"},
                # Chosen on the half "tune" of benchmarks/segmentation, for segmenters only.
                segmenter={"method_options": {"early_weight": 0.2, "lowers_contrast": True}},
                # As many images as auto tries candidates on; chosen on kinds of damage of benchmarks/shifts.
                detector={"method_options": {"trial_images": 64}},
            ),
        ),
        safe_rank={"segmenter": 1, "detector": 1},
        auto={"segmenter": ({},), "detector": ({},)},
    )
    state_types: ClassVar[tuple[type, ...]] = (SpectrumState, Sums, WayTrial)

    source: PowerSpectrum | None = field(default=None, repr=False, compare=False, metadata=FROM_SOURCE_IMAGES)
    scenes: SourceScenes | None = field(default=None, repr=False, compare=False, metadata=FROM_SOURCE_IMAGES)
    groups: tuple[PowerSpectrum, ...] = field(default=(), repr=False, compare=False, metadata=FROM_SOURCE_IMAGES)
    max_gain: float = 10.0
    sharpening: float = 0.25
    spike_deviations: float = 6.0
    spike_share: float = 0.005
    tolerance_nats: float = 0.3
    chance_factor: float = 1.75
    restart_factor: float = 2.5
    least_images: int = 8
    memory_images: int = 512
    batch_weight: float = 0.5
    early_weight: float = 0.0
    lowers_contrast: bool = False
    stripe_excess_nats: float = 3.0
    trial_images: int = 0
    less_entropy: float = 0.05
    least_shift: float = 0.02
    least_departure: float = 1.25
    full_departure: float = 4.0

    def __post_init__(self) -> None:
        if not self.max_gain >= 1:
            raise ConfigError(f"spectrum: max_gain must be at least 1, got {self.max_gain}")
        if not 0 <= self.sharpening <= 0.5:
            raise ConfigError(f"spectrum: sharpening must lie in [0, 0.5], got {self.sharpening}")
        if not self.spike_deviations >= 1:
            raise ConfigError(f"spectrum: spike_deviations must be at least 1, got {self.spike_deviations}")
        if not 0 < self.spike_share <= 1:
            raise ConfigError(f"spectrum: spike_share must lie in (0, 1], got {self.spike_share}")
        if not self.tolerance_nats > 0:
            raise ConfigError(f"spectrum: tolerance_nats must be positive, got {self.tolerance_nats}")
        for name in ("chance_factor", "restart_factor"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"spectrum: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("least_images", "memory_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"spectrum: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.batch_weight <= 1:
            raise ConfigError(f"spectrum: batch_weight must lie in [0, 1], got {self.batch_weight}")
        for name in ("stripe_excess_nats", "least_shift"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"spectrum: {name} must be positive, got {getattr(self, name)}")
        if self.trial_images < 0:
            raise ConfigError(f"spectrum: trial_images must not be negative, got {self.trial_images}")
        if not 0 <= self.less_entropy < 1:
            raise ConfigError(f"spectrum: less_entropy must lie in [0, 1), got {self.less_entropy}")
        if not 0 < self.least_departure < self.full_departure:
            raise ConfigError(
                "spectrum: least_departure must be positive and below full_departure, got "
                f"{self.least_departure} and {self.full_departure}"
            )
        if not -0.5 <= self.early_weight <= 0.5:
            raise ConfigError(f"spectrum: early_weight must lie in [-0.5, 0.5], got {self.early_weight}")

    def with_source(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with the spectrum of the source images, or with the one stored with the model.

        With a segmenter, the statistics of its layers are measured on some of the images too.
        """
        method = self.with_spectrum(model, source, task=task)
        if method.scenes is None or source.batches is None or not isinstance(task, Segmentation):
            return method
        shifts = _shifts(model, source.batches(1), len(method.scenes.power), task=task)
        return replace(method, scenes=replace(method.scenes, shifts=shifts))

    def with_spectrum(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with the spectrum of the source images, which is all that the filter needs."""
        if source.batches is None:
            # Stored spectra are read on the CPU.
            return replace(self, source=None if source.spectrum is None else source.spectrum.on(device_of(model)))
        scenes: SourceScenes | None = None

        def images(batches: Iterable[Any]) -> Iterator[Tensor]:
            nonlocal scenes
            for inputs in batches:
                unit = in_unit_range(task.images(inputs), task)
                if scenes is None or len(scenes.power) < MOST_IMAGES:
                    scenes = SourceScenes.of(unit) if scenes is None else scenes.plus(SourceScenes.of(unit))
                yield unit

        mean = spectra.measure(images(source.batches(_SOURCE_BATCH)))
        groups = () if scenes is None else scenes.groups(least_distance_nats=2 * self.tolerance_nats)
        return replace(self, source=mean, scenes=scenes, groups=groups)

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select no parameter."""
        return nothing_selected(model)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: no gradient is computed."""

    def start(self, model: nn.Module, selection: Selection) -> SpectrumState:
        """Return the state before the first batch.

        Raises:
            TTTNotSupportedError: the source spectrum is unknown.
        """
        self._source(model)
        return SpectrumState()

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: SpectrumState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer | None,
        rng: torch.Generator,
    ) -> Step:
        """Add the batch to the stream's spectrum, and return the outputs on filtered images under mixed statistics."""
        unadapted: Any = None
        with torch.no_grad():
            state, cleaned = self.observe(batch, state, task=task)
            if isinstance(task, Segmentation):
                state, unadapted = self._with_departure(model, batch, state, task=task)
            if task.aligned and not task.exclusive and self._chooses(state):
                state = self._with_reference(model, batch, state, task=task)
                if state.reference != 0 or state.shifted:
                    cleaned = self.cleaned(batch, state, task=task)
            if self.trial_images and not task.aligned:
                state, outputs, unadapted = self._in_best_way(model, batch, cleaned, state, task=task)
            elif cleaned is not batch or self._mixing_strength(state) > 0:
                outputs = self._in_way(FILTER, model, batch, cleaned, state, task=task)
            else:
                if unadapted is None:
                    unadapted = self._in_way(UNADAPTED, model, batch, batch, state, task=task)
                outputs = unadapted
        found = detach(outputs)
        source = found if unadapted is outputs else detach(unadapted)
        return Step(state, found, None, sample_count(batch), unadapted=source, new_stream=state.began)

    @torch.no_grad()
    def observe(
        self, batch: Any, state: SpectrumState, *, task: Task, filtering: bool = True
    ) -> tuple[SpectrumState, Any]:
        """Return the state with the batch added to the stream's spectrum, and the batch filtered with that state.

        Without ``filtering`` the batch is returned as it was given.
        """
        unit = in_unit_range(task.images(batch), task)
        enough = len(unit) >= self.least_images
        coefficients = spectra.transformed(unit)
        images, striped = self._repaired(unit, coefficients, destripe=enough or state.striped)
        if images is not unit:
            coefficients = spectra.transformed(images)
        seen = self.continued(Sums.of(images, coefficients), state)
        state = replace(seen, striped=striped if enough else state.striped)
        return state, self._filtered(batch, unit, images, coefficients, state, task) if filtering else batch

    @torch.no_grad()
    def cleaned(self, batch: Any, state: SpectrumState, *, task: Task) -> Any:
        """Return the batch with its images filtered, with the strength for the stream so far."""
        unit = in_unit_range(task.images(batch), task)
        # Where nothing is filtered, no transform is needed.
        coefficients = spectra.transformed(unit) if state.striped else None
        images, _ = self._repaired(unit, coefficients, destripe=state.striped)
        return self._filtered(batch, unit, images, coefficients if images is unit else None, state, task)

    def repaired(self, images: Tensor, state: SpectrumState) -> Tensor:
        """Return ``(B, 3, H, W)`` images in [0, 1] without spikes, and without stripes where the stream has them."""
        return self._repaired(images, None, destripe=state.striped)[0]

    def _repaired(self, unit: Tensor, coefficients: Tensor | None, *, destripe: bool) -> tuple[Tensor, bool]:
        """Return images in [0, 1] without stripes and spikes, and whether they had stripes.

        ``coefficients`` is the transform of the images as given, None where it is not known.
        """
        plain = unit
        if destripe:
            plain = spectra.destriped(unit, excess_nats=self.stripe_excess_nats, coefficients=coefficients)
        return self._despiked(plain), plain is not unit

    def _filtered(
        self, batch: Any, unit: Tensor, images: Tensor, coefficients: Tensor | None, state: SpectrumState, task: Task
    ) -> Any:
        """Return the batch with its repaired ``images`` filtered; the batch itself where nothing changes."""
        strength = self._strength(state)
        if images is unit and strength == 0:
            return batch
        if state.stream is not None and strength > 0:
            images = spectra.filtered(
                images,
                state.stream.spectrum(),
                self._target(state),
                strength=strength,
                max_gain=self.max_gain,
                sharpening=self.sharpening,
                lowers_contrast=self.lowers_contrast,
                coefficients=coefficients,
            )
        return with_unit_images(batch, images, task)

    def predict(self, model: nn.Module, inputs: Any, state: SpectrumState, *, task: Task) -> Any:
        """Return the outputs on filtered images under mixed statistics, with the strength for the stream so far.

        After a trial they are predicted in the way that was the best.
        """
        if state.way != FILTER:
            inputs = layout.for_prediction(inputs)
        with self.installed(model, state, task=task):
            return task.forward(model, inputs)

    @contextmanager
    def installed(self, model: nn.Module, state: SpectrumState, *, task: Task) -> Iterator[None]:
        """Inside the block, the inputs of ``model`` are filtered and its statistics mixed, in the way of the state."""
        filters = self.filtering(model, state, task=task) if state.way == FILTER else nullcontext()
        with filters, self._mixing(model, state, way=state.way):
            yield

    def _in_way(self, way: str, model: nn.Module, batch: Any, cleaned: Any, state: SpectrumState, *, task: Task) -> Any:
        with self._mixing(model, state, way=way):
            return task.forward(model, layout.for_prediction(cleaned if way == FILTER else batch))

    def _in_best_way(
        self, model: nn.Module, batch: Any, cleaned: Any, state: SpectrumState, *, task: Task
    ) -> tuple[SpectrumState, Any, Any]:
        """Predict a batch in each way while it is not decided which is the best.

        Returns the outputs of the best one, and of the unadapted model, or None where that was not run.
        """
        if state.began:
            state = replace(state, way=FILTER, trial=WayTrial())
        trial = state.trial
        if trial is None:
            return state, self._in_way(state.way, model, batch, cleaned, state, task=task), None
        with norm.measured_shifts(model) as shifts:
            unadapted = self._in_way(UNADAPTED, model, batch, cleaned, state, task=task)
        filtered = cleaned is not batch
        # The statistics of a few images differ from the source's by chance: one batch alone counts for half.
        if shifts and sample_count(batch) >= self.least_images:
            shift = (state.shift + norm.mean_shift(shifts)) / 2
            state = replace(state, shift=shift)
        shifted = state.shift >= self.least_shift
        found = {UNADAPTED: unadapted}
        if filtered:
            found[FILTER] = self._in_way(FILTER, model, batch, cleaned, state, task=task)
        if shifts and (filtered or shifted):
            found[STATISTICS] = self._in_way(STATISTICS, model, batch, cleaned, state, task=task)
        if len(found) == 1:
            # Nothing to choose from: the stream is the source's, as far as it is seen.
            return state, unadapted, unadapted
        count = sample_count(batch)
        trial = trial.plus([Signals.of(task, found.get(way, unadapted), samples=count) for way in _WAYS])
        way = trial.best(less_entropy=self.less_entropy)
        state = replace(state, way=way, trial=None if trial.images >= self.trial_images else trial)
        return state, found.get(way, unadapted), unadapted

    def _with_departure(
        self, model: nn.Module, batch: Any, state: SpectrumState, *, task: Task
    ) -> tuple[SpectrumState, Any]:
        """Return the state with the departure of the layers' statistics once enough images show it, and outputs.

        These are the unadapted model's, or None where it was not run: where the departure is known, or the spectrum
        alone is evidence enough.
        """
        if state.stream is None or state.departure is not None or self._strength(state) == 1 or self.scenes is None:
            return state, None
        usual = self.scenes.usual_shift(state.stream.spectrum(), self._source())
        if usual is None:
            return state, None
        with norm.measured_shifts(model) as shifts:
            unadapted = self._in_way(UNADAPTED, model, batch, batch, state, task=task)
        if not shifts:
            return state, unadapted
        count = sample_count(batch)
        images = state.shift_images + count
        shift = (state.shift_images * state.shift + count * norm.mean_shift(shifts)) / images
        state = replace(state, shift=shift, shift_images=images)
        if images < self.least_images:
            return state, unadapted
        times = shift / max(usual, _LEAST_USUAL_SHIFT)
        departure = (times - self.least_departure) / (self.full_departure - self.least_departure)
        return replace(state, departure=min(1.0, max(0.0, departure))), unadapted

    def _chooses(self, state: SpectrumState) -> bool:
        """Say whether it is to be decided now which spectrum the filter aims at."""
        if state.reference is not None or state.stream is None:
            return False
        if self._is_undecided(state.stream):
            return True
        if not self.groups or self._strength(state) == 0:
            return False
        return SourceScenes.are_alike(state.stream.spectrum(), self._source())

    def _is_undecided(self, stream: Sums | None) -> bool:
        """Say whether a stream of one scene is like source images in spectrum, and like none of them in colours too.

        So are frames at dusk that are made brighter: they have the spectrum of frames by day. So may be frames by day.
        """
        if stream is None or self.scenes is None or self.strength(stream) == 1:
            return False
        nearest = self.scenes.distance_nats(stream.spectrum(), self._source(), means=True)
        return nearest is not None and nearest > self.tolerance_nats

    def _strength(self, state: SpectrumState) -> float:
        if state.stream is None or self.source is None:
            return 0.0
        return 1.0 if state.shifted else self.strength(state.stream)

    def _mixing_strength(self, state: SpectrumState) -> float:
        """Return the strength with which statistics are mixed: that of the filter, or more."""
        return max(self._strength(state), state.departure or 0.0)

    def _target(self, state: SpectrumState) -> PowerSpectrum:
        """Return the spectrum that the filter aims at."""
        # A state may have been saved with other source images, which had groups.
        if not state.reference or state.reference > len(self.groups):
            return self._source()
        return self.groups[state.reference - 1]

    def _with_reference(self, model: nn.Module, batch: Any, state: SpectrumState, *, task: Task) -> SpectrumState:
        """Return the state with the reference with which decisions on the first images are most certain.

        Where it is undecided whether the stream is a shift, that is decided by the same decisions, compared with those
        without a filter, under the statistics that the departure asks for. Where they are few, they say nothing.
        """
        # A program may have a fixed batch size.
        few = batch if isinstance(model, Program) else map_tensors(lambda tensor: tensor[:_CHOOSING_IMAGES], batch)
        unaimed, undecided = replace(state, reference=0), self._is_undecided(state.stream)
        choices = [replace(state, reference=number, shifted=undecided) for number in range(len(self.groups) + 1)]
        entropies: list[float] = []
        for choice in [*choices, unaimed] if undecided else choices:
            with self._mixing(model, choice):
                cleaned = self.cleaned(few, choice, task=task)
                decisions = task.decisions(task.forward(model, layout.for_prediction(cleaned)))
            if len(decisions) < _LEAST_DECISIONS:
                return unaimed
            entropies.append(float(softmax_entropy(decisions.logits).mean()))
        best = min(range(len(choices)), key=entropies.__getitem__)
        if undecided and entropies[best] > (1 - _LESS_ENTROPY) * entropies[-1]:
            return unaimed
        return choices[best]

    def _mixing(self, model: nn.Module, state: SpectrumState, *, way: str = FILTER) -> AbstractContextManager[Any]:
        strength = {FILTER: self._mixing_strength(state), STATISTICS: 1.0, UNADAPTED: 0.0}[way]
        weight = self.batch_weight * strength
        if weight == 0 or not norm.batch_norms(model):
            return nullcontext()
        return norm.statistics(model, batch_weight=weight, early_weight=self.early_weight * strength)

    def filtering(self, model: nn.Module, state: SpectrumState, *, task: Task) -> AbstractContextManager[None]:
        """Inside the block, the inputs of ``model`` are filtered."""
        return filtering(model, partial(self.cleaned, state=state, task=task))

    def _despiked(self, images: Tensor) -> Tensor:
        return spectra.despiked(images, deviations=self.spike_deviations, least_share=self.spike_share)

    def strength(self, stream: Sums) -> float:
        """Return the strength of filter and mixing for a stream, in [0, 1]: 0 at one tolerance, 1 at two."""
        chance = self.chance_factor * spectra.expected_distance_nats(self._source(), stream.count)
        found = stream.spectrum()
        distance = spectra.excess_distance_nats(found, self._source(), chance_nats=chance)
        if self.scenes is not None and (nearest := self.scenes.distance_nats(found, self._source())) is not None:
            distance = min(distance, nearest)
        return min(1.0, max(0.0, distance / self.tolerance_nats - 1))

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return the number of source images in the reference spectrum."""
        return (f"spectrum: compared with the spectrum of {self._source().count} source images",)

    def continued(self, seen: Sums, state: SpectrumState) -> SpectrumState:
        """Return the state after one more batch; it is that of a new stream where the images are of another kind.

        Small batches are compared with the stream once they are ``least_images`` together.
        """
        stream = state.stream
        if stream is None:
            return SpectrumState(seen, began=True)
        recent = seen if state.recent is None else state.recent.plus(seen)
        enough = recent.count >= self.least_images
        if enough and self._is_another_stream(recent, stream):
            return SpectrumState(recent, began=True)
        kept = min(1.0, max(0.0, (self.memory_images - seen.count) / stream.count))
        return replace(state, stream=stream.plus(seen, keep=kept), recent=None if enough else recent, began=False)

    def _is_another_stream(self, seen: Sums, stream: Sums) -> bool:
        """Return whether a batch differs so much from the stream that images must come from another source."""
        before = stream.spectrum()
        # How much images differ by chance is that of the stream itself where no source images are known.
        source = before if self.source is None else self.source
        counts = (seen.count, stream.count)
        chance = self.restart_factor * math.hypot(*(spectra.expected_distance_nats(source, count) for count in counts))
        distance = spectra.excess_distance_nats(seen.spectrum(), before, chance_nats=chance)
        return distance > 2 * self.tolerance_nats

    @torch.no_grad()
    def are_of_many_kinds(self, batch: Any, *, task: Task) -> bool:
        """Return whether the images of a batch are damaged in different ways, as far as their spectra show it."""
        if self.scenes is None:
            return False
        images = self._despiked(in_unit_range(task.images(batch), task))
        return self.scenes.are_of_many_kinds(spectra.band_power(images), self._source())

    def _source(self, model: nn.Module | None = None) -> PowerSpectrum:
        if self.source is None:
            other = ", or use bn" if model is not None and norm.batch_norms(model) else ""
            raise TTTNotSupportedError(
                "spectrum needs the power spectrum of source images, and none is stored with this model; give "
                f"unlabelled source images with --ttt-source{other}"
            )
        return self.source


@contextmanager
def filtering(model: nn.Module, clean: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block, ``model`` gets its inputs as ``clean`` returns them."""

    def replaced(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        batch = layout.for_prediction(clean(args[0] if args else kwargs))
        return ((batch, *args[1:]), kwargs) if args else (args, batch)

    handle = model.register_forward_pre_hook(replaced, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _shifts(model: nn.Module, singles: Iterable[Any], count: int, *, task: Task) -> Tensor | None:
    """Return the mean shift of the layers' statistics on some of ``count`` single images, see ``SourceScenes``.

    Each image is predicted by itself, since a stream is compared with the few most like it. None without BatchNorm.
    """
    if not norm.batch_norms(model):
        return None
    found = torch.full((count,), math.nan)
    chosen = set(torch.linspace(0, count - 1, min(count, _SHIFT_IMAGES)).round().long().tolist())
    for number, single in enumerate(itertools.islice(singles, count)):
        if number in chosen:
            with norm.measured_shifts(model) as shifts:
                task.forward(model, layout.for_prediction(single))
            if shifts:
                found[number] = norm.mean_shift(shifts)
    return found


def in_unit_range(images: Tensor, task: Task) -> Tensor:
    """Return ``(B, 3, H, W)`` images scaled from the task's ``pixel_range`` to [0, 1].

    Raises:
        TTTNotSupportedError: the task has no ``pixel_range``, or the images do not have three channels.
    """
    low, high = _black_and_white(images, task)
    return ((images - low) / (high - low)).float()


def from_unit_range(images: Tensor, task: Task) -> Tensor:
    """Return images in [0, 1] scaled to the task's ``pixel_range``: the inverse of :func:`in_unit_range`."""
    low, high = _black_and_white(images, task)
    return images * (high - low) + low


def with_unit_images(batch: Any, images: Tensor, task: Task) -> Any:
    """Return a batch with other images ``(B, 3, H, W)``, which are given in [0, 1]."""
    found, dtype = from_unit_range(images, task), task.images(batch).dtype
    return task.with_images(batch, (found if dtype.is_floating_point else found.round()).to(dtype))


def _black_and_white(images: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    pixel_range = task.pixel_range
    if pixel_range is None or images.shape[1] != 3:
        raise TTTNotSupportedError(
            "spectrum needs images with three channels and a known pixel_range; this model's images have "
            f"{images.shape[1]} channels and {'no' if pixel_range is None else 'a'} known pixel_range; use bn"
        )
    return bounds(pixel_range, images)

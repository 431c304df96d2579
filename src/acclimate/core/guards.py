"""Guards: each checks the evidence of one step and fires if the step must not be kept.

Gradient norms and losses are no useful evidence: Adam's first step has a norm of about ``lr * sqrt(n)`` whatever the
gradient, and the losses of two different batches cannot be compared. So the guards check the applied update, the
entropy on a fixed probe batch, the outputs, and the unadapted model's outputs on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, Protocol

import torch

from acclimate.core.method import Step
from acclimate.core.outputs import all_finite
from acclimate.core.report import StepReport, Verdict
from acclimate.core.signals import Certainty, SignalPair, Signals
from acclimate.core.source_model import SourceComparison
from acclimate.core.task import Task
from acclimate.core.view_agreement import AgreementTest, ClassMixTest, ThreeDecisions, ViewDecisions, effective_classes
from acclimate.errors import ConfigError
from acclimate.registry import GuardInfo

Remedy = Literal["rollback", "reset", "source"]
"""``rollback``: undo the step. ``reset``: restore the source weights. ``source``: undo the step, and let the unadapted
model predict until a later comparison favours the adapted one."""

REMEMBERED_DECISIONS: Final = 4096
"""How many of its newest decisions a session keeps for the guards."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a guard fired, and what the session does about it.

    Attributes:
        code: identifies the failed check for programs; ``reason``: describes it in words, with the numbers.
        remedy: what the session does.
    """

    code: str
    reason: str
    remedy: Remedy = "rollback"


@dataclass(frozen=True)
class Evidence:
    """The facts about one step that guards check; those that cost time are computed on first access.

    Attributes:
        step: what the method returned.
        task: interprets the outputs.
        relative_update: norm of the update over the norm of the source weights.
        relative_drift: distance from the source weights over their norm, after the update.
        probe_loss_before, probe_loss_after: mean entropy in nats on the probe batch, where there is one.
        probe_agreement: share of the probe batch's decisions on which the source and the adapted model agree.
        recent_classes: the decided classes of the last kept batches, oldest first, 4,096 at most.
        samples: number of images in the batch.
        batch: the model's input; None where it is not available.
        source: compares the adapted model with the unadapted one, and runs the latter on the batch; None where there
            is no unadapted model.
        certainty_allowance: the method's, see :class:`WorseThanSource`.
        compares_itself: whether the method compares itself with the unadapted model; then fewer images are compared.
        mirrored_outputs: runs both models on the mirror images and returns their outputs, adapted and unadapted; None
            where classes of mirror images cannot be compared.
        partly_adapted_outputs: runs the unadapted model with the batch's statistics in the given share of its BatchNorm
            layers, the first ones, and returns its outputs; None where there are no such layers.
    """

    step: Step
    task: Task
    relative_update: float
    relative_drift: float
    probe_loss_before: float | None = None
    probe_loss_after: float | None = None
    probe_agreement: float | None = None
    recent_classes: Sequence[int] = ()
    samples: int = 0
    batch: Any = None
    source: SourceComparison | None = None
    certainty_allowance: float = 1.0
    compares_itself: bool = False
    mirrored_outputs: Callable[[], tuple[Any, Any] | None] = lambda: None
    partly_adapted_outputs: Callable[[float], Any | None] = lambda _: None

    @cached_property
    def signals(self) -> Signals:
        """Statistics of the outputs on this batch."""
        return Signals.of(self.task, self.step.outputs, samples=self.samples)

    @property
    def computed_signals(self) -> Signals | None:
        """The signals, if a guard has used them; None otherwise."""
        return self.__dict__.get("signals")

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """The class of every decision in this batch."""
        return decided_classes(self.task, self.step.outputs)

    def report(
        self,
        *,
        index: int,
        verdict: Verdict,
        code: str | None,
        reason: str | None,
        update_norm: float,
        seconds: float,
        method_seconds: float,
    ) -> StepReport:
        """Return the report of the step, with the evidence that the guards used."""
        loss = self.step.loss
        return StepReport(
            index=index,
            verdict=verdict,
            code=code,
            reason=reason,
            loss=None if loss is None else float(loss.detach()),
            used=self.step.used,
            samples=self.samples,
            update_norm=update_norm,
            relative_update=self.relative_update,
            probe_loss_before=self.probe_loss_before,
            probe_loss_after=self.probe_loss_after,
            signals=None if self.computed_signals is None else self.computed_signals.to_dict(),
            seconds=seconds,
            method_seconds=method_seconds,
        )


class Guard(Protocol):
    """A callable that returns a :class:`Rejection` (the guard fires) or None (the step is kept)."""

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Check one step."""
        ...


@dataclass(frozen=True, slots=True)
class NonFinite:
    """Fires on NaN or infinity in the loss, in the outputs, or in the updated weights."""

    info: ClassVar[GuardInfo] = GuardInfo(
        name="non_finite",
        title="NaN or infinity in the loss, in the outputs, or in the updated weights",
        on_by_default=True,
        codes=("non_finite_loss", "non_finite_outputs", "non_finite_weights"),
    )

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Check one step."""
        loss = evidence.step.loss
        if loss is not None and not math.isfinite(float(loss.detach())):
            return Rejection("non_finite_loss", f"non-finite loss ({float(loss.detach())})")
        # A NaN logit fails every comparison, so methods would only skip it as unreliable: check the outputs themselves.
        if not all_finite(evidence.step.outputs):
            return Rejection("non_finite_outputs", "non-finite outputs")
        if not math.isfinite(evidence.relative_update):
            return Rejection("non_finite_weights", "non-finite weights after the update")
        return None


@dataclass(frozen=True, slots=True)
class MaxUpdate:
    """Fires when one step changed the weights by more than ``limit`` times the norm of the source weights."""

    info: ClassVar[GuardInfo] = GuardInfo(
        name="max_update",
        title="a step that changes the weights by more than VALUE times their norm",
        value="limit",
        on_by_default=True,
        setting="max_update",
        codes=("update_too_large",),
    )

    limit: float = 0.1

    def __post_init__(self) -> None:
        _positive("MaxUpdate limit", self.limit)

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Check one step."""
        if evidence.relative_update > self.limit:
            return Rejection(
                "update_too_large",
                f"update of {evidence.relative_update:.3g} times the weights' norm exceeds {self.limit:g}",
            )
        return None


@dataclass(frozen=True, slots=True)
class MaxDrift:
    """Resets to the source when the weights are further than ``limit`` times their norm from it."""

    info: ClassVar[GuardInfo] = GuardInfo(
        name="max_drift",
        title="weights further than VALUE times their norm from the source",
        value="limit",
        on_by_default=True,
        setting="max_drift",
        codes=("drift_too_large",),
    )

    limit: float = 0.5

    def __post_init__(self) -> None:
        _positive("MaxDrift limit", self.limit)

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Check one step."""
        if evidence.relative_drift > self.limit:
            return Rejection(
                "drift_too_large",
                f"drift of {evidence.relative_drift:.3g} times the weights' norm exceeds {self.limit:g}",
                "reset",
            )
        return None


@dataclass(frozen=True, slots=True)
class ProbeLoss:
    """Fires when the mean entropy on the probe batch rises by more than ``max_increase_nats`` in one step."""

    info: ClassVar[GuardInfo] = GuardInfo(
        name="probe_loss",
        title="an entropy on the probe batch that rises by more than VALUE nats in a step",
        value="max_increase_nats",
        setting="probe",
        needs_probe=True,
        codes=("probe_entropy_rose",),
    )

    max_increase_nats: float = 0.1

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Check one step."""
        before, after = evidence.probe_loss_before, evidence.probe_loss_after
        if before is None or after is None:
            return None
        if after - before > self.max_increase_nats or not math.isfinite(after):
            return Rejection("probe_entropy_rose", f"probe entropy rose from {before:.3g} to {after:.3g} nats")
        return None


@dataclass(frozen=True, slots=True)
class ProbeAgreement:
    """Resets to the source when fewer than ``min_share`` of the probe batch's decisions agree with the source's."""

    info: ClassVar[GuardInfo] = GuardInfo(
        name="probe_agreement",
        title="agreement with the source model on less than VALUE of the probe batch",
        value="min_share",
        needs_probe=True,
        codes=("probe_agreement_low",),
    )

    min_share: float = 0.5

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Check one step."""
        share = evidence.probe_agreement
        if share is not None and share < self.min_share:
            return Rejection(
                "probe_agreement_low", f"agreement with the source on the probe batch fell to {share:.2f}", "reset"
            )
        return None


@dataclass(frozen=True, slots=True)
class Collapse:
    """Resets to the source when one class takes more than ``max_share`` of the last ``window`` decisions.

    It is off by default, because a stream may really contain only one class: give a share that yours never reaches.
    """

    info: ClassVar[GuardInfo] = GuardInfo(
        name="collapse",
        title="one class taking more than VALUE of recent decisions",
        value="max_share",
        setting="collapse_share",
        codes=("one_class",),
    )

    max_share: float = 0.9
    window: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 1:
            raise ConfigError(f"Collapse max_share must lie in (0, 1], got {self.max_share}")
        if not 1 <= self.window <= REMEMBERED_DECISIONS:
            raise ConfigError(f"Collapse window must be 1 to {REMEMBERED_DECISIONS}, got {self.window}")

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Check one step."""
        recent = (*evidence.recent_classes, *evidence.classes)[-self.window :]
        if len(recent) < self.window:
            return None
        share = max(recent.count(label) for label in set(recent)) / len(recent)
        if share > self.max_share:
            reason = f"one class takes {share:.0%} of the last {len(recent)} decisions"
            return Rejection("one_class", reason, "reset")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorseThanSource:
    """Fires when the adapted model's outputs look worse than the unadapted model's, which then predicts.

    Harmful adaptation is visible in the outputs. Statistics estimated from one class, one image or black frames raise
    the entropy of decisions that had a low one; entropy minimised too far makes the model predict one class for
    everything, or detect nothing. Each signal is compared with the unadapted model's on the same images, so a stream
    that really contains only one class, or no object, does not count as a collapse. Methods that mix in the source's
    statistics are less certain for that reason alone; their ``certainty_allowance`` is above 1. The thresholds were
    measured by ``benchmarks/guards/thresholds.py``.

    Entropies do not mean the same for every network. So classifiers whose images may be mirrored are also compared by
    how often an image and its mirror image get the same class. The adapted model is not rejected for its certainty
    while it is credible by that, and it is rejected where the unadapted model gives about as many classes and is
    clearly more consistent.

    Where the unadapted model gives fewer classes, neither says why: it may fail on damaged images, or the stream may
    really be of few classes, from which no statistics should be taken. Then the unadapted model is asked with adapted
    statistics in its first layers alone.

    Attributes:
        certainty: computes the degradation score, whose limit is 1.
        agreement: finds the more consistent model; ``agreement_images``: mirror images of the first so many images are
            looked at. After them they are looked at with every regular comparison, and before a step is rejected.
        class_mix: finds why the adapted model gives more classes; ``first_layers``: the share of the BatchNorm layers
            that have adapted statistics then. Models without BatchNorm are not examined, nor are methods that compare
            themselves with the unadapted model: these say themselves where images are damaged.
        repeated_factor: multiplies the limit after three failed comparisons among the last eight.
        sticky_factor: multiplies the limit during a sticky fallback, which begins after two failed comparisons in a row
            with high degradation scores and ends after three passed comparisons in a row.
        min_variety: fires when the effective number of classes falls below this fraction of the unadapted model's;
            computed over ``variety_window`` decisions, because on a stream that is ordered by class an adapted model
            that is more accurate predicts fewer classes for a while.
        min_detection: fires when a detector's summed scores fall below this fraction of the unadapted model's;
            checked from eight images on.
        window: how many of the newest decisions are compared, or images where there are more of them.
        first_images: each of the first so many images is compared, of half as many where the method compares itself;
            ``first_decisions``: or fewer images, once so many of their decisions were compared. A segmenter makes a
            thousand in each image.
        every_images: after them, one batch every so many images is compared; also when the adapted model's own
            certainty falls, and on the batch after a comparison with a degradation score above half the limit.
    """

    info: ClassVar[GuardInfo] = GuardInfo(
        name="worse_than_source",
        title="outputs that look worse than the unadapted model's, which then predicts",
        on_by_default=True,
        costs_prediction=True,
        codes=(
            "less_certain_than_source",
            "less_consistent_than_source",
            "statistics_of_few_classes",
            "fewer_classes_than_source",
            "lower_scores_than_source",
        ),
    )

    certainty: Certainty = Certainty()
    agreement: AgreementTest = AgreementTest(standard_errors=0.5, disagreement_ratio=0.95)
    agreement_images: int = 128
    class_mix: ClassMixTest = ClassMixTest()
    first_layers: float = 0.5
    repeated_factor: float = 0.7
    sticky_factor: float = 0.1
    min_variety: float = 0.4
    min_detection: float = 0.5
    window: int = 32
    variety_window: int = 256
    first_images: int = 256
    first_decisions: int = 16_384
    every_images: int = 512

    def __post_init__(self) -> None:
        for name in ("repeated_factor", "sticky_factor", "window", "variety_window", "every_images"):
            _positive(f"WorseThanSource {name}", getattr(self, name))
        for name in ("min_variety", "min_detection"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"WorseThanSource {name} must lie in [0, 1), got {getattr(self, name)}")

    def __call__(self, evidence: Evidence) -> Rejection | None:
        """Check one step."""
        comparison = evidence.source
        if comparison is None or not self._is_due(evidence, comparison):
            return None
        limit = (
            self.sticky_factor
            if comparison.sticky_fallback
            else self.repeated_factor
            if comparison.recent_failures > 2
            else 1.0
        )
        regular = comparison.images_since_check + evidence.samples >= self.every_images
        both = comparison.compare(
            evidence.batch,
            evidence.signals,
            decisions=self.window,
            outputs=evidence.step.outputs if evidence.compares_itself or not evidence.task.exclusive else None,
        )
        adapted, source = both.adapted, both.source
        score = self.certainty.degradation_score(both) / evidence.certainty_allowance
        comparison.record_score(score)
        looks = regular or score > limit or len(comparison.adapted_views) < self.agreement_images
        views = self._views(evidence, comparison) if looks or comparison.recent_failures else None
        credible = views is not None and self.agreement.is_credible(*views)
        damage: bool | None = None
        if evidence.step.damage:
            damage = True
        elif looks or comparison.recent_failures:
            damage = self._is_damage(evidence, comparison)
        if damage is False and not credible:
            found = comparison.with_between
            many, few = effective_classes(found.adapted), effective_classes(found.between)
            return Rejection(
                "statistics_of_few_classes",
                f"decisions are spread over {many:.1f} classes, and over {few:.1f} with adapted statistics in the "
                "first layers alone, as on a stream of few classes; the unadapted model predicts instead",
                "source",
            )
        if score > limit and not (damage or credible):
            return Rejection(
                "less_certain_than_source",
                f"less certain than the unadapted model (mean entropy {adapted.entropy_nats:.2f} nats per decision, "
                f"unadapted {source.entropy_nats:.2f}), which predicts instead",
                "source",
            )
        if views is not None and self.agreement.favours(views[1], views[0]):
            return Rejection(
                "less_consistent_than_source",
                f"{_disagreements(views[0])} of {len(views[0])} images get another class when mirrored or moved, "
                f"{_disagreements(views[1])} with the unadapted model, which predicts instead",
                "source",
            )
        longer = comparison.recent(self.variety_window)
        if longer.adapted.decisions >= self.variety_window and longer.variety_ratio < self.min_variety:
            return Rejection(
                "fewer_classes_than_source",
                f"decisions are spread over {longer.adapted.effective_classes:.1f} classes, the unadapted model's over "
                f"{longer.source.effective_classes:.1f}; the unadapted model predicts instead",
                "source",
            )
        if evidence.task.exclusive:
            # A classifier decides on every image: low scores are low certainty.
            return None
        seen = comparison.recent(self.window, images=_FEW_IMAGES)
        if seen.source.samples >= _FEW_IMAGES and seen.detection_ratio < self.min_detection:
            return Rejection(
                "lower_scores_than_source",
                f"scores sum to {seen.detection_ratio:.0%} of the unadapted model's, which predicts instead",
                "source",
            )
        return None

    def _views(self, evidence: Evidence, comparison: SourceComparison) -> tuple[ViewDecisions, ViewDecisions] | None:
        """Return the decisions of both models on the newest images and their mirror images, this batch's included."""
        mirrored = evidence.mirrored_outputs()
        if mirrored is None:
            return None
        task = evidence.task
        both = zip((evidence.step.outputs, comparison.outputs(evidence.batch)), mirrored, strict=True)
        comparison.add_views(
            *(ViewDecisions.of(*(task.decisions(found).class_probabilities() for found in pair)) for pair in both)
        )
        return comparison.adapted_views, comparison.unadapted_views

    def _is_damage(self, evidence: Evidence, comparison: SourceComparison) -> bool | None:
        """Say whether the adapted model gives more classes because images are damaged; None where that is open."""
        both = comparison.recent(self.variety_window)
        if evidence.compares_itself or not evidence.task.exclusive or not both.source.decisions:
            return None
        if not self.class_mix.is_due(*(torch.tensor(model.decided) for model in (both.adapted, both.source))):
            return None
        between = evidence.partly_adapted_outputs(self.first_layers)
        if between is None:
            return None
        outputs = (evidence.step.outputs, comparison.outputs(evidence.batch), between)
        comparison.add_between(
            ThreeDecisions(*(evidence.task.decisions(found).class_probabilities().argmax(-1) for found in outputs))
        )
        found = self.class_mix.is_damage(
            comparison.with_between, comparison.adapted_views, were_few=bool(comparison.few_classes)
        )
        if found is not None:
            comparison.few_classes = not found
        # A stream usually stays what it was.
        return None if comparison.few_classes is None else not comparison.few_classes

    def _is_due(self, evidence: Evidence, comparison: SourceComparison) -> bool:
        now, first_images = evidence.signals, self.first_images // (2 if evidence.compares_itself else 1)
        if evidence.step.unadapted is evidence.step.outputs:
            # Nothing was adapted. Such images would hide in what is remembered what adaptation does to later ones.
            return False
        verified, last = comparison.verified, comparison.last
        began = comparison.images_checked >= first_images or comparison.decisions_checked >= self.first_decisions
        if verified is None or last is None or not began:
            return True
        if comparison.sticky_fallback or comparison.recent_failures or self.certainty.degradation_score(last) > 0.5:
            return True
        if comparison.recent(self.variety_window).variety_ratio < math.sqrt(self.min_variety):
            return True
        if comparison.images_since_check + now.samples >= self.every_images:
            return True
        since = SignalPair(now, verified)
        fewer_classes = now.decisions >= self.window and since.variety_ratio < math.sqrt(self.min_variety)
        fewer_found = now.detections_per_image < math.sqrt(self.min_detection) * verified.detections_per_image
        return fewer_classes or fewer_found or since.entropy_rise > self.certainty.allowed(now.decisions) / 2


_FEW_IMAGES: Final = 8


def _disagreements(views: ViewDecisions) -> int:
    return len(views) - int(views.agreements.sum())


def default_guards() -> tuple[Guard, ...]:
    """Return the guards that a session uses by default."""
    return (NonFinite(), MaxUpdate(), MaxDrift(), WorseThanSource())


@torch.no_grad()
def decided_classes(task: Task, outputs: Any) -> tuple[int, ...]:
    """Return the most probable class of every decision."""
    decisions = task.decisions(outputs)
    if len(decisions) == 0:
        return ()
    return tuple(decisions.class_probabilities().argmax(-1).tolist())


def _positive(what: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{what} must be positive, got {value}")

"""The gate: whether the adapted model answers, and with which confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from acclimate.errors import ConfigError
from acclimate.language.decision.calibration import Calibration
from acclimate.language.decision.evidence import Evidence

CONFIDENCE_THRESHOLDS: Final[Mapping[str, float]] = {
    "production": 0.75,
    "research": 0.65,
    "testing": 0.60,
    "demo": 0.70,
}

Reason = Literal[
    "insufficient_examples", "contradictory_examples", "low_confidence", "no_held_out_gain", "timeout", "memory",
    "non_finite", "detection_failed", "unsupported_model",
]  # fmt: skip
REASONS: Final[tuple[Reason, ...]] = Reason.__args__  # type: ignore[attr-defined]
#: Reasons for which adapting was considered and declined; every other reason is a failure.
DECLINED: Final[frozenset[Reason]] = frozenset(
    {"insufficient_examples", "contradictory_examples", "low_confidence", "no_held_out_gain"}
)


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision of the gate.

    Attributes:
        adapt: whether the adapted model answers.
        reason: why not; None with ``adapt``.
        confidence: probability that the adapted model answers this request exactly right; None where none was tried.
        icl_confidence: probability that the base model does.
        calibrated: whether the probabilities were fitted for this model, or are the shares of held-out examples.
    """

    adapt: bool
    reason: Reason | None
    confidence: float | None
    icl_confidence: float
    calibrated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Compares the adapted model with the base model, on evidence.

    Attributes:
        calibration: fitted for the model; None compares the results on held-out examples directly.
        environment: a key of :data:`CONFIDENCE_THRESHOLDS`: below its value the base model answers; None sets no
            threshold: the model that is likelier to be right answers.
        threshold: another threshold, instead of an environment's.
        margin: by how much the adapted model must be likelier to be right.

    Raises:
        ConfigError: the environment is not known, or a value is outside 0 to 1.
    """

    calibration: Calibration | None = None
    environment: str | None = None
    threshold: float | None = None
    margin: float = 0.02

    def __post_init__(self) -> None:
        if self.environment is not None and self.environment not in CONFIDENCE_THRESHOLDS:
            known = ", ".join(CONFIDENCE_THRESHOLDS)
            raise ConfigError(f"environment must be one of {known}, got {self.environment!r}")
        for name in ("threshold", "margin"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {value}")

    @property
    def confidence_threshold(self) -> float:
        """The confidence below which the base model answers."""
        if self.threshold is not None:
            return self.threshold
        return CONFIDENCE_THRESHOLDS[self.environment] if self.environment else 0.0

    def decide(self, evidence: Evidence) -> Decision:
        """Return the decision on ``evidence``; before the query is answered it declines only where there is no gain."""
        trained = evidence.answer_log_likelihood is not None
        asked = evidence.asked
        if not evidence.tried:
            icl = (asked + 0.5) / (asked + 1)
            return Decision(False, "no_held_out_gain", None, icl, calibrated=False)
        if self.calibration is None:
            adapted = (evidence.after.exact * asked + 0.5) / (asked + 1)
            icl = (evidence.before.exact * asked + 0.5) / (asked + 1)
            gains = evidence.gains
        else:
            adapted = self.calibration.probability(evidence, "adapted")
            icl = self.calibration.probability(evidence, "icl")
            # Before training the estimate is coarse: no margin is asked for yet.
            gains = adapted > icl + (self.margin if trained else 0.0)
            if trained and evidence.answers_agree:
                # The same answer is as likely to be right from either model. Held-out examples decide which of them is
                # said to have given it, so that this does not change from one query of a task to the next.
                icl, known = adapted, evidence.held_out_only
                gains = self.calibration.probability(known, "adapted") > self.calibration.probability(known, "icl")
        reason: Reason | None = None
        if not gains:
            reason = "no_held_out_gain"
        elif trained and adapted < self.confidence_threshold:
            reason = "low_confidence"
        return Decision(reason is None, reason, adapted, icl, self.calibration is not None)

"""What is recorded, as plain values: a request, a vision run, the outcome of an experiment arm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import uuid4

from acclimate.errors import DataError

Pipeline = Literal["language", "vision", "media"]
Status = Literal["adapted", "declined", "fallback", "plain"]
STATUSES: Final = ("adapted", "declined", "fallback", "plain")
#: Reason codes of a decision not to adapt; any other reason is a failure. The same as the language pipeline's.
DECLINED_REASONS: Final = frozenset(
    {"insufficient_examples", "contradictory_examples", "low_confidence", "no_held_out_gain"}
)


def new_request_id() -> str:
    """Return a new unique name for a request."""
    return uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request to a pipeline, adapted or not.

    Attributes:
        pipeline: ``language``, ``vision`` or ``media`` (labelled images and sounds).
        status: what was done: ``adapted``; ``declined`` (it was decided not to adapt); ``fallback`` (adapting failed);
            ``plain`` (adapting was not asked for, or there was nothing to adapt to).
        session_id: groups requests.
        request_id: names this one, for feedback.
        timestamp: when it was answered; without a zone it is local time.
        model: its name.
        adaptable: what was found: whether there was something to adapt to, whatever was done; None takes every status
            but ``plain`` for it.
        method: ``ttt`` or ``icl``; a vision method's name, or None.
        reason: the code of a declined or a fallback request.
        pattern, pattern_confidence: the detected kind of pattern in the prompt, and how sure the detector is.
        confidence, icl_confidence: probabilities that the adapted and the unadapted model are right.
        seconds: the whole request.
        memory_bytes: beyond the loaded model.
        rank: of the low-rank weights.
        environment: whose confidence threshold the gate had.
        examples_count, training_steps: of the attempt.
        adaptation_time: seconds for gate and training.
        convergence_score: by which share the training loss came down, 0 to 1.
        accuracy_improvement: over in-context learning, as a share.
        user_feedback: 1 to 5.
        details: further plain values, kept in ``metadata``.
        settings: of the adaptation, for the audit log.
        actor: who asked, for the audit log; hash it if it should not be read there.
        content: prompt, examples and answer; stored only where the store keeps content.
        vision: the numbers of a vision run.

    Raises:
        DataError: the status is unknown, a score is not between 0 and 1, feedback not between 1 and 5, or a count or a
            time is negative.
    """

    pipeline: Pipeline
    status: Status
    session_id: str
    request_id: str = field(default_factory=new_request_id)
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    model: str | None = None
    adaptable: bool | None = None
    method: str | None = None
    reason: str | None = None
    pattern: str | None = None
    pattern_confidence: float | None = None
    confidence: float | None = None
    icl_confidence: float | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    rank: int | None = None
    environment: str | None = None
    examples_count: int | None = None
    training_steps: int | None = None
    adaptation_time: float | None = None
    convergence_score: float | None = None
    accuracy_improvement: float | None = None
    user_feedback: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    actor: str = "unknown"
    content: Mapping[str, Any] | None = None
    vision: VisionRun | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise DataError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        check_range("confidence", self.confidence, 0, 1)
        check_range("convergence_score", self.convergence_score, 0, 1)
        check_range("user_feedback", self.user_feedback, 1, 5)
        for name in ("examples_count", "training_steps", "adaptation_time"):
            check_range(name, getattr(self, name), 0, math.inf)

    @property
    def is_attempt(self) -> bool:
        """Whether adapting was considered: every status but ``plain``."""
        return self.status != "plain"

    @property
    def had_something_to_adapt_to(self) -> bool | None:
        """Whether there was something to adapt to; None for a vision run, which any image can be adapted to."""
        if self.pipeline != "language":
            return None
        return self.is_attempt if self.adaptable is None else self.adaptable

    @property
    def success(self) -> bool | None:
        """True adapted, False failed, None where it was decided not to adapt."""
        return {"adapted": True, "fallback": False}.get(self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRun:
    """The numbers of a vision run.

    Attributes:
        images: predicted.
        steps, kept, skipped: of the adaptation.
        guard_rejections: steps that a guard undid.
        resets: to the source weights, by a guard or by the method.
        cost_ratio: CPU seconds over those of prediction without adaptation, where both were measured.
        gain, gain_low, gain_high: of the metric over no adaptation with its 95 % interval, where there are labels.
        metric: its name.
    """

    images: int
    steps: int
    kept: int
    skipped: int
    guard_rejections: int
    resets: int
    cost_ratio: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    metric: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one experiment arm on one request.

    Attributes:
        test_id: of the experiment.
        session_id: groups requests.
        method: of the arm, such as ``TTT`` or ``ICL``.
        task_type, examples_count: of the request.
        response_quality: 0 to 1; None where it is not known, or not yet.
        response_time: seconds.
        user_satisfaction: 1 to 5.
        metadata: further plain values.
        request_id: two outcomes of one request are a pair.
        unit: the user or the request that the arm was assigned to.
        timestamp: of the answer.

    Raises:
        DataError: quality is not between 0 and 1, satisfaction not between 1 and 5, or the time negative.
    """

    test_id: str
    session_id: str
    method: str
    task_type: str | None = None
    examples_count: int | None = None
    response_quality: float | None = None
    response_time: float | None = None
    user_satisfaction: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    unit: str | None = None
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        check_range("response_quality", self.response_quality, 0, 1)
        check_range("response_time", self.response_time, 0, math.inf)
        check_range("user_satisfaction", self.user_satisfaction, 1, 5)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Refuse a number outside ``low`` to ``high``; NaN is outside.

    Raises:
        DataError: it is.
    """
    if value is not None and not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise DataError(f"{name} must be {bounds}, got {value}")

"""What one request gathers on its way, and the report that it ends in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from acclimate.errors import SessionError
from acclimate.language.answers import AdaptationMetadata, AskReport, Status
from acclimate.language.decision.evidence import Evidence
from acclimate.language.decision.gate import DECLINED, Decision, Reason
from acclimate.language.examples import Example
from acclimate.language.models.generate import Answer
from acclimate.language.training.memory import PeakMemory
from acclimate.language.training.trainer import Adapter, StopReason

#: How training can fail, and the reason that a request then falls back for.
FAILURES: Final[Mapping[StopReason, Reason]] = {
    "time budget": "timeout",
    "memory budget": "memory",
    "non_finite": "non_finite",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question with its examples, and how it is to be answered.

    Attributes:
        examples: worked ones, as given.
        query: the open item.
        pattern, pattern_confidence: how they were found.
        warnings: what is known already.
    """

    examples: tuple[Example, ...]
    query: str
    pattern: str = "given"
    pattern_confidence: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Work:
    """What a request gathers on its way to a report."""

    began: float
    memory: PeakMemory
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    adapter: Adapter | None = None
    evidence: Evidence | None = None
    decision: Decision | None = None
    icl: Answer | None = None
    ttt: Answer | None = None
    agreement: float | None = None
    cached: bool = False
    warm_start: bool = False
    peak_bytes: int = 0

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds that the block takes to ``part``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            self.memory.now()


class RefusedError(Exception):
    """The adapted model should not answer, for a listed reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def report_of(
    work: Work,
    request: Request,
    examples: Sequence[Example],
    reason: Reason | None,
    *,
    adapted: bool,
    model: str,
    votes: int,
    rank: int | None,
) -> AskReport:
    """Return the report of a request that has been answered.

    Raises:
        SessionError: there is no answer.
    """
    chosen = work.ttt if adapted and work.ttt is not None else work.icl
    if chosen is None:
        raise SessionError("a request came to its end without an answer")
    status: Status = "adapted" if adapted else "plain"
    if reason is not None:
        status = "declined" if reason in DECLINED else "fallback"
    adapter, decision = work.adapter, work.decision
    return AskReport(
        answer=chosen.text,
        status=status,
        reason=reason,
        method="ttt" if adapted else "icl",
        model=model,
        pattern=request.pattern,
        pattern_confidence=request.pattern_confidence,
        icl_answer=work.icl.text if work.icl else None,
        ttt_answer=work.ttt.text if work.ttt else None,
        icl_confidence=decision.icl_confidence if decision else None,
        calibrated=bool(decision and decision.calibrated),
        votes=votes,
        agreement=work.agreement,
        cached=work.cached,
        warm_start=work.warm_start,
        complete=chosen.complete,
        metadata=AdaptationMetadata(
            training_steps=len(adapter.losses) if adapter and not work.cached else 0,
            convergence_score=adapter.convergence if adapter else 0.0,
            confidence_score=decision.confidence if decision else None,
            adaptation_time=work.seconds.get("gate", 0.0) + work.seconds.get("training", 0.0),
            examples_used=len(examples),
            lora_rank=adapter.rank if adapter else rank,
            final_loss=adapter.losses[-1] if adapter and adapter.losses else None,
            early_stopped=bool(adapter and adapter.stop == "early_stop"),
            fallback_reason=reason,
        ),
        seconds=work.seconds | {"total": time.perf_counter() - work.began},
        peak_bytes=max(work.peak_bytes, work.memory.peak),
        warnings=tuple(work.warnings),
    )

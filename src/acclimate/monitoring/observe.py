"""From what the doors report to what is recorded; the doors themselves know nothing of the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from acclimate.monitoring.records import RequestRecord, VisionRun, new_request_id

_TEXTS: Final = ("answer", "icl_answer", "ttt_answer")


def language_request(
    report: Mapping[str, Any],
    *,
    session_id: str,
    request_id: str | None = None,
    actor: str = "unknown",
    environment: str | None = None,
    settings: Mapping[str, Any] | None = None,
    content: Mapping[str, Any] | None = None,
) -> RequestRecord:
    """Return the record of an answered prompt.

    Args:
        report: plain values of the language door's report, as its ``to_dict`` gives them.
        session_id: groups requests.
        request_id: names this one; None makes a name.
        actor: who asked, for the audit log.
        environment: whose threshold the gate had.
        settings: of the adaptation, for the audit log.
        content: prompt and examples; stored, with the answers, only where the store keeps content.
    """
    meta = report["metadata"]
    texts = None if content is None else {**content, **{name: report[name] for name in _TEXTS}}
    tried = report["status"] != "plain"
    return RequestRecord(
        door="language",
        status=report["status"],
        session_id=session_id,
        request_id=request_id or new_request_id(),
        model=report["model"],
        method=report["method"],
        reason=report["reason"],
        pattern=report["pattern"],
        pattern_confidence=report["pattern_confidence"],
        confidence=meta["confidence_score"],
        icl_confidence=report["icl_confidence"],
        seconds=report["seconds"].get("total"),
        memory_bytes=report["peak_bytes"],
        rank=meta["lora_rank"],
        environment=environment,
        examples_count=meta["examples_used"] if tried else None,
        training_steps=meta["training_steps"] if tried else None,
        adaptation_time=meta["adaptation_time"] if tried else None,
        convergence_score=meta["convergence_score"] if meta["training_steps"] else None,
        details={name: report[name] for name in ("cached", "warm_start", "votes", "agreement", "calibrated")}
        | {"final_loss": meta["final_loss"], "early_stopped": meta["early_stopped"], "rank": meta["lora_rank"]},
        settings={"rank": meta["lora_rank"], "steps": meta["training_steps"], **(settings or {})},
        actor=actor,
        content=texts,
    )


def vision_request(
    *,
    images: int,
    model: str | None,
    session_id: str,
    ttt: Mapping[str, Any],
    seconds: float | None = None,
    actor: str = "unknown",
    cost_ratio: float | None = None,
    gain: tuple[float, float, float] | None = None,
    metric: str | None = None,
) -> RequestRecord:
    """Return the record of a vision run.

    Args:
        images: predicted.
        model: its name.
        session_id: groups runs.
        ttt: the ``ttt`` block of the run's meta.
        seconds: of the whole run.
        actor: who ran it, for the audit log.
        cost_ratio: over plain prediction, where it was measured.
        gain: of the metric against no adaptation with its interval, where there are labels.
        metric: which.
    """
    enabled = bool(ttt.get("enabled"))
    report = ttt["report"] if enabled else {}
    counts = report["session"]["counts"] if enabled else {}
    kept = counts.get("kept", 0)
    trips = counts.get("rolled_back", 0) + counts.get("reset", 0)
    status, reason = "plain", None
    if enabled:
        status = "adapted" if kept else "fallback" if trips else "declined"
        reason = None if kept else "guard" if trips else "nothing_to_learn_from"
    elif ttt.get("choice"):
        # Asked to adapt, looked at what could be done, and found that nothing would help.
        status, reason = "declined", "nothing_helps"
    value, low, high = gain if gain is not None else (None, None, None)
    own = ("lr", "batch_size", "steps", "update_filter", "reset", "seed")
    return RequestRecord(
        door="vision",
        status=status,  # type: ignore[arg-type]
        session_id=session_id,
        model=model,
        method=ttt.get("method") if enabled else None,
        reason=reason,
        seconds=seconds,
        memory_bytes=report["session"].get("held_bytes") if enabled else None,
        settings={name: ttt.get(name) for name in own} if enabled else {},
        actor=actor,
        vision=VisionRun(
            images=images,
            steps=sum(count for verdict, count in counts.items() if verdict not in ("refused", "paused")),
            kept=kept,
            skipped=counts.get("skipped", 0),
            guard_trips=trips,
            resets=counts.get("reset", 0) + counts.get("recovered", 0),
            cost_ratio=cost_ratio,
            gain=value,
            gain_low=low,
            gain_high=high,
            metric=metric,
        ),
    )

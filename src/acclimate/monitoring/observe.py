"""Records made from the reports of the pipelines, which arrive as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from acclimate.monitoring.records import RequestRecord, Status, VisionRun, new_request_id

_TEXTS: Final = ("answer", "icl_answer", "ttt_answer")
_DETAILS: Final = ("cached", "warm_start", "votes", "agreement", "calibrated")
_MEDIA_DETAILS: Final = ("views", "held_out_accuracy", "held_out_examples", "typicality", "refused")
_VISION_SETTINGS: Final = ("lr", "batch_size", "steps", "update_filter", "reset", "seed")
#: Verdicts of batches on which no step was made.
_NO_STEP: Final = frozenset({"refused", "paused"})


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
        report: plain values of the language pipeline's report, as its ``to_dict`` returns them.
        session_id: groups requests.
        request_id: names this one; None makes a name.
        actor: who asked, for the audit log.
        environment: whose confidence threshold the gate had.
        settings: of the adaptation, for the audit log.
        content: prompt and examples; stored, with the answers, only where the store keeps content.
    """
    meta = report["metadata"]
    texts = None if content is None else {**content, **{name: report[name] for name in _TEXTS}}
    tried = report["status"] != "plain"
    return RequestRecord(
        pipeline="language",
        status=report["status"],
        session_id=session_id,
        request_id=request_id or new_request_id(),
        model=report["model"],
        method=report["method"],
        reason=report["reason"],
        # The control arm of an experiment does not adapt, whatever it finds.
        adaptable=tried or meta["examples_used"] > 0,
        pattern=report["pattern"],
        pattern_confidence=report["pattern_confidence"],
        confidence=meta["confidence_score"],
        icl_confidence=report["icl_confidence"],
        seconds=report["seconds"].get("total"),
        memory_bytes=report["peak_bytes"],
        rank=meta["lora_rank"],
        environment=environment,
        examples_count=meta["examples_used"] if tried or meta["examples_used"] else None,
        training_steps=meta["training_steps"] if tried else None,
        adaptation_time=meta["adaptation_time"] if tried else None,
        convergence_score=meta["convergence_score"] if meta["training_steps"] else None,
        details={name: report[name] for name in _DETAILS}
        | {"final_loss": meta["final_loss"], "early_stopped": meta["early_stopped"], "rank": meta["lora_rank"]},
        settings={"rank": meta["lora_rank"], "steps": meta["training_steps"], **(settings or {})},
        actor=actor,
        content=texts,
    )


def media_request(
    report: Mapping[str, Any],
    *,
    session_id: str,
    request_id: str | None = None,
    actor: str = "unknown",
    asked_to_adapt: bool = False,
    content: Mapping[str, Any] | None = None,
) -> RequestRecord:
    """Return the record of an answered image or sound.

    Args:
        report: plain values of the media pipeline's report, as its ``to_dict`` returns them.
        session_id: groups requests.
        request_id: names this one; None makes a name.
        actor: who asked, for the audit log.
        asked_to_adapt: whether the encoder was to be trained where that helps.
        content: stored, with the answer, only where the store keeps content.
    """
    status: Status = "adapted" if report["adapted"] else "declined" if asked_to_adapt else "plain"
    return RequestRecord(
        pipeline="media",
        status=status,
        session_id=session_id,
        request_id=request_id or new_request_id(),
        model=report["encoder"],
        method=report["head"],
        reason="no_held_out_gain" if status == "declined" else None,
        pattern=report["kind"],
        confidence=report["probability"],
        seconds=report["seconds"].get("total"),
        examples_count=report["examples_used"],
        details={name: report[name] for name in _MEDIA_DETAILS},
        actor=actor,
        content=None if content is None else {**content, "answer": report["answer"]},
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
        ttt: the ``ttt`` object of the run's metadata.
        seconds: of the whole run.
        actor: who ran it, for the audit log.
        cost_ratio: over prediction without adaptation, where it was measured.
        gain: of the metric over no adaptation with its 95 % interval, where there are labels.
        metric: its name.
    """
    enabled = bool(ttt.get("enabled"))
    report = ttt["report"] if enabled else {}
    counts = report["session"]["counts"] if enabled else {}
    kept = counts.get("kept", 0)
    rejections = counts.get("rolled_back", 0) + counts.get("reset", 0)
    status: Status = "plain"
    reason = None
    if enabled and kept:
        status = "adapted"
    elif enabled:
        status, reason = ("fallback", "guard") if rejections else ("declined", "nothing_to_learn_from")
    elif ttt.get("choice"):
        # Adaptation was asked for, and the automatic choice of a method found none that helps.
        status, reason = "declined", "nothing_helps"
    value, low, high = gain if gain is not None else (None, None, None)
    return RequestRecord(
        pipeline="vision",
        status=status,
        session_id=session_id,
        model=model,
        method=ttt.get("method") if enabled else None,
        reason=reason,
        seconds=seconds,
        memory_bytes=report["session"].get("held_bytes") if enabled else None,
        settings={name: ttt.get(name) for name in _VISION_SETTINGS} if enabled else {},
        actor=actor,
        vision=VisionRun(
            images=images,
            steps=sum(count for verdict, count in counts.items() if verdict not in _NO_STEP),
            kept=kept,
            skipped=counts.get("skipped", 0),
            guard_rejections=rejections,
            resets=counts.get("reset", 0) + counts.get("recovered", 0),
            cost_ratio=cost_ratio,
            gain=value,
            gain_low=low,
            gain_high=high,
            metric=metric,
        ),
    )

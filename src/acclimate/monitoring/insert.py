"""From records to rows: what is written for a request, an attempt by itself, and an outcome."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.core.report import to_jsonable
from acclimate.monitoring import audit
from acclimate.monitoring.records import Outcome, RequestRecord, TTTPerformanceMetric
from acclimate.monitoring.schema import requests, timestamp_of, ttt_ab_tests, ttt_metrics, vision_runs

#: What can be handed to the store; an attempt comes with its metadata.
Event = RequestRecord | Outcome | tuple[TTTPerformanceMetric, Mapping[str, Any]]


def insert(connection: Connection, event: Event, *, writer_id: str, sequence: int, keep_content: bool) -> None:
    """Write one event.

    Args:
        connection: inside a transaction that writes.
        event: to write.
        writer_id: of the process that handed it over.
        sequence: its number there.
        keep_content: store prompts, examples and answers where a record carries them.
    """
    if isinstance(event, Outcome):
        _insert_outcome(connection, event)
    elif isinstance(event, RequestRecord):
        _insert_request(connection, event, writer_id, sequence, keep_content)
    else:
        _insert_attempt(connection, *event, writer_id, sequence)


def as_json(values: Mapping[str, Any]) -> str:
    """Return plain values as one line of JSON, keys in order."""
    return json.dumps(to_jsonable(dict(values)), sort_keys=True)


def _insert_request(
    connection: Connection, record: RequestRecord, writer_id: str, sequence: int, keep_content: bool
) -> None:
    moment = timestamp_of(record.timestamp)
    same: tuple[str, ...] = (
        "request_id",
        "session_id",
        "door",
        "model",
        "method",
        "status",
        "reason",
        "pattern",
        "pattern_confidence",
    )
    same += ("confidence", "icl_confidence", "seconds", "memory_bytes", "rank", "environment", "user_feedback")
    values = {name: getattr(record, name) for name in same}
    values |= {"timestamp": moment, "writer_id": writer_id, "sequence": sequence}
    if keep_content and record.content is not None:
        values["content"] = as_json(record.content)
    connection.execute(sa.insert(requests).values(values))
    if record.vision is not None:
        run = {"request_id": record.request_id, **dataclasses.asdict(record.vision)}
        connection.execute(sa.insert(vision_runs).values(run))
    if not record.is_attempt:
        return
    if record.door == "language":
        _insert_metrics(connection, record, moment)
    audit.append(
        connection,
        actor=record.actor,
        action=f"{record.door} adaptation",
        subject=record.request_id,
        settings={"model": record.model, "method": record.method, **record.settings},
        outcome=record.status if record.reason is None else f"{record.status}: {record.reason}",
        moment=moment,
    )


def _insert_metrics(connection: Connection, record: RequestRecord, moment: str) -> None:
    connection.execute(
        sa.insert(ttt_metrics).values(
            session_id=record.session_id,
            timestamp=moment,
            task_type=record.pattern,
            examples_count=record.examples_count,
            training_steps=record.training_steps,
            adaptation_time=record.adaptation_time,
            confidence_score=record.confidence,
            convergence_score=record.convergence_score,
            success=record.success,
            fallback_reason=record.reason,
            user_feedback=record.user_feedback,
            accuracy_improvement=record.accuracy_improvement,
            metadata=as_json({"model": record.model, **record.details}),
            request_id=record.request_id,
        )
    )


def _insert_attempt(
    connection: Connection, metric: TTTPerformanceMetric, metadata: Mapping[str, Any], writer_id: str, sequence: int
) -> None:
    # An attempt that comes by itself is a request too: rates need every one of them.
    _insert_request(
        connection,
        RequestRecord(
            door="language",
            status=metric.status,
            session_id=metric.session_id,
            timestamp=metric.timestamp,
            method="ttt" if metric.success else "icl",
            reason=metric.fallback_reason,
            pattern=metric.task_type,
            confidence=metric.confidence_score,
            examples_count=metric.examples_count,
            training_steps=metric.training_steps,
            adaptation_time=metric.adaptation_time,
            convergence_score=metric.convergence_score,
            accuracy_improvement=metric.accuracy_improvement,
            user_feedback=metric.user_feedback,
            details=metadata,
        ),
        writer_id,
        sequence,
        False,
    )


def _insert_outcome(connection: Connection, outcome: Outcome) -> None:
    values = {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)}
    values |= {"timestamp": timestamp_of(outcome.timestamp), "metadata": as_json(outcome.metadata)}
    connection.execute(sa.insert(ttt_ab_tests).values(values))

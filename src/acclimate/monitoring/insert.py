"""Writes records as rows: a request with its attempt, vision run and audit entry, and an outcome."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.monitoring import audit
from acclimate.monitoring.jsonable import to_jsonable
from acclimate.monitoring.records import Outcome, RequestRecord
from acclimate.monitoring.schema import requests, timestamp_of, ttt_ab_tests, ttt_metrics, vision_runs

#: What the store takes.
Record = RequestRecord | Outcome

#: Columns of ``requests`` that have the name of an attribute of the record.
_REQUEST_COLUMNS: Final = (
    "request_id",
    "session_id",
    "pipeline",
    "model",
    "method",
    "status",
    "reason",
    "pattern",
    "pattern_confidence",
    "confidence",
    "icl_confidence",
    "seconds",
    "memory_bytes",
    "rank",
    "environment",
    "user_feedback",
)


def insert(connection: Connection, record: Record, *, writer_id: str, sequence: int, keep_content: bool) -> None:
    """Write one record.

    Args:
        connection: inside a transaction that writes.
        record: to write.
        writer_id: of the process that queued it.
        sequence: its number in that process, from 1.
        keep_content: store prompts, examples and answers where a record has them.
    """
    if isinstance(record, Outcome):
        _insert_outcome(connection, record)
    else:
        _insert_request(connection, record, writer_id, sequence, keep_content)


def as_json(values: Mapping[str, Any]) -> str:
    """Return plain values as one line of JSON, keys in order."""
    return json.dumps(to_jsonable(dict(values)), sort_keys=True)


def _insert_request(
    connection: Connection, record: RequestRecord, writer_id: str, sequence: int, keep_content: bool
) -> None:
    moment = timestamp_of(record.timestamp)
    values = {name: getattr(record, name) for name in _REQUEST_COLUMNS}
    values |= {"timestamp": moment, "writer_id": writer_id, "sequence": sequence}
    if keep_content and record.content is not None:
        values["content"] = as_json(record.content)
    connection.execute(sa.insert(requests).values(values))
    if record.vision is not None:
        run = {"request_id": record.request_id, **dataclasses.asdict(record.vision)}
        connection.execute(sa.insert(vision_runs).values(run))
    if not record.is_attempt:
        return
    if record.pipeline == "language":
        _insert_metrics(connection, record, moment)
    audit.append(
        connection,
        actor=record.actor,
        action=f"{record.pipeline} adaptation",
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


def _insert_outcome(connection: Connection, outcome: Outcome) -> None:
    values = {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)}
    values |= {"timestamp": timestamp_of(outcome.timestamp), "metadata": as_json(outcome.metadata)}
    connection.execute(sa.insert(ttt_ab_tests).values(values))

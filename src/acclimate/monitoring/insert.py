"""Writes records as rows: a request with its attempt, vision run and audit entry, and an outcome.

Every record has a key of its own: the process that queued it and its number there. A record whose transaction was
committed although the commit was reported as failed can therefore be written again without being stored twice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from acclimate.errors import StoreError
from acclimate.json_values import to_jsonable
from acclimate.monitoring import audit
from acclimate.monitoring.hours import count_in_hour
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
    "actor",
)


def insert(connection: Connection, record: Record, *, writer_id: str, sequence: int, keep_content: bool) -> bool:
    """Write one record and return whether it is new; False where an earlier try has stored it already.

    Args:
        connection: inside a transaction that writes.
        record: to write.
        writer_id: of the process that queued it.
        sequence: its number in that process, from 1.
        keep_content: store prompts, examples and answers where a record has them.

    Raises:
        StoreError: another record has the same ``request_id``.
    """
    if isinstance(record, Outcome):
        return _insert_outcome(connection, record, row_key(writer_id, sequence))
    return _insert_request(connection, record, writer_id, sequence, keep_content)


def is_stored(connection: Connection, record: Record, *, writer_id: str, sequence: int) -> bool:
    """Return whether this record was stored by an earlier try."""
    if isinstance(record, Outcome):
        known = ttt_ab_tests.c.row_key == row_key(writer_id, sequence)
        return connection.execute(sa.select(ttt_ab_tests.c.id).where(known)).first() is not None
    mine = (requests.c.writer_id == writer_id) & (requests.c.sequence == sequence)
    found = sa.select(requests.c.request_id).where(requests.c.request_id == record.request_id, mine)
    return connection.execute(found).first() is not None


def row_key(writer_id: str, sequence: int) -> str:
    """Return the key of a queued record."""
    return f"{writer_id}:{sequence}"


def insert_once(connection: Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one with its key is there; return whether it was inserted."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(dict(values)).on_conflict_do_nothing()
    return connection.execute(statement.returning(*table.primary_key.columns)).first() is not None


def as_json(values: Mapping[str, Any]) -> str:
    """Return plain values as one line of JSON, keys in order."""
    return json.dumps(to_jsonable(dict(values)), sort_keys=True)


def _insert_request(
    connection: Connection, record: RequestRecord, writer_id: str, sequence: int, keep_content: bool
) -> bool:
    moment = timestamp_of(record.timestamp)
    values = {name: getattr(record, name) for name in _REQUEST_COLUMNS}
    values |= {"timestamp": moment, "writer_id": writer_id, "sequence": sequence}
    values["adaptable"] = record.had_something_to_adapt_to
    if keep_content and record.content is not None:
        values["content"] = as_json(record.content)
    if not insert_once(connection, requests, values):
        if is_stored(connection, record, writer_id=writer_id, sequence=sequence):
            # Its other rows were written in the same transaction.
            return False
        raise StoreError(f"there is a request {record.request_id!r} already; give each request a name of its own")
    count_in_hour(connection, record, moment, writer_id)
    if record.vision is not None:
        run = {"request_id": record.request_id, **dataclasses.asdict(record.vision)}
        connection.execute(sa.insert(vision_runs).values(run))
    if not record.is_attempt:
        return True
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
    return True


def _insert_metrics(connection: Connection, record: RequestRecord, moment: str) -> None:
    connection.execute(
        sa.insert(ttt_metrics).values(
            session_id=record.session_id,
            timestamp=moment,
            recorded_at=moment,
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


def _insert_outcome(connection: Connection, outcome: Outcome, key: str) -> bool:
    values = {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)}
    moment = timestamp_of(outcome.timestamp)
    values |= {"timestamp": moment, "recorded_at": moment, "metadata": as_json(outcome.metadata), "row_key": key}
    return insert_once(connection, ttt_ab_tests, values)

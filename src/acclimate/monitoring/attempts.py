"""How requests ended, and what was recorded of attempts to adapt: what queries and suggestions draw on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.monitoring.records import Pipeline
from acclimate.monitoring.schema import requests, ttt_metrics
from acclimate.monitoring.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many requests of a pipeline ended how.

    Attributes:
        by_status: requests by status.
        by_reason: requests by status and reason code, where there is a reason.
    """

    by_status: Mapping[str, int]
    by_reason: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.by_status.values())

    @property
    def attempts(self) -> int:
        """Requests with something to adapt to: adapted, declined and fallback."""
        return self.total - self.by_status.get("plain", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What was recorded of one attempt to adapt.

    Attributes:
        status, reason, confidence, rank, memory_bytes: of the request.
        seconds, steps, convergence: of the adaptation.
    """

    status: str
    reason: str | None
    confidence: float | None
    rank: int | None
    memory_bytes: int | None
    seconds: float | None
    steps: int | None
    convergence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The rows of a window that suggestions are computed from.

    Attributes:
        counts: language requests by status and reason.
        attempts: those with something to adapt to, the oldest first.
    """

    counts: Counts
    attempts: Sequence[Attempt]


def read_recorded(connection: Connection, window: Window) -> Recorded:
    """Return the language requests of ``window``: their counts, and every attempt."""
    return Recorded(counts=count_requests(connection, window), attempts=_attempts(connection, window))


def count_requests(connection: Connection, window: Window, pipeline: Pipeline = "language") -> Counts:
    """Return how the requests of a pipeline ended."""
    rows = connection.execute(
        sa.select(requests.c.status, requests.c.reason, sa.func.count())
        .where(window.of(requests.c.timestamp), requests.c.pipeline == pipeline)
        .group_by(requests.c.status, requests.c.reason)
    ).all()
    by_status: dict[str, int] = {}
    by_reason: dict[str, dict[str, int]] = {}
    for status, reason, count in rows:
        by_status[status] = by_status.get(status, 0) + count
        if reason is not None:
            by_reason.setdefault(status, {})[reason] = count
    return Counts(by_status=by_status, by_reason=by_reason)


def _attempts(connection: Connection, window: Window) -> list[Attempt]:
    columns, metrics = requests.c, ttt_metrics.c
    query = (
        sa.select(
            columns.status,
            columns.reason,
            columns.confidence,
            columns.rank,
            columns.memory_bytes,
            metrics.adaptation_time.label("seconds"),
            metrics.training_steps.label("steps"),
            metrics.convergence_score.label("convergence"),
        )
        .select_from(requests.outerjoin(ttt_metrics, metrics.request_id == columns.request_id))
        .where(window.of(columns.timestamp), columns.pipeline == "language", columns.status != "plain")
        .order_by(columns.timestamp)
    )
    return [Attempt(**row) for row in connection.execute(query).mappings()]

"""How requests ended, and what was recorded of attempts to adapt: what queries and suggestions draw on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from acclimate.monitoring.other_programs import from_another_program
from acclimate.monitoring.records import DECLINED_REASONS, Pipeline
from acclimate.monitoring.schema import requests, ttt_metrics
from acclimate.monitoring.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many requests of a pipeline ended how.

    Attributes:
        by_status: requests by status.
        by_reason: requests by status and reason code, where there is a reason.
        adaptable: requests with something to adapt to, whether or not adapting was asked for.
    """

    by_status: Mapping[str, int]
    by_reason: Mapping[str, Mapping[str, int]]
    adaptable: int

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.by_status.values())

    @property
    def attempts(self) -> int:
        """Requests for which adapting was considered: adapted, declined and fallback."""
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
        attempts: those for which adapting was considered, the oldest first; those of other programs after ours.
    """

    counts: Counts
    attempts: Sequence[Attempt]


def read_recorded(connection: Connection, window: Window) -> Recorded:
    """Return the language requests of ``window``: their counts, and every attempt."""
    return Recorded(counts=count_requests(connection, window), attempts=_attempts(connection, window))


def count_requests(
    connection: Connection, window: Window, pipeline: Pipeline = "language", *, others: bool = True
) -> Counts:
    """Return how the requests of a pipeline ended.

    Args:
        connection: to read.
        window: of the requests.
        pipeline: that answered them.
        others: count attempts (to the language pipeline) that other programs recorded too.
    """
    columns = requests.c
    found = sa.func.coalesce(sa.func.sum(sa.case((columns.adaptable.is_(True), 1), else_=0)), 0)
    rows = list(
        connection.execute(
            sa.select(columns.status, columns.reason, sa.func.count(), found)
            .where(window.of(columns.timestamp), columns.pipeline == pipeline)
            .group_by(columns.status, columns.reason)
        ).tuples()
    )
    if others and pipeline == "language":
        kinds = (attempt_status(), _failure_reason())
        rows += connection.execute(
            sa.select(*kinds, sa.func.count(), sa.func.count())
            .where(window.of(ttt_metrics.c.recorded_at), from_another_program())
            .group_by(*kinds)
        ).tuples()
    by_status: dict[str, int] = {}
    by_reason: dict[str, dict[str, int]] = {}
    for status, reason, count, _ in rows:
        by_status[status] = by_status.get(status, 0) + count
        if reason is not None:
            reasons = by_reason.setdefault(status, {})
            reasons[reason] = reasons.get(reason, 0) + count
    return Counts(by_status=by_status, by_reason=by_reason, adaptable=sum(int(adaptable) for *_, adaptable in rows))


def count_by_day(connection: Connection, window: Window) -> dict[tuple[str, str], int]:
    """Return how many requests (of both pipelines) and attempts of other programs ended how, by UTC date and status."""
    columns, metrics, status = requests.c, ttt_metrics.c, attempt_status()
    day, other_day = (sa.func.substr(time, 1, 10) for time in (columns.timestamp, metrics.recorded_at))
    queries = (
        sa.select(day, columns.status, sa.func.count())
        .where(window.of(columns.timestamp))
        .group_by(day, columns.status),
        sa.select(other_day, status, sa.func.count())
        .where(window.of(metrics.recorded_at), from_another_program())
        .group_by(other_day, status),
    )
    found: dict[tuple[str, str], int] = {}
    for query in queries:
        for date, status, count in connection.execute(query).tuples():
            found[date, status] = found.get((date, status), 0) + count
    return found


def attempt_status() -> ColumnElement[str]:
    """Return the status of a row of ``ttt_metrics``; other programs record a declined attempt as one that failed."""
    columns = ttt_metrics.c
    declined = columns.success.is_(None) | columns.fallback_reason.in_(sorted(DECLINED_REASONS))
    return sa.case(
        (columns.success.is_(True), sa.literal_column("'adapted'")),
        (declined, sa.literal_column("'declined'")),
        else_=sa.literal_column("'fallback'"),
    )


def _failure_reason() -> ColumnElement[str | None]:
    return sa.case((ttt_metrics.c.success.is_(True), sa.null()), else_=ttt_metrics.c.fallback_reason)


def _attempts(connection: Connection, window: Window) -> list[Attempt]:
    columns, metrics = requests.c, ttt_metrics.c
    measured = (
        metrics.adaptation_time.label("seconds"),
        metrics.training_steps.label("steps"),
        metrics.convergence_score.label("convergence"),
    )
    ours = (
        sa.select(columns.status, columns.reason, columns.confidence, columns.rank, columns.memory_bytes, *measured)
        .select_from(requests.outerjoin(ttt_metrics, metrics.request_id == columns.request_id))
        .where(window.of(columns.timestamp), columns.pipeline == "language", columns.status != "plain")
        .order_by(columns.timestamp)
    )
    others = (
        sa.select(
            attempt_status().label("status"),
            _failure_reason().label("reason"),
            metrics.confidence_score.label("confidence"),
            sa.null().label("rank"),
            sa.null().label("memory_bytes"),
            *measured,
        )
        .where(window.of(metrics.recorded_at), from_another_program())
        .order_by(metrics.recorded_at)
    )
    return [Attempt(**row) for query in (ours, others) for row in connection.execute(query).mappings()]

"""Attempts by session, by day and by kind of task; every indicator by day; the trend of success."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from acclimate.monitoring.attempts import attempt_status
from acclimate.monitoring.indicator import Kpi, Measurement
from acclimate.monitoring.kpis import KPIS
from acclimate.monitoring.schema import requests, ttt_ab_tests, ttt_metrics
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import Window

Trend = Literal["improving", "stable", "declining", "not enough data"]
#: With fewer attempts than this no trend is reported.
LEAST_ATTEMPTS: Final = 10
_LEVEL: Final = 0.05
#: Parts of the attempts, in their order, whose success rates are compared.
_PARTS: Final = 8
_MEANS: Final = {
    "avg_confidence": ttt_metrics.c.confidence_score,
    "avg_adaptation_time": ttt_metrics.c.adaptation_time,
    "avg_training_steps": ttt_metrics.c.training_steps,
}


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """How the attempts of one session went; None where nothing is known.

    Attributes:
        total_attempts: all of them.
        successful_adaptations: those that the adapted model answered.
        average_confidence, average_adaptation_time, average_training_steps: over attempts that have the number; the
            time in seconds.
        fallback_rate: failed attempts over attempts.
        declined_rate: attempts for which it was decided not to adapt, over attempts.
        top_task_types: the five most frequent, with their counts.
        performance_trend: of success over the session.
    """

    total_attempts: int
    successful_adaptations: int
    average_confidence: float | None
    average_adaptation_time: float | None
    average_training_steps: float | None
    fallback_rate: float | None
    declined_rate: float | None
    top_task_types: list[tuple[str, int]]
    performance_trend: Trend


def session_summary(connection: Connection, session_id: str) -> SessionSummary:
    """Return how the attempts of a session went."""
    here = ttt_metrics.c.session_id == session_id
    row = _aggregated(connection, here)[0]
    kinds: Counter[str] = Counter(
        dict(
            connection.execute(
                sa.select(sa.func.coalesce(ttt_metrics.c.task_type, "unknown"), sa.func.count())
                .where(here)
                .group_by(ttt_metrics.c.task_type)
            )
            .tuples()
            .all()
        )
    )
    total = row["total_attempts"]
    return SessionSummary(
        total_attempts=total,
        successful_adaptations=row["successful"],
        average_confidence=row["avg_confidence"],
        average_adaptation_time=row["avg_adaptation_time"],
        average_training_steps=row["avg_training_steps"],
        fallback_rate=row["fallback"] / total if total else None,
        declined_rate=row["declined"] / total if total else None,
        top_task_types=kinds.most_common(5),
        performance_trend=trend(_successes(connection, here)),
    )


def performance_trends(connection: Connection, window: Window) -> dict[str, Any]:
    """Return attempts by day (UTC) and by kind of task, and the trend of success.

    Means are over attempts; what is not known is None. ``success_rate`` is over attempts that succeeded or failed.
    """
    inside = window.of(ttt_metrics.c.recorded_at)
    day = sa.func.substr(ttt_metrics.c.recorded_at, 1, 10)
    daily = _aggregated(connection, inside, by=day, name="date")
    kinds = _aggregated(connection, inside, by=ttt_metrics.c.task_type, name="task_type")
    return {
        "daily_performance": sorted(daily, key=lambda row: row["date"]),
        "task_type_performance": sorted(kinds, key=lambda row: -row["total_attempts"]),
        "trend": trend(_successes(connection, inside)),
    }


def indicators_by_day(store: Store, window: Window, *, kpis: Sequence[Kpi] = KPIS) -> dict[str, dict[str, Measurement]]:
    """Return every indicator on every day (UTC) of ``window`` on which it was observed, by name and ISO date."""
    found: dict[str, dict[str, Measurement]] = {kpi.name: {} for kpi in kpis}
    with store.reading() as connection:
        days = set(connection.execute(_days_with_rows(window)).scalars())
        for date, day in window.by_day():
            for kpi in kpis if date in days else ():
                measured = kpi.measure(connection, day)
                if measured.estimate is not None:
                    found[kpi.name][date] = measured
    return found


def _days_with_rows(window: Window) -> sa.CompoundSelect[Any]:
    # Times are UTC, so that the first ten characters are the day's ISO date.
    times = (requests.c.timestamp, ttt_metrics.c.recorded_at, ttt_ab_tests.c.recorded_at)
    return sa.union(*(sa.select(sa.func.substr(time, 1, 10)).where(window.of(time)) for time in times))


def trend(successes: Sequence[bool]) -> Trend:
    """Return whether the success rate rises or falls in the order of attempts, by Kendall's tau at 5 %.

    Few attempts are taken one by one; many are divided into eighths, whose success rates are compared.
    """
    if len(successes) < LEAST_ATTEMPTS:
        return "not enough data"
    values = np.asarray(successes, dtype=float)
    if len(values) >= 5 * _PARTS:
        # Single successes are nearly all ties; rates of parts have few.
        values = np.asarray([part.mean() for part in np.array_split(values, _PARTS)])
    if values.min() == values.max():
        return "stable"
    # Imported here: it takes 0.7 CPU seconds, and a health check needs no trend.
    from scipy.stats import kendalltau

    found = kendalltau(np.arange(len(values)), values)
    if not found.pvalue < _LEVEL:
        return "stable"
    return "improving" if found.statistic > 0 else "declining"


def _successes(connection: Connection, where: ColumnElement[bool]) -> list[bool]:
    query = (
        sa.select(attempt_status())
        .where(where, attempt_status() != "declined")
        .order_by(ttt_metrics.c.recorded_at, ttt_metrics.c.id)
    )
    return [status == "adapted" for status in connection.execute(query).scalars()]


def _aggregated(
    connection: Connection, where: ColumnElement[bool], *, by: ColumnElement[Any] | None = None, name: str = ""
) -> list[dict[str, Any]]:
    status = attempt_status()
    query = sa.select(
        *([] if by is None else [by.label(name)]),
        sa.func.count().label("total_attempts"),
        sa.func.coalesce(sa.func.sum(sa.case((status == "adapted", 1), else_=0)), 0).label("successful"),
        sa.func.coalesce(sa.func.sum(sa.case((status == "fallback", 1), else_=0)), 0).label("fallback"),
        *(sa.func.avg(column).label(mean) for mean, column in _MEANS.items()),
    ).where(where)
    if by is not None:
        query = query.group_by(by)
    found = []
    for row in connection.execute(query).mappings():
        # PostgreSQL's averages of whole numbers are decimals.
        values = {**row, **{mean: None if row[mean] is None else float(row[mean]) for mean in _MEANS}}
        values["successful"], values["fallback"] = int(values["successful"]), int(values["fallback"])
        values["declined"] = values["total_attempts"] - values["successful"] - values["fallback"]
        decided = values["successful"] + values["fallback"]
        values["success_rate"] = values["successful"] / decided if decided else None
        found.append(values)
    return found

"""The queries that measure the standard indicators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from acclimate.monitoring.attempts import attempt_status, count_requests
from acclimate.monitoring.indicator import Observed
from acclimate.monitoring.intervals import mean, proportion, quantile, relative_gain
from acclimate.monitoring.other_programs import from_another_program
from acclimate.monitoring.schema import requests, ttt_ab_tests, ttt_metrics
from acclimate.monitoring.store import NO_PATTERN
from acclimate.monitoring.window import Window

_MB: Final = 2**20


def activation_rate(connection: Connection, window: Window) -> Observed:
    """Language requests with something to adapt to, over all; ``adapted_share``: adapted ones over all.

    Other programs record attempts only, of requests whose number is not known; they do not count here.
    """
    counts = count_requests(connection, window, others=False)
    if not counts.total:
        return Observed(estimate=None, extra={"adapted_share": None})
    adapted = counts.by_status.get("adapted", 0) / counts.total
    return Observed(estimate=proportion(counts.adaptable, counts.total), extra={"adapted_share": adapted})


def success_rate(connection: Connection, window: Window) -> Observed:
    """Adapted requests over adapted and fallback ones."""
    status = count_requests(connection, window).by_status
    adapted, failed = status.get("adapted", 0), status.get("fallback", 0)
    return Observed(estimate=proportion(adapted, adapted + failed) if adapted + failed else None)


def confidence(connection: Connection, window: Window) -> Observed:
    """Mean confidence of adapted requests."""
    conditions = (window.of(requests.c.timestamp), requests.c.status == "adapted")
    values = [*_values(connection, requests.c.confidence, *conditions)]
    others = (window.of(ttt_metrics.c.recorded_at), from_another_program(), attempt_status() == "adapted")
    values += _values(connection, ttt_metrics.c.confidence_score, *others)
    return Observed(estimate=mean(values) if values else None, values=values)


def quality_improvement(connection: Connection, window: Window) -> Observed:
    """Relative gain in quality over pairs; ``points`` with its interval: the difference in per cent points."""
    pairs = quality_pairs(connection, window)
    if not pairs:
        return Observed(estimate=None)
    points = mean([ttt - icl for ttt, icl in pairs]).within(-1.0, 1.0)
    extra = {"points": 100 * points.value, "points_low": 100 * points.low, "points_high": 100 * points.high}
    return Observed(estimate=relative_gain([ttt for ttt, _ in pairs], [icl for _, icl in pairs]), extra=extra)


def adaptation_time(connection: Connection, window: Window) -> Observed:
    """Mean seconds for gate and training where either ran; ``p95``: their 95th percentile."""
    conditions = (window.of(ttt_metrics.c.recorded_at), ttt_metrics.c.adaptation_time > 0)
    values = _values(connection, ttt_metrics.c.adaptation_time, *conditions)
    return Observed(estimate=mean(values) if values else None, values=values, extra={"p95": quantile(values, 0.95)})


def fallback_rate(connection: Connection, window: Window) -> Observed:
    """Fallback requests over attempts; ``declined_rate``: declined ones over attempts."""
    counts = count_requests(connection, window)
    failed, declined = counts.by_status.get("fallback", 0), counts.by_status.get("declined", 0)
    if not counts.attempts:
        return Observed(estimate=None)
    return Observed(estimate=proportion(failed, counts.attempts), extra={"declined_rate": declined / counts.attempts})


def memory(connection: Connection, window: Window) -> Observed:
    """Mean memory of attempts in MB; ``p95``: the 95th percentile."""
    conditions = (window.of(requests.c.timestamp), requests.c.pipeline == "language", requests.c.status != "plain")
    values = [value / _MB for value in _values(connection, requests.c.memory_bytes, *conditions)]
    return Observed(estimate=mean(values) if values else None, values=values, extra={"p95": quantile(values, 0.95)})


def detection_accuracy(connection: Connection, window: Window) -> Observed:
    """Labelled requests whose detected pattern equals the label, over labelled requests."""
    labelled = window.of(requests.c.timestamp) & requests.c.pattern_expected.is_not(None)
    same = sa.func.coalesce(requests.c.pattern, NO_PATTERN) == requests.c.pattern_expected
    row = connection.execute(sa.select(sa.func.count(), sa.func.sum(sa.case((same, 1), else_=0))).where(labelled)).one()
    return Observed(estimate=proportion(int(row[1]), row[0]) if row[0] else None)


def quality_pairs(connection: Connection, window: Window) -> list[tuple[float, float]]:
    """Return the qualities (TTT, ICL) of requests that were answered by both arms of an experiment.

    Both rows carry one ``request_id``. Rows of programs that write none are paired by experiment and session, provided
    that each method occurs once there.
    """
    columns = ttt_ab_tests.c
    key = sa.func.coalesce(columns.request_id, columns.session_id)
    method = sa.func.lower(columns.method)
    rows = connection.execute(
        sa.select(
            sa.func.max(sa.case((method == "ttt", columns.response_quality))),
            sa.func.max(sa.case((method == "icl", columns.response_quality))),
        )
        .where(window.of(columns.recorded_at), columns.response_quality.is_not(None), method.in_(("ttt", "icl")))
        .group_by(columns.test_id, key)
        .having(sa.func.count() == 2)
    ).all()
    return [(ttt, icl) for ttt, icl in rows if ttt is not None and icl is not None]


def _values(connection: Connection, column: ColumnElement[float], *conditions: ColumnElement[bool]) -> Sequence[float]:
    return connection.execute(sa.select(column).where(column.is_not(None), *conditions)).scalars().all()

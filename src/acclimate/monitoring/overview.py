"""What a page about the server shows, aggregated by the database: indicators, trends, recent requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.json_values import from_json
from acclimate.monitoring.hours import EVERYTHING, Bucket, Filters, Sums, read_hours
from acclimate.monitoring.indicator import Kpi, Measurement
from acclimate.monitoring.intervals import Estimate, proportion, quantile
from acclimate.monitoring.kpis import KPIS
from acclimate.monitoring.schema import audit_log, requests, ttt_ab_tests, ttt_metrics, vision_runs
from acclimate.monitoring.window import Window

#: Newest requests of a window that percentiles are computed from: sums by the hour have none.
SAMPLED: Final = 5_000
#: A user's rating from which an answer counts as right, of 1 to 5.
GOOD_RATING: Final = 4
_BINS: Final = 5
_GUARD_COLUMNS: Final = ("images", "steps", "kept", "skipped", "guard_rejections", "resets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A stretch of time in numbers.

    Attributes:
        measurements: indicators by name.
        buckets: requests by hour or day, status and reason.
        total: language requests.
        by_status, by_reason: their numbers.
    """

    measurements: Mapping[str, Measurement]
    buckets: Sequence[Bucket]
    total: int
    by_status: Mapping[str, int]
    by_reason: Mapping[tuple[str, str], int]


def read_overview(
    connection: Connection,
    window: Window,
    *,
    filters: Filters = EVERYTHING,
    by_day: bool = False,
    kpis: Sequence[Kpi] = KPIS,
) -> Overview:
    """Return the numbers of the language requests of ``window``.

    Indicators that the sums by the hour contain are taken from there, in whole hours. The others (quality in
    experiments, labels) are measured as :meth:`Kpi.measure` does, and left out where filters are set. Attempts of other
    programs are not counted.
    """
    wanted = replace(filters, pipeline="language")
    buckets = read_hours(connection, window, filters=wanted, by_day=by_day)
    summed = _estimates(buckets)
    measurements: dict[str, Measurement] = {}
    for kpi in kpis:
        if kpi.name in summed:
            estimate = summed[kpi.name]
            estimate = estimate and estimate.within(kpi.unit.least, kpi.unit.most)
            measurements[kpi.name] = Measurement(kpi=kpi, estimate=estimate, state=kpi.judge(estimate))
        elif filters == EVERYTHING:
            measurements[kpi.name] = kpi.measure(connection, window)
    by_status: dict[str, int] = {}
    by_reason: dict[tuple[str, str], int] = {}
    for bucket in buckets:
        by_status[bucket.status] = by_status.get(bucket.status, 0) + bucket.count
        if bucket.reason:
            key = (bucket.status, bucket.reason)
            by_reason[key] = by_reason.get(key, 0) + bucket.count
    return Overview(
        measurements=measurements,
        buckets=buckets,
        total=sum(by_status.values()),
        by_status=by_status,
        by_reason=by_reason,
    )


def summed(buckets: Iterable[Bucket], name: str, *statuses: str) -> Sums:
    """Return the sums of one measured quantity over buckets, of some statuses or of all."""
    found = [bucket.measured[name] for bucket in buckets if not statuses or bucket.status in statuses]
    return Sums(sum(one.count for one in found), sum(one.total for one in found), sum(one.squares for one in found))


def _estimates(buckets: Sequence[Bucket]) -> dict[str, Estimate | None]:
    counts: dict[str, int] = {}
    for bucket in buckets:
        counts[bucket.status] = counts.get(bucket.status, 0) + bucket.count
    total, adapted, failed = sum(counts.values()), counts.get("adapted", 0), counts.get("fallback", 0)
    attempts = total - counts.get("plain", 0)
    adaptable = sum(bucket.adaptable for bucket in buckets)
    return {
        "ttt_activation_rate": proportion(adaptable, total) if total else None,
        "adaptation_success_rate": proportion(adapted, adapted + failed) if adapted + failed else None,
        "mean_confidence_score": summed(buckets, "confidence", "adapted").mean,
        "mean_adaptation_time": summed(buckets, "adaptation_time").mean,
        "fallback_rate": proportion(failed, attempts) if attempts else None,
        "memory_utilization": summed(buckets, "memory_mb", "adapted", "declined", "fallback").mean,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of the newest requests: how many were looked at, and their percentiles; None where there are none."""

    count: int
    median_s: float | None
    p95_s: float | None


def latency(connection: Connection, window: Window, *, filters: Filters = EVERYTHING) -> Latency:
    """Return the percentiles of the newest :data:`SAMPLED` requests of ``window``."""
    query = (
        sa.select(requests.c.seconds)
        .where(window.of(requests.c.timestamp), requests.c.seconds.is_not(None), *filters.of(requests.c))
        .order_by(requests.c.timestamp.desc())
        .limit(SAMPLED)
    )
    found = list(connection.execute(query).scalars())
    return Latency(count=len(found), median_s=quantile(found, 0.5), p95_s=quantile(found, 0.95))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """Rated answers of similar confidence: their mean confidence, and the share that users found right."""

    confidence: float
    right: Estimate


def calibration_bins(connection: Connection, window: Window, *, filters: Filters = EVERYTHING) -> list[CalibrationBin]:
    """Return how confidence and ratings of adapted answers agree, from the least confident to the most."""
    columns = requests.c
    # Casts to whole numbers cut in SQLite and round in PostgreSQL.
    width = sa.case(
        *((columns.confidence < (number + 1) / _BINS, number) for number in range(_BINS - 1)), else_=_BINS - 1
    )
    good = sa.case((columns.user_feedback >= GOOD_RATING, 1), else_=0)
    query = (
        sa.select(width.label("bin"), sa.func.count(), sa.func.avg(columns.confidence), sa.func.sum(good))
        .where(
            window.of(columns.timestamp),
            columns.user_feedback.is_not(None),
            columns.status == "adapted",
            columns.confidence.is_not(None),
            *filters.of(columns),
        )
        .group_by(width)
        .order_by(width)
    )
    return [
        CalibrationBin(confidence=float(mean), right=proportion(int(right), count))
        for _, count, mean, right in connection.execute(query).tuples()
    ]


def recent_requests(
    connection: Connection,
    window: Window,
    *,
    filters: Filters = EVERYTHING,
    status: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return requests of ``window``, the newest first, without their texts.

    Args:
        connection: to read.
        window: of the requests.
        filters: which of them.
        status: only those that ended so.
        before: only those older than this time, as the last row of the page before has it.
        limit: most rows.
    """
    columns = [column for column in requests.columns if column.name != "content"]
    conditions = [window.of(requests.c.timestamp), *filters.of(requests.c)]
    if status is not None:
        conditions.append(requests.c.status == status)
    if before is not None:
        conditions.append(requests.c.timestamp < before)
    query = sa.select(*columns).where(*conditions).order_by(requests.c.timestamp.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDetails:
    """Everything that was recorded of one request.

    Attributes:
        request: its row; ``content`` as plain values, where the operator stores it.
        attempt: its row among the attempts to adapt; None where it was none.
        vision: its row among the vision runs, or None.
        outcomes: in experiments.
        audit: its entries in the audit log.
    """

    request: Mapping[str, Any]
    attempt: Mapping[str, Any] | None
    vision: Mapping[str, Any] | None
    outcomes: Sequence[Mapping[str, Any]]
    audit: Sequence[Mapping[str, Any]]


def request_details(connection: Connection, request_id: str) -> RequestDetails | None:
    """Return what was recorded of a request, or None where there is none of this id."""

    def rows(table: sa.Table, column: sa.Column[Any]) -> list[dict[str, Any]]:
        return [
            dict(row) for row in connection.execute(sa.select(table).where(column == request_id).limit(50)).mappings()
        ]

    found = rows(requests, requests.c.request_id)
    if not found:
        return None
    request = found[0]
    if request["content"] is not None:
        request["content"] = from_json(request["content"])
    attempts = rows(ttt_metrics, ttt_metrics.c.request_id)
    runs = rows(vision_runs, vision_runs.c.request_id)
    return RequestDetails(
        request=request,
        attempt=attempts[0] if attempts else None,
        vision=runs[0] if runs else None,
        outcomes=rows(ttt_ab_tests, ttt_ab_tests.c.request_id),
        audit=rows(audit_log, audit_log.c.subject),
    )


def vision_totals(connection: Connection, window: Window) -> dict[str, int]:
    """Return the sums over the vision runs of ``window``: images, steps, steps that guards took back, resets, runs."""
    sums = [sa.func.coalesce(sa.func.sum(vision_runs.c[name]), 0).label(name) for name in _GUARD_COLUMNS]
    query = (
        sa.select(sa.func.count().label("runs"), *sums)
        .select_from(vision_runs.join(requests, requests.c.request_id == vision_runs.c.request_id))
        .where(window.of(requests.c.timestamp))
    )
    return {name: int(value) for name, value in connection.execute(query).mappings().one().items()}

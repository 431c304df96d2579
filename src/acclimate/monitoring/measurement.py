"""The indicators, measured over a window of time, each by one query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from acclimate.errors import ConfigError
from acclimate.monitoring.intervals import Estimate, mean, proportion, quantile, relative_gain
from acclimate.monitoring.kpis import KPIS, Kpi
from acclimate.monitoring.schema import requests, timestamp_of, ttt_ab_tests, ttt_metrics, vision_runs
from acclimate.monitoring.store import NO_PATTERN, Store

State = Literal["ok", "off target", "alert", "not enough data"]
#: With fewer observations than this an indicator says nothing.
LEAST_OBSERVATIONS: Final = 20
#: A century: longer windows are mistakes, and dates before the calendar.
LONGEST_DAYS: Final = 36_500
_MB: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of time.

    Attributes:
        since: its beginning.
        until: its end; None for no end.
    """

    since: datetime
    until: datetime | None = None

    @classmethod
    def last(cls, *, days: float = 0.0, hours: float = 0.0) -> Window:
        """Return the window that ends now.

        Raises:
            ConfigError: it is not longer than nothing.
        """
        total = days + hours / 24
        if not 0 < total <= LONGEST_DAYS:
            raise ConfigError(
                f"a window must be longer than 0 and at most {LONGEST_DAYS} days, got {total:g} days; give such as 7"
            )
        length = timedelta(days=total)
        return cls(since=datetime.now(UTC) - length)

    def of(self, column: ColumnElement[str]) -> ColumnElement[bool]:
        """Return the condition that a time lies in the window."""
        inside = column >= timestamp_of(self.since)
        return inside if self.until is None else inside & (column < timestamp_of(self.until))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One indicator over one window.

    Attributes:
        kpi: which.
        estimate: its value with a 95 % interval; None where nothing was observed.
        state: ``alert`` only where the whole interval lies beyond the alert threshold.
        extra: further numbers, such as the 95th percentile.
    """

    kpi: Kpi
    estimate: Estimate | None
    state: State
    extra: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The measurement in one line."""
        count = 0 if self.estimate is None else self.estimate.count
        if self.estimate is None or self.state == "not enough data":
            return f"{self.kpi.name}: not enough data ({count} of {LEAST_OBSERVATIONS} observations)"
        shown = self.kpi.shown
        low, high = shown(self.estimate.low), shown(self.estimate.high)
        return (
            f"{self.kpi.name}: {shown(self.estimate.value)} [{low}, {high}] from {count} "
            f"(target {self.kpi.target}, alert {self.kpi.alert_threshold})"
        )

    @property
    def stated(self) -> str:
        """The measurement in one line that begins with its state."""
        return self.line if self.state == "not enough data" else f"{self.state}: {self.line}"


def judged(kpi: Kpi, estimate: Estimate | None) -> State:
    """Return what an estimate says about an indicator, its sampling error included."""
    if estimate is None or estimate.count < LEAST_OBSERVATIONS:
        return "not enough data"
    if kpi.alert_below is not None and estimate.high < kpi.alert_below:
        return "alert"
    if kpi.alert_above is not None and estimate.low > kpi.alert_above:
        return "alert"
    missed = (kpi.target_low is not None and estimate.value < kpi.target_low) or (
        kpi.target_high is not None and estimate.value > kpi.target_high and kpi.unit != "relative gain"
    )
    return "off target" if missed else "ok"


def measure(store: Store, window: Window) -> dict[str, Measurement]:
    """Return every indicator over ``window``, by name."""
    with store.reading() as connection:
        found = {}
        for kpi in KPIS:
            estimate, extra = _QUERIES[kpi.name](connection, window)
            found[kpi.name] = Measurement(kpi=kpi, estimate=estimate, state=judged(kpi, estimate), extra=extra)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many language requests ended how.

    Attributes:
        by_status: requests by status.
        by_reason: requests by status and reason, where there is one.
    """

    by_status: Mapping[str, int]
    by_reason: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.by_status.values())

    @property
    def attempts(self) -> int:
        """Requests with something to adapt to."""
        return self.total - self.by_status.get("plain", 0)


def count_requests(connection: Connection, window: Window, door: str = "language") -> Counts:
    """Return how the requests of a door ended."""
    rows = connection.execute(
        sa.select(requests.c.status, requests.c.reason, sa.func.count())
        .where(window.of(requests.c.timestamp), requests.c.door == door)
        .group_by(requests.c.status, requests.c.reason)
    ).all()
    by_status: dict[str, int] = {}
    by_reason: dict[str, dict[str, int]] = {}
    for status, reason, count in rows:
        by_status[status] = by_status.get(status, 0) + count
        if reason is not None:
            by_reason.setdefault(status, {})[reason] = count
    return Counts(by_status=by_status, by_reason=by_reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionMeasurement:
    """What vision runs did over a window.

    Attributes:
        runs, images, steps, kept, skipped, guard_trips, resets: sums.
        cost_ratio: mean over runs that measured it.
        gain: mean over runs with labels.
    """

    runs: int
    images: int
    steps: int
    kept: int
    skipped: int
    guard_trips: int
    resets: int
    cost_ratio: Estimate | None
    gain: Estimate | None


def measure_vision(store: Store, window: Window) -> VisionMeasurement:
    """Return the indicators of vision runs over ``window``."""
    with store.reading() as connection:
        rows = (
            connection.execute(
                sa.select(vision_runs)
                .join(requests, requests.c.request_id == vision_runs.c.request_id)
                .where(window.of(requests.c.timestamp))
            )
            .mappings()
            .all()
        )
    sums = {n: sum(row[n] for row in rows) for n in ("images", "steps", "kept", "skipped", "guard_trips", "resets")}
    costs = [row["cost_ratio"] for row in rows if row["cost_ratio"] is not None]
    gains = [row["gain"] for row in rows if row["gain"] is not None]
    return VisionMeasurement(
        runs=len(rows), **sums, cost_ratio=mean(costs) if costs else None, gain=mean(gains) if gains else None
    )


def quality_pairs(connection: Connection, window: Window) -> list[tuple[float, float]]:
    """Return the qualities (TTT, ICL) of requests that an experiment answered both ways.

    Both rows carry one ``request_id``; rows of readers that know none are paired by experiment and session, where each
    method occurs there once.
    """
    columns = ttt_ab_tests.c
    key = sa.func.coalesce(columns.request_id, columns.session_id)
    method = sa.func.lower(columns.method)
    rows = connection.execute(
        sa.select(
            sa.func.max(sa.case((method == "ttt", columns.response_quality))),
            sa.func.max(sa.case((method == "icl", columns.response_quality))),
        )
        .where(window.of(columns.timestamp), columns.response_quality.is_not(None), method.in_(("ttt", "icl")))
        .group_by(columns.test_id, key)
        .having(sa.func.count() == 2)
    ).all()
    return [(ttt, icl) for ttt, icl in rows if ttt is not None and icl is not None]


def _values(connection: Connection, column: ColumnElement[float], *conditions: ColumnElement[bool]) -> Sequence[float]:
    return connection.execute(sa.select(column).where(column.is_not(None), *conditions)).scalars().all()


_Found = tuple[Estimate | None, Mapping[str, float | None]]


def _activation(connection: Connection, window: Window) -> _Found:
    counts = count_requests(connection, window)
    adapted = counts.by_status.get("adapted", 0) / counts.total if counts.total else None
    return (proportion(counts.attempts, counts.total) if counts.total else None), {"adapted_share": adapted}


def _success(connection: Connection, window: Window) -> _Found:
    status = count_requests(connection, window).by_status
    adapted, failed = status.get("adapted", 0), status.get("fallback", 0)
    return (proportion(adapted, adapted + failed) if adapted + failed else None), {}


def _confidence(connection: Connection, window: Window) -> _Found:
    values = _values(connection, requests.c.confidence, window.of(requests.c.timestamp), requests.c.status == "adapted")
    return (mean(values) if values else None), {}


def _quality(connection: Connection, window: Window) -> _Found:
    pairs = quality_pairs(connection, window)
    if not pairs:
        return None, {}
    points = mean([ttt - icl for ttt, icl in pairs])
    extra = {"points": 100 * points.value, "points_low": 100 * points.low, "points_high": 100 * points.high}
    return relative_gain([ttt for ttt, _ in pairs], [icl for _, icl in pairs]), extra


def _adaptation_time(connection: Connection, window: Window) -> _Found:
    ran = ttt_metrics.c.adaptation_time > 0
    values = _values(connection, ttt_metrics.c.adaptation_time, window.of(ttt_metrics.c.timestamp), ran)
    return (mean(values) if values else None), {"p95": quantile(values, 0.95)}


def _fallback(connection: Connection, window: Window) -> _Found:
    counts = count_requests(connection, window)
    failed, declined = counts.by_status.get("fallback", 0), counts.by_status.get("declined", 0)
    if not counts.attempts:
        return None, {}
    return proportion(failed, counts.attempts), {"declined_rate": declined / counts.attempts}


def _memory(connection: Connection, window: Window) -> _Found:
    asked = (window.of(requests.c.timestamp), requests.c.door == "language", requests.c.status != "plain")
    values = [value / _MB for value in _values(connection, requests.c.memory_bytes, *asked)]
    return (mean(values) if values else None), {"p95": quantile(values, 0.95)}


def _detection(connection: Connection, window: Window) -> _Found:
    labelled = window.of(requests.c.timestamp) & requests.c.pattern_expected.is_not(None)
    same = sa.func.coalesce(requests.c.pattern, NO_PATTERN) == requests.c.pattern_expected
    row = connection.execute(sa.select(sa.func.count(), sa.func.sum(sa.case((same, 1), else_=0))).where(labelled)).one()
    return (proportion(int(row[1]), row[0]) if row[0] else None), {}


_QUERIES: Final[Mapping[str, Callable[[Connection, Window], _Found]]] = {
    "ttt_activation_rate": _activation,
    "adaptation_success_rate": _success,
    "mean_confidence_score": _confidence,
    "response_quality_improvement": _quality,
    "mean_adaptation_time": _adaptation_time,
    "fallback_rate": _fallback,
    "memory_utilization": _memory,
    "pattern_detection_accuracy": _detection,
}

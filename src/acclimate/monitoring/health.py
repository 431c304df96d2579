"""Whether the service is well: every indicator against its threshold, sampling error included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from acclimate.core.report import to_jsonable
from acclimate.monitoring.collector import TTTMetricsCollector, get_ttt_metrics_collector
from acclimate.monitoring.measurement import (
    Counts,
    Measurement,
    VisionMeasurement,
    Window,
    count_requests,
    measure,
    measure_vision,
)
from acclimate.monitoring.schema import timestamp_of, writers
from acclimate.monitoring.store import Store

Verdict = Literal["healthy", "alerts", "cannot tell"]
EXIT_CODES: Final[Mapping[Verdict, int]] = {"healthy": 0, "alerts": 1, "cannot tell": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a health check found.

    Attributes:
        verdict: ``cannot tell`` where no indicator has enough data.
        measurements: every indicator, by name.
        counts: language requests by status and reason.
        vision: of vision runs.
        lost_rows: rows of metrics in the window that were never written.
    """

    verdict: Verdict
    measurements: Mapping[str, Measurement]
    counts: Counts
    vision: VisionMeasurement
    lost_rows: int

    @property
    def alerts(self) -> list[str]:
        """One line for each indicator beyond its threshold."""
        return [m.line for m in self.measurements.values() if m.state == "alert"]

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 alerts, 2 cannot tell."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "verdict": self.verdict,
            "alerts": self.alerts,
            "lost_rows": self.lost_rows,
            "requests": to_jsonable(self.counts),
            "kpis": {
                name: {
                    "state": m.state,
                    "value": to_jsonable(m.estimate.value) if m.estimate else None,
                    "interval": to_jsonable([m.estimate.low, m.estimate.high]) if m.estimate else None,
                    "observations": m.estimate.count if m.estimate else 0,
                    "target": m.kpi.target,
                    "alert_threshold": m.kpi.alert_threshold,
                    "measures": m.kpi.measures,
                    **to_jsonable(dict(m.extra)),
                }
                for name, m in self.measurements.items()
            },
            "vision": to_jsonable(self.vision),
        }


def check(store: Store, window: Window) -> Health:
    """Return the health over ``window``."""
    measurements = measure(store, window)
    states = {m.state for m in measurements.values()}
    verdict: Verdict = "healthy"
    if "alert" in states:
        verdict = "alerts"
    elif states == {"not enough data"}:
        verdict = "cannot tell"
    with store.reading() as connection:
        begun = writers.c.started_at >= timestamp_of(window.since)
        running = sa.func.coalesce(writers.c.stopped_at, "9") >= timestamp_of(window.since)
        counts = count_requests(connection, window)
        lost = connection.execute(
            sa.select(sa.func.coalesce(sa.func.sum(writers.c.dropped + writers.c.lost), 0)).where(begun | running)
        ).scalar_one()
    return Health(
        verdict=verdict,
        measurements=measurements,
        counts=counts,
        vision=measure_vision(store, window),
        lost_rows=int(lost),
    )


def run_health_check(collector: TTTMetricsCollector | None = None, *, days: float = 1) -> bool:
    """Return whether no indicator alerts over the last days; the guidelines' monitor, without its gaps."""
    return not check((collector or get_ttt_metrics_collector()).store, Window.last(days=days)).alerts

"""The health check: every indicator against its alert bounds, sampling error included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from acclimate.json_values import to_jsonable
from acclimate.monitoring.attempts import Counts, count_requests
from acclimate.monitoring.indicator import Kpi, Measurement
from acclimate.monitoring.kpis import KPIS
from acclimate.monitoring.measurement import VisionMeasurement, measure, measure_vision
from acclimate.monitoring.other_programs import OtherRows, count_other_rows
from acclimate.monitoring.schema import timestamp_of, writers
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import Window

Verdict = Literal["healthy", "alerts", "cannot tell"]
EXIT_CODES: Final[Mapping[Verdict, int]] = {"healthy": 0, "alerts": 1, "cannot tell": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a health check found.

    Attributes:
        verdict: ``healthy`` only where every required indicator (:attr:`Kpi.required`) has enough observations and none
            alerts; ``cannot tell`` where none alerts and one has too few.
        measurements: every indicator, by name.
        counts: language requests by status and reason.
        vision: the numbers of vision runs.
        lost_rows: rows that processes of the window queued and never wrote.
        other_rows: attempts that another program recorded.
    """

    verdict: Verdict
    measurements: Mapping[str, Measurement]
    counts: Counts
    vision: VisionMeasurement
    lost_rows: int
    other_rows: OtherRows

    @property
    def notes(self) -> list[str]:
        """What a reader of the indicators must know, in sentences."""
        lost = [f"{self.lost_rows} rows of metrics were lost"] if self.lost_rows else []
        return lost + self.other_rows.notes

    @property
    def alerting(self) -> list[str]:
        """The names of the indicators beyond their alert bounds."""
        return [name for name, measured in self.measurements.items() if measured.state == "alert"]

    @property
    def alerts(self) -> list[str]:
        """One line for each indicator beyond its alert bounds."""
        return [self.measurements[name].line for name in self.alerting]

    @property
    def unjudged(self) -> list[str]:
        """The names of the required indicators that have too few observations to be judged."""
        return [n for n, m in self.measurements.items() if m.kpi.required and m.state == "not enough data"]

    @property
    def summary(self) -> str:
        """The verdict, and what it lacks or leaves out, in one line."""
        if self.verdict == "healthy":
            optional = [name for name, m in self.measurements.items() if m.state == "not enough data"]
            return f"healthy{f', without {_listed(optional)} (too few observations)' if optional else ''}"
        if self.verdict == "cannot tell":
            return f"cannot tell: too few observations of {_listed(self.unjudged)}"
        return f"alerts: {_listed(self.alerting)}"

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 alerts, 2 cannot tell."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "verdict": self.verdict,
            "unjudged": self.unjudged,
            "alerts": self.alerts,
            "lost_rows": self.lost_rows,
            "other_rows": to_jsonable(self.other_rows),
            "notes": self.notes,
            "requests": to_jsonable(self.counts),
            "kpis": {name: _plain(measured) for name, measured in self.measurements.items()},
            "vision": to_jsonable(self.vision),
        }


def check(store: Store, window: Window, *, kpis: Sequence[Kpi] = KPIS) -> Health:
    """Return the health over ``window``.

    Args:
        store: to read.
        window: of the rows.
        kpis: the indicators that are checked.
    """
    measurements = measure(store, window, kpis=kpis)
    judged = [measured for measured in measurements.values() if measured.state != "not enough data"]
    verdict: Verdict = "healthy"
    if any(measured.state == "alert" for measured in judged):
        verdict = "alerts"
    elif not judged or any(m.kpi.required and m not in judged for m in measurements.values()):
        verdict = "cannot tell"
    with store.reading() as connection:
        started = writers.c.started_at >= timestamp_of(window.since)
        # A process that still runs has no end; "9" sorts after every timestamp.
        running = sa.func.coalesce(writers.c.stopped_at, "9") >= timestamp_of(window.since)
        counts, other_rows = count_requests(connection, window), count_other_rows(connection, window)
        lost = connection.execute(
            sa.select(sa.func.coalesce(sa.func.sum(writers.c.dropped + writers.c.lost), 0)).where(started | running)
        ).scalar_one()
    return Health(
        verdict=verdict,
        measurements=measurements,
        counts=counts,
        vision=measure_vision(store, window),
        lost_rows=int(lost),
        other_rows=other_rows,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "every indicator"


def _plain(measured: Measurement) -> dict[str, Any]:
    kpi, estimate = measured.kpi, measured.estimate
    return {
        "title": kpi.title,
        "state": measured.state,
        "value": to_jsonable(estimate.value) if estimate else None,
        "interval": to_jsonable([estimate.low, estimate.high]) if estimate else None,
        "observations": estimate.count if estimate else 0,
        "unit": kpi.unit.name,
        "target": kpi.target,
        "alert_threshold": kpi.alert_threshold,
        "measures": kpi.measures,
        **to_jsonable(dict(measured.extra)),
    }

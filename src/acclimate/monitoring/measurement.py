"""Indicators and the numbers of vision runs, measured over a window of time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from acclimate.errors import ConfigError
from acclimate.monitoring.indicator import Kpi, Measurement
from acclimate.monitoring.intervals import Estimate, mean
from acclimate.monitoring.kpis import KPIS
from acclimate.monitoring.schema import requests, vision_runs
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import Window

_SUMMED = ("images", "steps", "kept", "skipped", "guard_rejections", "resets")


def measure(store: Store, window: Window, *, kpis: Sequence[Kpi] = KPIS) -> dict[str, Measurement]:
    """Return every indicator over ``window``, by name.

    Raises:
        ConfigError: two indicators have one name.
    """
    names = [kpi.name for kpi in kpis]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"several indicators are named {', '.join(repeated)}; give each a name of its own")
    with store.reading() as connection:
        return {kpi.name: kpi.measure(connection, window) for kpi in kpis}


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionMeasurement:
    """What vision runs did over a window.

    Attributes:
        runs: how many.
        images, steps, kept, skipped, guard_rejections, resets: summed over the runs (see
            :class:`acclimate.monitoring.records.VisionRun`).
        cost_ratio: mean over runs that measured it.
        gain: mean over runs with labels.
    """

    runs: int
    images: int
    steps: int
    kept: int
    skipped: int
    guard_rejections: int
    resets: int
    cost_ratio: Estimate | None
    gain: Estimate | None


def measure_vision(store: Store, window: Window) -> VisionMeasurement:
    """Return the numbers of vision runs over ``window``."""
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
    sums = {name: sum(row[name] for row in rows) for name in _SUMMED}
    costs = [row["cost_ratio"] for row in rows if row["cost_ratio"] is not None]
    gains = [row["gain"] for row in rows if row["gain"] is not None]
    return VisionMeasurement(
        runs=len(rows),
        **sums,
        cost_ratio=mean(costs).within(0.0, math.inf) if costs else None,
        gain=mean(gains).within(-1.0, 1.0) if gains else None,
    )

"""Suggestions: what to change, as the indicators compute it from the recorded attempts."""

from __future__ import annotations

from collections.abc import Sequence

from acclimate.monitoring.attempts import read_recorded
from acclimate.monitoring.indicator import Kpi, Suggestion
from acclimate.monitoring.kpis import KPIS
from acclimate.monitoring.measurement import measure
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import Window


def suggest(store: Store, window: Window, *, kpis: Sequence[Kpi] = KPIS) -> list[Suggestion]:
    """Return what to change, in the order of the indicators; empty where none is beyond its bound.

    Args:
        store: to read.
        window: of the rows.
        kpis: the indicators; each may bring suggestions of its own (:attr:`Kpi.advise`).
    """
    measured = measure(store, window, kpis=kpis)
    with store.reading() as connection:
        recorded = read_recorded(connection, window)
    return [suggestion for found in measured.values() for suggestion in found.kpi.advise(found, recorded)]

"""The page that watches: indicators, trends, what runs now, and recent requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, Final
from urllib.parse import urlencode

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from acclimate.monitoring import ExperimentReport, Store, Window
from acclimate.monitoring.experiments import list_experiments, report
from acclimate.monitoring.hours import Bucket, Filters, models_and_actors
from acclimate.monitoring.overview import (
    CalibrationBin,
    Latency,
    Overview,
    calibration_bins,
    latency,
    read_overview,
    recent_requests,
    summed,
    vision_totals,
)
from acclimate.monitoring.records import STATUSES
from acclimate.ui.charts import Chart, Line
from acclimate.ui.frame import (
    card,
    framed,
    heading,
    paragraph,
    primary,
    raw_badge,
    secondary,
    set_text,
    table_html,
)
from acclimate.ui.visit import Visit, told
from acclimate.ui.watch_results import experiment_html, reasons_html, requests_html, tiles_html, vision_html

#: Stretches of time that can be chosen, in hours.
STRETCHES: Final = {"1": "last hour", "24": "last day", "168": "last week", "720": "last 30 days"}
#: Longer stretches are drawn by day.
_BY_DAY_FROM_HOURS: Final = 24 * 7
_PAGE_ROWS: Final = 25
_REFRESH_S: Final = 2.0
_ALL: Final = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What was read from the store for one look at the page."""

    overview: Overview
    latency: Latency
    bins: Sequence[CalibrationBin]
    vision: Mapping[str, int]
    experiments: Sequence[ExperimentReport]
    requests: Sequence[Mapping[str, Any]]
    models: Sequence[str]
    actors: Sequence[str]


async def show(visit: Visit) -> None:
    """Draw the page."""
    with framed(visit, "/watch"):
        heading("Watch", 1)
        store = visit.parts.telemetry.store
        if store is None:
            paragraph("This server records nothing, so there is nothing to watch: start it with --record.", "lead")
            _live(visit)
            return
        paragraph("What this server did, from its metrics store. Times are in UTC.", "lead")
        view = _View(visit, store)
        view.draw()
        await view.read()


class _View:
    """The page of one visitor."""

    def __init__(self, visit: Visit, store: Store) -> None:
        self._visit, self._store = visit, store
        hours = visit.parameter("hours", "24")
        self._hours = hours if hours in STRETCHES else "24"
        self._before: str | None = visit.parameter("before") or None

    def draw(self) -> None:
        """Draw the filters, and the places for what is read."""
        # Going back changes the address alone: the page was not left in between.
        ui.add_head_html("<script>window.addEventListener('popstate', () => window.location.reload())</script>")
        self._draw_filters()
        self._problem = paragraph("", "problem").props('role="alert"')
        with ui.element("div").classes("stack"):
            _live(self._visit)
            with card("Indicators"):
                self._tiles = ui.html("", sanitize=False)
            with ui.element("div").classes("half"):
                with card("Requests"):
                    self._requests_chart = Chart("Requests", axis="time", unit="requests", low=True)
                with card("Activation and success"):
                    self._rates = Chart("Activation and success", axis="time", unit="share", low=True, most=1.0)
                with card("Confidence"):
                    self._confidence = Chart(
                        "Confidence", axis="time", unit="mean of adapted answers", low=True, most=1.0
                    )
                with card("Seconds"):
                    self._seconds = Chart("Seconds", axis="time", unit="mean seconds", low=True)
                    self._latency = paragraph("", "note")
                with card("Is the confidence right?"):
                    self._calibration = Chart(
                        "Calibration", axis="mean confidence", unit="share rated 4 or 5", low=True, most=1.0
                    )
                    self._calibration_note = paragraph("", "note")
                with card("Why the base model answered"):
                    self._reasons = ui.html("", sanitize=False)
            with ui.element("div").classes("half"):
                with card("Experiments"):
                    self._experiments = ui.element("div").classes("stack")
                with card("Vision runs"):
                    self._vision = ui.html("", sanitize=False)
            with card("Recent requests"):
                self._draw_request_filters()
                self._rows = ui.html("", sanitize=False)
                self._older = secondary("Older").on_click(self._show_older)

    async def read(self) -> None:
        """Read the store and draw what is there."""
        set_text(self._problem, "")
        try:
            await self._visit.allowed("infer")
            found = await run_in_threadpool(self._read)
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            set_text(self._problem, told(error))
            return
        self._show(found)

    def _draw_filters(self) -> None:
        with ui.element("div").classes("fields").style("margin-bottom: 1rem; max-width: 60rem"):
            self._stretch = ui.select(STRETCHES, value=self._hours, label="Time")
            self._model = ui.select({_ALL: "all models"}, value=_ALL, label="Model")
            self._actor = ui.select({_ALL: "everybody"}, value=_ALL, label="Key")
            for choice in (self._stretch, self._model, self._actor):
                choice.props("outlined dense options-dense")
            self._actor.set_visibility(self._visit.caller.may("admin"))
            primary("Show", "refresh").on_click(self._filters_changed)
        self._wanted_model, self._wanted_actor = self._visit.parameter("model"), self._visit.parameter("key")

    def _draw_request_filters(self) -> None:
        statuses = {_ALL: "all"} | {status: status for status in STATUSES}
        wanted = self._visit.parameter("status")
        with ui.element("div").classes("row"):
            self._status = ui.select(statuses, value=wanted if wanted in statuses else _ALL, label="Status")
            self._status.props("outlined dense options-dense").style("min-width: 9rem")
            self._status.on_value_change(self._filters_changed)

    async def _filters_changed(self) -> None:
        self._before = None
        self._wanted_model, self._wanted_actor = str(self._model.value or ""), str(self._actor.value or "")
        self._hours = str(self._stretch.value)
        ui.navigate.history.replace(self._address())
        await self.read()

    async def _show_older(self) -> None:
        ui.navigate.history.push(self._address())
        await self.read()

    def _address(self) -> str:
        values = {
            "hours": self._hours, "model": self._wanted_model, "key": self._wanted_actor,
            "status": str(self._status.value or ""), "before": self._before or "",
        }  # fmt: skip
        return f"/watch?{urlencode({name: value for name, value in values.items() if value})}"

    def _read(self) -> _Read:
        now = datetime.now(UTC)
        hours = int(self._hours)
        window = Window(since=now - timedelta(hours=hours))
        is_admin = self._visit.caller.may("admin")
        # Who is no administrator sees what they asked themselves, and nothing of others.
        actor = (self._wanted_actor or None) if is_admin else self._visit.caller.id
        filters = Filters(model=self._wanted_model or None, actor=actor)
        with self._store.reading() as connection:
            models, actors = models_and_actors(connection, window)
            rows = recent_requests(
                connection,
                window,
                filters=filters,
                status=str(self._status.value or "") or None,
                before=self._before,
                limit=_PAGE_ROWS + 1,
            )
            found = _Read(
                overview=read_overview(connection, window, filters=filters, by_day=hours > _BY_DAY_FROM_HOURS),
                latency=latency(connection, window, filters=filters),
                bins=calibration_bins(connection, window, filters=filters),
                vision=vision_totals(connection, window) if is_admin else {},
                experiments=(),
                requests=rows,
                models=models,
                actors=actors if is_admin else (),
            )
        if not is_admin:
            return found
        running = [report(self._store, made.name) for made in list_experiments(self._store) if made.stopped_at is None]
        return replace(found, experiments=running)

    def _show(self, found: _Read) -> None:
        models = dict.fromkeys([*found.models, *([self._wanted_model] if self._wanted_model else [])])
        self._model.set_options({_ALL: "all models"} | {name: name for name in models}, value=self._wanted_model)
        actors = dict.fromkeys([*found.actors, *([self._wanted_actor] if self._wanted_actor else [])])
        self._actor.set_options({_ALL: "everybody"} | {name: name for name in actors}, value=self._wanted_actor)
        self._tiles.set_content(tiles_html(list(found.overview.measurements.values())))
        self._show_trends(found.overview)
        slow = found.latency
        words = "No request was timed."
        if slow.median_s is not None and slow.p95_s is not None:
            words = (
                f"Of the newest {slow.count} requests: median {slow.median_s:.2f} s, 95 % within {slow.p95_s:.2f} s."
            )
        set_text(self._latency, words)
        self._show_calibration(found.bins)
        self._reasons.set_content(reasons_html(found.overview))
        self._show_experiments(found.experiments)
        self._vision.set_content(vision_html(found.vision))
        shown, more = found.requests[:_PAGE_ROWS], len(found.requests) > _PAGE_ROWS
        self._rows.set_content(requests_html(shown))
        self._older.set_visibility(more)
        self._before = str(shown[-1]["timestamp"]) if more else None

    def _show_trends(self, found: Overview) -> None:
        # They come in the order of time.
        by_start = [(start, list(group)) for start, group in groupby(found.buckets, key=lambda bucket: bucket.start)]
        shown, groups = [_time_of(start) for start, _ in by_start], [group for _, group in by_start]
        self._requests_chart.show(
            shown,
            [Line(status, [_count(group, status) for group in groups], bars=True) for status in STATUSES],
        )
        activation = [_share(sum(bucket.adaptable for bucket in group), _count(group)) for group in groups]
        success = [_share(_count(group, "adapted"), _count(group, "adapted", "fallback")) for group in groups]
        self._rates.show(shown, [Line("activation", activation), Line("success", success)])
        self._confidence.show(shown, [_with_interval("confidence", groups, "confidence", "adapted", most=1.0)])
        whole = _with_interval("whole request", groups, "seconds")
        self._seconds.show(shown, [whole, _with_interval("adapting", groups, "adaptation_time")])

    def _show_calibration(self, bins: Sequence[CalibrationBin]) -> None:
        self._calibration.show(
            [f"{found.confidence:.2f}" for found in bins],
            [
                Line(
                    "rated good",
                    [found.right.value for found in bins],
                    low=[found.right.low for found in bins],
                    high=[found.right.high for found in bins],
                ),
                Line("if the confidence were exact", [found.confidence for found in bins]),
            ],
        )
        count = sum(found.right.count for found in bins)
        set_text(
            self._calibration_note,
            f"From {count} adapted answers that users rated (acclimate feedback)."
            if count
            else "No adapted answer was rated.",
        )

    def _show_experiments(self, found: Sequence[ExperimentReport]) -> None:
        self._experiments.clear()
        with self._experiments:
            if not found:
                paragraph("None is running." if self._visit.caller.may("admin") else "Shown to administrators.", "note")
            for made in found:
                ui.html(experiment_html(made), sanitize=False)


def _live(visit: Visit) -> None:
    """Draw what the workers do now, and draw it again every two seconds."""
    with card("Now"):
        shown = ui.html(live_html(visit), sanitize=False)

    async def again() -> None:
        # A page that stays open shows nothing new when its session has ended.
        if await visit.is_open():
            shown.set_content(live_html(visit))
        else:
            timer.deactivate()
            shown.set_content("<p>Your session has ended; sign in again.</p>")

    timer = ui.timer(_REFRESH_S, again)


def live_html(visit: Visit) -> str:
    """Return what each model's worker does now."""
    rows = []
    for name, served in visit.parts.service.models.items():
        load = served.worker.load()
        state = raw_badge("ok", "runs") if served.worker.is_alive else raw_badge("alert", "ended")
        held = (load.key_value_bytes + load.prefix_bytes + load.slot_bytes + served.cache.held_bytes) / 2**20
        rows.append(
            [
                name,
                state,
                load.waiting,
                load.running,
                load.training,
                load.generating,
                len(served.cache),
                f"{held:.1f} MiB",
            ]
        )
    columns = [
        "model",
        "worker",
        "waiting",
        "running",
        "training",
        "answering",
        "adapters kept",
        "memory beyond the model",
    ]
    return table_html(columns, rows, numbers=(2, 3, 4, 5, 6, 7))


def _time_of(start: str) -> str:
    return start if len(start) <= len("2026-01-01") else f"{start[5:10]} {start[11:13]} h"


def _count(buckets: Sequence[Bucket], *statuses: str) -> int:
    return sum(bucket.count for bucket in buckets if not statuses or bucket.status in statuses)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _with_interval(
    name: str, groups: Sequence[Sequence[Bucket]], measured: str, *statuses: str, most: float = math.inf
) -> Line:
    means = [summed(group, measured, *statuses).mean for group in groups]
    # A single value has no interval.
    known = [mean.within(0.0, most) if mean is not None and mean.count > 1 else None for mean in means]
    return Line(
        name,
        [None if mean is None else mean.value for mean in means],
        low=[None if mean is None else mean.low for mean in known],
        high=[None if mean is None else mean.high for mean in known],
    )

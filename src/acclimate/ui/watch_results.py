"""What the page that watches shows, as HTML: indicators, reasons, experiments, vision runs and requests."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

from acclimate.monitoring import ExperimentReport, Measurement
from acclimate.monitoring.overview import Overview
from acclimate.ui.frame import raw_badge, raw_link, table_html

_STATE_BADGES: Final = {"ok": "ok", "off target": "warn", "alert": "alert", "not enough data": "off"}


def tiles_html(measurements: Sequence[Measurement]) -> str:
    """Return each indicator with its value, interval, target and state."""
    tiles = []
    for measured in measurements:
        kpi, estimate = measured.kpi, measured.estimate
        value = "no data" if estimate is None else kpi.unit.shown(estimate.value)
        words = "" if estimate is None else f"{estimate.count} observations"
        if estimate is not None and measured.state != "not enough data":
            words = f"95 % interval {kpi.unit.shown(estimate.low)} to {kpi.unit.shown(estimate.high)}, {words}"
        tiles.append(
            f'<div class="tile"><span class="note">{html.escape(kpi.title)}</span>'
            f'<span class="value">{html.escape(value)}</span>'
            f"<span>{raw_badge(_STATE_BADGES[measured.state], measured.state)}</span>"
            f'<span class="note">{html.escape(words)}</span>'
            f'<span class="note">target {html.escape(kpi.target)}, alert {html.escape(kpi.alert_threshold)}</span>'
            "</div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def reasons_html(found: Overview) -> str:
    """Return how often the base model answered, by reason."""
    rows = [
        [status, reason.replace("_", " "), count]
        for (status, reason), count in sorted(found.by_reason.items(), key=lambda item: -item[1])
    ]
    if not rows:
        return "<p>No request was declined or failed.</p>"
    return table_html(["", "reason", "requests"], rows, numbers=(2,))


def vision_html(totals: Mapping[str, int]) -> str:
    """Return what vision runs did, guard events among it."""
    if not totals.get("runs"):
        return '<p class="note">None was recorded.</p>'
    names = {"runs": "runs", "images": "images", "steps": "steps", "kept": "kept", "skipped": "nothing to learn from",
             "guard_rejections": "taken back by guards", "resets": "resets to the source model"}  # fmt: skip
    return table_html(["", ""], [[title, totals[name]] for name, title in names.items()], numbers=(1,))


def experiment_html(made: ExperimentReport) -> str:
    """Return an experiment's arms, its effect with interval, and what it is worth."""
    rows = [
        [
            arm.name,
            arm.outcomes,
            arm.judged,
            "" if arm.quality is None else f"{arm.quality.value:.3f}",
            "" if arm.seconds is None else f"{arm.seconds.value:.2f} s",
        ]
        for arm in made.arms
    ]
    table = table_html(["arm", "answers", "judged", "quality", "time"], rows, numbers=(1, 2, 3, 4))
    effect = made.effect
    words = "No interval can be given yet."
    if effect.low is not None and effect.high is not None:
        kind = "confidence sequence" if made.experiment.design == "sequential" else "interval"
        words = f"Difference in quality {effect.effect:+.3f}, 95 % {kind} {effect.low:+.3f} to {effect.high:+.3f}."
    return f"<h3>{html.escape(made.experiment.name)}</h3>{table}<p>{words} {html.escape(made.verdict)}.</p>"


def requests_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return requests as a table, each with a link to its page."""
    if not rows:
        return "<p>No request matches.</p>"
    shown = [
        [
            raw_link(f"/watch/requests/{row['request_id']}", str(row["timestamp"])[:19].replace("T", " ")),
            row["pipeline"],
            row["model"],
            raw_badge(str(row["status"]), str(row["status"])),
            (row["reason"] or "").replace("_", " "),
            "" if row["confidence"] is None else f"{row['confidence']:.0%}",
            "" if row["seconds"] is None else f"{row['seconds']:.2f} s",
            row["actor"],
        ]
        for row in rows
    ]
    columns = ["time", "pipeline", "model", "status", "reason", "confidence", "time taken", "key"]
    return table_html(columns, shown, numbers=(5, 6))

"""Daily and weekly reports: one HTML file that needs nothing else, or text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import sqlalchemy as sa

from acclimate.monitoring import charts
from acclimate.monitoring.advice import Suggestion, suggest
from acclimate.monitoring.experiments import ExperimentReport, list_experiments, report
from acclimate.monitoring.health import Health, check
from acclimate.monitoring.intervals import quantile
from acclimate.monitoring.measurement import Counts, Measurement, Window
from acclimate.monitoring.records import STATUSES
from acclimate.monitoring.schema import requests, ttt_metrics
from acclimate.monitoring.store import Store

Period = Literal["daily", "weekly"]
PERIOD_DAYS: Final[Mapping[Period, int]] = {"daily": 1, "weekly": 7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened in a period.

    Attributes:
        title: with the period.
        made_at: when.
        health: every indicator.
        days: ISO dates (UTC), in order; ``by_day``: requests of each, by status.
        confidences, adaptation_seconds: one for each adaptation.
        suggestions: what to change.
        experiments: what they show so far.
    """

    title: str
    made_at: str
    health: Health
    days: Sequence[str]
    by_day: Mapping[str, Sequence[int]]
    confidences: Sequence[float]
    adaptation_seconds: Sequence[float]
    suggestions: Sequence[Suggestion]
    experiments: Sequence[ExperimentReport]


def make_report(store: Store, period: Period) -> Report:
    """Return the report of the last day or week."""
    window = Window.last(days=PERIOD_DAYS[period])
    day = sa.func.substr(requests.c.timestamp, 1, 10)
    with store.reading() as connection:
        rows = connection.execute(
            sa.select(day, requests.c.status, sa.func.count())
            .where(window.of(requests.c.timestamp))
            .group_by(day, requests.c.status)
        ).all()
        adapted = connection.execute(
            sa.select(requests.c.confidence).where(
                window.of(requests.c.timestamp), requests.c.confidence.is_not(None), requests.c.status == "adapted"
            )
        ).scalars()
        confidences = list(adapted)
        ran = connection.execute(
            sa.select(ttt_metrics.c.adaptation_time).where(
                window.of(ttt_metrics.c.timestamp), ttt_metrics.c.adaptation_time > 0
            )
        ).scalars()
        seconds = list(ran)
    today = datetime.now(UTC).date()
    days = [(today - timedelta(days=back)).isoformat() for back in range(PERIOD_DAYS[period], -1, -1)]
    found = {(date, status): count for date, status, count in rows}
    return Report(
        title=f"{period.capitalize()} report, {days[0]} to {days[-1]}",
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        health=check(store, window),
        days=days,
        by_day={status: [found.get((date, status), 0) for date in days] for status in STATUSES},
        confidences=confidences,
        adaptation_seconds=seconds,
        suggestions=suggest(store, window),
        experiments=[report(store, e.name) for e in list_experiments(store) if e.stopped_at is None],
    )


def as_text(made: Report) -> str:
    """Return a report as plain text."""
    lines = [made.title, "=" * len(made.title), "", f"health: {made.health.verdict}", ""]
    lines += [f"  {measured.stated}" for measured in made.health.measurements.values()]
    if made.health.lost_rows:
        lines.append(f"  note: {made.health.lost_rows} rows of metrics were lost")
    lines += ["", f"language requests: {made.health.counts.total}"]
    lines += [f"  {line}" for line in count_lines(made.health.counts)]
    vision = made.health.vision
    if vision.runs:
        lines += ["", f"vision runs: {vision.runs}"]
        lines += [f"  {name}: {value}" for name, value in _vision_rows(made.health)]
    for experiment in made.experiments:
        lines += ["", *experiment_lines(experiment)]
    for suggestion in made.suggestions:
        lines += ["", *suggestion_lines(suggestion)]
    return "\n".join(lines) + "\n"


def suggestion_lines(suggestion: Suggestion) -> list[str]:
    """Return a suggestion in four lines."""
    return [
        suggestion.symptom,
        f"  change:   {suggestion.change}",
        f"  evidence: {suggestion.evidence}",
        f"  expected: {suggestion.expected}",
    ]


def experiment_lines(found: ExperimentReport) -> list[str]:
    """Return what an experiment shows, in a few lines."""
    experiment, effect, seconds = found.experiment, found.effect, found.seconds
    state = "running" if experiment.stopped_at is None else f"stopped at {experiment.stopped_at}"
    how = f"{experiment.design}, {'both ways' if found.paired else f'one arm for each {experiment.assigned_by}'}"
    lines = [f"experiment {experiment.name} ({how}, {state})"]
    for arm in found.arms:
        quality = "-" if arm.quality is None else f"{arm.quality.value:.3f}"
        took = "-" if arm.seconds is None else f"{arm.seconds.value:.2f} s"
        lines.append(f"  {arm.name}: {arm.outcomes} requests, {arm.judged} judged, quality {quality}, {took}")
    if effect.low is not None and effect.high is not None and effect.p_value is not None:
        lines.append(
            f"  effect {effect.effect:+.3f}, 95 % interval {effect.low:+.3f} to {effect.high:+.3f}, "
            f"p {effect.p_value:.4f}"
        )
    if seconds.low is not None and seconds.high is not None:
        lines.append(f"  cost {seconds.effect:+.2f} s, 95 % interval {seconds.low:+.2f} to {seconds.high:+.2f}")
    return [*lines, f"  {found.verdict}"]


def as_html(made: Report) -> str:
    """Return a report as one HTML file with its charts inside."""
    rows = "".join(
        f'<tr class="{html.escape(m.state.replace(" ", "-"))}"><td>{html.escape(name)}</td>'
        f"<td>{html.escape(m.kpi.shown(m.estimate.value)) if m.estimate else '-'}</td>"
        f"<td>{_interval(m)}</td><td>{m.estimate.count if m.estimate else 0}</td>"
        f"<td>{html.escape(m.kpi.target)}</td><td>{html.escape(m.kpi.alert_threshold)}</td>"
        f'<td class="state">{html.escape(m.state)}</td></tr>'
        for name, m in made.health.measurements.items()
    )
    p95 = quantile(made.adaptation_seconds, 0.95)
    pictures = [
        charts.stacked_days(made.days, made.by_day, "Requests by day"),
        charts.histogram(made.confidences, "Confidence of adapted answers", "confidence", marks={"alert below": 0.75}),
        charts.histogram(
            made.adaptation_seconds,
            "Seconds for gate and training",
            "seconds",
            marks=None if p95 is None else {"95th percentile": p95, "target": 2.0},
        ),
    ]
    sections = [f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in count_lines(made.health.counts))}</ul>"]
    if made.health.vision.runs:
        cells = "".join(
            f"<tr><td>{html.escape(n)}</td><td>{html.escape(v)}</td></tr>" for n, v in _vision_rows(made.health)
        )
        sections.append(f"<h2>Vision runs: {made.health.vision.runs}</h2><table>{cells}</table>")
    for found in made.experiments:
        sections.append(_block("Experiment", experiment_lines(found)))
    for suggestion in made.suggestions:
        sections.append(_block("Suggestion", suggestion_lines(suggestion)))
    if made.health.lost_rows:
        sections.append(f"<p>{made.health.lost_rows} rows of metrics were lost.</p>")
    return _PAGE.format(
        title=html.escape(made.title),
        made_at=html.escape(made.made_at),
        verdict=html.escape(made.health.verdict),
        verdict_class=made.health.verdict.replace(" ", "-"),
        rows=rows,
        pictures="".join(f"<figure>{picture}</figure>" for picture in pictures),
        total=made.health.counts.total,
        sections="".join(sections),
    )


def count_lines(counts: Counts) -> list[str]:
    """Return how requests ended, one line for each status, with the reasons."""
    lines = []
    for status in STATUSES:
        reasons = counts.by_reason.get(status, {})
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
        lines.append(f"{status}: {counts.by_status.get(status, 0)}{f' ({why})' if why else ''}")
    return lines


def _vision_rows(health: Health) -> list[tuple[str, str]]:
    vision = health.vision
    rows = [
        ("images", str(vision.images)),
        ("steps kept, of all", f"{vision.kept} of {vision.steps}"),
        ("steps skipped", str(vision.skipped)),
        ("guard trips", str(vision.guard_trips)),
        ("resets", str(vision.resets)),
    ]
    if vision.cost_ratio is not None:
        rows.append(("cost over plain prediction, mean", f"{vision.cost_ratio.value:.2f}"))
    if vision.gain is not None:
        rows.append(("gain where labels exist, mean", f"{100 * vision.gain.value:+.2f} points"))
    return rows


def _interval(measured: Measurement) -> str:
    estimate, kpi = measured.estimate, measured.kpi
    if estimate is None or estimate.count < 2:
        return "-"
    return html.escape(f"{kpi.shown(estimate.low)} to {kpi.shown(estimate.high)}")


def _block(heading: str, lines: Sequence[str]) -> str:
    return f"<h2>{html.escape(heading)}</h2><pre>{html.escape(chr(10).join(lines))}</pre>"


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #ddd }}
pre {{ background: #f6f6f6; padding: .8rem; overflow-x: auto; white-space: pre-wrap }}
figure {{ display: inline-block; margin: .5rem 0; width: 100%; max-width: 30rem }}
figure svg {{ width: 100%; height: auto }}
.alert .state, .verdict.alerts {{ color: #b33c00; font-weight: 600 }}
.ok .state, .verdict.healthy {{ color: #00704f; font-weight: 600 }}
.not-enough-data {{ color: #777 }} .off-target .state {{ color: #8a5a00 }}
</style></head><body>
<h1>{title}</h1>
<p>Health: <span class="verdict {verdict_class}">{verdict}</span>. Made {made_at}. Intervals are 95 %.</p>
<table><thead><tr><th>indicator</th><th>value</th><th>interval</th><th>observations</th><th>target</th>
<th>alert</th><th>state</th></tr></thead><tbody>{rows}</tbody></table>
{pictures}
<h2>Language requests: {total}</h2>
{sections}
</body></html>
"""

"""Daily and weekly reports, as text or as one self-contained HTML file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from acclimate.monitoring import charts
from acclimate.monitoring.advice import suggest
from acclimate.monitoring.attempts import Counts, count_by_day
from acclimate.monitoring.experiments import (
    ArmSummary,
    ExperimentReport,
    OutcomesReport,
    list_experiments,
    report,
)
from acclimate.monitoring.health import Health, check
from acclimate.monitoring.indicator import Kpi, Measurement, Suggestion
from acclimate.monitoring.intervals import quantile
from acclimate.monitoring.kpis import KPIS
from acclimate.monitoring.records import STATUSES
from acclimate.monitoring.sequential import Comparison
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import Window

Period = Literal["daily", "weekly"]
#: Differences below this are not shown with three decimals.
_SHOWN_DIFFERENCE: Final = 0.0005
PERIOD_DAYS: Final[Mapping[Period, int]] = {"daily": 1, "weekly": 7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was recorded in a period.

    Attributes:
        title: names the period.
        made_at: when the report was made.
        health: every indicator, with the observations that histograms are drawn from.
        days: ISO dates (UTC), in order; ``by_day``: requests of each day, by status.
        suggestions: what to change.
        experiments: results so far of those that run.
    """

    title: str
    made_at: str
    health: Health
    days: Sequence[str]
    by_day: Mapping[str, Sequence[int]]
    suggestions: Sequence[Suggestion]
    experiments: Sequence[ExperimentReport]


def make_report(store: Store, period: Period, *, kpis: Sequence[Kpi] = KPIS) -> Report:
    """Return the report of the last day or week.

    Args:
        store: to read.
        period: ``daily`` or ``weekly``.
        kpis: the indicators that are reported.
    """
    window = Window.last(days=PERIOD_DAYS[period])
    with store.reading() as connection:
        found = count_by_day(connection, window)
    today = datetime.now(UTC).date()
    days = [(today - timedelta(days=back)).isoformat() for back in range(PERIOD_DAYS[period], -1, -1)]
    return Report(
        title=f"{period.capitalize()} report, {days[0]} to {days[-1]}",
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        health=check(store, window, kpis=kpis),
        days=days,
        by_day={status: [found.get((date, status), 0) for date in days] for status in STATUSES},
        suggestions=suggest(store, window, kpis=kpis),
        experiments=[report(store, e.name) for e in list_experiments(store) if e.stopped_at is None],
    )


def as_text(made: Report) -> str:
    """Return a report as plain text."""
    lines = [made.title, "=" * len(made.title), "", f"health: {made.health.summary}", ""]
    lines += [f"  {measured.line_with_state}" for measured in made.health.measurements.values()]
    lines += [f"  note: {note}" for note in made.health.notes]
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
    """Return the result of an experiment in a few lines."""
    experiment, effect, seconds = found.experiment, found.effect, found.seconds
    state = "running" if experiment.stopped_at is None else f"stopped at {experiment.stopped_at}"
    how = f"{experiment.design}, {'pairs' if found.paired else f'one arm for each {experiment.assigned_by}'}"
    lines = [f"experiment {experiment.name} ({how}, {state})"]
    lines += _arm_lines(found.arms)
    if effect.low is not None and effect.high is not None and effect.p_value is not None:
        lines.append(_effect_line(effect))
    if found.difference is not None and abs(found.difference - effect.effect) >= _SHOWN_DIFFERENCE:
        lines.append(
            f"  the mean qualities differ by {found.difference:+.3f}; the effect weights every outcome by the chance "
            "of its arm, as the test needs, and comes closer to that difference with more requests"
        )
    return [*lines, *_cost_lines(seconds), f"  {found.verdict}"]


def outcome_lines(found: OutcomesReport) -> list[str]:
    """Return the outcomes of a test of which no design is stored, in a few lines."""
    how = "pairs" if found.paired else "without pairs"
    lines = [f"test {found.name} ({how}, no design is stored)", *_arm_lines(found.arms)]
    if found.effect is not None and found.effect.p_value is not None:
        lines.append(_effect_line(found.effect))
    if found.seconds is not None:
        lines += _cost_lines(found.seconds)
    return [*lines, f"  {found.verdict}"]


def _arm_lines(arms: Sequence[ArmSummary]) -> list[str]:
    lines = []
    for arm in arms:
        quality = "-" if arm.quality is None else f"{arm.quality.value:.3f}"
        took = "-" if arm.seconds is None else f"{arm.seconds.value:.2f} s"
        lines.append(f"  {arm.name}: {arm.outcomes} requests, {arm.judged} judged, quality {quality}, {took}")
    return lines


def _effect_line(effect: Comparison) -> str:
    return (
        f"  effect {effect.effect:+.3f}, 95 % interval {effect.low:+.3f} to {effect.high:+.3f}, p {effect.p_value:.4f}"
    )


def _cost_lines(seconds: Comparison) -> list[str]:
    if seconds.low is None or seconds.high is None:
        return []
    return [f"  cost {seconds.effect:+.2f} s, 95 % interval {seconds.low:+.2f} to {seconds.high:+.2f}"]


def as_html(made: Report) -> str:
    """Return a report as one HTML page that contains its charts and loads nothing."""
    measurements = made.health.measurements.values()
    pictures = [charts.stacked_days(made.days, made.by_day, "Requests by day")]
    pictures += [_histogram(measured, title) for measured in measurements if (title := measured.kpi.histogram)]
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
    sections += [f"<p>Note: {html.escape(note)}.</p>" for note in made.health.notes]
    return _PAGE.format(
        title=html.escape(made.title),
        made_at=html.escape(made.made_at),
        verdict=html.escape(made.health.summary),
        verdict_class=made.health.verdict.replace(" ", "-"),
        rows="".join(map(_row, measurements)),
        pictures="".join(f"<figure>{picture}</figure>" for picture in pictures),
        total=made.health.counts.total,
        sections="".join(sections),
    )


def count_lines(counts: Counts) -> list[str]:
    """Return how requests ended, one line for each status, with the reason codes."""
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
        ("steps rejected by a guard", str(vision.guard_rejections)),
        ("resets", str(vision.resets)),
    ]
    if vision.cost_ratio is not None:
        rows.append(("cost over prediction without adaptation, mean", f"{vision.cost_ratio.value:.2f}"))
    if vision.gain is not None:
        rows.append(("gain where labels exist, mean", f"{100 * vision.gain.value:+.2f} points"))
    return rows


def _row(measured: Measurement) -> str:
    """Return the table row of an indicator; what it measures is shown when the pointer is on its name."""
    kpi, estimate, state = measured.kpi, measured.estimate, html.escape(measured.state)
    cells = [
        html.escape(kpi.unit.shown(estimate.value)) if estimate else "-",
        _interval(measured),
        str(estimate.count if estimate else 0),
        html.escape(kpi.target),
        html.escape(kpi.alert_threshold),
    ]
    return (
        f'<tr class="{state.replace(" ", "-")}"><td title="{html.escape(kpi.measures)}">{html.escape(kpi.title)}'
        f"<br><code>{html.escape(kpi.name)}</code></td>"
        f'{"".join(f"<td>{cell}</td>" for cell in cells)}<td class="state">{state}</td></tr>'
    )


def _histogram(measured: Measurement, title: str) -> str:
    unit, marks = measured.kpi.unit, dict(measured.kpi.marks)
    if (p95 := quantile(measured.values, 0.95)) is not None:
        marks["95th percentile"] = p95
    return charts.histogram(
        [unit.scale * value for value in measured.values],
        title,
        unit.suffix.strip() or unit.name,
        marks={name: unit.scale * value for name, value in marks.items()},
    )


def _interval(measured: Measurement) -> str:
    estimate, unit = measured.estimate, measured.kpi.unit
    if estimate is None or estimate.count < 2:
        return "-"
    return html.escape(f"{unit.shown(estimate.low)} to {unit.shown(estimate.high)}")


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

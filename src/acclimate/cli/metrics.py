"""``acclimate analyze``, ``report``, ``metrics``, ``feedback``, ``audit`` and ``maintain``: commands on the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from acclimate.cli import store_options
from acclimate.cli.terminal import reports_input_errors
from acclimate.errors import StoreError
from acclimate.output_files import write_output

_DAYS = click.option(
    "--days",
    type=click.FloatRange(0, min_open=True),
    default=7.0,
    show_default=True,
    help="Length of the window that ends now.",
)


@click.command("analyze", short_help="How attempts are going, and with --suggest what to change.")
@click.option(
    "--suggest", "with_suggestions", is_flag=True, help="Suggest changes, with their evidence and expected effect."
)
@_DAYS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@store_options.database
@reports_input_errors
def analyze_command(*, with_suggestions: bool, days: float, as_json: bool, **given: Any) -> None:
    """Show attempts by day and by kind of task, every indicator by day, the trend of success, and suggestions."""
    from acclimate.json_values import to_jsonable
    from acclimate.monitoring import Window, suggest
    from acclimate.monitoring.reports import suggestion_lines
    from acclimate.monitoring.trends import indicators_by_day, performance_trends

    window = Window.last(days=days)
    with store_options.opened(given) as store:
        with store.reading() as connection:
            trends = performance_trends(connection, window)
        indicators = indicators_by_day(store, window)
        suggestions = suggest(store, window) if with_suggestions else []
    if as_json:
        by_day = {
            name: {date: measured.estimate for date, measured in days.items()} for name, days in indicators.items()
        }
        values = {**trends, "indicators_by_day": by_day, "suggestions": suggestions}
        click.echo(json.dumps(to_jsonable(values), indent=2))
        return
    for name, key in (("daily_performance", "date"), ("task_type_performance", "task_type")):
        for row in trends[name]:
            click.echo(
                f"{row[key] or 'unknown'}: {row['total_attempts']} attempts, {row['successful']} adapted, "
                f"{row['declined']} declined, {row['fallback']} failed"
            )
    for name, days_of in indicators.items():
        shown = [f"{date} {m.kpi.unit.shown(m.estimate.value)}" for date, m in days_of.items() if m.estimate]
        if shown:
            click.echo(f"{name}: {', '.join(shown)}")
    click.echo(f"trend of success: {trends['trend']}")
    if with_suggestions and not suggestions:
        click.echo("nothing to change: no indicator is beyond its alert bound, or there are too few observations")
    for suggestion in suggestions:
        click.echo("\n" + "\n".join(suggestion_lines(suggestion)))


@click.command("report", short_help="A daily or weekly report, as text or as one HTML file.")
@click.argument("period", type=click.Choice(["daily", "weekly"]))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the HTML file here instead of printing text."
)
@store_options.database
@reports_input_errors
def report_command(period: Any, output: Path | None, **given: Any) -> None:
    """Report the last day or week: indicators, charts, experiments, suggestions."""
    from acclimate.monitoring import as_html, as_text, make_report

    with store_options.opened(given) as store:
        made = make_report(store, period)
    if output is None:
        click.echo(as_text(made), nl=False)
        return
    write_output(output, as_html(made), error=StoreError)
    click.echo(f"report: {output}", err=True)


@click.group("metrics", short_help="Export recorded requests, or label them.")
def metrics_group() -> None:
    """Export recorded requests, or label them."""


@metrics_group.command("export", short_help="Write JSON, CSV or Parquet.")
@click.argument("output", type=click.Path(path_type=Path))
@_DAYS
@store_options.database
@reports_input_errors
def export_command(output: Path, days: float, **given: Any) -> None:
    """Write the requests of the last days, adapted or not, to OUTPUT.

    Its ending (.json, .csv, .parquet) chooses the format.
    """
    from acclimate.monitoring import Window
    from acclimate.monitoring.export import export_metrics

    with store_options.opened(given) as store:
        count = export_metrics(store, output, Window.last(days=days), days=days)
    click.echo(f"{count} requests written to {output}", err=True)


@metrics_group.command("label", short_help="Record the true pattern of a request.")
@click.argument("request_id")
@click.argument("pattern")
@store_options.database
@reports_input_errors
def label_command(request_id: str, pattern: str, **given: Any) -> None:
    """Label REQUEST_ID with its true PATTERN (none: no pattern); the accuracy of detection is measured on labels."""
    from acclimate.monitoring.store import NO_PATTERN

    with store_options.opened(given) as store:
        store.label_pattern(request_id, None if pattern == NO_PATTERN else pattern)
    click.echo(f"request {request_id}: pattern {pattern} recorded")


@click.command("feedback", short_help="Record a user's rating of an answer.")
@click.argument("request_id")
@click.argument("rating", type=click.FloatRange(1, 5))
@store_options.database
@reports_input_errors
def feedback_command(request_id: str, rating: float, **given: Any) -> None:
    """Record RATING, 1 (useless) to 5 (exactly right), for the answer of REQUEST_ID and its experiment outcomes."""
    with store_options.opened(given) as store:
        store.add_feedback(request_id, rating)
    click.echo(f"request {request_id}: rating {rating:g} recorded")


@click.command("audit", short_help="Show the audit log, or verify it.")
@click.option(
    "--verify", "verifies", is_flag=True, help="Verify that no entry was changed or is missing; else exit code 1."
)
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Number of entries shown, the newest first."
)
@store_options.database
@reports_input_errors
def audit_command(*, verifies: bool, limit: int, **given: Any) -> None:
    """Show who adapted what, when, with which settings, and with which outcome."""
    from acclimate.json_values import to_jsonable
    from acclimate.monitoring import audit

    with store_options.opened(given) as store, store.reading() as connection:
        if verifies:
            faults = list(audit.verify(connection))
            for fault in faults:
                click.echo(fault.line, err=True)
            count, head = audit.newest(connection)
            click.echo(f"{count} entries, the newest has the hash {head}", err=True)
            click.echo("the audit log is broken" if faults else "the audit log is whole")
            raise SystemExit(1 if faults else 0)
        for entry in audit.entries(connection, limit=limit):
            click.echo(json.dumps(to_jsonable(entry)))


@click.command("maintain", short_help="Delete old rows, and compact the database.")
@click.option(
    "--keep-days",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Keep metrics for this long.",
)
@click.option(
    "--keep-audit-days",
    type=click.FloatRange(0, min_open=True),
    default=365.0,
    show_default=True,
    help="Keep the audit log for this long.",
)
@click.option("--dry-run", is_flag=True, help="Only show how many rows would be deleted.")
@store_options.database
@reports_input_errors
def maintain_command(*, keep_days: float, keep_audit_days: float, dry_run: bool, **given: Any) -> None:
    """Delete metrics older than --keep-days, and show how many rows were deleted."""
    from acclimate.monitoring import maintain

    with store_options.opened(given) as store:
        done = maintain(
            store, keep_days=keep_days, keep_audit_days=keep_audit_days, dry_run=dry_run,
            actor=store_options.actor(given),
        )  # fmt: skip
    word = "would be deleted" if dry_run else "deleted"
    for table, count in done.removed.items():
        click.echo(f"{table}: {count} rows {word}")
    if done.bytes_before is not None and done.bytes_after is not None and not dry_run:
        click.echo(f"{done.bytes_before / 2**20:.2f} MiB before, {done.bytes_after / 2**20:.2f} MiB after")

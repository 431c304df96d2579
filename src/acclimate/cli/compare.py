"""``acclimate compare``: runs several methods on the same images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from acclimate.cli import options, store_options
from acclimate.cli.grouped_help import GroupedCommand
from acclimate.cli.terminal import counts_in_words, is_terminal, reports_input_errors, set_up_logging, stdout

if TYPE_CHECKING:
    from acclimate.vision.evaluation.compare import ComparisonResult


@click.command(
    "compare",
    cls=GroupedCommand,
    short_help="Run several methods on the same images and compare them.",
    epilog=options.presets_epilog(),
)
@click.argument("images", type=options.existing_path())
@click.option(
    "-o",
    "--output",
    type=options.existing_path(),
    default=Path("comparison"),
    show_default=True,
    help="A folder for comparison.json, comparison.png and the predictions.",
)
@click.option(
    "--ground-truth",
    type=options.existing_path(),
    help="COCO annotations, class labels or a folder of label images; without it, the agreement with the unadapted "
    "model is compared.",
)
@options.ignore_value_option
@click.option(
    "--methods",
    metavar="NAME,NAME,...",
    help=f"Methods, separated by commas.  [default: none, {options.compared_methods()}, and those of plug-ins]",
)
@click.option(
    "--recommend", is_flag=True, help="Print the method that auto chooses for this model and stream, and why."
)
@options.model_options
@options.data_options
@options.ttt_options
@store_options.recording
@click.option("-v", "--verbose", is_flag=True, help="Log everything to stderr.")
@click.pass_context
@reports_input_errors
def compare_command(context: click.Context, /, **values: Any) -> None:
    """Run several methods on IMAGES, print a table, and save it with a picture.

    Every method runs with its own preset, online unless --ttt-reset is given; options that are given apply to all.
    """  # fmt: skip
    from acclimate.vision.evaluation.compare import Comparison, compare

    set_up_logging(values["verbose"])
    options.refuse_what_has_no_effect(context)
    comparison = Comparison(
        source=values["images"],
        output=values["output"],
        ground_truth=values["ground_truth"],
        ignore_value=values["ignore_value"],
        methods=None if values["methods"] is None else tuple(options.listed(values["methods"])),
        adapter=options.adapter_options(values),
        given=options.given_ttt_settings(context),
        corruption=options.corruption(values),
        exif_orientation=values["exif_orientation"],
        ttt_source=values["ttt_source"],
        images_root=values["images_root"],
        max_images=values["max_images"],
        recommend=values["recommend"],
    )
    result = compare(comparison, progress=_say if is_terminal(sys.stderr) else None)
    _record(values, result)
    print_comparison(result, source=values["ttt_source"])


def _record(values: dict[str, Any], result: ComparisonResult) -> None:
    if not values["record"]:
        return
    from acclimate.monitoring import vision_request
    from acclimate.vision.evaluation.compare import BASELINE

    session, actor = store_options.session(values), store_options.actor(values)
    records = [
        vision_request(
            images=result.images,
            model=values["model"] or values["adapter"],
            session_id=session,
            ttt={"enabled": True, "method": row.method, "report": {"session": {"counts": row.steps}}},
            seconds=row.cpu_seconds,
            actor=actor,
            cost_ratio=row.cost,
            gain=(row.change.value, row.change.low, row.change.high) if row.change and values["ground_truth"] else None,
            metric=result.metric if values["ground_truth"] else None,
        )
        for row in result.rows
        if row.method != BASELINE and row.error is None
    ]
    store_options.record(values, *records)


def print_comparison(result: ComparisonResult, *, source: Path | None = None) -> None:
    """Print the table and where it was saved."""
    from acclimate.vision.run.auto import as_flags

    console = stdout()
    table = Table(title=f"{result.images} images", title_justify="left")
    for heading in ("method", result.metric, "change", "95 % interval", "CPU s", "cost", "steps"):
        table.add_column(heading, justify="left" if heading in ("method", "steps") else "right")
    for row in result.rows:
        if row.error is not None:
            table.add_row(row.method, "-", "-", "-", "-", "-", f"cannot run on this model: {row.error}")
            continue
        change = row.change
        table.add_row(
            row.method,
            f"{100 * row.metrics[result.metric]:.2f} %",
            "" if change is None else f"{100 * change.value:+.2f}",
            "" if change is None else f"[{100 * change.low:+.2f}, {100 * change.high:+.2f}]".replace("[", "\\["),
            f"{row.cpu_seconds:.1f}",
            f"{row.cost:.2f}",
            counts_in_words(row.steps),
        )
    console.print(table)
    if result.skipped:
        console.print(f"{len(result.skipped)} images could not be used")
    for warning in result.warnings:
        console.print(f"note: {warning}", soft_wrap=True, markup=False)
    if result.recommended is not None:
        console.print(
            f"recommended: {result.recommended.method}  {as_flags(result.recommended, source=source)}", soft_wrap=True
        )
        for reason in result.recommended.reasons:
            console.print(f"  {reason}", soft_wrap=True, markup=False)
    console.print(f"table:   {result.table}")
    console.print(f"picture: {result.picture}")


def _say(method: str) -> None:
    click.echo(f"running {method}", err=True)

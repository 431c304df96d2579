"""``acclimate state``: shows and compares state files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from acclimate.cli import options
from acclimate.cli.terminal import counts_in_words, reports_input_errors, stdout
from acclimate.json_values import to_jsonable

if TYPE_CHECKING:
    from rich.table import Table

    from acclimate.core.state import SavedState, TensorDifference


@click.group("state", short_help="Show or compare the states that runs have saved.")
def state_group() -> None:
    """Show or compare the files that --ttt-save-state wrote."""


@state_group.command("show", short_help="Show the contents of a state file.")
@click.argument("file", type=options.existing_path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the report of the session.")
@reports_input_errors
def show_command(file: Path, as_json: bool) -> None:
    """Show the contents of the state FILE: method, weights, drift and steps."""
    # Imported here: the help needs no torch.
    from acclimate.core.state import SavedState

    saved = SavedState.read(file)
    if as_json:
        described = {"method": saved.method, "settings": saved.settings, "source_sha256": saved.source_sha256}
        click.echo(json.dumps({**described, "report": to_jsonable(saved.report)}, indent=2))
        return
    report = saved.report
    elements = sum(tensor.numel() for tensor in saved.weights.values())
    click.echo(f"method:  {saved.method}")
    click.echo(f"weights: {len(saved.weights)} tensors with {elements} elements, {report.changed_param_count} changed")
    click.echo(f"drift:   {report.relative_drift:.3g} times the source weights' norm")
    click.echo(f"steps:   {_steps(saved)} ({counts_in_words(report.counts) or 'none'})")
    click.echo(f"source:  {saved.source_sha256[:16]}")


@state_group.command("diff", short_help="Show how the weights of two states differ.")
@click.argument("first", type=options.existing_path())
@click.argument("second", type=options.existing_path())
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Show so many tensors, those with the largest relative difference first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all tensors as JSON.")
@reports_input_errors
def diff_command(first: Path, second: Path, top: int, as_json: bool) -> None:
    """Show how the weights of the states FIRST and SECOND of one model differ."""
    from acclimate.core.state import SavedState, difference

    one, other = SavedState.read(first), SavedState.read(second)
    compared = difference(one, other)
    if as_json:
        click.echo(json.dumps([to_jsonable(dataclasses.asdict(tensor)) for tensor in compared], indent=2))
        return
    click.echo(f"{first}: {one.method}, steps {_steps(one)}; {second}: {other.method}, steps {_steps(other)}")
    changed = [tensor for tensor in compared if tensor.changed]
    if not changed:
        click.echo(f"no weight differs: all {len(compared)} tensors are equal")
        return
    elements, total = sum(tensor.changed for tensor in changed), sum(tensor.elements for tensor in compared)
    click.echo(f"{len(changed)} of {len(compared)} tensors differ, in {elements} of {total} elements")
    stdout().print(_table(changed[:top]))
    if len(changed) > top:
        click.echo(f"and {len(changed) - top} more (--top)")


def _steps(saved: SavedState) -> str:
    """Return the number of steps of the session that saved a state, and of those that it continued."""
    before = saved.report.steps_before
    return f"{len(saved.report.steps)}" + (f" after {before}" if before else "")


def _table(differences: list[TensorDifference]) -> Table:
    from rich.table import Table

    table = Table()
    for heading in ("tensor", "changed", "of", "distance", "relative", "largest"):
        table.add_column(heading, justify="left" if heading == "tensor" else "right")
    for tensor in differences:
        numbers = (f"{value:.3g}" for value in (tensor.distance, tensor.relative, tensor.largest))
        table.add_row(tensor.name, str(tensor.changed), str(tensor.elements), *numbers)
    return table

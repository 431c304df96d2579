"""``acclimate calibrate``: fit the gate to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from acclimate.cli import language_options
from acclimate.cli.terminal import progress_bar, reports_input_errors, set_up_logging
from acclimate.output_files import check_writable


@click.command("calibrate", short_help="Fit the gate's confidence to a model on tasks with known answers.")
@click.argument("tasks", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@language_options.model
@language_options.training
@click.option(
    "--shots", type=click.IntRange(2), default=6, show_default=True, help="Examples shown; the others are asked."
)
@click.option("--questions", type=click.IntRange(1), help="Most questions of a task.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@reports_input_errors
def calibrate_command(tasks: Path, out: Path, **given: Any) -> None:
    """Answer every task in TASKS with and without adapting, and fit the probabilities that the gate compares.

    TASKS holds JSON lines {"task": NAME, "examples": [[input, output], ...]}. The printed numbers were measured on
    tasks that were held out of the fit; tasks of one name are held out together. Use the file with ask --calibration.
    """
    from acclimate.language.decision import trials

    set_up_logging(given["verbose"])
    check_writable(out)
    known = trials.read_tasks(tasks, shots=given["shots"], questions=given["questions"])
    model = language_options.load_model(given)
    recipe = language_options.recipe_from(model.recipe, given)
    with progress_bar() as show:
        found = list(
            trials.trials(model, known, recipe=recipe, progress=(lambda d, n: show("tasks", d, n)) if show else None)
        )
    words = f"{tasks.name}: {len(known)} tasks, {given['shots']} examples each"
    fitted = trials.fit_trials(model.name, found, fitted_on=words)
    fitted.save(out)
    quality = trials.held_out_quality(model.name, found)
    if given["as_json"]:
        click.echo(json.dumps({"out": str(out), "requests": len(found), **quality}))
        return
    click.echo(f"{len(found)} questions of {len(known)} tasks -> {out}")
    for name, value in quality.items():
        click.echo(f"{name:28s} {value:.3f}")

"""``acclimate experiment``: create, list, stop and report experiments with two arms."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from acclimate.cli import store_options
from acclimate.cli.terminal import reports_input_errors
from acclimate.errors import ConfigError


@click.group("experiment", short_help="Compare two ways of answering on live requests.")
def experiment_group() -> None:
    """Compare two ways of answering on live requests.

    acclimate ask --experiment NAME assigns every request (or user) to an arm; the quality of an answer comes from
    --expected, or from acclimate feedback.
    """


@experiment_group.command("create", short_help="Store the design of an experiment.")
@click.argument("name")
@click.option("--control", default="ICL", show_default=True, help="Name of the control arm.")
@click.option("--treatment", default="TTT", show_default=True, help="Name of the treatment arm.")
@click.option(
    "--control-setting", multiple=True, metavar="NAME=VALUE", help="Option for control.  [default: policy=never]"
)
@click.option(
    "--treatment-setting",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option for treatment.  [default: policy=gate]",
)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.5, show_default=True,
    help="Share of requests that get the treatment arm.",
)  # fmt: skip
@click.option(
    "--assign-by",
    type=click.Choice(["request", "user"]),
    default="request",
    show_default=True,
    help="What is assigned to an arm.",
)
@click.option(
    "--design", type=click.Choice(["sequential", "fixed"]), default="sequential", show_default=True,
    help="Valid whenever it is looked at, or a test at a fixed horizon.",
)  # fmt: skip
@click.option("--horizon", type=click.IntRange(4), help="Number of judged requests (users) of a fixed design.")
@store_options.database
@reports_input_errors
def create_command(name: str, **given: Any) -> None:
    """Store the design of the experiment NAME, before its first request."""
    from acclimate.cli.asked_experiments import check_settings
    from acclimate.monitoring.experiments import Arm, Experiment, create

    arms = (
        Arm(given["control"], 1 - given["share"], _settings(given["control_setting"]) or {"policy": "never"}),
        Arm(given["treatment"], given["share"], _settings(given["treatment_setting"]) or {"policy": "gate"}),
    )
    for arm in arms:
        check_settings(arm)
    experiment = Experiment(
        name=name, arms=arms, assigned_by=given["assign_by"], design=given["design"], horizon=given["horizon"]
    )
    with store_options.opened(given, must_exist=False) as store:
        create(store, experiment)
    click.echo(f"experiment {name}: {arms[0].name} against {arms[1].name}, {experiment.design}")


@experiment_group.command("status", short_help="List experiments with their results so far.")
@click.argument("name", required=False)
@store_options.database
@reports_input_errors
def status_command(name: str | None, **given: Any) -> None:
    """Show the result so far of NAME, or of every experiment, in one line each."""
    from acclimate.monitoring import Window
    from acclimate.monitoring.experiments import get, list_experiments, recent_tests, report
    from acclimate.monitoring.window import LONGEST_DAYS

    with store_options.opened(given) as store:
        experiments = [get(store, name)] if name else list_experiments(store)
        designed = {experiment.name for experiment in experiments}
        others = [] if name else [t for t in recent_tests(store, Window.last(days=LONGEST_DAYS)) if t not in designed]
        if not experiments and not others:
            click.echo("no experiments; create one by acclimate experiment create")
        for experiment in experiments:
            found = report(store, experiment.name)
            state = "running" if experiment.stopped_at is None else "stopped"
            click.echo(f"{experiment.name}: {state}, {found.effect.count} judged; {found.verdict}")
        for test in others:
            click.echo(
                f"{test}: no design is stored; acclimate experiment report {shlex.quote(test)} shows its outcomes"
            )


@experiment_group.command("stop", short_help="Stop an experiment; its outcomes are kept.")
@click.argument("name")
@store_options.database
@reports_input_errors
def stop_command(name: str, **given: Any) -> None:
    """Stop the experiment NAME: no request is assigned to it any more."""
    from acclimate.monitoring.experiments import stop

    with store_options.opened(given) as store:
        stop(store, name)
    click.echo(f"experiment {name} is stopped")


@experiment_group.command("report", short_help="Effect, interval, p value and cost.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@store_options.database
@reports_input_errors
def report_command(name: str, *, as_json: bool, **given: Any) -> None:
    """Report the result of the experiment NAME so far, or the outcomes of a test that another program ran."""
    from acclimate.json_values import to_jsonable
    from acclimate.monitoring.experiments import OutcomesReport, find_report
    from acclimate.monitoring.reports import experiment_lines, outcome_lines

    with store_options.opened(given) as store:
        found = find_report(store, name)
    if as_json:
        click.echo(json.dumps(to_jsonable(found), indent=2))
        return
    lines = outcome_lines(found) if isinstance(found, OutcomesReport) else experiment_lines(found)
    click.echo("\n".join(lines))


def _settings(given: tuple[str, ...]) -> dict[str, Any]:
    from acclimate.json_values import from_json

    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"a setting is NAME=VALUE, got {text!r}")
        try:
            settings[name] = from_json(value)
        except ValueError:
            settings[name] = value
    return settings

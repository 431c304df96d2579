"""``acclimate experiment``: compare two ways of answering, honestly."""

from __future__ import annotations

import json
from typing import Any

import click

from acclimate.cli import store_options
from acclimate.cli.terminal import reports_input_errors
from acclimate.core.report import to_jsonable
from acclimate.errors import ConfigError


@click.group("experiment", short_help="Compare two ways of answering on real requests.")
def experiment_group() -> None:
    """Compare two ways of answering on real requests.

    acclimate ask --experiment NAME gives every request (or user) its arm; quality comes from --expected, or from
    acclimate feedback.
    """


@experiment_group.command("create", short_help="Write down an experiment before its first request.")
@click.argument("name")
@click.option("--control", default="ICL", show_default=True, help="Name of the first arm.")
@click.option("--treatment", default="TTT", show_default=True, help="Name of the second arm.")
@click.option(
    "--control-setting", multiple=True, metavar="NAME=VALUE", help="Of the first arm.  [default: policy=never]"
)
@click.option(
    "--treatment-setting", multiple=True, metavar="NAME=VALUE", help="Of the second arm.  [default: policy=gate]"
)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.5, show_default=True,
    help="Of requests that get the second arm.",
)  # fmt: skip
@click.option(
    "--assign-by",
    type=click.Choice(["request", "user"]),
    default="request",
    show_default=True,
    help="What gets an arm.",
)
@click.option(
    "--design", type=click.Choice(["sequential", "fixed"]), default="sequential", show_default=True,
    help="May be looked at at any time, or says nothing before its horizon.",
)  # fmt: skip
@click.option("--horizon", type=click.IntRange(4), help="Judged requests (users) of a fixed design.")
@store_options.database
@reports_input_errors
def create_command(name: str, **given: Any) -> None:
    """Write down the experiment NAME."""
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


@experiment_group.command("status", short_help="List experiments and where they stand.")
@click.argument("name", required=False)
@store_options.database
@reports_input_errors
def status_command(name: str | None, **given: Any) -> None:
    """Say in a line where NAME, or every experiment, stands."""
    from acclimate.monitoring.experiments import get, list_experiments, report

    with store_options.opened(given) as store:
        experiments = [get(store, name)] if name else list_experiments(store)
        if not experiments:
            click.echo("no experiments; acclimate experiment create makes one")
        for experiment in experiments:
            found = report(store, experiment.name)
            state = "running" if experiment.stopped_at is None else "stopped"
            click.echo(f"{experiment.name}: {state}, {found.effect.count} judged; {found.verdict}")


@experiment_group.command("stop", short_help="End an experiment; its outcomes are kept.")
@click.argument("name")
@store_options.database
@reports_input_errors
def stop_command(name: str, **given: Any) -> None:
    """End the experiment NAME."""
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
    """Report what the experiment NAME shows."""
    from acclimate.monitoring.experiments import report
    from acclimate.monitoring.reports import experiment_lines

    with store_options.opened(given) as store:
        found = report(store, name)
    click.echo(json.dumps(to_jsonable(found), indent=2) if as_json else "\n".join(experiment_lines(found)))


def _settings(given: tuple[str, ...]) -> dict[str, Any]:
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"a setting is NAME=VALUE, got {text!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings

"""``acclimate health``: the indicators against their alert bounds, and alerts to those who are to get them."""

from __future__ import annotations

import json
import os
import shlex
import time
from typing import TYPE_CHECKING, Any

import click

from acclimate.cli import store_options
from acclimate.cli.terminal import reports_input_errors, set_up_logging
from acclimate.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from acclimate.monitoring import Health
    from acclimate.monitoring.alerts import Channel


@click.command("health", short_help="Check every indicator: exit 0 healthy, 1 alerts, 2 cannot tell.")
@store_options.database
@click.option(
    "--hours",
    type=click.FloatRange(0, min_open=True),
    default=24.0,
    show_default=True,
    help="Length of the window that ends now.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--watch",
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="Check every SECONDS; alert when the set of alerting indicators changes.",
)
@click.option("--webhook", help="Post alerts to this URL; signed with $ACCLIMATE_WEBHOOK_SECRET where it is set.")
@click.option("--email", multiple=True, metavar="ADDRESS", help="Mail alerts to this address; may be repeated.")
@click.option("--smtp", default="localhost:25", show_default=True, metavar="HOST:PORT", help="The mail server.")
@click.option("--smtp-user", help="User of the mail server; the password is in $ACCLIMATE_SMTP_PASSWORD.")
@click.option("--smtp-starttls", is_flag=True, help="Encrypt the connection to the mail server.")
@click.option("--sender", default="acclimate@localhost", show_default=True, help="Sender of the mails.")
@click.option("--command", "program", help="Run this program with the alert as JSON on its standard input.")
@reports_input_errors
def health_command(**given: Any) -> None:
    """Check the key performance indicators.

    An indicator alerts when its whole 95 % interval lies beyond its alert bound. Alerts go to standard error, and to
    the webhook, the addresses and the program that are given.

    Exit code 0: healthy, every indicator that needs neither labels nor experiments was judged and none alerts; 1: an
    indicator alerts; 2: cannot tell, because the store cannot be read or such an indicator has too few observations.
    """
    set_up_logging(verbose=False)
    channels = _channels(given)
    # The alerting indicators of the last alert that was delivered, or of the last check without any.
    delivered: list[str] | None = None
    while True:
        health = _checked(given)
        if health is not None:
            _show(health, as_json=given["as_json"])
            unchanged = health.alerting == delivered
            # An alert that a channel did not accept is repeated after the next check.
            delivered = health.alerting if unchanged or not health.alerting or _alert(health, channels) else None
        if given["watch"] is None:
            raise SystemExit(2 if health is None else health.exit_code)
        time.sleep(given["watch"])


def _checked(given: dict[str, Any]) -> Health | None:
    from acclimate.monitoring import Window, check

    try:
        with store_options.opened(given) as store:
            return check(store, Window.last(hours=given["hours"]))
    except StoreError as error:
        click.echo(f"cannot tell: {error}", err=True)
        return None


def _show(health: Health, *, as_json: bool) -> None:
    from acclimate.monitoring.reports import count_lines

    if as_json:
        click.echo(json.dumps(health.to_dict(), indent=2))
        return
    click.echo(health.verdict)
    if health.verdict != "alerts":
        click.echo(f"  {health.summary}")
    for measured in health.measurements.values():
        click.echo(f"  {measured.line_with_state}")
    for line in count_lines(health.counts):
        click.echo(f"  {line}")
    for note in health.notes:
        click.echo(f"  note: {note}")


def _alert(health: Health, channels: list[Channel]) -> bool:
    """Send the alerts through every channel; return whether all of them accepted."""
    from acclimate.monitoring.alerts import Alert, deliver

    for line in health.alerts:
        click.echo(f"ALERT {line}", err=True)
    title = f"acclimate: {len(health.alerts)} alerts"
    failures = deliver(Alert(title=title, lines=health.alerts, details=health.to_dict()), channels)
    for failure in failures:
        click.echo(f"Warning: {failure}", err=True)
    return not failures


def _channels(given: dict[str, Any]) -> list[Channel]:
    from acclimate.monitoring.alerts import Command, Email, Webhook

    channels: list[Channel] = []
    if given["webhook"]:
        channels.append(Webhook(url=given["webhook"], secret=os.environ.get("ACCLIMATE_WEBHOOK_SECRET")))
    if given["email"]:
        host, _, port = given["smtp"].rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"--smtp must be HOST:PORT, got {given['smtp']!r}")
        channels.append(
            Email(
                host=host,
                port=int(port),
                recipients=given["email"],
                sender=given["sender"],
                user=given["smtp_user"],
                password=os.environ.get("ACCLIMATE_SMTP_PASSWORD"),
                starttls=given["smtp_starttls"],
            )
        )
    if given["program"]:
        try:
            channels.append(Command(arguments=shlex.split(given["program"])))
        except ValueError as error:
            raise ConfigError(f"--command cannot be read, got {given['program']!r}: {error}") from error
    return channels

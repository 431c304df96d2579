"""Options that choose the metrics store, and the recording of a command's requests in it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import click
from click.core import ParameterSource

from acclimate.errors import InputError
from acclimate.extras import is_installed, require

if TYPE_CHECKING:
    from acclimate.monitoring import Outcome, RequestRecord, Store

Command = TypeVar("Command", bound=Callable[..., Any])


def database(command: Command) -> Command:
    """Add the option that names the store."""
    return click.option(
        "--db",
        metavar="PATH_OR_URL",
        callback=_named,
        help="The metrics store: a SQLite file or a postgresql:// URL.  "
        "[default: $ACCLIMATE_DB_URL, or logs/ttt_metrics.db]",
    )(command)


def _named(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty name before any work: an answer would be given and its record lost."""
    if value is not None and not value.strip():
        raise click.BadParameter("the name of the metrics store is empty; give a path or a postgresql:// URL")
    return value


def recording(command: Command) -> Command:
    """Add the options of commands that write rows to the store."""
    for option in (
        click.option(
            "--user", help="Name of the user, for the audit log and experiments.  [default: the system's user]"
        ),
        click.option(
            "--session",
            envvar="ACCLIMATE_SESSION",
            help="Name that groups requests in the metrics.  [default: a new one]",
        ),
        click.option(
            "--record/--no-record",
            default=True,
            show_default=True,
            callback=_recordable,
            help="Write a row to the metrics store, where acclimate[monitoring] is installed.",
        ),
        database,
    ):
        command = option(command)
    return command


def _recordable(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Return whether to record; where the extra is not installed only a ``--record`` that was typed is an error."""
    if value and context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT:
        require("monitoring", "--record")
    return value and is_installed("monitoring")


def actor(given: dict[str, Any]) -> str:
    """Return the name of the user."""
    if given.get("user"):
        return str(given["user"])
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def session(given: dict[str, Any]) -> str:
    """Return the name of this command's session."""
    return str(given.get("session") or uuid4().hex)


@contextmanager
def opened(given: dict[str, Any], *, must_exist: bool = True, **settings: Any) -> Iterator[Store]:
    """Open the store for a command that reads or maintains it."""
    from acclimate.monitoring import Store

    with Store(given["db"], must_exist=must_exist, **settings) as store:
        yield store


def record(given: dict[str, Any], *records: RequestRecord | Outcome, keep_content: bool = False) -> bool:
    """Write rows to the store and return whether all were written; a failure is a warning, not an error."""
    if not given["record"]:
        return False
    from acclimate.monitoring import Store

    try:
        with Store(given["db"], keep_content=keep_content) as store:
            for each in records:
                store.put(each)
            store.flush()
            lost = store.losses.total
    except InputError as error:
        click.echo(f"Warning: not recorded: {error}", err=True)
        return False
    if lost:
        click.echo(f"Warning: {lost} of {len(records)} rows could not be recorded", err=True)
    return not lost

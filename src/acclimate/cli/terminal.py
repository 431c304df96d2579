"""Terminal output that commands share: error messages, progress bars, tables and logging."""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from acclimate.errors import InputError, MissingExtraError

Command = TypeVar("Command", bound=Callable[..., Any])


def stdout() -> Console:
    """Return a console for results: as wide as the terminal; without line breaks where stdout is no terminal.

    Where standard output is closed, what is printed is dropped.
    """
    terminal = is_terminal(sys.stdout)
    file = io.StringIO() if sys.stdout is None else None
    return Console(file=file, highlight=False, soft_wrap=not terminal, width=None if terminal else 140)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal; False where it is closed."""
    return stream is not None and stream.isatty()


def reports_input_errors(command: Command) -> Command:
    """Turn an :class:`InputError` into one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # Names of files need not be valid text, and an error while a result is printed would hide it.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return command(*args, **kwargs)
        except MissingExtraError:
            # The group says it, with the name of the command.
            raise
        except InputError as error:
            click.echo(f"Error: {error}", err=True)
            raise SystemExit(2) from error
        except UnicodeEncodeError as error:
            # Python reads bytes of an argument that are not UTF-8 as lone surrogates: right for paths, not for text.
            text = error.object[error.start : error.end]
            if not all("\ud800" <= character <= "\udfff" for character in text):
                raise
            click.echo(f"Error: {text!a} is not valid text; give arguments and files in UTF-8", err=True)
            raise SystemExit(2) from error

    return wrapper  # type: ignore[return-value]


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Return the number of steps by verdict as text, such as ``3 kept, 1 rolled back``; empty without steps."""
    return ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts.items())


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a function that shows progress on the terminal; None where stderr is no terminal."""
    if not is_terminal(sys.stderr):
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield show


def set_up_logging(verbose: bool) -> None:
    """Write the library's log to stderr: warnings, or all messages if ``verbose``."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("acclimate").setLevel(logging.DEBUG if verbose else logging.WARNING)
    # Environment variables, which transformers reads when it is imported; importing it here would take too long.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

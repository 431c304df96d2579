"""Options of ``acclimate ask`` for examples that are images or sounds, and answering such a request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

import click
from click.core import ParameterSource

from acclimate.cli import store_options
from acclimate.errors import ConfigError, DataError

if TYPE_CHECKING:
    from acclimate.media import MediaReport

Command = TypeVar("Command", bound=Callable[..., Any])
#: Options that images and sounds share with text.
_SHARED: Final = frozenset(
    {"examples", "query", "device", "as_json", "record", "db", "user", "session", "verbose", "store_content"}
)
_MEDIA: Final = ("encoder", "head", "views", "adapt", "refuse_below")


def media(command: Command) -> Command:
    """Add the options for images and sounds."""
    for option in (
        click.option(
            "--refuse-below",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            metavar="SHARE",
            help='Images and sounds: answer "none of these" where fewer held-out examples are as unusual as the query.',
        ),
        click.option(
            "--adapt",
            type=click.Choice(["norm"]),
            help="Images: train the encoder's norm parameters, kept where held-out examples gain.",
        ),
        click.option(
            "--views", multiple=True, help="Images and sounds: changed copies of the examples.  [default: compared]"
        ),
        click.option(
            "--head",
            multiple=True,
            type=click.Choice(["class_means", "lda", "logistic"]),
            help="Images and sounds: classifier on the vectors; may be repeated.  [default: compared]",
        ),
        click.option(
            "--encoder",
            multiple=True,
            help="Images and sounds: a name, folder or hub name; may be repeated.  [default: compared]",
        ),
    ):
        command = option(command)
    return command


def has_media(examples: Path) -> bool:
    """Return whether a file of examples is about images or sounds; False also where it cannot be read."""
    from acclimate.media import example_lines

    return example_lines.has_media(examples)


def refuse_for_text(given: dict[str, Any]) -> None:
    """Refuse the options of images and sounds where the request is text.

    Raises:
        ConfigError: one was given.
    """
    for name in _MEDIA:
        if given[name]:
            raise ConfigError(f"{_flag(name)} is for examples that are images or sounds; leave it out")


def answer(context: click.Context, given: dict[str, Any]) -> None:
    """Answer a request whose examples are images or sounds, and print the answer.

    Raises:
        ConfigError: an option is for text, or --query is missing.
        DataError: an input cannot be read, or the examples cannot be learned from.
    """
    for name in given:
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if typed and name not in (*_SHARED, *_MEDIA):
            raise ConfigError(f"{_flag(name)} is for text, and the examples are images or sounds; leave it out")
    if given["query"] is None:
        raise ConfigError("--examples needs --query: the file to answer")
    report = _report(given)
    request_id = uuid4().hex
    recorded = given["record"] and _record(given, report, request_id)
    if given["as_json"]:
        click.echo(json.dumps({**report.to_dict(), "request_id": request_id if recorded else None}, indent=2))
        return
    click.echo(report.answer)
    for warning in report.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(report.status_line, err=True)
    click.echo(report.explanation, err=True)
    if recorded:
        click.echo(f"request {request_id}", err=True)


def _report(given: dict[str, Any]) -> MediaReport:
    from transformers.utils import logging

    from acclimate.media import MediaEngine, read_examples, read_item

    # transformers' switch holds for the whole process: it is for a program to set, not for the library.
    logging.disable_progress_bar()
    examples = read_examples(given["examples"])
    query = read_item(examples[0].item.kind, Path(given["query"]))
    engine = MediaEngine(
        encoders=given["encoder"] or None,
        heads=given["head"] or None,
        views=given["views"] or None,
        refuse_below=given["refuse_below"],
        adapt=given["adapt"],
        device=given["device"],
        progress=lambda line: click.echo(line, err=True),
    )
    return engine.ask(examples, query)


def _record(given: dict[str, Any], report: MediaReport, request_id: str) -> bool:
    """Write the request to the store; its answer is given whatever comes of that."""
    from acclimate.monitoring import media_request

    try:
        record = media_request(
            report.to_dict(),
            session_id=store_options.session(given),
            request_id=request_id,
            actor=store_options.actor(given),
            asked_to_adapt=given["adapt"] is not None,
            content={"query": report.query} if given["store_content"] else None,
        )
    except DataError as error:
        click.echo(f"Warning: not recorded: {error}", err=True)
        return False
    return store_options.record(given, record, keep_content=given["store_content"])


def _flag(name: str) -> str:
    flags = {"prompt": "PROMPT", "prompt_file": "--file"}
    return flags.get(name, f"--{name.replace('_', '-')}")

"""Options that the language commands share, and how they become settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from acclimate.errors import ConfigError, DataError
from acclimate.json_values import from_json
from acclimate.output_files import check_folder_writable

if TYPE_CHECKING:
    from acclimate.language import AdapterLibrary, Example, LanguageModel, Recipe

Command = TypeVar("Command", bound=Callable[..., Any])
PRIMED_EXAMPLES: Final = "examples.jsonl"
_RECIPE_FIELDS: Final = (
    "steps",
    "rank",
    "learning_rate",
    "loss",
    "orderings",
    "orderings_per_step",
    "context_share",
    "initial_weights",
    "share_adapted",
    "seed",
)


def model(command: Command) -> Command:
    """Add the options that choose a language model."""
    for option in (
        click.option("--device", default="cpu", show_default=True, help="torch's name of the device."),
        click.option(
            "--model",
            default="smollm2",
            show_default=True,
            envvar="ACCLIMATE_LANGUAGE_MODEL",
            show_envvar=True,
            help="smollm2 (fetched once), spark (ships with the package), a folder, or a name on the hub.",
        ),
    ):
        command = option(command)
    return command


def library(command: Command) -> Command:
    """Add the options of a library of adapters."""
    for option in (
        click.option("--library-content", is_flag=True, help="Keep the examples beside the adapters in --library."),
        click.option(
            "--keep-days",
            type=click.FloatRange(0),
            help="Delete adapters in --library that were not used for so long.  [default: 30]",
        ),
        click.option(
            "--library",
            type=click.Path(path_type=Path, file_okay=False),
            help="Keep adapters that helped in this folder, and answer or train from those of similar tasks.",
        ),
    ):
        command = option(command)
    return command


def open_library(given: dict[str, Any]) -> AdapterLibrary | None:
    """Return the library of adapters that was asked for.

    Raises:
        ConfigError: an option has no effect.
        DataError: the folder holds something else, or cannot be written to.
    """
    folder = given["library"]
    if folder is None:
        for name in ("keep_days", "library_content"):
            if given[name] is not None and given[name] is not False:
                raise ConfigError(f"--{name.replace('_', '-')} needs --library: the folder of adapters")
        return None
    if given["adapters"]:
        raise ConfigError("--library has no effect with --adapter, which answers by itself; leave one of them out")
    from acclimate.language import AdapterLibrary, Retention

    check_folder_writable(folder)
    days = given["keep_days"]
    retention = Retention() if days is None else Retention(keep_days=days)
    return AdapterLibrary(folder, retention=retention, keep_content=given["library_content"])


def training(command: Command) -> Command:
    """Add the options of the training recipe; whatever is not given comes from the model's recipe."""
    for option in (
        click.option("--seed", type=int, help="Of initialisation and shuffling."),
        click.option(
            "--share-adapted", type=click.FloatRange(0, 1, min_open=True), help="Share of layers, from the last."
        ),
        click.option(
            "--initial-weights",
            type=click.Choice(["random", "first_gradient", "learned"]),
            help="What low-rank weights begin with; learned ones come with spark.",
        ),
        click.option(
            "--context-share", type=click.FloatRange(0, 1, max_open=True), help="Share of examples without loss."
        ),
        click.option("--orderings-per-step", type=click.IntRange(1), help="Orders of the examples in one step."),
        click.option("--orderings", type=click.IntRange(1), help="Orders that the steps alternate between."),
        click.option(
            "--loss", type=click.Choice(["all_answers", "last_answer", "direct"]), help="Which answers carry loss."
        ),
        click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Of AdamW."),
        click.option("--rank", type=click.IntRange(1), help="Of the low-rank weights."),
        click.option("--steps", type=click.IntRange(1), help="Training steps."),
    ):
        command = option(command)
    return command


def recipe_from(recipe: Recipe, given: dict[str, Any]) -> Recipe | None:
    """Return ``recipe`` with what was typed, or None where nothing was."""
    typed = {name: given[name] for name in _RECIPE_FIELDS if given.get(name) is not None}
    return dataclasses.replace(recipe, **typed) if typed else None


def load_model(given: dict[str, Any]) -> LanguageModel:
    """Load the model that was asked for, saying on stderr what is fetched."""
    from transformers.utils import logging

    from acclimate.language import load

    # transformers' switch holds for the whole process: it is for a program to set, not for the library.
    logging.disable_progress_bar()
    return load(given["model"], device=given["device"], progress=lambda line: click.echo(line, err=True))


def read_examples(path: Path) -> tuple[Example, ...]:
    """Read JSON lines of examples.

    Raises:
        DataError: the file cannot be read, or a line is not an example.
    """
    from acclimate.language import as_examples

    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(from_json(line))
        except ValueError as error:
            raise DataError(
                f'{path}, line {number} is not JSON; write {{"input": ..., "output": ...}} on each line'
            ) from error
    if not rows:
        raise DataError(f"{path} holds no examples")
    return as_examples(rows)

"""``acclimate export --engine ray``: options, progress and summary of exports that are divided into shards."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from acclimate.cli.grouped_help import grouped
from acclimate.cli.terminal import is_terminal
from acclimate.errors import ConfigError
from acclimate.extras import require

if TYPE_CHECKING:
    from acclimate.scale.ray_engine import ShardProgress
    from acclimate.vision.run.export import ExportJob

_shards = grouped("Shards")
_ONLY_SHARDED: Final = ("workers", "shard_by", "commit_every", "ray_address")
_ONLY_WHOLE: Final = (
    "masks", "wrap", "tag", "tta", "ttt_log_out", "ttt_save_state", "ttt_dry_run", "decode_threads", "record",
)  # fmt: skip


def shard_options(command: Any) -> Any:
    """Add the options of exports that are divided into shards."""
    made = [
        _shards(
            "--engine",
            type=click.Choice(["ray"]),
            help="Divide the images into shards, and run them on Ray workers; the output is a folder.  "
            "[default: this process, one file]",
        ),
        _shards("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Ray workers."),
        _shards(
            "--shard-by",
            default="folder",
            show_default=True,
            metavar="folder|COLUMN",
            help="What is one stream: the images of a folder or of a tar file, or those with the same value in a "
            "column of a Parquet file, or in a field of a COCO json's images or of the json of an archive's samples.",
        ),
        _shards(
            "--commit-every",
            type=click.IntRange(min=1),
            default=16,
            show_default=True,
            metavar="BATCHES",
            help="Batches after which rows and state are committed; a lost worker repeats at most these.",
        ),
        _shards("--ray-address", help="A running cluster.  [default: one on this machine, for this export alone]"),
    ]
    for option in reversed(made):
        command = option(command)
    return command


def run_sharded(context: click.Context, job: ExportJob) -> None:
    """Run an export on Ray, if that was asked for; end the program then, with status 1 where a shard failed.

    Raises:
        ConfigError: an option was given that has no effect.
    """
    values = context.params
    is_sharded = values["engine"] is not None
    for name in _ONLY_WHOLE if is_sharded else _ONLY_SHARDED:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            where = "with --engine ray" if is_sharded else "without --engine ray"
            raise ConfigError(f"--{name.replace('_', '-')} has no effect {where}; leave it out")
    if not is_sharded:
        if "://" in _as_given(job.source):
            raise ConfigError(f"{_as_given(job.source)} is not on this machine; add --engine ray, or copy it first")
        return
    require("ray", "--engine ray")
    from acclimate.scale.export import export_shards
    from acclimate.scale.job import ShardedJob

    given_output = context.get_parameter_source("output") is ParameterSource.COMMANDLINE
    shared = {field.name for field in dataclasses.fields(ShardedJob)} & {f.name for f in dataclasses.fields(job)}
    taken = {name: getattr(job, name) for name in shared - {"source", "output"}}
    sharded = ShardedJob(
        **taken,
        source=_as_given(job.source),
        output=_as_given(job.output) if given_output else "predictions",
        shard_by=values["shard_by"],
        batches_per_commit=values["commit_every"],
    )
    with _shown() as show:
        result = export_shards(sharded, workers=values["workers"], address=values["ray_address"], on_progress=show)
    click.echo(
        f"{result.rows} of {result.images} images predicted in {result.shards} shards, written to {sharded.output}"
        + (f"; {result.skipped} images skipped" if result.skipped else ""),
        err=True,
    )
    for name, error in result.failed.items():
        click.echo(f"shard {name} failed: {error}", err=True)
    if result.failed:
        click.echo("the same command with --resume runs the failed shards again from where they were", err=True)
    raise SystemExit(1 if result.failed else 0)


def _as_given(path: Path) -> str:
    """Return a path as text, with the two slashes of ``s3://`` that a path has lost."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", str(path))


@contextmanager
def _shown() -> Iterator[Callable[[ShardProgress], None]]:
    """Yield a function that shows how far shards are: a bar for each on a terminal, lines at their ends elsewhere."""
    if not is_terminal(sys.stderr):
        yield _line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: ShardProgress) -> None:
            name = progress.shard
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=progress.images or None)
            note = f" (attempt {progress.attempt})" if progress.attempt > 1 else ""
            total = progress.images or None
            bars.update(tasks[name], total=total, completed=progress.predicted, description=f"{name}{note}")
            if progress.finished or progress.error is not None:
                # Data sets have more shards than a terminal has lines.
                bars.remove_task(tasks.pop(name))
                bars.console.print(_ended(progress), highlight=False)

        yield show


def _line(progress: ShardProgress) -> None:
    if progress.finished or progress.error is not None:
        click.echo(_ended(progress), err=True)


def _ended(progress: ShardProgress) -> str:
    attempts = f", {progress.attempt} workers" if progress.attempt > 1 else ""
    if progress.error is not None:
        return f"shard {progress.shard}: failed at image {progress.predicted} of {progress.images}{attempts}"
    return f"shard {progress.shard}: {progress.images} images{attempts}"

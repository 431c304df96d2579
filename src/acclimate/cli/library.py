"""``acclimate library``: shows and deletes adapters that ``acclimate ask --library`` has kept."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from acclimate.cli.terminal import reports_input_errors, stdout
from acclimate.errors import ConfigError, DataError
from acclimate.json_values import to_jsonable

if TYPE_CHECKING:
    from acclimate.language import AdapterLibrary, Retention


@click.group("library", short_help="List or delete the adapters that ask --library has kept.")
def library_group() -> None:
    """List or delete adapters in a folder that acclimate ask --library has written."""


@library_group.command("list", short_help="List the adapters, the most recently used first.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reports_input_errors
def list_command(folder: Path, as_json: bool) -> None:
    """List the adapters in FOLDER, with the shares of held-out examples answered without and with adapting."""
    from rich.table import Table

    listing = _opened(folder).read()
    if as_json:
        entries = [
            {k: v for k, v in dataclasses.asdict(e).items() if k not in ("features", "seen")} for e in listing.entries
        ]
        click.echo(json.dumps(to_jsonable({"entries": entries, "problems": listing.problems}), indent=2))
        return
    table = Table()
    for heading in ("adapter", "model", "examples", "held-out, before", "after", "created", "last used", "uses", "KiB"):
        table.add_column(heading, justify="left" if heading in ("adapter", "model") else "right")
    for entry in listing.entries:
        table.add_row(
            entry.key[:12], entry.model, str(entry.examples), f"{entry.gain.before_exact:.0%}",
            f"{entry.gain.after_exact:.0%}", _day(entry.created), _day(entry.last_used), str(entry.times_used),
            str(round(entry.held_bytes / 1024)),
        )  # fmt: skip
    stdout().print(table)
    for problem in listing.problems:
        click.echo(f"Warning: {problem}", err=True)


@library_group.command("remove", short_help="Delete adapters by name.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, required=True)
@reports_input_errors
def remove_command(folder: Path, names: tuple[str, ...]) -> None:
    """Delete the adapters NAMES, or the beginnings of their names, from FOLDER."""
    library = _opened(folder)
    listing = library.read()
    known = [*(entry.key for entry in listing.entries), *listing.damaged]
    chosen = []
    for name in names:
        fit = [key for key in known if key.startswith(name)] if name else []
        if len(fit) != 1:
            raise DataError(f"{len(fit)} adapters in {folder} begin with {name!r}; see 'acclimate library list'")
        chosen += fit
    for key in dict.fromkeys(chosen):
        library.remove(key)
        click.echo(f"deleted {key[:12]}")


@library_group.command("clean", short_help="Delete adapters that were not used lately, and damaged ones.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--keep-days", type=click.FloatRange(0), help="Delete what was not used for so long.")
@click.option("--max-entries", type=click.IntRange(0), help="Keep so many, those used last.")
@click.option("--max-mib", type=click.FloatRange(0), help="Keep so many MiB of files, those used last.")
@click.option("--damaged", is_flag=True, help="Delete what cannot be read.")
@reports_input_errors
def clean_command(
    folder: Path, keep_days: float | None, max_entries: int | None, max_mib: float | None, damaged: bool
) -> None:
    """Delete adapters from FOLDER that the given limits do not keep."""
    from acclimate.language import Retention

    if keep_days is None and max_entries is None and max_mib is None and not damaged:
        raise ConfigError("say what to delete: --keep-days, --max-entries, --max-mib or --damaged")
    far = 2**62
    library = _opened(
        folder,
        Retention(
            keep_days=keep_days,
            max_entries=far if max_entries is None else max_entries,
            max_bytes=far if max_mib is None else int(max_mib * 2**20),
        ),
    )
    listing, deleted = library.cleaned(library.read())
    if damaged:
        deleted += tuple(key for key in listing.damaged if library.remove(key))
    click.echo(f"{len(deleted)} deleted, {len(listing.entries)} kept")


def _opened(folder: Path, retention: Retention | None = None) -> AdapterLibrary:
    from acclimate.language import AdapterLibrary

    library = AdapterLibrary(folder, retention=retention)
    if not library.exists:
        raise DataError(f"{folder} is no library of adapters; 'acclimate ask --library {folder}' begins one")
    return library


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")

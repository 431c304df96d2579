"""``acclimate-sam scripts DIR``: copies the scripts that the deployment guidelines run by name into a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

FILES = Path(__file__).parent / "script_files"


@click.group()
def main() -> None:
    """Set up a host for the TTT deployment guidelines."""


@main.command("scripts")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--force", is_flag=True, help="Overwrite existing scripts.")
def scripts_command(folder: Path, *, force: bool) -> None:
    """Copy the scripts of the deployment guidelines into FOLDER (default: the current one)."""
    folder.mkdir(parents=True, exist_ok=True)
    for script in sorted(FILES.glob("*.py")):
        target = folder / script.name
        if target.exists() and not force:
            click.echo(f"{target} exists already; --force overwrites it", err=True)
            continue
        shutil.copyfile(script, target)
        click.echo(str(target))

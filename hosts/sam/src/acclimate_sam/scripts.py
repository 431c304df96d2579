"""``acclimate-sam scripts DIR``: copies the scripts that the deployment guidelines run by name into a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

_PACKAGE = Path(__file__).parent
#: Where the wheel puts the scripts, and where a source checkout has them.
FOLDERS = (_PACKAGE / "script_files", _PACKAGE.parents[1] / "scripts")


@click.group()
def main() -> None:
    """Set up a host for the TTT deployment guidelines."""


@main.command("scripts")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--force", is_flag=True, help="Overwrite existing scripts.")
def scripts_command(folder: Path, *, force: bool) -> None:
    """Copy the scripts of the deployment guidelines into FOLDER (default: the current one)."""
    scripts = next((found for place in FOLDERS if (found := sorted(place.glob("*.py")))), None)
    if scripts is None:
        raise click.ClickException(
            f"there are no scripts in {' or '.join(map(str, FOLDERS))}; install the bridge again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for script in scripts:
        target = folder / script.name
        if target.exists() and not force:
            click.echo(f"{target} exists already; --force overwrites it", err=True)
            continue
        shutil.copyfile(script, target)
        click.echo(str(target))

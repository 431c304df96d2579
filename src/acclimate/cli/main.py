"""The command ``acclimate``."""

from __future__ import annotations

import click

from acclimate import __version__
from acclimate.cli.compare import compare_command
from acclimate.cli.corrupt import corrupt_command
from acclimate.cli.demo import demo_group
from acclimate.cli.evaluate import evaluate_command
from acclimate.cli.export import export_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="acclimate")
def main() -> None:
    """Make a trained model better on the data in front of it, at test time, and prove that it did."""


for command in (export_command, evaluate_command, compare_command, corrupt_command, demo_group):
    main.add_command(command)

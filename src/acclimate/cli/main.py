"""The command ``acclimate``."""

from __future__ import annotations

import importlib
from typing import Final

import click

from acclimate import __version__

# Module, attribute and short help by command. Loading a command loads torch, which takes seconds: --help does not.
_COMMANDS: Final = {
    "export": ("acclimate.cli.export", "export_command", "Predict images, adapted or not, and write the predictions."),
    "evaluate": ("acclimate.cli.evaluate", "evaluate_command", "Score predictions against annotations or labels."),
    "compare": ("acclimate.cli.compare", "compare_command", "Run several methods over the same images."),
    "corrupt": ("acclimate.cli.corrupt", "corrupt_command", "Write corrupted copies of images."),
    "ask": ("acclimate.cli.ask", "ask_command", "Answer a prompt, adapted to the examples in it where that helps."),
    "prime": ("acclimate.cli.prime", "prime_command", "Train an adapter on examples once, for reuse."),
    "calibrate": ("acclimate.cli.calibrate", "calibrate_command", "Fit the gate's confidence to a language model."),
    "demo": ("acclimate.cli.demo", "demo_group", "See it work on data that ships with the package."),
}


class _LazyGroup(click.Group):
    """Loads a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, _, help_text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="acclimate")
def main() -> None:
    """Make a trained model better on the data in front of it, at test time, and prove that it did."""

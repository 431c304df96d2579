"""The command ``acclimate``, which loads its subcommands when they are called."""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

import click

from acclimate import __version__
from acclimate.errors import MissingExtraError
from acclimate.extras import missing_extra, naming_missing_extra

# Module, attribute and short help by command. Most commands import torch, which takes seconds, so acclimate --help
# imports none of them.
_COMMANDS: Final = {
    "export": (
        "acclimate.cli.export",
        "export_command",
        "Predict images, with or without adaptation, and write the predictions.",
    ),
    "evaluate": ("acclimate.cli.evaluate", "evaluate_command", "Score predictions against annotations or labels."),
    "compare": ("acclimate.cli.compare", "compare_command", "Run several methods on the same images and compare them."),
    "corrupt": ("acclimate.cli.corrupt", "corrupt_command", "Write corrupted copies of images."),
    "pose-scenes": (
        "acclimate.cli.pose_scenes",
        "pose_scenes_command",
        "Write synthetic scenes with boxes and poses, as COCO.",
    ),
    "list": (
        "acclimate.cli.list_command",
        "list_group",
        "List methods, adapters, guards and presets.",
    ),
    "state": ("acclimate.cli.state", "state_group", "Show or compare the states that runs have saved."),
    "ask": ("acclimate.cli.ask", "ask_command", "Answer a prompt, adapted to the examples in it where that helps."),
    "prime": ("acclimate.cli.prime", "prime_command", "Train an adapter on examples once, for reuse."),
    "library": (
        "acclimate.cli.library",
        "library_group",
        "List or delete the adapters that ask --library has kept.",
    ),
    "serve": ("acclimate.cli.serve", "serve_command", "Serve models over HTTP, as OpenAI's API."),
    "ui": ("acclimate.cli.ui", "ui_command", "Open the web page: try both pipelines, watch, operate."),
    "keys": ("acclimate.cli.serve", "keys_group", "Create, list and revoke API keys of the server."),
    "config": ("acclimate.cli.serve", "config_group", "Show the server's settings."),
    "calibrate": (
        "acclimate.cli.calibrate",
        "calibrate_command",
        "Calibrate the gate's confidence for a language model.",
    ),
    "health": (
        "acclimate.cli.health",
        "health_command",
        "Check every health indicator.",
    ),
    "analyze": (
        "acclimate.cli.metrics",
        "analyze_command",
        "Show statistics of recorded attempts, and advice on settings.",
    ),
    "report": ("acclimate.cli.metrics", "report_command", "A daily or weekly report, as text or as one HTML file."),
    "experiment": ("acclimate.cli.experiment", "experiment_group", "Compare two ways of answering on real requests."),
    "feedback": ("acclimate.cli.metrics", "feedback_command", "Record a user's feedback on an answer."),
    "metrics": ("acclimate.cli.metrics", "metrics_group", "Export recorded attempts, or label them."),
    "audit": ("acclimate.cli.metrics", "audit_command", "Show the audit log, or check that nothing in it was changed."),
    "maintain": ("acclimate.cli.metrics", "maintain_command", "Delete old records, and free their disk space."),
    "demo": ("acclimate.cli.demo", "demo_group", "Run a demonstration on data of this package, without downloads."),
}


def _wait_briefly() -> None:
    """Shorten the time for which torch's threads wait actively for each other; call it before torch is imported.

    By default, threads of GNU's OpenMP spin for about a millisecond. While other programs need the processors too, this
    takes computing time from the threads that are waited for: beside two busy programs, adaptation took fourteen times
    as long as alone, and four times with this setting. Alone, no slowdown was measured.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "10000"


class _LazyGroup(click.Group):
    """Imports a command's module when the command is called; a missing optional package is one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MissingExtraError as error:
            missing = error
            if error.purpose.startswith("acclimate."):
                # A name of Python was not found; who typed a command is told about the command.
                purpose = f"acclimate {ctx.invoked_subcommand}"
                missing = MissingExtraError(purpose=purpose, distribution=error.distribution, extra=error.extra)
        except ModuleNotFoundError as error:
            found = missing_extra(error, f"acclimate {ctx.invoked_subcommand}")
            if found is None:
                raise
            missing = found
        click.echo(f"Error: {missing}", err=True)
        raise SystemExit(2) from missing

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        _wait_briefly()
        module, attribute, _ = _COMMANDS[cmd_name]
        with naming_missing_extra(f"acclimate {cmd_name}"):
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, _, help_text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="acclimate")
def main() -> None:
    """Adapt trained models to new data at test time, and measure the effect."""

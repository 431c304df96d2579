"""The help of every command: quick, complete, and without loading what only the work needs."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from acclimate.cli.main import main

HEAVY = ("torch", "transformers", "numpy", "cv2", "PIL", "sqlalchemy", "scipy", "sklearn", "matplotlib")


def every_command(group: click.Group, names: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found: list[tuple[str, ...]] = [names]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        deeper = (*names, name)
        found += every_command(command, deeper) if isinstance(command, click.Group) else [deeper]
    return found


COMMANDS = every_command(main)
# One process shows the help of every command, and what each of them has loaded that the ones before have not.
SHOW = f"""
import contextlib, io, json, sys
from acclimate.cli.main import main
shown, before = [], set()
for names in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):
        main([*names, "--help"], standalone_mode=False)
    heavy = {{name for name in {HEAVY!r} if name in sys.modules}}
    shown.append([page.getvalue(), sorted(heavy - before)])
    before |= heavy
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def shown() -> dict[tuple[str, ...], tuple[str, list[str]]]:
    """The help of each command, and the heavy modules that it loads."""
    command = [sys.executable, "-c", SHOW, json.dumps(COMMANDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(COMMANDS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("names", COMMANDS, ids=lambda names: " ".join(names) or "acclimate")
def test_help_loads_nothing_heavy(shown: dict[tuple[str, ...], tuple[str, list[str]]], names: tuple[str, ...]) -> None:
    page, heavy = shown[names]
    assert "Usage: " in page
    assert heavy == []


def test_the_help_of_export_says_which_method_ttt_alone_runs() -> None:
    from click.testing import CliRunner

    from acclimate.registry import KINDS, METHODS

    page = " ".join(CliRunner().invoke(main, ["export", "--help"]).stdout.split())
    for kind in KINDS:
        ranked = sorted(
            (info.safe_rank[kind], name) for name, info in METHODS.infos().items() if kind in info.safe_rank
        )
        assert f"{kind}: {', else '.join(name for _, name in ranked)}" in page

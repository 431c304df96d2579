"""The help of every command: quick, complete, and without loading what only the work needs."""

from __future__ import annotations

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


@pytest.mark.parametrize("names", every_command(main), ids=lambda names: " ".join(names) or "acclimate")
def test_help_loads_nothing_heavy(names: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom acclimate.cli.main import main\n"
        "try:\n    main([*sys.argv[1:], '--help'], standalone_mode=False)\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_help_of_export_says_which_method_ttt_alone_runs() -> None:
    from click.testing import CliRunner

    from acclimate.registry import KINDS, METHODS

    page = " ".join(CliRunner().invoke(main, ["export", "--help"]).stdout.split())
    for kind in KINDS:
        ranked = sorted(
            (info.safe_rank[kind], name) for name, info in METHODS.infos().items() if kind in info.safe_rank
        )
        assert f"{kind}: {', else '.join(name for _, name in ranked)}" in page

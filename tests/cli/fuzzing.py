"""Shared by the tests with random arguments: files for each invocation, and what must hold after it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from click.testing import CliRunner

from acclimate.cli.main import main


def invoke(template: Path, scratch: Path, arguments: list[str], *, typed: str | None = None) -> None:
    """Run a command on a copy of ``template``: work or one line of error, no traceback, nothing half-written.

    Args:
        template: folder whose files the command finds in the current one, beside a FIFO called ``pipe``.
        scratch: folder for the copy; the copy of the invocation before is deleted.
        arguments: of the command.
        typed: on standard input.
    """
    here = scratch / "files"
    os.chdir(scratch)
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(template, here, symlinks=True)
    os.mkfifo(here / "pipe")
    os.chdir(here)
    done = CliRunner().invoke(main, arguments, input=typed)
    assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
    # `health` says by its code that an indicator alerts (1) or is unknown (2), `audit` that an entry was changed (1).
    codes = (0, 1, 2) if arguments[0] in ("health", "audit") else (0, 2)
    assert done.exit_code in codes, (arguments, done.output)
    assert "Traceback" not in done.output, arguments
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    if arguments[0] == "health" and done.exit_code == 2 and not errors:
        errors = [*done.stdout.splitlines()[:1], *done.stderr.splitlines()][:1]
    assert len(errors) == (done.exit_code == 2), (arguments, done.stderr)
    left = [path.name for path in here.rglob("*") if path.name.endswith((".part", ".partial.jsonl"))]
    assert not left, (arguments, left)

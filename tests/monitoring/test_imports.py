"""Monitoring starts quickly: it loads nothing that is needed only for training, charts or statistics of experiments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from acclimate.monitoring import Store
from tests.monitoring.databases import fill

HEAVY = ("torch", "transformers", "matplotlib", "scipy.stats", "sklearn", "cv2", "acclimate.core", "acclimate.language")
#: Runs a command in this process, and prints which heavy modules it loaded.
RUN = """
import sys
from click.testing import CliRunner
from acclimate.cli.main import main
done = CliRunner().invoke(main, sys.argv[2:])
assert done.exit_code == 0, done.output
print([name for name in sys.argv[1].split(",") if name in sys.modules])
"""


def loaded(code: str, *arguments: str, heavy: tuple[str, ...] = HEAVY) -> str:
    command = [sys.executable, "-c", code, ",".join(heavy), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_loads_none_of_it() -> None:
    code = "import sys, acclimate.monitoring; print([name for name in sys.argv[1].split(',') if name in sys.modules])"
    assert loaded(code, heavy=(*HEAVY, "scipy", "alembic")) == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "health", "report", "analyze", "experiment", "experiment create", "audit", "maintain", "metrics",
        "metrics export", "feedback",
    ],
)  # fmt: skip
def test_help_loads_none_of_it_and_no_database_driver(command: str) -> None:
    assert loaded(RUN, *command.split(), "--help", heavy=(*HEAVY, "sqlalchemy", "numpy")) == "[]"


def test_a_health_check_and_maintenance_load_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Store(path) as store:
        fill(store, 30)
        fill(store, 100, "plain")
    for command in ("health", "health --json", "audit --verify", "maintain"):
        assert loaded(RUN, *command.split(), "--db", str(path), heavy=(*HEAVY, "alembic")) == "[]", command

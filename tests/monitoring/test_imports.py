"""Monitoring starts quickly: it loads nothing that is needed only for training, charts or statistics of experiments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from acclimate.monitoring import Store
from tests.monitoring.databases import fill

HEAVY = ("torch", "transformers", "matplotlib", "scipy.stats", "sklearn", "cv2", "acclimate.core", "acclimate.language")
#: Runs commands in this process, and prints which heavy modules each of them loaded.
RUN = """
import json, sys
from click.testing import CliRunner
from acclimate.cli.main import main
found = {}
for command in sys.argv[2:]:
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 0, done.output
    found[command] = [name for name in sys.argv[1].split(",") if name in sys.modules]
print(json.dumps(found))
"""
HELPS = [
    f"{command} --help"
    for command in (
        "health", "report", "analyze", "experiment", "experiment create", "audit", "maintain", "metrics",
        "metrics export", "feedback",
    )
]  # fmt: skip


def loaded(code: str, *arguments: str, heavy: tuple[str, ...] = HEAVY) -> str:
    command = [sys.executable, "-c", code, ",".join(heavy), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_loads_none_of_it() -> None:
    code = "import sys, acclimate.monitoring; print([name for name in sys.argv[1].split(',') if name in sys.modules])"
    assert loaded(code, heavy=(*HEAVY, "scipy", "alembic")) == "[]"


def test_help_loads_none_of_it_and_no_database_driver() -> None:
    found = json.loads(loaded(RUN, *HELPS, heavy=(*HEAVY, "sqlalchemy", "numpy")))
    assert found == {command: [] for command in HELPS}


def test_a_health_check_and_maintenance_load_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Store(path) as store:
        fill(store, 30)
        fill(store, 100, "plain")
    commands = [f"{command} --db {path}" for command in ("health", "health --json", "audit --verify", "maintain")]
    assert json.loads(loaded(RUN, *commands, heavy=(*HEAVY, "alembic"))) == {command: [] for command in commands}

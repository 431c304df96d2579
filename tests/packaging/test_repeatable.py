"""Default runs try the same random examples every time; random runs say how to repeat a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DRAWS = """
from hypothesis import given, strategies as st

def test_draws():
    seen = []
    @given(st.integers())
    def drawing(value):
        seen.append(value)
    drawing()
    print("drawn", seen)

@given(st.integers())
def test_fails(value):
    assert value < 1000
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_draws.py").write_text(DRAWS)
    return tmp_path


def outcome(project: Path, *arguments: str) -> tuple[str, str]:
    """Return the values that were drawn, and everything that was printed."""
    # Of the plug-ins that are installed, only the one whose examples these are: the others take seconds to load.
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    done = subprocess.run(
        [*command, "--rootdir", ".", *arguments],
        cwd=project,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return next(line for line in done.stdout.splitlines() if "drawn" in line), done.stdout


def test_the_default_is_the_same_every_time_and_leaves_nothing_behind(project: Path) -> None:
    assert outcome(project)[0] == outcome(project)[0]
    assert not (project / ".hypothesis" / "examples").exists()


def test_random_runs_differ_and_say_how_to_repeat(project: Path) -> None:
    first, second = (outcome(project, "--hypothesis-profile", "random") for _ in range(2))
    assert first[0] != second[0]
    assert "@reproduce_failure(" in first[1]


@pytest.mark.parametrize("code", [0, 3])
def test_busy_loops_run_beside_a_command_and_end_with_it(code: int) -> None:
    look = f"""
import os, psutil, sys
print(*[child.pid for child in psutil.Process(os.getppid()).children() if child.pid != os.getpid()])
sys.exit({code})
"""
    tool = ROOT / "tools" / "beside_busy_loops.py"
    command = [sys.executable, str(tool), "3", sys.executable, "-c", look]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    loops = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == code, done.stderr
    assert len(loops) == 3
    assert not any(psutil.pid_exists(pid) for pid in loops)

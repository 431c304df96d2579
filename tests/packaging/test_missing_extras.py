"""What is said where an optional package is not installed.

The packages are hidden from the import system of a process of its own, so that imports fail as they do where nothing is
installed. ``test_wheel.py`` shows the same in an environment that really lacks them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from acclimate.extras import OPTIONAL_PACKAGES
from tests import preloaded

HIDING = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Finder]
"""
MAIN = "from acclimate.cli.main import main; main(prog_name='acclimate')"
SESSION = """
import torch
from torch import nn
from acclimate.core import Classification, Session
from acclimate.methods import Tent
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
with Session(model, Tent(), task=Classification()) as session:
    outputs, report = session.adapt_and_predict(torch.rand(8, 3, 8, 8))
assert outputs.shape == (8, 5)
print(report.verdict)
"""


def run(code: str, *arguments: str, without: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    # Only torch is there already, which no extra brings.
    return preloaded.run(*arguments, code=HIDING.format(hidden=without) + code, cwd=cwd, packages=("torch",))


def line(purpose: str, distribution: str, extra: str) -> str:
    return f'Error: {purpose} needs {distribution}, which is not installed; run: pip install "acclimate[{extra}]"\n'


def test_core_and_methods_run_without_any_extra(tmp_path: Path) -> None:
    done = run(SESSION, without=tuple(OPTIONAL_PACKAGES), cwd=tmp_path)
    assert done.stdout == "kept\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "missing", "distribution", "extra"),
    [
        (("evaluate", "p.json", "--ground-truth", "t.json"), "pycocotools", "pycocotools", "vision"),
        (("corrupt", "--list"), "cv2", "opencv-python-headless", "vision"),
        (("demo", "vision"), "sklearn", "scikit-learn", "vision"),
        (("ask", "--model", "spark", "a -> b"), "transformers", "transformers", "language"),
        (("health",), "sqlalchemy", "sqlalchemy", "monitoring"),
    ],
)
def test_a_command_names_the_extra_in_one_line(
    arguments: tuple[str, ...], missing: str, distribution: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "p.json").write_text("[]")
    (tmp_path / "t.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    # Without a store, health says that there is none and needs nothing to say it.
    shutil.copy(Path(__file__).parents[1] / "schema_dbs" / "0002.db", os.environ["ACCLIMATE_DB_URL"])
    done = run(MAIN, *arguments, without=(missing,), cwd=tmp_path)
    assert done.stderr == line(f"acclimate {arguments[0]}", distribution, extra)
    assert done.returncode == 2


def test_a_public_name_does_too(tmp_path: Path) -> None:
    code = """
import acclimate, acclimate.errors
try:
    acclimate.run_ttt
except acclimate.errors.MissingExtraError as error:
    print(error)
"""
    done = run(code, without=("PIL",), cwd=tmp_path)
    assert f"Error: {done.stdout}" == line("acclimate.run_ttt", "pillow", "vision"), done.stderr


def test_other_missing_modules_are_not_taken_for_an_extra(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sklearn\n")
    (tmp_path / "lost.py").write_text("import no_such_module\n")
    code = """
from acclimate.extras import naming_missing_extra
for name in ("mine", "lost"):
    try:
        with naming_missing_extra("this"):
            __import__(name)
    except Exception as error:
        print(type(error).__name__, error.name)
"""
    done = run(code, without=("sklearn",), cwd=tmp_path)
    assert done.stdout.split() == ["ModuleNotFoundError", "sklearn", "ModuleNotFoundError", "no_such_module"], (
        done.stderr
    )


def test_a_command_says_what_the_users_module_lacks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import no_such_module\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    arguments = ("export", "images", "--adapter", "torch", "--model", "mine:factory")
    done = run(MAIN, *arguments, without=(), cwd=tmp_path)
    assert done.returncode == 2
    assert "no_such_module" in done.stderr
    assert "pip install" not in done.stderr


def test_without_the_monitoring_extra_nothing_is_recorded_unless_asked(tmp_path: Path) -> None:
    without = tuple(name for name, package in OPTIONAL_PACKAGES.items() if "monitoring" in package.extras)
    ask = ("ask", "--model", "spark", "--policy", "never", "--max-answer-tokens", "2", "a -> A\nb -> B\nc ->")
    done = run(MAIN, *ask, without=without, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recorded" not in done.stderr
    assert "request" not in done.stderr
    refused = run(MAIN, *ask, "--record", without=without, cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, line("--record", "alembic", "monitoring"))

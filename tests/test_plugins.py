"""A package of somebody else adds a method, a guard and an adapter without touching ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import preloaded
from tests.networks import write_images

PLUGIN = Path(__file__).parent / "plugin"
FACTORIES = "tests.vision.factories"
ROOT = Path(__file__).parent.parent
# Without the commands, which read the names of plug-ins when they are loaded.
PACKAGES = (
    "torch", "torch._dynamo", "PIL.Image", "alembic.command", "acclimate.monitoring", "acclimate.vision.run.export",
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the plug-in was installed as pip installs any distribution."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "--target", str(target), str(PLUGIN)], check=True, capture_output=True)
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 6, side=16)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "model.npz", weight=rng.normal(size=(5, 48)))
    return tmp_path


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(installed), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "COLUMNS": "200"}
    return preloaded.run(*arguments, cwd=folder, env=environment, packages=PACKAGES)


def test_its_method_runs_by_name(installed: Path, folder: Path) -> None:
    done = run(
        installed, folder, "export", "images", "--adapter", "torch", "--model", f"{FACTORIES}:classifier",
        "--ttt", "--ttt-method", "recentre", "--ttt-reset", "online", "--no-ttt-guards", "--wrap", "-o", "p.json",
        "--ttt-save-state", "a.state",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ttt = json.loads((folder / "p.json").read_text())["meta"]["ttt"]
    assert (ttt["method"], ttt["preset"], ttt["method_options"]) == ("recentre", "recentre_slow", {"momentum": 0.5})
    assert ttt["report"]["session"]["counts"] == {"kept": 1}
    shown = run(installed, folder, "state", "show", "a.state", "--json")
    assert json.loads(shown.stdout)["report"]["method"] == "recentre", shown.stderr
    again = run(
        installed, folder, "export", "images", "--adapter", "torch", "--model", f"{FACTORIES}:classifier",
        "--ttt", "--ttt-method", "recentre", "--ttt-reset", "online", "--no-ttt-guards", "-o", "q.json",
        "--ttt-load-state", "a.state",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    detector = run(
        installed, folder, "export", "images", "--adapter", "torch", "--model", f"{FACTORIES}:detector",
        "--ttt", "--ttt-method", "recentre", "-o", "d.json",
    )  # fmt: skip
    assert detector.returncode == 2
    assert "recentre is for classifiers, and this model is a detector" in detector.stderr


def test_its_guard_and_its_adapter_run_by_name(installed: Path, folder: Path) -> None:
    done = run(
        installed, folder, "export", "images", "--adapter", "thumbnail", "--model", "model.npz", "--wrap",
        "--ttt", "--ttt-method", "recentre", "--ttt-reset", "online", "--ttt-guard", "max_entropy=0.01", "-o", "p.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads((folder / "p.json").read_text())
    assert len(content["predictions"]) == 6
    assert content["meta"]["adapter"] == "thumbnail"
    assert "thumbnails are coarse" in content["meta"]["warnings"]
    (step,) = content["meta"]["ttt"]["report"]["step_metrics"]
    assert (step["verdict"], step["code"]) == ("rolled_back", "entropy_too_high")


def test_a_broken_plug_in_is_named_and_stops_nothing_else(installed: Path, folder: Path) -> None:
    done = run(installed, folder, "list", "methods")
    assert done.returncode == 0
    assert "acclimate-example-plugin 1.2.3" in done.stdout
    assert "the method 'broken' of acclimate-example-plugin 1.2.3 cannot be loaded" in done.stdout
    # One of ours has that name.
    assert "the method 'tent' of acclimate-example-plugin 1.2.3 is ignored" in done.stderr
    compared = run(
        installed, folder, "compare", "images", "--adapter", "thumbnail", "--model", "model.npz", "-o", "out",
        "--methods", "none,recentre",
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    used = run(installed, folder, "export", "images", "--adapter", "dummy", "--ttt", "--ttt-method", "broken")
    assert used.returncode == 2
    assert "it needs a library that is not there; repair or uninstall that distribution" in used.stderr
    assert "Traceback" not in used.stderr


def test_help_names_plug_ins_without_importing_them(installed: Path, folder: Path) -> None:
    code = (
        "import sys; from acclimate.cli.main import main; main(['export', '--help'], standalone_mode=False);"
        "print(sorted(m for m in sys.modules if m.startswith(('torch', 'acclimate_example_plugin'))))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "recentre" in done.stdout
    assert "thumbnail" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"

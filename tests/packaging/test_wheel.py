"""The wheel: what is in it, and what works where nothing but it and its base dependencies is installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.test_missing_extras import SESSION, line

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the base wheel only."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from check_wheel import make_environment
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return make_environment(tmp_path_factory.mktemp("environment"), wheel)


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder outside the repository, from which the repository cannot be imported."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_it_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "acclimate").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    metadata = {name for name in packed if name.partition("/")[0].endswith(".dist-info")}
    assert packed - metadata == files
    assert {Path(name).name for name in metadata} == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "LICENSE"}
    # What is easily lost: weights, tokenizer, calibrations, migrations, the marker of typed packages.
    kinds = {Path(name).suffix or Path(name).name for name in packed - metadata}
    assert kinds == {".py", ".md", ".json", ".safetensors", ".npz", ".typed"}


def test_core_and_methods_work_with_the_base_dependencies(programs: Path, outside: Path) -> None:
    done = run(programs / "python", "-c", SESSION)
    assert done.stdout == "kept\n", done.stderr
    imported = run(programs / "python", "-c", "import acclimate; print(acclimate.__file__, acclimate.Session)")
    assert imported.stdout.startswith(str(programs.parent.resolve())), imported.stdout + imported.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("export", "images", "--adapter", "dummy"), "vision"),
        (("ask", "--model", "spark", "a -> A\nb -> B\nc ->"), "language"),
        (("health",), "monitoring"),
    ],
)
def test_a_command_names_its_extra_in_one_line(
    arguments: tuple[str, ...], extra: str, programs: Path, outside: Path
) -> None:
    done = run(programs / "acclimate", *arguments)
    assert done.returncode == 2
    distribution = done.stderr.split(" needs ")[-1].partition(",")[0]
    assert done.stderr == line(f"acclimate {arguments[0]}", distribution, extra)


def test_help_works_with_the_base_dependencies(programs: Path, outside: Path) -> None:
    for arguments in (("--help",), ("--version",), ("ask", "--help"), ("health", "--help")):
        done = run(programs / "acclimate", *arguments)
        assert done.returncode == 0, done.stderr

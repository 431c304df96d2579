"""Vision commands on files, folders and streams that are not what they should be: one line, nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from acclimate.cli.main import main
from tests import preloaded
from tests.full_disk import largest_file
from tests.networks import write_images
from tests.test_output_files import Reader

ROOT = Path(__file__).parents[2]
MODEL = ("--adapter", "torch", "--model", "tests.vision.factories:classifier", "--no-record")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "images", 5, side=24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def assert_refused(done: Result, message: str) -> None:
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert message in errors[0]


FULL = {
    "partial file": (("export", "images", *MODEL, "-o", "out/p.json"), 100),
    "predictions": (("export", "images", *MODEL, "-o", "out/p.json", "--batch-size", "1", "--wrap"), 3000),
    "log": (("export", "images", *MODEL, "-o", "out/p.json", "--ttt", "--ttt-log-out", "out/log.json"), 2200),
    "state": (("export", "images", *MODEL, "-o", "out/p.json", "--ttt", "--ttt-save-state", "out/state"), 3000),
    "picture": (("compare", "images", *MODEL, "--methods", "bn", "-o", "out"), 5000),
    "copies": (("corrupt", "images", "out", "--name", "fog"), 100),
    "scenes": (("pose-scenes", "--out", "out", "--images", "1", "--side", "32"), 100),
    "demo": (("demo", "vision", "-o", "out"), 100),
}


@pytest.mark.parametrize("case", list(FULL))
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(folder: Path, case: str) -> None:
    arguments, size = FULL[case]
    with largest_file(size):
        done = run(*arguments)
    assert_refused(done, "File too large")
    assert [path for path in folder.glob("out/**/*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "vision", "-o", "a_file"), "it is a file; name a folder"),
        (("demo", "detect", "-o", "a_file"), "it is a file; name a folder"),
        (("compare", "images", *MODEL, "-o", "a_file"), "it is a file; name a folder"),
        (("corrupt", "images", "a_file", "--name", "fog"), "it is a file; name a folder"),
        (("pose-scenes", "--out", "a_file", "--images", "1"), "it is a file; name a folder"),
        (("compare", "images", *MODEL, "-o", "/"), "root of the file system"),
        (("corrupt", "images", "/", "--name", "fog"), "root of the file system"),
        (("export", "/", *MODEL), "root of the file system"),
        (("export", "/", *MODEL, "--resume"), "root of the file system"),
        (("compare", "/", *MODEL), "root of the file system"),
        (("corrupt", "/", "out", "--name", "fog"), "root of the file system"),
        (("export", "images", *MODEL, "-o", "/"), "it is a folder"),
        (("evaluate", "/", "--ground-truth", "labels.csv"), "cannot be read as JSON"),
        (("evaluate", "deep.json", "--ground-truth", "labels.csv"), "nested too deeply"),
        (("evaluate", "good.json", "--ground-truth", "deep.json"), "nested too deeply"),
        (("export", "deep.json", *MODEL), "nested too deeply"),
        (("compare", "images", *MODEL, "--ground-truth", "deep.json"), "nested too deeply"),
        (("evaluate", "number.json", "--ground-truth", "labels.csv"), "no predictions file"),
        (("evaluate", "good.json", "--ground-truth", "number.json"), "one object"),
        (("export", "number.json", *MODEL), "no COCO file"),
        (("state", "show", "number.json"), "cannot be read"),
        (("state", "show", "pipe"), "does not exist"),
        (("export", "pipe", *MODEL), "FIFO"),
        (("evaluate", "pipe", "--ground-truth", "labels.csv"), "FIFO"),
        (("evaluate", "good.json", "--ground-truth", "pipe"), "FIFO"),
        (("export", "images", *MODEL, "-o", "pipe", "--resume"), "--resume"),
        (("export", "images", *MODEL, "--ttt", "--ttt-lr", "1e300"), "lr must not be negative, and at most"),
    ],
)
def test_what_is_no_such_file_is_refused_before_any_work(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    (folder / "a_file").write_text("")
    (folder / "labels.csv").write_text("image,class\na.png,1\n")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "number.json").write_text("3")
    (folder / "good.json").write_text(json.dumps([{"image": "a.png", "classification": {"class_id": 1}}]))
    os.mkfifo(folder / "pipe")
    before = sorted(folder.rglob("*"))
    assert_refused(run(*arguments), message)
    assert sorted(folder.rglob("*")) == before


def test_a_comparison_and_a_state_are_written_to_what_is_there(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "comparison.json").symlink_to("../table.json")
    picture = Reader(folder / "out" / "comparison.png", kind="fifo")
    done = run("compare", "images", *MODEL, "--methods", "bn", "-o", "out")
    assert done.exit_code == 0, done.output
    assert picture.received().startswith(b"\x89PNG")
    assert (folder / "out" / "comparison.json").is_symlink()
    assert json.loads((folder / "table.json").read_text())["metric"] == "agreement"
    state, log = Reader(folder / "state", kind="fifo"), Reader(folder / "log", kind="fifo")
    done = run("export", "images", *MODEL, "--ttt", "--ttt-save-state", "state", "--ttt-log-out", "log")
    assert done.exit_code == 0, done.output
    assert json.loads(log.received())["ttt"]["enabled"] is True
    Path("copy").write_bytes(state.received())
    assert run("state", "show", "copy").exit_code == 0
    assert all((folder / name).is_fifo() for name in ("state", "log", "out/comparison.png"))


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams_change_nothing(folder: Path, closed: int) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    for arguments in (
        ("export", "images", *MODEL, "-o", "p.json"),
        ("compare", "images", *MODEL, "--methods", "bn", "-o", "out"),
    ):
        done = preloaded.run(*arguments, env=environment, **{("stdin", "stdout", "stderr")[closed]: None})
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert len(json.loads((folder / "p.json").read_text())) == 5
    assert (folder / "out" / "comparison.json").exists()


def test_names_that_are_no_valid_text_are_printed_all_the_same(folder: Path) -> None:
    name = os.fsdecode(b"out\xff")
    done = run("corrupt", "images", name, "--name", "fog")
    assert done.exit_code == 0, done.output
    assert "5 images written to out\\udcff" in done.stdout
    assert len(list(Path(name).iterdir())) == 5

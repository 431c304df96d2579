"""The detector with poses as a user meets it: scenes, predictions, scores, the demo; on the weights that ship."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from acclimate.cli.main import main
from acclimate.vision.demos.pose_scenes.dataset import write_dataset


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scenes"), images=48, split="test", seed=9)


def score(predictions: str, scenes: Path) -> dict[str, float]:
    done = run("evaluate", predictions, "--ground-truth", str(scenes), "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plain(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of the model that ships, without TTT."""
    path = tmp_path_factory.mktemp("plain") / "plain.json"
    done = run("export", str(scenes), "--adapter", "rtdetr_pose", "--no-record", "-o", str(path))
    assert done.exit_code == 0, done.output
    return path


def test_plates_writes_what_it_says(here: Path) -> None:
    done = run("pose-scenes", "--out", "set", "--images", "3", "--seed", "4", "--split", "train")
    assert done.exit_code == 0, done.output
    assert "3 scenes written to set/annotations.json" in done.stdout
    content = json.loads(Path("set/annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"train_4_{k:05d}.png" for k in range(3)]
    again = run("pose-scenes", "--out", "set", "--images", "3")
    assert again.exit_code == 2
    assert "already there; nothing is overwritten" in again.output
    missing = run("pose-scenes", "--out", "other", "--images", "3", "--photos", "nothing")
    assert missing.exit_code == 2
    assert "nothing does not exist" in missing.output
    assert not Path("other").exists()


def test_the_model_that_ships_finds_plates_and_their_poses(plain: Path, scenes: Path) -> None:
    found = score(str(plain), scenes)
    assert found["mAP"] > 0.75
    assert found["pose"]["rotation_degrees"] < 15  # type: ignore[index]
    assert found["pose"]["depth_relative"] < 0.1  # type: ignore[index]
    as_text = run("evaluate", str(plain), "--ground-truth", str(scenes)).stdout
    assert "rotation" in as_text
    assert "degrees" in as_text


def test_ttt_alone_takes_what_helps_and_it_does(here: Path, scenes: Path) -> None:
    corrupted = ("--adapter", "rtdetr_pose", "--corrupt", "contrast:4")
    assert run("export", str(scenes), *corrupted, "-o", "plain.json").exit_code == 0
    done = run("export", str(scenes), *corrupted, "--ttt", "--ttt-reset", "online", "--wrap", "-o", "adapted.json")
    assert done.exit_code == 0, done.output
    assert "preset 'safe' filled in what was not given: method spectrum" in done.stderr
    meta = json.loads(Path("adapted.json").read_text())["meta"]
    assert meta["ttt"]["method"] == "spectrum"
    assert meta["ttt"]["preset"] == "safe"
    assert score("adapted.json", scenes)["mAP"] > score("plain.json", scenes)["mAP"] + 0.2


def test_a_dry_run_says_that_nothing_would_move(here: Path, scenes: Path) -> None:
    done = run("export", str(scenes), "--adapter", "rtdetr_pose", "--ttt", "--ttt-dry-run", "-o", "p.json")
    assert done.exit_code == 0, done.output
    assert "spectrum: 0 tensors with 0 elements are trainable" in done.stdout
    assert not Path("p.json").exists()


def test_a_clean_stream_is_left_alone_nearly(here: Path, scenes: Path, plain: Path) -> None:
    assert run("export", str(scenes), "--adapter", "rtdetr_pose", "--ttt", "-o", "adapted.json").exit_code == 0
    assert score("adapted.json", scenes)["mAP"] > score(str(plain), scenes)["mAP"] - 0.01


@pytest.mark.parametrize("method", ["bn", "tent", "eata", "sar", "mim", "align", "cotta"])
def test_every_method_runs_on_it(here: Path, scenes: Path, method: str) -> None:
    options = ("--ttt-option", "view_count=2") if method == "cotta" else ()
    done = run(
        "export", str(scenes), "--adapter", "rtdetr_pose", "--max-images", "8", "--corrupt", "fog:3", "--ttt",
        "--ttt-batch-size", "4",
        "--ttt-method", method, "--ttt-reset", "online", *options, "--wrap", "-o", "p.json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(Path("p.json").read_text())["meta"]["ttt"]["report"]
    assert set(report["session"]["counts"]) <= {"kept", "skipped"}
    if method == "mim":
        assert "mim: the target is pixels" in report["warnings"]


def test_coco_results_of_it_can_be_written_and_scored(here: Path, scenes: Path) -> None:
    done = run("export", str(scenes), "--adapter", "rtdetr_pose", "--format", "coco", "-o", "coco.json")
    assert done.exit_code == 0, done.output
    assert score("coco.json", scenes)["mAP"] > 0.75


def test_spectrum_on_a_model_without_a_known_source_says_what_to_do(here: Path) -> None:
    from tests.networks import write_images

    write_images(here / "images", 4, side=24)
    model = ("--adapter", "torch", "--model", "tests.vision.factories:classifier")
    refused = run("export", "images", *model, "--ttt", "--ttt-method", "spectrum", "-o", "p.json")
    assert refused.exit_code == 2
    assert "give unlabelled source images with --ttt-source" in refused.output
    given = run(
        "export", "images", *model, "--ttt", "--ttt-method", "spectrum", "--ttt-source", "images", "-o", "p.json"
    )
    assert given.exit_code == 0, given.output


def test_a_checkpoint_is_for_the_torch_adapter_alone(here: Path, scenes: Path) -> None:
    refused = run("export", str(scenes), "--adapter", "rtdetr_pose", "--checkpoint", "w.safetensors", "-o", "p.json")
    assert refused.exit_code == 2
    assert "--checkpoint is for the adapter torch" in refused.output


def test_the_demo_shows_truth_before_and_after(here: Path) -> None:
    done = run("demo", "detect", "--images", "12", "--output", "demo")
    assert done.exit_code == 0, done.output
    lines = [line.split("│") for line in done.stdout.splitlines() if "│" in line]
    scores = {(cells[1].strip(), cells[2].strip()): float(cells[3].split()[0]) for cells in lines}
    assert scores["contrast:4", "spectrum"] > scores["contrast:4", "none"] + 20
    picture = np.asarray(Image.open("demo/poses.png").convert("RGB"))
    assert picture.shape[0] > 600
    assert picture.std() > 30
    # Again, on the same scenes; but never over somebody else's.
    assert run("demo", "detect", "--images", "12", "--output", "demo").exit_code == 0
    write_dataset(here / "mine", images=2, split="val")
    other = run("demo", "detect", "--images", "12", "--output", "mine")
    assert other.exit_code == 2
    assert "is another data set" in other.output

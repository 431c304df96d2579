"""``acclimate ask`` with images and sounds."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from acclimate.cli.main import main
from tests.media import making


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    making.image_task(tmp_path)
    return tmp_path


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["ask", "--examples", "examples.jsonl", *arguments])


CHEAP = ("--encoder", "gradients", "--no-record")


def test_an_image_is_answered_with_its_evidence(folder: Path) -> None:
    done = ask("--query", "open.png", *CHEAP)
    assert done.exit_code == 0, done.output
    assert done.stdout == "upright\n"
    assert "encoder gradients, head " in done.stderr
    assert "of 9 held-out examples" in done.stderr.lower()


def test_everything_as_json(folder: Path) -> None:
    done = ask("--query", "open.png", *CHEAP, "--json", "--head", "lda", "--views", "none")
    said = json.loads(done.stdout)
    assert (said["answer"], said["encoder"], said["head"], said["views"]) == ("upright", "gradients", "lda", "none")
    assert said["request_id"] is None
    assert said["nearest"][0]["name"].startswith("upright")


def test_the_default_encoders_are_compared(folder: Path) -> None:
    said = json.loads(ask("--query", "open.png", "--no-record", "--json").stdout)
    assert {one["encoder"] for one in said["tried"]} == {"efficientnet_lite0", "gradients"}
    assert said["answer"] == "upright"


def test_sounds_are_answered(folder: Path) -> None:
    lines = []
    for name, hertz in (("low", 300.0), ("high", 2500.0)):
        for seed in range(3):
            making.sound_file(folder / f"{name}{seed}.wav", making.tone(hertz, seed))
            lines.append({"input": {"audio": f"{name}{seed}.wav"}, "output": name})
    making.write_lines(folder / "examples.jsonl", lines)
    # Stereo, 24 bits and another rate.
    making.sound_file(folder / "open.wav", np.stack([making.tone(2500, 9, rate=44_100)] * 2, 1), 44_100, "PCM_24")
    done = ask("--query", "open.wav", "--encoder", "log_mel", "--no-record")
    assert done.stdout == "high\n", done.output


def test_a_query_that_is_none_of_these(folder: Path) -> None:
    making.image_task(folder, per_class=8)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)).save("noise.png")
    done = ask("--query", "noise.png", *CHEAP, "--refuse-below", "0.05")
    assert done.stdout == "none of these\n"


def test_the_request_is_recorded(folder: Path) -> None:
    done = ask("--query", "open.png", "--encoder", "gradients", "--db", "metrics.db")
    request = done.stderr.split()[-1]
    with sqlite3.connect("metrics.db") as store:
        rows = store.execute("SELECT request_id, pipeline, status, model, confidence FROM requests").fetchall()
    assert [row[:4] for row in rows] == [(request, "media", "plain", "gradients")]
    assert rows[0][4] > 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--examples needs --query: the file to answer"),
        (("--query", "missing.png"), "missing.png: no such file"),
        (("--query", "examples.jsonl"), "examples.jsonl: cannot be decoded"),
        (("--query", "open.png", "--votes", "3"), "--votes is for text"),
        (("--query", "open.png", "--model", "spark"), "--model is for text"),
        (("--query", "open.png", "a prompt"), "PROMPT is for text"),
        (("--query", "open.png", "--encoder", "speech"), "'speech' is for audio inputs"),
        (("--query", "open.png", "--encoder", "gradients", "--views", "upside_down"), "unknown views 'upside_down'"),
        (("--query", "open.png", "--encoder", "gradients", "--adapt", "norm"), "is no torch network for images"),
        (("--query", "open.png", "--encoder", "no/such/folder"), "cannot load an encoder of image inputs"),
        (("--query", "open.png", "--device", "nowhere"), "device 'nowhere' cannot be used"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    done = ask(*arguments, "--no-record")
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("option", [("--encoder", "gradients"), ("--head", "lda"), ("--refuse-below", "0.1")])
def test_options_for_images_are_refused_for_text(folder: Path, option: tuple[str, str]) -> None:
    making.write_lines(folder / "examples.jsonl", [{"input": "a", "output": "A"}])
    done = ask("--query", "b", "--model", "spark", *option)
    assert done.exit_code == 2
    assert done.stderr == f"Error: {option[0]} is for examples that are images or sounds; leave it out\n"

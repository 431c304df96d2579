"""``auto``, saved states, pacing and the probe, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from acclimate.vision.run.step_warnings import step_warnings
from click.testing import CliRunner, Result

from acclimate.cli.main import main
from acclimate.core import SessionReport, StepReport
from tests.networks import write_images

MODEL = ("--adapter", "torch", "--model", "tests.vision.factories:classifier")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "images", 12, side=24)
    write_images(tmp_path / "others", 4, side=24, seed=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def exported(*arguments: str, wrap: bool = True) -> Result:
    more = ("--wrap",) if wrap else ()
    return run("export", "images", *MODEL, "-o", "p.json", *more, *arguments)


def test_auto_says_what_it_chose_and_why(folder: Path) -> None:
    done = exported("--ttt", "--ttt-method", "auto", "--ttt-batch-size", "4", "--ttt-reset", "online")
    assert done.exit_code == 0, done.output
    assert "auto: the model is a classifier with" in done.stderr
    choice = json.loads(Path("p.json").read_text())["meta"]["ttt"]["choice"]
    assert choice["method"] in ("blend", "none")
    dry = run("export", "images", *MODEL, "--ttt", "--ttt-method", "auto", "--ttt-dry-run")
    assert dry.exit_code == 0, dry.output
    assert "would move" in dry.stdout


def test_auto_takes_source_images_and_no_preset(folder: Path) -> None:
    done = exported("--ttt", "--ttt-method", "auto", "--ttt-source", "others")
    assert done.exit_code == 0, done.output
    assert "auto: source images are known" in done.stderr
    refused = exported("--ttt", "--ttt-method", "auto", "--ttt-preset", "safe")
    assert refused.exit_code == 2
    assert "of one method" in refused.stderr


def test_compare_recommends(folder: Path) -> None:
    done = run("compare", "images", *MODEL, "--methods", "none,bn", "--recommend", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "recommended: " in done.stdout
    assert "the model is a classifier" in done.stdout


def test_memo_is_compared_only_by_name(folder: Path) -> None:
    done = run("compare", "--help")
    assert "rotta" in done.stdout.split("--methods")[1].split("--recommend")[0]
    assert "memo" not in done.stdout.split("--methods")[1].split("--recommend")[0]


def test_a_state_survives_a_restart_and_two_can_be_compared(folder: Path) -> None:
    common = ("--ttt", "--ttt-reset", "online", "--ttt-batch-size", "4", "--no-ttt-guards")
    assert exported(*common, "--ttt-save-state", "a.state").exit_code == 0
    again = exported(*common, "--ttt-load-state", "a.state", "--ttt-save-state", "b.state")
    assert again.exit_code == 0, again.output
    assert "continues from the state in a.state, after 3 steps" in again.stderr
    steps = json.loads(Path("p.json").read_text())["meta"]["ttt"]["report"]["step_metrics"]
    assert [step["index"] for step in steps] == [3, 4, 5]
    shown = run("state", "show", "b.state")
    assert shown.exit_code == 0
    assert "method:  tent" in shown.stdout
    assert "steps:   3 after 3 (3 kept)" in shown.stdout
    assert json.loads(run("state", "show", "b.state", "--json").stdout)["report"]["method"] == "tent"
    moved = run("state", "diff", "a.state", "b.state")
    assert moved.exit_code == 0
    assert "tensors differ" in moved.stdout
    assert "a.state: tent, steps 3; b.state: tent, steps 3 after 3" in " ".join(moved.stdout.split())
    as_json = json.loads(run("state", "diff", "a.state", "b.state", "--json").stdout)
    assert as_json[0]["relative"] >= as_json[-1]["relative"]
    assert "no weight differs" in run("state", "diff", "a.state", "a.state").stdout
    top = run("state", "diff", "a.state", "b.state", "--top", "1").stdout
    assert "more (--top)" in top


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ttt-load-state", "none.state"), "does not exist"),
        (("--ttt-reset", "sample", "--ttt-save-state", "a.state"), "no state to load or save"),
        (("--ttt-method", "eata", "--ttt-load-state", "tent.state"), "a state of tent"),
        (("--ttt-reset", "sample", "--ttt-paced"), "compares each batch with the stream"),
        (("--ttt-method", "bn", "--ttt-paced"), "has no gradient"),
        (("--no-ttt-guards", "--ttt-probe"), "no effect without guards"),
        (("--no-ttt-guards", "--ttt-probe-images", "others"), "no effect without guards"),
        (("--ttt-method", "memo", "--ttt-steps", "2"), "memo takes each image alone"),
        (("--ttt-probe-images", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    assert exported("--ttt", "--ttt-save-state", "tent.state").exit_code == 0
    done = exported("--ttt", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("option", ["--ttt-save-state", "--ttt-load-state", "--ttt-probe-images"])
def test_what_needs_ttt_says_so(folder: Path, option: str) -> None:
    done = exported(option, "others")
    assert done.exit_code == 2
    assert "without --ttt" in done.stderr


def test_a_file_that_is_no_state_is_refused(folder: Path) -> None:
    Path("a.state").write_text("hello")
    done = run("state", "diff", "a.state", "a.state")
    assert done.exit_code == 2
    assert "cannot be read" in done.stderr


def test_paced_runs_rest(folder: Path) -> None:
    write_images(folder / "images", 40, side=24)
    done = exported("--ttt", "--ttt-reset", "online", "--ttt-batch-size", "2", "--ttt-paced", "--no-ttt-guards")
    assert done.exit_code == 0, done.output
    counts = json.loads(Path("p.json").read_text())["meta"]["ttt"]["report"]["session"]["counts"]
    assert counts["paused"] > 0
    assert counts["kept"] >= 10


def test_a_probe_may_be_given(folder: Path) -> None:
    done = exported("--ttt", "--ttt-reset", "online", "--ttt-batch-size", "4", "--ttt-probe-images", "others")
    assert done.exit_code == 0, done.output
    ttt = json.loads(Path("p.json").read_text())["meta"]["ttt"]
    assert ttt["probe"] is True
    assert all(step["probe_loss_after"] is not None for step in ttt["report"]["step_metrics"])


def test_the_report_says_when_the_unadapted_model_predicted(folder: Path) -> None:
    done = exported("--ttt", "--ttt-reset", "online", "--ttt-batch-size", "1", "--ttt-option", "batch_statistics=true")
    assert done.exit_code == 0, done.output
    report = json.loads(Path("p.json").read_text())["meta"]["ttt"]["report"]
    fallbacks = [step for step in report["step_metrics"] if "predicts instead" in (step["reason"] or "")]
    said = [warning for warning in report["warnings"] if "predicted by the unadapted model" in warning]
    assert bool(fallbacks) == bool(said)


def test_the_words_for_it_count_the_batches() -> None:
    steps = tuple(
        StepReport(index=index, verdict="rolled_back", reason="less sure ..., which predicts instead")
        for index in range(3)
    )
    session = SessionReport(method="tent", settings={}, seed=0, steps=steps, counts={"rolled_back": 3})
    assert any("3 of 3 batches were predicted by the unadapted model" in said for said in step_warnings(session))


def test_a_refused_run_leaves_no_state_to_go_on_from(folder: Path) -> None:
    (folder / "images" / "broken.png").write_text("no image")
    done = exported("--ttt", "--ttt-reset", "online", "--strict", "--ttt-save-state", "a.state")
    assert done.exit_code == 2
    assert "cannot be used" in done.stderr
    assert not Path("a.state").exists()

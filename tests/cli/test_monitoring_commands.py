"""The commands on the metrics store as they are typed, over requests that were really made."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from acclimate.cli.main import main
from acclimate.monitoring import Store, Window, check, measure
from tests import preloaded
from tests.full_disk import largest_file
from tests.monitoring.databases import fill
from tests.monitoring.test_alerts import Receiver

WORDS = ("stone", "lamp", "river", "cabin", "piano", "tiger")
PROMPT = "\n".join(f"{w} -> <q>{w}</q>" for w in WORDS) + "\nmelon ->"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCLIMATE_LANGUAGE_MODEL", "spark")
    monkeypatch.delenv("ACCLIMATE_DB_URL")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == code, done.output
    return done


def test_a_request_is_recorded_rated_labelled_and_audited(folder: Path) -> None:
    said = run("ask", PROMPT, "--user", "ada").stderr
    name = re.search(r"^request (\w+)$", said, flags=re.MULTILINE)[1]  # type: ignore[index]
    run("ask", "What is a melon?")
    assert (folder / "logs" / "ttt_metrics.db").exists()
    run("feedback", name, "5")
    run("metrics", "label", name, "explicit_examples")
    assert "there is no request 'x'" in run("feedback", "x", "5", code=2).stderr
    entry = json.loads(run("audit").stdout)
    assert (entry["actor"], entry["subject"], entry["outcome"]) == ("ada", name, "adapted")
    assert run("audit", "--verify").stdout == "the audit log is whole\n"
    run("metrics", "export", "out.json")
    content = json.loads((folder / "out.json").read_text())
    assert content["total_records"] == 1
    assert len(content["requests"]) == 2
    assert content["metrics"][0]["user_feedback"] == 5
    assert "melon" not in json.dumps(content)
    assert "2026" in run("analyze").stdout or "20" in run("analyze").stdout


def test_an_empty_name_of_the_store_is_refused_before_any_work(folder: Path) -> None:
    done = run("ask", PROMPT, "--db", "", code=2)
    assert "the name of the metrics store is empty" in done.stderr
    assert done.stdout == ""


def test_no_record_leaves_nothing(folder: Path) -> None:
    run("ask", PROMPT, "--no-record")
    assert not (folder / "logs").exists()


def test_an_answer_is_given_even_where_nothing_can_be_recorded(folder: Path) -> None:
    (folder / "logs").write_text("in the way")
    done = run("ask", PROMPT)
    assert done.stdout == "<q>melon</q>\n"
    assert "Warning: not recorded: cannot make the folder" in done.stderr


def test_an_answer_is_given_even_where_its_numbers_cannot_be_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.language.decision.calibration.Calibration.probability", lambda *_: float("nan"))
    done = run("ask", PROMPT, "--policy", "gate")
    assert done.stdout.strip()
    assert "Warning: not recorded: confidence must be between 0 and 1, got nan" in done.stderr


def test_the_health_of_nothing_cannot_be_told(folder: Path) -> None:
    assert "cannot tell: there is no metrics store at logs/ttt_metrics.db" in run("health", code=2).stderr
    with Store() as store:
        fill(store, 3)
    assert run("health", code=2).stdout.startswith("cannot tell\n")


def test_health_tells_healthy_from_alerts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store() as store:
        fill(store, 80, "plain")
        fill(store, 20)
    assert run("health").stdout.startswith("healthy\n")
    with Store() as store:
        fill(store, 60, "fallback")
    monkeypatch.setenv("ACCLIMATE_WEBHOOK_SECRET", "s")
    receiver = Receiver([])
    done = run("health", "--json", "--webhook", receiver.url, code=1)
    assert "ALERT fallback_rate: 75.0%" in done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "alerts"
    assert found["kpis"]["fallback_rate"]["state"] == "alert"
    assert found["kpis"]["pattern_detection_accuracy"]["state"] == "not enough data"
    assert json.loads(receiver.got[0][1])["alerts"] == found["alerts"]
    receiver.server.shutdown()
    receiver.server.server_close()
    done = run("health", "--email", "a@localhost", "--smtp", "127.0.0.1:9", "--command", "false", code=1)
    assert "Warning: mail server 127.0.0.1:9 did not take the alert" in done.stderr
    assert "Warning: command false ended with 1" in done.stderr
    assert "--smtp must be HOST:PORT" in run("health", "--email", "a@b", "--smtp", "host", code=2).stderr


def test_watching_alerts_once_for_each_change(folder: Path) -> None:
    with Store() as store:
        fill(store, 60, "fallback")
    receiver = Receiver([])
    reading, writing = os.pipe()
    process = preloaded.start("health", "--watch", "1", "--webhook", receiver.url, cwd=folder, stdout=writing)
    os.close(writing)
    with os.fdopen(reading) as told:
        lines = 0
        for line in told:
            lines += line == "alerts\n"
            if lines == 3:
                break
        process.send_signal(signal.SIGTERM)
        process.wait(240)
    receiver.server.shutdown()
    receiver.server.server_close()
    assert lines == 3
    assert len(receiver.got) == 1


def test_an_experiment_from_the_command_line(folder: Path) -> None:
    assert "there is no metrics store" in run("experiment", "status", code=2).stderr
    run("experiment", "create", "e")
    assert "no experiment 'f'; there are: e" in run("ask", PROMPT, "--experiment", "f", code=2).stderr
    assert "leave out --no-record" in run("ask", PROMPT, "--experiment", "e", "--no-record", code=2).stderr
    for _ in range(2):
        run("ask", PROMPT, "--experiment", "e", "--expected", "<q>melon</q>")
    run("ask", PROMPT, "--experiment", "e", "--expected", "<q>melon</q>", "--compare")
    found = json.loads(run("experiment", "report", "e", "--json").stdout)
    assert sum(arm["outcomes"] for arm in found["arms"]) == 4
    assert found["arms"][1]["quality"]["value"] == 1.0
    assert "running" in run("experiment", "status").stdout
    assert "experiment e (sequential" in run("experiment", "report", "e").stdout
    run("experiment", "stop", "e")
    assert "was stopped" in run("ask", PROMPT, "--experiment", "e", code=2).stderr
    run("experiment", "create", "u", "--assign-by", "user", "--design", "fixed", "--horizon", "10")
    assert "assigns users; name one by --user" in run("ask", PROMPT, "--experiment", "u", code=2).stderr
    for setting, said in (
        ("magic=1", "sets 'magic'; an arm may set"),
        ("votes=abc", "votes must be a number above 0, got 'abc'"),
        ("policy=sometimes", "policy must be one of gate, always, never, got 'sometimes'"),
    ):
        assert said in run("experiment", "create", "bad", "--treatment-setting", setting, code=2).stderr
    run("experiment", "create", "ranks", "--control", "r8", "--treatment", "r16")
    assert "leave out --compare" in run("ask", PROMPT, "--experiment", "ranks", "--compare", code=2).stderr
    assert "a setting is NAME=VALUE" in run("experiment", "create", "x", "--control-setting", "magic", code=2).stderr


def test_reports_and_maintenance(folder: Path) -> None:
    with Store() as store:
        fill(store, 60, "fallback")
        fill(store, 5, days_ago=50)
    assert "Daily report" in run("report", "daily").stdout
    run("report", "weekly", "-o", "reports/week.html")
    assert "<svg" in (folder / "reports" / "week.html").read_text()
    (folder / "file").write_text("")
    assert "cannot write" in run("report", "weekly", "-o", "file/week.html", code=2).stderr
    assert "requests: 5 rows would be deleted" in run("maintain", "--dry-run").stdout
    assert "requests: 5 rows deleted" in run("maintain", "--keep-days", "30").stdout
    assert "60 of 60 attempts failed for timeout" in run("analyze", "--suggest").stdout
    found = json.loads(run("analyze", "--suggest", "--json").stdout)
    assert {suggestion["code"] for suggestion in found["suggestions"]} == {"raise_time_limit"}
    (day,) = found["indicators_by_day"]["fallback_rate"].values()
    assert (day["value"], day["count"]) == (1.0, 60)
    assert re.search(r"^fallback_rate: \d{4}-\d\d-\d\d 100.0%$", run("analyze").stdout, flags=re.MULTILINE)
    assert "nothing to change" in run("analyze", "--suggest", "--days", "0.0000001").stdout


@pytest.mark.slow
def test_vision_runs_are_recorded_with_gain_and_cost(folder: Path) -> None:
    run("demo", "vision")
    common = ["--adapter", "torch", "--model", "acclimate.vision.demos.digits:digit_network"]
    common += ["--checkpoint", "acclimate-demo/digits.safetensors", "--corrupt", "gaussian_noise:4"]
    run("export", "acclimate-demo/images", *common, "--max-images", "64")
    run("export", "acclimate-demo/images", *common, "--max-images", "64", "--ttt", "--ttt-reset", "online")
    labels = ["--ground-truth", "acclimate-demo/labels.json", "--max-images", "128"]
    run("compare", "acclimate-demo/images", *common, *labels, "--methods", "bn,tent")
    found = json.loads(CliRunner().invoke(main, ["health", "--json"]).stdout)["vision"]
    assert found["runs"] == 4
    assert found["images"] == 64 + 64 + 2 * 128
    assert found["kept"] > 0
    assert found["gain"]["count"] == 2
    assert found["gain"]["value"] > 0
    assert found["cost_ratio"]["value"] > 1


def test_health_is_not_healthy_where_an_indicator_cannot_be_judged(folder: Path) -> None:
    with Store() as store:
        # One of eight indicators has enough observations: nothing was adapted to.
        fill(store, 78, "plain")
        fill(store, 22, "plain", adaptable=True)
    done = run("health", code=2)
    assert done.stdout.startswith("cannot tell\n  cannot tell: too few observations of adaptation_success_rate, ")
    found = json.loads(run("health", "--json", code=2).stdout)
    assert found["verdict"] == "cannot tell"
    assert found["unjudged"] == [
        "adaptation_success_rate", "mean_confidence_score", "mean_adaptation_time", "fallback_rate",
        "memory_utilization",
    ]  # fmt: skip
    with Store() as store:
        fill(store, 20)
    assert "healthy, without response_quality_improvement, pattern_detection_accuracy (too few observations)" in (
        run("health").stdout
    )


def test_feedback_and_labels_are_confirmed_in_one_line(folder: Path) -> None:
    with Store() as store:
        (name,) = fill(store, 1)
    assert run("feedback", name, "4").stdout == f"request {name}: rating 4 recorded\n"
    assert run("metrics", "label", name, "none").stdout == f"request {name}: pattern none recorded\n"


def test_all_requests_are_exported(folder: Path) -> None:
    with Store() as store:
        fill(store, 18, "plain")
        fill(store, 12)
    for suffix in ("csv", "parquet", "json"):
        assert f"30 requests written to all.{suffix}" in run("metrics", "export", f"all.{suffix}").stderr
    with Path("all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows].count("plain") == 18
    assert len({row["request_id"] for row in rows}) == 30
    assert all(row["session_id"] and row["timestamp"] for row in rows)
    content = json.loads(Path("all.json").read_text())
    assert (len(content["requests"]), content["total_requests"], content["total_records"]) == (30, 30, 12)


def test_files_are_written_whole_or_not_at_all_and_devices_are_never_replaced(folder: Path) -> None:
    with Store() as store:
        fill(store, 1)
    (folder / "real.csv").write_text("old")
    (folder / "link.csv").symlink_to("real.csv")
    run("metrics", "export", "link.csv")
    assert (folder / "link.csv").is_symlink()
    assert (folder / "real.csv").read_text().startswith("id,")
    pipe = folder / "pipe.json"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        run("metrics", "export", "pipe.json")
        assert json.loads(reader.communicate(timeout=240)[0])["total_requests"] == 1
    assert pipe.is_fifo()
    (folder / "folder.csv").mkdir()
    assert "it is a folder" in run("metrics", "export", "folder.csv", code=2).stderr
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_one(folder: Path) -> None:
    with Store() as store:
        fill(store, 1500)
    (folder / "all.csv").write_text("old")
    # The limit on the size of files gives an error in the middle of writing, as a full disk does.
    with largest_file(128 * 1024):
        done = CliRunner().invoke(main, ["metrics", "export", "all.csv"])
    assert (done.exit_code, done.stderr) == (2, "Error: cannot write all.csv: File too large\n")
    assert (folder / "all.csv").read_text() == "old"
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_the_control_arm_records_what_was_found_and_the_answer_names_the_experiment(folder: Path) -> None:
    run("experiment", "create", "control", "--share", "0.0000001")
    done = run("ask", PROMPT, "--experiment", "control")
    assert "experiment control: answered by arm ICL" in done.stderr
    found = json.loads(run("ask", PROMPT, "--experiment", "control", "--json").stdout)
    assert found["experiment"] == {"name": "control", "arm": "ICL"}
    assert json.loads(run("ask", "What is a melon?", "--json").stdout)["experiment"] is None
    with Store() as store:
        counts = check(store, Window.last(days=1)).counts
        measured = measure(store, Window.last(days=1))["ttt_activation_rate"].estimate
    assert counts.by_status == {"plain": 3}
    assert counts.adaptable == 2
    assert measured is not None
    assert measured.value == pytest.approx(2 / 3)


def test_an_adapted_answer_of_low_confidence_comes_with_a_warning(folder: Path) -> None:
    likely = {"adapted": {"bias": -2.2}, "icl": {"bias": -6.0}}
    content = {"model": "spark", "fitted_on": "nothing", "requests": 0}
    path = folder / "calibration.json"
    path.write_text(json.dumps({**content, "weights": {"before_training": likely, "after_training": likely}}))
    done = run("ask", PROMPT, "--calibration", str(path))
    assert "Warning: the adapted answer is right with a probability of 10% only; check it" in done.stderr
    found = json.loads(run("ask", PROMPT, "--calibration", str(path), "--json").stdout)
    assert found["status"] == "adapted"
    assert found["warnings"] == ["the adapted answer is right with a probability of 10% only; check it"]
    assert "Warning" not in run("ask", PROMPT).stderr


@pytest.mark.parametrize("value", ["[" * 100_000, "{", "5", "null", "Infinity"])
def test_a_setting_that_is_odd_json_is_one_line(folder: Path, value: str) -> None:
    done = run("experiment", "create", "e", "--treatment-setting", f"policy={value}", code=2)
    assert "policy must be one of" in done.stderr
    assert not (folder / "logs").exists()

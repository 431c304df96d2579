"""``acclimate ask``, ``prime`` and ``calibrate`` as a user types them, on the model that ships."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from acclimate.cli.main import main
from tests import preloaded

WORDS = ("stone", "lamp", "river", "cabin", "piano", "tiger")
PROMPT = "\n".join(f"{w} -> <q>{w}</q>" for w in WORDS) + "\nmelon ->"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCLIMATE_LANGUAGE_MODEL", "spark")
    lines = [json.dumps({"input": w, "output": f"<q>{w}</q>"}) for w in WORDS]
    (tmp_path / "examples.jsonl").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "prompt.txt").write_text(PROMPT)
    return tmp_path


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


@pytest.mark.parametrize("how", ["argument", "file", "stdin", "dash"])
def test_ask_takes_a_prompt_from_anywhere(folder: Path, how: str) -> None:
    arguments = {"argument": (PROMPT,), "file": ("--file", "prompt.txt"), "stdin": (), "dash": ("-",)}[how]
    done = run("ask", *arguments, stdin=PROMPT)
    assert done.exit_code == 0, done.output
    assert done.stdout == "<q>melon</q>\n"
    assert "TTT active: adapted to 6 examples" in done.stderr
    assert "fine-tuned on your 6 examples" in done.stderr


def test_ask_in_a_process_of_its_own_prints_only_the_answer(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "acclimate", "ask", PROMPT], capture_output=True, text=True, check=True
    )
    assert done.stdout == "<q>melon</q>\n"


def test_ask_as_json_says_everything(folder: Path) -> None:
    done = run("ask", PROMPT, "--json", "--compare", "--votes", "2", "--debug")
    report = json.loads(done.stdout)
    assert report["status"] == "adapted"
    assert report["votes"] == 2
    assert report["icl_answer"] is not None
    assert report["metadata"]["fallback_reason"] is None
    assert report["seconds"]["total"] > 0
    assert json.loads((folder / "logs/ttt_debug.jsonl").read_text())["status"] == "adapted"


def test_ask_compares_side_by_side(folder: Path) -> None:
    done = run("ask", PROMPT, "--compare")
    assert "without adapting" in done.stdout
    assert "<q>melon</q>" in done.stdout


def test_answers_that_look_like_markup_are_shown_as_they_are(folder: Path) -> None:
    prompt = "\n".join(f"{w} -> {w}[/b]" for w in WORDS) + "\nmelon ->"
    done = run("ask", prompt, "--compare", "--policy", "always")
    assert done.exit_code == 0, done.output
    assert "melon[/b]" in done.stdout


def test_settings_reach_the_training(folder: Path) -> None:
    done = run("ask", PROMPT, "--json", "--policy", "always", "--steps", "3", "--rank", "4", "--environment", "demo")
    report = json.loads(done.stdout)
    assert (report["metadata"]["training_steps"], report["metadata"]["lora_rank"]) == (3, 4)
    late = json.loads(run("ask", PROMPT, "--json", "--max-seconds", "0").stdout)
    assert (late["status"], late["reason"]) == ("fallback", "timeout")
    full = json.loads(run("ask", PROMPT, "--json", "--max-mib", "0.001").stdout)
    assert full["reason"] == "memory"


def test_an_answer_that_was_cut_off_says_so(folder: Path) -> None:
    done = run("ask", PROMPT, "--policy", "never", "--max-answer-tokens", "2")
    assert "cut off" in done.stderr


def test_prime_and_ask_with_the_adapter(folder: Path) -> None:
    done = run("prime", "examples.jsonl", "--save", "adapter")
    assert done.exit_code == 0, done.output
    assert "6 examples" in done.stdout
    assert {p.name for p in (folder / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "examples.jsonl", "model_fingerprint.txt",
    }  # fmt: skip
    asked = run("ask", "--adapter", "adapter", "--query", "melon", "--json")
    report = json.loads(asked.stdout)
    assert (report["answer"], report["cached"], report["metadata"]["training_steps"]) == ("<q>melon</q>", True, 0)
    halves = ("--adapter-weight", "0.5", "--adapter-weight", "0.5")
    both = run("ask", "--adapter", "adapter", "--adapter", "adapter", *halves, "--query", "melon", "--show-prompt")
    assert (both.stdout, "tiger" in both.stderr) == ("<q>melon</q>\n", True)
    odd = run("ask", "--adapter", "adapter", *halves, "--query", "melon")
    assert (odd.exit_code, "once for each --adapter" in odd.stderr) == (2, True)
    again = run("prime", "examples.jsonl", "--save", "adapter")
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    assert run("prime", "examples.jsonl", "--save", "adapter", "--overwrite", "--steps", "2").exit_code == 0


def test_examples_and_a_query(folder: Path) -> None:
    done = run("ask", "--examples", "examples.jsonl", "--query", "melon")
    assert done.stdout == "<q>melon</q>\n"


@pytest.mark.slow
def test_calibrate_writes_what_ask_reads(folder: Path) -> None:
    rows = []
    for mark in "qxyz":
        for start in range(3):
            words = [w[start:] + w[:start] for w in (*WORDS, "melon", "apple", "cloud", "table")]
            rows.append({"task": mark, "examples": [[w, f"<{mark}>{w}</{mark}>"] for w in words]})
            rows.append({"task": f"random {mark}", "examples": [[w, w[::-2] + mark * len(w)] for w in words]})
            rows.append({"task": f"upper {mark}", "examples": [[w, w.upper()] for w in words]})
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run(
        "calibrate", "tasks.jsonl", "--out", "c.json", "--shots", "6", "--questions", "1", "--steps", "4", "--json"
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["requests"] == 36
    assert 0 <= printed["auroc"] <= 1
    asked = json.loads(run("ask", PROMPT, "--calibration", "c.json", "--json").stdout)
    assert asked["metadata"]["confidence_score"] is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask", "a", "--file", "prompt.txt"), "not both"),
        (("ask", "a", "--query", "b"), "--query needs --examples"),
        (("ask", "--examples", "examples.jsonl"), "needs --query"),
        (("ask", "a", "--examples", "examples.jsonl", "--query", "b"), "not both"),
        (("ask", "--file", "none.txt"), "cannot read none.txt"),
        (("ask", "--examples", "none.jsonl", "--query", "b"), "cannot read none.jsonl"),
        (("ask", "--examples", "prompt.txt", "--query", "b"), "is not JSON"),
        (("ask", " "), "the prompt is empty"),
        (("ask", "a", "--model", "prompt.txt"), "cannot load the language model"),
        (("ask", "a", "--calibration", "prompt.txt"), "is not a calibration"),
        (("ask", "--adapter", "none", "--query", "b"), "cannot read"),
        (("ask", "a", "--device", "toaster"), "device 'toaster' cannot be used"),
        (("calibrate", "none.jsonl", "--out", "x"), "cannot read none.jsonl"),
        (("prime", "five.jsonl", "--save", "x"), "give an input and an output"),
        (("prime", "empty.jsonl", "--save", "x"), "holds no examples"),
        (("calibrate", "prompt.txt", "--out", "x"), "line 1"),
        (("calibrate", "one.jsonl", "--out", "x"), "more than 6 are needed"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "empty.jsonl").write_text("\n")
    (folder / "five.jsonl").write_text("5\n")
    (folder / "one.jsonl").write_text('{"task": "a", "examples": [["a", "b"]]}')
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("closed", [False, True])
def test_an_empty_or_closed_standard_input_is_one_line_before_a_model_is_loaded(closed: bool) -> None:
    # The model does not exist: naming it would be another error.
    stdin = None if closed else subprocess.DEVNULL
    done = preloaded.run("ask", "--model", "no/such/model", stdin=stdin)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "standard input" in done.stderr

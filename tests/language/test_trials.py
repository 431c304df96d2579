"""Tasks with known answers: reading them, asking them, and that both ways of asking agree."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from acclimate.errors import DataError
from acclimate.language import Adapter, Example, as_examples, train
from acclimate.language.decision.trials import (
    KnownTask,
    answer_scores,
    answers,
    fit_trials,
    held_out_quality,
    read_tasks,
    scored,
    trials,
)
from acclimate.language.training.recipes import decided
from tests.language.models import spark

WORDS = ("stone", "lamp", "river", "cabin", "piano", "tiger", "melon", "apple", "cloud", "table")
RULES = {
    "tag": lambda w: f"<q>{w}</q>",
    "upper": str.upper,
    "reverse": lambda w: w[::-1],
    "capital": str.capitalize,
    "odder": lambda w: f"{ord(w[1]) % 7}{ord(w[-1]) % 9}{ord(w[0]) % 8}",
    "oddest": lambda w: f"{ord(w[2]) * 3 % 11}{ord(w[-2]) % 6}{len(w) * ord(w[0]) % 13}",
    "odd": lambda w: f"{len(w) * 7 % 5}{w[2]}{w[0]}",
}


def task(name: str) -> KnownTask:
    pairs = as_examples([(w, RULES[name](w)) for w in WORDS])
    return KnownTask(name, pairs[:6], pairs[6:])


@functools.cache
def trained(name: str) -> Adapter:
    known = task(name)
    return train(spark(), [known.examples], decided(spark().recipe, known.examples))


@pytest.mark.parametrize("name", RULES)
def test_scoring_without_generating_says_what_generating_says(name: str) -> None:
    model, known = spark(), task(name)
    for installed in (None, trained(name)):
        generated = [
            a.text == q.output and a.complete
            for a, q in zip(answers(model, known.examples, known.questions, installed), known.questions, strict=True)
        ]
        assert scored(model, known.examples, known.questions, installed) == generated
        assert scored(model, known.examples, known.questions, installed, batch_size=1) == generated


@pytest.mark.parametrize("name", RULES)
def test_scores_of_answers_are_what_generating_them_gives(name: str) -> None:
    model, known, adapter = spark(), task(name), trained(name)
    made = answers(model, known.examples, known.questions, adapter)
    given = [Example(q.input, a.text) for q, a in zip(known.questions, made, strict=True)]
    for (exact, log_likelihood), answer in zip(answer_scores(model, known.examples, given, adapter), made, strict=True):
        assert exact
        assert log_likelihood == pytest.approx(answer.log_likelihood, abs=1e-3)


def test_trials_gather_what_a_calibration_needs() -> None:
    found = list(trials(spark(), [task(name) for name in RULES]))
    assert len(found) == 4 * len(RULES)
    assert {t.task for t in found} == set(RULES)
    assert all(t.evidence.answer_log_likelihood is not None for t in found)
    assert any(t.adapted_right for t in found)
    assert any(not t.icl_right for t in found)
    fitted = fit_trials("spark", found, fitted_on="a test")
    assert fitted.requests == len(found)
    quality = held_out_quality("spark", found * 2)
    assert set(quality) == {"auroc", "expected_calibration_error", "icl", "adapted", "gated"}
    with pytest.raises(DataError, match="one name"):
        held_out_quality("spark", [replace(t, task="same") for t in found])


def test_tasks_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task": "a", "examples": [["x", "1"], ["y", "2"], ["z", "3"]]}\n\n')
    (known,) = read_tasks(path, shots=2)
    assert (known.name, len(known.examples), len(known.questions)) == ("a", 2, 1)
    with pytest.raises(DataError, match="more than 3 are needed"):
        read_tasks(path, shots=3)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no tasks"):
        read_tasks(path, shots=2)
    path.write_text('{"task": "a"}')
    with pytest.raises(DataError, match="line 1"):
        read_tasks(path, shots=2)

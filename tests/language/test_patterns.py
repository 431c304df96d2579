"""Pattern detection: the ways people write examples, traps, and the corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import ConfigError
from acclimate.language import DOMAIN_SENSITIVITY, detect
from acclimate.language.patterns import KINDS

CORPUS = Path(__file__).parents[1] / "data" / "patterns.jsonl"
ROWS = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]

SHOWN = [
    ("explicit_examples", "Example 1: Cat -> CAT\nExample 2: dog -> DOG\nExample 3: Owl -> OWL\nNow: bee ->",
     "Cat", "bee"),
    ("explicit_examples", "cat -> chat\ndog -> chien\nbird -> oiseau\nhorse ->", "cat", "horse"),
    ("io_pairs", "Input: 2\nOutput: 4\n\nInput: 5\nOutput: 10\n\nInput: 8\nOutput:", "2", "8"),
    ("io_pairs", "Q: capital of France?\nA: Paris\nQ: capital of Italy?\nA: Rome\nQ: capital of Spain?\nA:",
     "capital of France?", "capital of Spain?"),
    ("io_pairs", '{"input": "a", "output": "1"}\n{"input": "b", "output": "2"}\n{"input": "c", "output": ""}',
     "a", "c"),
    ("io_pairs", "User: hello\nAssistant: HELLO\nUser: bye\nAssistant: BYE\nUser: thanks\nAssistant:",
     "hello", "thanks"),
    ("io_pairs", "| input | output |\n| --- | --- |\n| red | RED |\n| blue | BLUE |\n| green | ? |", "red", "green"),
    ("numbered_sequences", "1. cat = 3\n2. horse = 5\n3. ant = 3\n4. mouse = ?", "cat", "mouse"),
    ("analogical_reasoning", "hot is to cold as up is to down, as big is to ?", "hot", "big"),
    ("rule_learning", "Find the rule: f(2) = 5, f(3) = 7, f(5) = 11. What is f(4)?", "2", "4"),
]  # fmt: skip

TRAPS = [
    "milk\neggs\nbread\nbutter",
    "- milk: 2\n- eggs: 12\n- butter: 250 g\nAnything I forgot for pancakes?",
    "The mean rose from 3.5 to 4.25 and then fell to 2.75 within 1.5 hours.",
    "The war began in 1618. It ended in 1648 with the Peace of Westphalia. Sweden entered in 1630, France in 1635.",
    "I have a problem with logging in: the page stays blank.",
    "logging in:",
    "Write a haiku about autumn.",
    "What is 17 times 23?",
    "def f(x: int) -> int:\n    return x + 1\n\nWhy does mypy complain?",
    "Please give me five examples of irregular verbs.",
    "",
    "   \n ",
]


@pytest.mark.parametrize(("kind", "prompt", "first", "query"), SHOWN)
def test_ways_of_writing_examples(kind: str, prompt: str, first: str, query: str) -> None:
    found = detect(prompt)
    assert found is not None
    assert found.kind == kind
    assert found.examples[0].input == first
    assert found.query == query
    assert query not in {example.input for example in found.examples}
    assert 0.5 < found.confidence <= 1
    for example, (start, end) in zip(found.examples, found.spans, strict=True):
        assert prompt[start:end].startswith(example.input)
        assert prompt[start:end].endswith(example.output)


@pytest.mark.parametrize("prompt", TRAPS)
def test_traps_show_no_pattern(prompt: str) -> None:
    assert detect(prompt) is None


def test_an_unanswered_item_is_never_an_example_nor_glued_to_the_last_answer() -> None:
    found = detect("a -> 1\nb -> 2\nc ->\nd -> 4\ne ->")
    assert found is not None
    assert [(e.input, e.output) for e in found.examples] == [("a", "1"), ("b", "2"), ("d", "4")]
    assert found.query == "e"


def test_case_is_kept() -> None:
    found = detect("McCoy -> McC\nDeVito -> DeV\nO'Brien -> O'B\nLeBron ->")
    assert found is not None
    assert found.examples[0].output == "McC"
    assert found.query == "LeBron"


def test_domains_lower_the_bar_for_their_kinds() -> None:
    prompts = [row["prompt"] for row in ROWS if row["split"] == "tuning"]
    plain = {p for p in prompts if detect(p)}
    for domain in DOMAIN_SENSITIVITY:
        assert plain <= {p for p in prompts if detect(p, domain)}
    with pytest.raises(ConfigError, match="domain must be one of mathematics"):
        detect("a", "cooking")


def test_the_corpus_is_what_it_says() -> None:
    assert len(ROWS) >= 800
    assert len({row["prompt"] for row in ROWS}) == len(ROWS)
    assert 0.4 < sum(row["kind"] is None for row in ROWS) / len(ROWS) < 0.6
    test = [row for row in ROWS if row["split"] == "test"]
    for kind in KINDS:
        assert sum(row["kind"] == kind for row in test) >= 60
    layouts = {split: {(r["kind"], r["layout"]) for r in ROWS if r["split"] == split} for split in ("test", "tuning")}
    assert not layouts["test"] & layouts["tuning"]


def test_the_corpus_is_mostly_read_right() -> None:
    """Floors a little below what benchmarks/patterns reports: the layouts are none that anything was tuned on."""
    test = [row for row in ROWS if row["split"] == "test"]
    found = [(row, detect(row["prompt"])) for row in test]
    seen = [row["kind"] is not None for row, d in found if d is not None]
    recalled = [d is not None for row, d in found if row["kind"] is not None]
    assert sum(seen) / len(seen) > 0.93
    assert sum(recalled) / len(recalled) > 0.92
    for kind in KINDS:
        named = [row["kind"] == kind for row, d in found if d is not None and d.kind == kind]
        right = [d is not None and d.kind == kind for row, d in found if row["kind"] == kind]
        assert sum(named) / len(named) > 0.75, kind
        assert sum(right) / len(right) > 0.75, kind


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab1 ->=:?|\n\t,.\"'{}[]()<>/#*_QAIO", max_size=120))
def test_any_text_is_read_without_error(text: str) -> None:
    found = detect(text)
    if found is not None:
        assert all(example.input and example.output for example in found.examples)


@pytest.mark.parametrize(
    "text", ["a" * 30_000, "->" * 5000, "a: b\n" * 3000, "is to " * 2000, "(" * 3000, '{"a": ' * 800]
)
def test_long_and_hostile_texts_are_read_quickly(text: str) -> None:
    import time

    start = time.process_time()
    detect(text)
    assert time.process_time() - start < 5

"""Pattern detection: the ways people write examples, traps, and the corpus."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import ConfigError
from acclimate.language import DOMAIN_SENSITIVITY, detect
from acclimate.language.patterns import KINDS, readings
from acclimate.language.patterns.classifier import Classifier
from acclimate.language.patterns.items import SEPARATORS

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


def in_pieces(pieces: list[str], most: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=most).map("".join)


SEPARATOR_SIGNS = ["\t", " ~ ", " - ", " — ", " / ", " > ", "   ", *"-> => → ➡️ : :: \uff1a = == | || ....".split()]
MARKS = "\" ' ` “ ” « » ** * __ ( ) [ ] { } < > , ; . ? ! …".split()
WORDS = [
    "a",
    "b",
    "cat",
    "1",
    "2",
    "é",
    "日本",
    "Q",
    "A",
    "Input",
    "Output",
    "Example 1",
    "f(",
    "is to",
    "as",
    "becomes",
]
INVISIBLE = ["\u200b", "\ufeff", "\u00a0", "\u2028", "\u00ad", "\x00", "\x0b", "\x0c", "\r"]
FRAMES = [
    '{"input": "%s", "output": "%s"}', '["%s", "%s"]', "<in>%s</in><out>%s</out>", "[INST]%s[/INST]%s",
    "Q: %s\nA: %s", "User: %s\nAssistant: %s", "| %s | %s |", "%s,%s", "<tr><td>%s</td><td>%s</td></tr>",
    "%s is to %s", "%s becomes %s.", "f(%s) = %s", "I say %s and you say %s.", "(%s) %s", "1. %s -> %s",
]  # fmt: skip
ITEM = in_pieces([*SEPARATOR_SIGNS, *MARKS, *WORDS, *INVISIBLE, " ", ""], 3)


@st.composite
def framed_pairs(draw: st.DrawFn) -> str:
    """Two to five pairs in one layout, most items of which are signs that parsers remove or split at."""
    frame = draw(st.sampled_from([*FRAMES, *(f"%s{sign}%s" for sign in SEPARATOR_SIGNS)]))
    rows = [frame % (draw(ITEM), draw(ITEM)) for _ in range(draw(st.integers(2, 5)))]
    return draw(st.sampled_from(["", "Now: ", "What is next? "])).join(["", draw(st.sampled_from("\n ")).join(rows)])


ADVERSARIAL = st.one_of(
    in_pieces([*SEPARATOR_SIGNS, *MARKS, *WORDS, *INVISIBLE, "\n", "\n", " "], 40),
    framed_pairs(),
    st.text(alphabet="ab1 ->=:?|\n\t,.\"'{}[]()<>/#*_QAIO", max_size=120),
    st.text(max_size=80),
)


def visible(text: str) -> bool:
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}  # control, format, surrogate, and separators
    return any(unicodedata.category(character) not in hidden for character in text)


@settings(max_examples=600)
@given(ADVERSARIAL)
@always("<:,\n<:")
@always("a -> ,\nb -> ;\nc ->")
@always("-> -> 1\n-> -> 2\n-> ->")
@always('{"input": " ", "output": "1"}\n{"input": "b", "output": "2"}\n{"input": "c", "output": ""}')
@always("cat -> \u200b\ndog -> DOG\nbird -> BIRD\nfish ->")
def test_no_example_lacks_a_part_and_no_query_is_empty(text: str) -> None:
    """Every parser's reading is looked at, not only the one that the classifier takes."""
    for reading in readings(text).values():
        assert all(visible(given) and visible(answer) for given, answer in reading.pairs), reading
        if reading.query is not None:
            assert visible(reading.query), reading
            signs = dict(SEPARATORS).get(reading.form)
            assert signs is None or re.fullmatch(signs, f" {reading.query} ") is None, reading
        assert reading.query is not None or not reading.query_in_slot
    found = detect(text)
    if found is not None:
        assert all(visible(example.input) and visible(example.output) for example in found.examples)
        assert found.query is None or visible(found.query)
        assert len(found.spans) == len(found.examples)


@pytest.mark.parametrize("answer", [",", ";", '""', "**?**", "?,", "\u200b", "''."])
def test_an_output_that_is_only_markup_is_missing(answer: str) -> None:
    found = detect(f"cat -> CAT\ndog -> DOG\nowl -> OWL\nbee -> {answer}")
    assert found is not None
    assert [example.input for example in found.examples] == ["cat", "dog", "owl"]
    assert found.query == "bee"


def test_the_separator_alone_is_no_query_but_another_sign_is() -> None:
    assert readings("-> -> 1\ncat -> 2\ndog -> 3\n-> ->")["pairs_on_lines"].query is None
    assert readings("@ -> at\n# -> hash\n~ ->")["pairs_on_lines"].query == "~"


@pytest.mark.parametrize(
    "text", ["a" * 30_000, "->" * 5000, "a: b\n" * 3000, "is to " * 2000, "(" * 3000, '{"a": ' * 800]
)
def test_long_and_hostile_texts_are_read(text: str) -> None:
    """A regular expression that backtracks without end runs into the time limit; each text takes about a second."""
    assert detect(text) is None or len(text) <= 20_000


def test_a_classifier_reads_what_it_wrote(tmp_path: Path) -> None:
    made = Classifier(
        classes=("no", "yes"),
        features=("bias", "shape:w→9", "words:è la"),
        weights=np.array([[0.1, 0.0, -2.0], [-0.3, 1.7, 0.0]]),
        bias=np.array([0.25, -0.25]),
    )
    made.save(tmp_path / "weights.npz")
    read = Classifier.load(tmp_path / "weights.npz")
    given = {"bias": 1.0, "words:è la": 0.5, "unknown": 9.0}
    assert read.features == made.features
    assert read.probabilities(given) == made.probabilities(given)
    odds = math.exp((-0.25 - 0.3) - (0.25 + 0.1 - 1.0))
    assert read.probabilities(given)["yes"] == pytest.approx(odds / (1 + odds))
    assert sum(read.probabilities({}).values()) == pytest.approx(1)

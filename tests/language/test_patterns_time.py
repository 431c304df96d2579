"""Reading takes time in proportion to the length of the prompt, whatever the prompt is made of."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acclimate.language import detect
from acclimate.language.patterns.detection import MAX_CHARACTERS

PACKAGE = Path(__file__).parents[2] / "src/acclimate/language/patterns"
#: Pieces of which hostile prompts are made by repetition.
PIECES = {
    "one letter": "a", "arrows": "->", "arrow lines": "word -> drow\n", "labels": "a: b\n", "two labels": "Q: x\nA: y\n",
    "long records": "Question: who was it then\nAnswer: it was me\n\n", "four labels": "a: b\nc: d\ne: f\ng: h\n\n", "is to": "is to ",
    "analogies": "a is to b as c is to d. ", "brackets": "(", "open JSON": '{"a": ', "JSON": '{"a": "b", "c": "d"}\n', "JSON lists": '["a", "b"], ',
    "quotes": '"', "quoted": '"a" ', "apostrophes": "' ", "spaces": "x" + 60 * " ", "spaces inside": "a" + 250 * " " + "b", "tabs": "a\tb\n",
    "bars": "| a | b |\n", "only bars": "|", "commas": "a, b, ", "comma rows": "a,b\n", "colons": "a:b ", "proportions": "a : b :: c : ",
    "tags": "<a>x</a>", "open tags": "<a>", "cut tags": "<a b", "chat tokens": "<|user|>a<|assistant|>b", "instructions": "[INST] a [/INST] b ",
    "headings": "### a\nb\n", "dashes": "- ", "rules": "---\n", "number rows": "1. a\n2. b\n", "numbers": "1, 2, ", "calls": "f(1) = 2, ",
    "call rows": "f(1) = 2\n", "sentences": 'If I say "a" you say "b". ', "same sentence": "The cat sat on the mat. ", "fences": "```\nx\n",
    "gaps": "____ ", "question marks": "? ", "dots": ".... ", "blank lines": "a\n\n", "session": ">>> f(1)\n2\n", "comments": "# a\nb\n",
    "table tags": "<tr><td>a</td><td>b</td></tr>\n", "curly quotes": "“a” ", "wide signs": "文：本\n判：定\n", "invisible": "\u200b",
    "messages": '{"role": "user", "content": "x"}, ', "brackets in line": "a (b), ", "two lines": "abc\ndef\n\n", "becomes": "a becomes b, ",
}  # fmt: skip

PASSAGE = 58_000 * "of text"


def hostile(name: str, length: int) -> str:
    """Return a prompt of the given length."""
    piece = PIECES[name]
    return (piece * (length // len(piece) + 1))[:length]


def cpu_s(text: str, repetitions: int = 2) -> float:
    """Return the CPU time of one detection, the best of some."""
    best = float("inf")
    for _ in range(repetitions):
        start = time.thread_time()
        detect(text)
        best = min(best, time.thread_time() - start)
    return best


def reference_s() -> float:
    """Return the CPU time of a fixed piece of Python, 0.05 s on a quiet processor of 2.5 GHz: a busy one needs more for both."""
    start = time.thread_time()
    counts: dict[str, int] = {}
    for character in PASSAGE:
        counts[character] = counts.get(character, 0) + len(character.strip())
    return time.thread_time() - start


@pytest.mark.parametrize("name", PIECES)
def test_twice_the_length_takes_about_twice_the_time(name: str) -> None:
    """A quadratic step would take sixteen times as long, a backtracking pattern far longer; a busy machine is allowed for."""
    short, long = hostile(name, 4_000), hostile(name, 16_000)
    least_s = 0.004
    assert cpu_s(long) < 8 * max(cpu_s(short), least_s)


@pytest.mark.slow
def test_a_prompt_of_full_length_is_read_at_once() -> None:
    """Measured against a fixed piece of Python at the same moment; one that takes long is measured again."""
    shares = {name: cpu_s(hostile(name, MAX_CHARACTERS)) / reference_s() for name in PIECES}
    assert sorted(shares.values())[len(shares) // 2] < 1
    slow = [name for name, share in shares.items() if share >= 3]
    again = {name: min(cpu_s(hostile(name, MAX_CHARACTERS), 1) / reference_s() for _ in range(10)) for name in slow}
    assert not {name: share for name, share in again.items() if share >= 3}


def test_longer_prompts_are_not_read() -> None:
    records = "Q: x\nA: y\n\n" * 3 + "Q: z\nA:"
    assert detect(records) is not None
    assert detect("word " * (MAX_CHARACTERS // 5) + records) is None


def test_no_regular_expression_is_used() -> None:
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {"re", "regex"} & {alias.name for alias in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert node.module not in {"re", "regex", "difflib"}, path


def test_readings_are_the_same_in_every_process() -> None:
    """Sets of strings are iterated in another order in each process: a reading must not depend on it."""
    prompt = "$map = [\n  ['in' => 'http://a.com', 'out' => 'a.com'],\n  ['in' => 'https://b.org/', 'out' => 'b.org'],\n  ['in' => 'https://c.net/', 'out' => "
    script = f"from acclimate.language.patterns.candidates import candidates; print(candidates({prompt!r}))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in (1, 2, 3)
    }  # fmt: skip
    assert len(printed) == 1
    assert "query" in printed.pop()

"""Numbers that tell apart the tasks that worked examples show, and from which no text can be read."""

from __future__ import annotations

import statistics
import string
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from acclimate.language.examples import Example

#: Raised when :func:`task_features` changes: features of another version are not comparable.
FEATURES_VERSION: Final = 1
_LONG: Final = 40


def task_features(examples: Sequence[Example]) -> tuple[float, ...]:
    """Return features of a task: means and spreads over its examples of shares from 0 to 1, and shares of all outputs.

    How long inputs and outputs are, which of their characters and pairs of characters they share, in this direction and
    backwards, what kinds of character they have, and how much of the outputs is the same in all of them.

    Args:
        examples: at least one.
    """
    columns = list(zip(*(_of_example(example) for example in examples), strict=True))
    means = [statistics.fmean(column) for column in columns]
    spreads = [statistics.pstdev(column) for column in columns]
    return (*means, *spreads, *_of_outputs([example.output for example in examples]))


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how unlike two tasks are: the sum of the differences of their features."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def _of_example(example: Example) -> list[float]:
    given, answer = example.input, example.output
    # Against texts of thousands of characters.
    given, answer = given[: 10 * _LONG], answer[: 10 * _LONG]
    words = len(answer.split()) / max(1, len(answer.split()) + len(given.split()))
    return [
        min(1.0, len(given) / _LONG),
        min(1.0, len(answer) / _LONG),
        len(answer) / max(1, len(given) + len(answer)),
        words,
        _share_in(answer, given),
        _share_in(given, answer),
        _share_in(answer.lower(), given.lower()),
        _share_in(_pairs(answer), _pairs(given)),
        _share_in(_pairs(answer), _pairs(given[::-1])),
        _share_in(_pairs(given), _pairs(answer)),
        _shared_beginning([given, answer]) / max(1, len(answer)),
        _shared_beginning([given[::-1], answer[::-1]]) / max(1, len(answer)),
        float(given in answer),
        float(answer in given),
        *_kinds(given),
        *_kinds(answer),
    ]


def _of_outputs(outputs: Sequence[str]) -> list[float]:
    mean = max(1.0, statistics.fmean(len(output) for output in outputs))
    return [
        len(set(outputs)) / len(outputs),
        min(1.0, _shared_beginning(outputs) / mean),
        min(1.0, _shared_beginning([output[::-1] for output in outputs]) / mean),
        len({len(output) for output in outputs}) / len(outputs),
    ]


def _shared_beginning(texts: Sequence[str]) -> int:
    """Return how many characters are the same at the beginning of all texts."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False)))


def _share_in(part: Sequence[str], whole: Sequence[str]) -> float:
    """Return which share of ``part`` is in ``whole``, each item as often as it is there."""
    return (Counter(part) & Counter(whole)).total() / max(1, len(part))


def _pairs(text: str) -> list[str]:
    return [text[at : at + 2] for at in range(len(text) - 1)]


def _kinds(text: str) -> list[float]:
    count = max(1, len(text))
    return [
        sum(c.isupper() for c in text) / count,
        sum(c.isdigit() for c in text) / count,
        sum(c in string.punctuation for c in text) / count,
        sum(c.isspace() for c in text) / count,
    ]

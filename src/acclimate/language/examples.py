"""Worked examples: checked, split, shuffled."""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acclimate.errors import DataError

MAX_EXAMPLE_CHARACTERS = 4000
Augmentation = Callable[["Example"], Iterable["Example"]]


@dataclass(frozen=True, slots=True)
class Example:
    """An input and the answer it should get."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Validated:
    """The examples that :func:`validated` kept, and why it dropped others.

    Attributes:
        examples: without duplicates, in the order given.
        duplicates: examples that were repeated.
        contradictions: inputs that were given with more than one answer; none of them is in ``examples``.
        given: all of them, cleaned.
    """

    examples: tuple[Example, ...]
    duplicates: tuple[Example, ...] = ()
    contradictions: tuple[str, ...] = ()
    given: tuple[Example, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about dropped examples, for the user."""
        found = [
            f"{text!r} was given with two different outputs: it stays in the prompt and is not trained on"
            for text in self.contradictions
        ]
        if self.duplicates:
            found.append(f"{len(self.duplicates)} repeated example(s) stay in the prompt and are trained on once")
        return tuple(found)


def as_examples(given: Iterable[Example | Mapping[str, Any] | Sequence[str]]) -> tuple[Example, ...]:
    """Return examples from pairs, mappings with ``input`` and ``output``, or examples.

    Raises:
        DataError: an item is none of these, or a part is not text.
    """
    found = []
    for number, item in enumerate(given, 1):
        if isinstance(item, Example):
            pair: tuple[Any, ...] = (item.input, item.output)
        elif isinstance(item, Mapping):
            if not {"input", "output"} <= item.keys():
                raise DataError(f"example {number} has the keys {sorted(item)}; it needs 'input' and 'output'")
            pair = (item["input"], item["output"])
        else:
            pair = tuple(item) if isinstance(item, Sequence) and not isinstance(item, str) else ()
        if len(pair) != 2:
            raise DataError(f"example {number} is {item!r}; give an input and an output")
        texts = [str(part) if isinstance(part, int | float) and not isinstance(part, bool) else part for part in pair]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"example {number} is {item!r}; input and output must be text")
        found.append(Example(*texts))
    return tuple(found)


def validated(
    examples: Iterable[Example],
    *,
    max_count: int = 64,
    max_characters: int = MAX_EXAMPLE_CHARACTERS,
    augment: Augmentation | None = None,
) -> Validated:
    """Return ``examples`` cleaned, without duplicates and contradictions.

    Control characters are removed, text is brought to Unicode's composed form, and white space at the ends is removed.

    Args:
        examples: in the order given.
        max_count: most examples accepted.
        max_characters: most characters in one input or output.
        augment: called with every example that was kept; returns further ones, checked in the same way.

    Raises:
        DataError: there are too many, one is too long, or one has no input or no output.
    """
    given = [Example(cleaned(e.input), cleaned(e.output)) for e in examples]
    if len(given) > max_count:
        raise DataError(f"{len(given)} examples given, at most {max_count} are used; leave some out or raise the limit")
    for number, example in enumerate(given, 1):
        for part in ("input", "output"):
            text = getattr(example, part)
            if not text:
                raise DataError(f"example {number} has an empty {part}")
            if len(text) > max_characters:
                raise DataError(f"the {part} of example {number} has {len(text)} characters; at most {max_characters}")
    shown = tuple(given)
    if augment is not None:
        known = {e.input for e in given}
        extra = [Example(cleaned(e.input), cleaned(e.output)) for one in given for e in augment(one)]
        given += [e for e in extra if e.input and e.output and e.input not in known]
    answers: dict[str, set[str]] = {}
    for example in given:
        answers.setdefault(example.input, set()).add(example.output)
    contradictions = tuple(text for text, found in answers.items() if len(found) > 1)
    kept: dict[Example, None] = {}
    duplicates = []
    for example in given:
        if example.input in contradictions:
            continue
        if example in kept:
            duplicates.append(example)
        kept[example] = None
    return Validated(tuple(kept), tuple(duplicates), contradictions, shown)


def leave_one_out(examples: Sequence[Example]) -> Iterator[tuple[tuple[Example, ...], Example]]:
    """Yield, for every example, the others and itself."""
    for index, example in enumerate(examples):
        yield (*examples[:index], *examples[index + 1 :]), example


def folds(examples: Sequence[Example], count: int, *, seed: int = 0) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return ``count`` splits into indices to train on and held-out indices; every index is held out once."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)  # noqa: S311 - an order, not a secret
    parts = [sorted(order[k::count]) for k in range(count)]
    return [(tuple(i for i in range(len(examples)) if i not in part), tuple(part)) for part in parts]


def orderings(count: int, how_many: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    """Return ``how_many`` orders of ``count`` items, distinct as long as there are enough.

    The first is the one given, the others are shuffled.
    """
    rng = random.Random(seed)  # noqa: S311 - an order, not a secret
    found = [tuple(range(count))]
    there_are = math.factorial(count) if count < 8 else how_many
    while len(found) < how_many:
        order = list(range(count))
        rng.shuffle(order)
        if tuple(order) not in found or len(found) >= there_are:
            found.append(tuple(order))
    return found[:how_many]


def cleaned(text: str) -> str:
    """Return ``text`` in Unicode's composed form, without control characters, surrogates or surrounding space."""
    composed = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    return "".join(c for c in composed if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")).strip()

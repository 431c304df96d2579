"""Labelled prompts in the forms of the files here, and when a reading of one counts as exact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acclimate.language.patterns.text import Reading


@dataclass(frozen=True)
class Labelled:
    """A prompt and what is in it.

    Attributes:
        prompt: the text.
        few_shot: whether it shows worked examples.
        examples: inputs and outputs, in order.
        query: the open item, or None.
        layout: the way of writing; prompts of one layout are never both fitted and predicted.
        kind: kind of pattern, or None where that is not labelled.
        split: ``tuning`` or ``test``; empty where there is no split.
    """

    prompt: str
    few_shot: bool
    examples: tuple[tuple[str, str], ...]
    query: str | None
    layout: str
    kind: str | None = None
    split: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Labelled:
        """Return the prompt of one line of a file."""
        pairs = tuple((e["input"], e["output"]) if isinstance(e, dict) else (e[0], e[1]) for e in row["examples"] or ())
        few_shot = row["few_shot"] if "few_shot" in row else row["kind"] is not None if "kind" in row else bool(pairs)
        return cls(row["prompt"], few_shot, pairs, row["query"], row["layout"], row.get("kind"), row.get("split", ""))


def load(path: Path) -> Iterator[Labelled]:
    """Yield the prompts of a file with one JSON object a line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield Labelled.from_row(json.loads(line))


def normal(text: str | None) -> str:
    """Return ``text`` with single spaces for white space, in which two parts are compared."""
    return " ".join((text or "").split())


def is_exact(row: Labelled, examples: list[tuple[str, str]], query: str | None) -> bool:
    """Return whether all examples and the query are those of the label, white space aside."""
    wanted = [(normal(a), normal(b)) for a, b in row.examples]
    return [(normal(a), normal(b)) for a, b in examples] == wanted and normal(query) == normal(row.query)


def same(row: Labelled, reading: Reading) -> bool:
    """Return whether a reading is exactly right; a sequence has no examples, and its extent is a matter of taste."""
    text = row.prompt
    if row.few_shot and not row.examples:
        return not reading.pairs and reading.query is not None
    examples = [(text[a:b], text[c:d]) for (a, b), (c, d) in reading.pairs]
    return is_exact(row, examples, text[slice(*reading.query)] if reading.query else None)

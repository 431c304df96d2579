"""The features by which the kind of a pattern is told: its layout and the words around it."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from acclimate.language.patterns.roles import is_answering, is_asking
from acclimate.language.patterns.text import Reading, words_of

_MOST_CHARACTERS: Final = 1500


def kind_features(text: str, reading: Reading) -> dict[str, float]:
    """Return the features that are not zero: the layout, facts about it, words and pairs of words of the prompt."""
    values: dict[str, float] = {"bias": 1.0, f"form:{reading.form}": 1.0}
    for name, value in reading.facts:
        if value:
            values[f"fact:{name}"] = float(value)
            if name in {"numbered", "announced", "in_line", "sign_label", "asserted"}:
                values[f"form:{reading.form}:{name}"] = 1.0
    first, second = reading.labels
    values["label"] = float(bool(first or second))
    values["roles"] = float(is_asking(first) and is_answering(second))
    values["one_example"] = float(len(reading.pairs) == 1)
    values["no_examples"] = float(not reading.pairs)
    outside = text[max(0, reading.block[0] - _MOST_CHARACTERS) : reading.block[0]] + "\n" + text[reading.block[1] :][:_MOST_CHARACTERS]
    for word in words_of(outside):
        values[f"outside:{word}"] = 1.0
    spoken = words_of(text[:_MOST_CHARACTERS])
    for word in spoken:
        values[f"word:{word}"] = 1.0
    for one, other in pairwise(spoken):
        values[f"words:{one} {other}"] = 1.0
    low = text[:_MOST_CHARACTERS].lower()
    values["numbered_start"] = float(low.lstrip("(#[* ")[:1] in "1ai" and low.lstrip("(#[* ")[1:2] in ".):")
    return {name: value for name, value in values.items() if value}

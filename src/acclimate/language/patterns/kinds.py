"""The features by which the kind of a pattern is told: its layout and the words around it."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from acclimate.language.patterns.roles import is_answering, is_asking
from acclimate.language.patterns.text import Reading, words_of

_MOST_CHARACTERS: Final = 1500


def kind_features(text: str, reading: Reading | None, log_odds: float = 0.0) -> dict[str, float]:
    """Return the features that are not zero: the layout, facts about it, words and pairs of words of the prompt.

    Args:
        text: the prompt.
        reading: the best one, or None where no parser found any.
        log_odds: that the reading is exactly right.
    """
    values: dict[str, float] = {"bias": 1.0}
    if reading is None:
        values["nothing_read"] = 1.0
    else:
        values |= _reading_features(text, reading)
        values[f"odds:{max(-5, min(4, round(log_odds)))}"] = 1.0
        values["odds"] = max(-5.0, min(4.0, log_odds)) / 2
    spoken = words_of(text[:_MOST_CHARACTERS])
    for word in spoken:
        values[f"word:{word}"] = 1.0
    for one, other in pairwise(spoken):
        values[f"words:{one} {other}"] = 1.0
    low = text[:_MOST_CHARACTERS].lower()
    values["numbered_start"] = float(low.lstrip("(#[* ")[:1] in "1ai" and low.lstrip("(#[* ")[1:2] in ".):")
    end = text.rstrip()
    values["ends:" + (end[-1:] if not end[-1:].isalnum() else "w")] = 1.0
    values["rows:" + str(min(6, text.count("\n")))] = 1.0
    return {name: value for name, value in values.items() if value}


def _reading_features(text: str, reading: Reading) -> dict[str, float]:
    values: dict[str, float] = {
        f"form:{reading.form}": 1.0,
        "no_query": float(reading.query is None),
        "slot": float(reading.slot),
    }
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
    outside = (
        text[max(0, reading.block[0] - _MOST_CHARACTERS) : reading.block[0]]
        + "\n"
        + text[reading.block[1] :][:_MOST_CHARACTERS]
    )
    for word in words_of(outside):
        values[f"outside:{word}"] = 1.0
    return values

"""All readings of a prompt: every parser's, without those that lack a part, and each only once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from acclimate.language.patterns import (
    analogies,
    calls,
    fields,
    frames,
    inline,
    json_records,
    records,
    separated,
    sequences,
    slots,
    tables,
)
from acclimate.language.patterns.text import Line, Reading, lines_of

_MOST: Final = 60
#: Most lines with text of a prompt that is read; more in 20,000 characters have 13 characters each, and are data.
MOST_LINES: Final = 1_500


def candidates(text: str) -> list[Reading]:
    """Return the readings of ``text`` by all parsers; two that find the same examples and open item count as one."""
    lines = lines_of(text)
    if sum(not line.blank for line in lines) > MOST_LINES:
        return []
    found: dict[tuple[object, ...], Reading] = {}
    parsers: Iterator[Reading] = chain(
        json_records.json_records(text),
        _marked(text, lines),
        tables.tables(text, lines),
        fields.nothing_marked(text, lines),
        separated.by_separator(text, lines),
        inline.beside_each_other(text, lines),
        analogies.analogies(text, lines),
        calls.functions(text),
        calls.tuples(text),
        slots.slots(text),
        frames.frames(text, lines),
        sequences.sequences(text, lines),
    )
    for reading in parsers:
        key = reading.pairs, reading.query
        if key not in found and reading.usable(text):
            found[key] = reading
            if len(found) == _MOST:
                break
    return list(found.values())


def _marked(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield the readings of labels, tags and chat tokens."""
    for number, stream in enumerate(records.marked_streams(text, lines)):
        yield from records.in_records(text, lines, stream)
        if number == 0:
            yield from fields.answers_marked(text, lines, stream)
            yield from fields.inputs_marked(text, lines, stream)

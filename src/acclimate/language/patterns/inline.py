"""Examples beside each other on one line: ``sing: sang, bring: brought, weave:``, ``loud->quiet early->``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from acclimate.language.patterns.asked import asked_item
from acclimate.language.patterns.separated import (
    BRACKETS,
    LONGEST_ROW,
    SEPARATORS,
    Row,
    occurrences,
    quoted_spans,
    rows_of,
    without_lead,
)
from acclimate.language.patterns.text import Line, Reading, Span, after_number, after_signs, is_open, unwrapped

_BETWEEN: Final = (", ", "; ", ",", ";", " | ", " / ", ". ", "，", "、", "。", "  ", " • ", " and ", " ")
_MOST_CUTS: Final = 200
_LEAD_SIGNS: Final = (
    ". ", ": ", "? ", "! ", "; ", "：", "。", " - ", " — ", "\n", "e.g. ", "e.g., ", "example, ", "instance, ",
)  # fmt: skip
_AND: Final = frozenset("and so then et und y but that if e".split())


class _Piece(NamedTuple):
    """What stands between two cuts of a line, and where the separator is in it."""

    start: int
    end: int
    places: list[Span]


def beside_each_other(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield the readings of the last line that holds several pairs, for each separator."""
    rows = rows_of(text, lines)
    for name, signs, spaced in SEPARATORS:
        if name in {"tab", "spaces", "comma", "semicolon", "dots"} or not any(sign in text for sign in signs):
            continue
        for index in range(len(rows) - 1, -1, -1):
            row = rows[index]
            if row.end - row.start > LONGEST_ROW:
                continue
            found = occurrences(text, row.start, row.end, name, signs, spaced)
            if len(found) >= 2:
                yield from _in_row(text, rows, index, found, name, signs)
                break


def _in_row(
    text: str, rows: Sequence[Row], index: int, found: list[Span], name: str, signs: Sequence[str]
) -> Iterator[Reading]:
    row = rows[index]
    quoted = quoted_spans(text, row.start, row.end)[:60]
    for between in _BETWEEN:
        if between not in text[row.start : row.end] or (between.strip() and between.strip() in signs):
            continue
        pieces = _pieces(text, row, found, between, quoted)
        if sum(bool(piece.places) for piece in pieces) < 2 or any(len(piece.places) > 1 for piece in pieces[1:]):
            continue
        reading = _read(text, rows, index, pieces, between, name)
        if reading is not None:
            yield reading
            if reading.query is not None and len(reading.pairs) >= 2:
                return


def _pieces(text: str, row: Row, found: list[Span], between: str, quoted: Sequence[Span]) -> list[_Piece]:
    """Return the line cut at ``between``, not inside of quotes."""
    edges = [row.start]
    at = text.find(between, row.start, row.end)
    while at >= 0 and len(edges) < _MOST_CUTS:
        if not any(a < at < b for a, b in quoted):
            edges.append(at)
        at = text.find(between, at + len(between), row.end)
    pieces: list[_Piece] = []
    position = 0
    for left, right in zip(edges, [*edges[1:], row.end], strict=True):
        start = left + (len(between) if left != row.start else 0)
        inside = []
        while position < len(found) and found[position][0] < right:
            if found[position][0] >= start - 1:
                inside.append(found[position])
            position += 1
        pieces.append(_Piece(start, right, inside))
    return pieces


def _read(
    text: str, rows: Sequence[Row], index: int, pieces: Sequence[_Piece], between: str, name: str
) -> Reading | None:
    row = rows[index]
    final = max(number for number, piece in enumerate(pieces) if piece.places)
    pairs: list[tuple[Span, Span]] = []
    query: Span | None = None
    cue, flaws, tail = "", 0, 0
    rest_at: int | None = None
    facts: tuple[tuple[str, float], ...] = ()
    for number, piece in enumerate(pieces):
        if not piece.places:
            if pairs:
                rest_at = piece.start if rest_at is None else rest_at
                flaws += number < final
            continue
        place = piece.places[-1]
        start = _after_and(text, piece.start, place[0]) if pairs else _after_lead(text, piece.start, place[0])
        if not text[start : place[0]].strip():
            flaws += 1
            continue
        given = unwrapped(text, (start, place[0]), comma=True)
        end = text.find(")", place[1], piece.end) if name == "bracket" else piece.end
        right = (place[1], end if end >= 0 else piece.end)
        if number == final and is_open(text[slice(*right)]):
            query, cue = without_lead(text, given, [g for g, _ in pairs]), text[slice(*right)].strip()
            tail = row.end - piece.end + sum(r.end - r.start for r in rows[index + 1 :])
            break
        if number == final:
            # The last pair may be followed by a sentence that asks.
            stop = _sentence_end(text, right[0], row.end if between == ". " else right[1])
            if stop is not None and text[stop : row.end].strip(" .?!"):
                right = (right[0], stop)
                rest_at = stop + 1
        pairs.append((given, _closed(text, without_stop(text, unwrapped(text, right, comma=True)))))
    slot = query is not None
    pairs = _same_words(text, pairs)
    if query is None and pairs:
        start = rest_at if rest_at is not None else rows[index + 1].start if index + 1 < len(rows) else len(text)
        asked = asked_item(text, (start, rows[-1].end), [text[slice(*given)] for given, _ in pairs])
        tail = max(0, rows[-1].end - start)
        if asked is not None:
            query, how, tail = asked
            facts = ((f"asked_{how}", 1.0),)
    if not pairs or (len(pairs) < 2 and query is None):
        return None
    facts = (
        ("in_line", 1.0), (f"between_{between.strip() or 'space'}", 1.0), ("tail", min(1.0, tail / 60)),
        ("plain_above", float(index > 0)), *facts,
    )  # fmt: skip
    block = (pairs[0][0][0], rows[-1].end)
    return Reading(f"{name}_inline", tuple(pairs), query, block, ("", ""), slot, cue, flaws, facts)


def _after_lead(text: str, start: int, end: int) -> int:
    """Return where the first item begins: after the last sentence or colon in front of it."""
    best = start
    for sign in _LEAD_SIGNS:
        at = text.rfind(sign, start, end - 1)
        if at >= 0 and text[at + len(sign) : end].strip():
            best = max(best, at + len(sign))
    for opening, closing in BRACKETS.items():
        at = text.rfind(opening, best, end)
        if (
            at >= 0
            and closing not in text[at:end]
            and text[at + 1 : end].strip()
            and (at == best or text[at - 1] in " =(")
        ):
            best = at + 1
    return _after_and(text, best, end)


def _closed(text: str, span: Span) -> Span:
    """Return the span without closing brackets at its end that nothing in it opens."""
    start, end = span
    while end > start + 1 and text[end - 1] in ")]}":
        opening = "([{"[")]}".index(text[end - 1])]
        if text.count(opening, start, end) >= text.count(text[end - 1], start, end):
            break
        end -= 1
        start, end = unwrapped(text, (start, end), comma=True)
    return start, end


def _same_words(text: str, pairs: list[tuple[Span, Span]]) -> list[tuple[Span, Span]]:
    """Return the pairs with the first input cut to as many words as all others have: words before it introduce it."""
    if len(pairs) < 3:
        return pairs
    counts = {len(text[a:b].split()) for (a, b), _ in pairs[1:]}
    start, end = pairs[0][0]
    words = text[start:end].split()
    if len(counts) == 1 and len(words) > (most := counts.pop()):
        at = end
        for word in reversed(words[-most:]):
            at = text.rfind(word, start, at)
        return [(unwrapped(text, (at, end), comma=True), pairs[0][1]), *pairs[1:]]
    return pairs


def _after_and(text: str, start: int, end: int) -> int:
    """Return where an item begins after a word such as ``and``."""
    start = after_signs(text, start, end, " \t")
    if text.startswith("e.g. ", start):
        start += 5
    start = after_number(text, start, end)
    stop = start
    while stop < end and text[stop].isalpha():
        stop += 1
    word = text[start:stop].lower()
    if word in _AND and stop < end and text[stop].isspace() and text[stop:end].strip():
        return stop + 1
    return start


def _sentence_end(text: str, start: int, end: int) -> int | None:
    """Return where the first sentence ends, or None."""
    for sign in (". ", "? ", "! ", ", what", "; what", "。"):
        at = text.find(sign, start, end)
        if at >= 0:
            return at
    return None


def without_stop(text: str, span: Span) -> Span:
    """Return the span without a full stop at its end, where it is a single word or number."""
    start, end = span
    if (
        end > start
        and text[end - 1] in ".。"
        and not any(c.isspace() for c in text[start:end])
        and text[start : end - 1].count(".") == 0
    ):
        return unwrapped(text, (start, end - 1))
    return span

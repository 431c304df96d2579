"""Units of a prompt (lines, sentences or clauses) that are equal but for two gaps, which are input and output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from acclimate.language.patterns.asked import asked_item
from acclimate.language.patterns.inline import without_stop
from acclimate.language.patterns.text import Line, Reading, Span, is_open, trimmed, unwrapped

_MOST_UNITS: Final = 40
_LONGEST_UNIT: Final = 300
_MOST_TOKENS: Final = 60


def frames(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield the reading of units (lines, sentences or clauses) that are equal but for two gaps."""
    if len(text) > 12_000:
        return
    for units in (
        _line_units(lines),
        _units(text, (". ", "! ", "? ", "; ", "\n", "。")),
        _units(text, (", ", ". ", "; ", "? ", "\n", "。", "，")),
    ):
        units = [u for u in units if u[1] - u[0] <= _LONGEST_UNIT][:_MOST_UNITS]
        if len(units) < 3:
            continue
        for first, second in ((0, 1), (1, 2), (2, 3)):
            if second >= len(units):
                break
            frame = _frame(_tokens(text, units[first]), _tokens(text, units[second]))
            if frame is None:
                continue
            found = _filled(text, units, frame)
            if found is not None and len(found.pairs) >= 2:
                yield found
                break


def _line_units(lines: Sequence[Line]) -> list[Span]:
    return [(line.start, line.end) for line in lines if not line.blank]


def _units(text: str, stops: Sequence[str]) -> list[Span]:
    found: list[Span] = []
    begin = at = 0
    size = len(text)
    firsts = frozenset(stop[0] for stop in stops)
    while at < size and len(found) < _MOST_UNITS:
        if text[at] in firsts and text.startswith(tuple(stops), at):
            span = trimmed(text, begin, at + (text[at] in ".?!"))
            if span[0] < span[1]:
                found.append(span)
            begin = at + 1
        at += 1
    if len(found) < _MOST_UNITS:
        span = trimmed(text, begin, size)
        if span[0] < span[1]:
            found.append(span)
    return found


def _tokens(text: str, span: Span) -> list[str]:
    """Return words, runs of white space and single signs."""
    found: list[str] = []
    for sign in text[span[0] : span[1]]:
        kind = 0 if sign.isalnum() else 1 if sign.isspace() else 2
        if found and kind < 2 and (found[-1][0].isalnum() if kind == 0 else found[-1][0].isspace()):
            found[-1] += sign
        else:
            found.append(sign)
    return found[: 2 * _MOST_TOKENS]


def _frame(left: list[str], right: list[str]) -> tuple[str, str, str] | None:
    """Return the text before, between and after the two gaps of a template that fits both units, or None."""
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    end = 0
    while end < min(len(left), len(right)) - start and left[-1 - end] == right[-1 - end]:
        end += 1
    inner_left, inner_right = left[start : len(left) - end], right[start : len(right) - end]
    if not inner_left or not inner_right or len(inner_left) > _MOST_TOKENS or len(inner_right) > _MOST_TOKENS:
        return None
    best: tuple[int, int, int] = (0, 0, 0)
    lengths = [0] * (len(inner_right) + 1)
    for i, token in enumerate(inner_left):
        row = [0] * (len(inner_right) + 1)
        for j, other in enumerate(inner_right):
            if token == other:
                row[j + 1] = lengths[j] + 1
                size = row[j + 1]
                weight = sum(len(t.strip()) for t in inner_left[i - size + 1 : i + 1])
                if i - size + 1 > 0 and j - size + 1 > 0 and weight > best[0]:
                    best = weight, i - size + 1, size
        lengths = row
    weight, at, size = best
    between = "".join(inner_left[at : at + size])
    if weight < 1 or not between.strip() or at + size >= len(inner_left):
        return None
    return "".join(left[:start]), between, "".join(left[len(left) - end :]) if end else ""


def _filled(text: str, units: Sequence[Span], frame: tuple[str, str, str]) -> Reading | None:
    before, between, behind = (part.strip() for part in frame)
    pairs: list[tuple[Span, Span]] = []
    query: Span | None = None
    asked_at = -1
    first = last = -1
    flaws = 0
    for index, (start, end) in enumerate(units):
        at = text.find(before, start, end) if before else start
        place = text.find(between, at + len(before), end) if at >= 0 else -1
        fits = at >= 0 and (at == start or not pairs) and place >= 0
        if fits:
            stop = end
            if behind and text.endswith(behind, place, end):
                stop = end - len(behind)
            given = unwrapped(text, (at + len(before), place), comma=True)
            answer = without_stop(text, unwrapped(text, (place + len(between), stop), comma=True))
            shown = text[answer[0] : answer[1]]
            if given[0] >= given[1]:
                fits = False
            elif is_open(shown):
                query, asked_at = given, index
            else:
                pairs.append((given, answer))
                first = index if first < 0 else first
                last = index
                if query is not None:
                    flaws += 1
        if not fits and pairs:
            rest = text[at + len(before) : end] if at == start and before else ""
            # The open unit may stop anywhere in the words between the gaps.
            for length in range(len(between), 0, -1):
                part = between[:length].strip()
                if part and rest.rstrip(" ?_.…\"'").endswith(part):
                    query = unwrapped(text, (at + len(before), at + len(before) + rest.rfind(part)), comma=True)
                    asked_at = index
                    break
            else:
                if index < len(units) - 1:
                    flaws += 1
    if len(pairs) < 2:
        return None
    facts: tuple[tuple[str, float], ...] = ()
    tail = 0
    if query is None and last + 1 < len(units):
        asked = asked_item(text, (units[last + 1][0], units[-1][1]), [text[a:b] for (a, b), _ in pairs])
        if asked is None and before:
            asked = _repeated_lead(text, units[-1], before)
        if asked is not None:
            query, how, tail = asked
            facts = ((f"asked_{how}", 1.0),)
    elif query is not None:
        tail = sum(b - a for a, b in units[asked_at + 1 :])
    words = len(between.split())
    facts = (
        *facts, ("tail", min(1.0, tail / 60)), ("between_words", float(min(4, words))), ("has_before", float(bool(before))),
        ("has_behind", float(len(behind) > 1)), ("first_unit", float(first == 0)), ("slot", float(asked_at >= 0)),
    )  # fmt: skip
    return Reading(
        "frame", tuple(pairs), query, (units[first][0], len(text)), ("", ""), asked_at >= 0, "", flaws, facts
    )


def _repeated_lead(text: str, unit: Span, before: str) -> tuple[Span, str, int] | None:
    """Find the open item behind words that stand before every input: ``if I type 10, what will I see?``."""
    words = before.split()
    for count in range(min(3, len(words)), 0, -1):
        lead = " ".join(words[-count:])
        at = text.lower().find(lead.lower(), *unit)
        if at >= 0:
            start = at + len(lead)
            stop = start
            while stop < unit[1] and (
                text[stop] not in ",;?!\n"
                and not (text[stop] == "." and (stop + 1 >= unit[1] or text[stop + 1].isspace()))
            ):
                stop += 1
            span = unwrapped(text, (start, stop), comma=True)
            if span[0] < span[1] and len(text[span[0] : span[1]].split()) <= 4:
                return span, "lead_again", 0
    return None

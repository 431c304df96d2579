"""Examples around a separator (an arrow, an equals sign, a colon, ...): one per line, or several on a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from acclimate.language.patterns.asked import asked_item
from acclimate.language.patterns.records import MOST_RECORDS
from acclimate.language.patterns.roles import is_answering, is_asking
from acclimate.language.patterns.text import (
    Line,
    Reading,
    Span,
    after_announcement,
    after_bullet,
    after_number,
    is_answer_sign,
    is_open,
    is_rule,
    trimmed,
    unwrapped,
    words_of,
)

ARROWS: Final = (
    "-->",
    "==>",
    "--->",
    "->",
    "=>",
    "~>",
    "→",
    "⟶",
    "➜",
    "➔",
    "⇒",
    "⟹",
    "➡️",
    "➡",
    "↦",
    "|->",
    ">>>",
    ">>",
    "👉",
    "▶",
    "»»",
)
WORDS: Final = (
    "becomes", "become", "turns into", "maps to", "is mapped to", "gives", "yields", "returns", "translates to", "corresponds to", "means", "goes to",
    "changes to", "is", "wird zu", "devient", "as", "-->", "is to", "expands to", "encodes to", "equals", "was changed to",
)  # fmt: skip
#: Separators by name: the signs, and whether white space must stand around them.
SEPARATORS: Final[tuple[tuple[str, tuple[str, ...], bool], ...]] = (
    ("arrow", ARROWS, False),
    ("tab", ("\t",), False),
    ("bar", ("||", "|"), False),
    ("double_colon", ("::", "∷"), False),
    ("equals", ("==", "="), False),
    ("tilde", ("~",), True),
    ("dash", ("-", "–", "—", "--"), True),
    ("slash", ("/", "//"), True),
    ("dots", ("....", "...", "…"), False),
    ("greater", (">",), True),
    ("colon", (":", "："), False),
    ("semicolon", (";",), False),
    ("word", WORDS, True),
    ("comma", (",", "，", "、"), False),
    ("spaces", ("   ",), False),
    ("bracket", ("(",), False),
)
#: Separators behind which code may stand, which keeps its semicolon.
_CODE: Final = frozenset({"arrow", "tab", "bar"})
BRACKETS: Final = {"(": ")", "[": "]", "{": "}"}
#: Words at the start of a row that introduce the open item.
_LEADS: Final = frozenset(
    "now your and query next then test try todo new question complete final last finally homework mine predict".split()
)
_MOST_ROWS: Final = 400
LONGEST_ROW: Final = 4000


@dataclass(frozen=True, slots=True)
class Row:
    """A line without bullets and numbers in front, and which of those it had."""

    start: int
    end: int
    paragraph: int
    bulleted: bool
    numbered: bool
    announced: bool


def by_separator(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield one or two readings for each separator that stands on the lines of a prompt."""
    rows = rows_of(text, lines)
    if not 2 <= len(rows) <= _MOST_ROWS:
        return
    for name, signs, spaced in SEPARATORS:
        if name != "bracket" and any(sign in text for sign in signs):
            yield from _on_rows(text, rows, name, signs, spaced)


def rows_of(text: str, lines: Sequence[Line]) -> list[Row]:
    """Return the lines of a prompt that have text; a heading such as ``Example 2`` is joined with the line below it."""
    found: list[Row] = []
    paragraph = 0
    for line in lines:
        if line.blank:
            paragraph += 1
            continue
        shown = text[line.start : line.end]
        if (is_rule(shown) and "=" not in shown) or shown.startswith("```"):
            continue
        start = after_bullet(text, line.start, line.end)
        bulleted = start > line.start
        past = after_announcement(text, start, line.end)
        announced = past > start
        if not announced:
            past = after_number(text, start, line.end)
        numbered = past > start and not announced
        tail = line.end
        if text.startswith("\t", tail) or text.startswith("   ", tail):
            tail += 1
        found.append(Row(past, tail, paragraph, bulleted, numbered, announced))
    merged: list[Row] = []
    for row in found:
        # A heading without text of its own announces the line below it.
        if merged and merged[-1].start >= merged[-1].end and (merged[-1].announced or merged[-1].numbered):
            before = merged.pop()
            row = Row(row.start, row.end, row.paragraph, row.bulleted, before.numbered, before.announced)
        merged.append(row)
    return [row for row in merged if row.start < row.end]


def quoted_spans(text: str, start: int, end: int) -> list[Span]:
    """Return the spans between double quotes on a line; none where they do not pair."""
    if end - start > LONGEST_ROW or text.count('"', start, end) % 2:
        return []
    found, at = [], text.find('"', start, end)
    while at >= 0:
        stop = text.find('"', at + 1, end)
        if stop < 0:
            break
        found.append((at, stop))
        at = text.find('"', stop + 1, end)
    return found


def occurrences(
    text: str, start: int, end: int, name: str, signs: Sequence[str], spaced: bool, most: int = 40
) -> list[Span]:
    """Return where the signs stand in a line, outside of double quotes."""
    present = [sign for sign in signs if text.find(sign, start, end) >= 0]
    if not present:
        return []
    found: list[Span] = []
    for sign in present:
        at = text.find(sign, start, end)
        while at >= 0 and len(found) < 4 * most:
            stop = at + len(sign)
            if _fits(text, at, stop, start, end, name, spaced):
                found.append((at, stop))
            at = text.find(sign, stop, end)
    found.sort(key=lambda span: (span[0], -span[1]))
    kept: list[Span] = []
    for span in found:
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    if name not in {"tab", "spaces"} and (quoted := quoted_spans(text, start, end)):
        outside = [s for s in kept if not any(a < s[0] < b for a, b in quoted[:60])]
        kept = outside or kept
    return kept[:most]


def _fits(text: str, at: int, stop: int, start: int, end: int, name: str, spaced: bool) -> bool:
    before = text[at - 1] if at > start else " "
    after = text[stop] if stop < end else " "
    if spaced:
        return at > start and (before.isspace() or before in "\"'”’`)]") and (after.isspace() or after in "\"'“‘`?")
    if name == "equals":
        return before not in "<>!=~+-*/" and after not in "=>~"
    if name == "colon":
        if after == "/" or after == ":" or before == ":":
            return False
        return not (before.isdigit() and after.isdigit())
    if name == "arrow":
        return after != ">"
    if name == "comma":
        return not (before.isdigit() and after.isdigit())
    return True


def _on_rows(text: str, rows: list[Row], name: str, signs: Sequence[str], spaced: bool) -> Iterator[Reading]:
    places = [occurrences(text, row.start, row.end, name, signs, spaced, most=8) for row in rows]
    good = [bool(p) and _left(text, row, p[0]) for row, p in zip(rows, places, strict=True)]
    if sum(good) < 2:
        return
    begin = _block_begin(text, rows, places, good)
    if begin is None:
        return
    several = any(len(p) > 1 for p, row in zip(places[begin:], rows[begin:], strict=True))
    seen: set[tuple[Span, ...]] = set()
    for which in ("first", "last") if several else ("first",):
        for skip in (0, 1):
            if not skip and begin + 2 < len(rows) and _names_columns(text, rows[begin], rows[begin + 1 :]):
                continue
            if skip and not _odd_first(rows, places, begin, text):
                continue
            above = (rows[0].start, rows[begin - 1].end) if 0 < begin <= 3 else None
            found = _block(text, rows[begin + skip :], places[begin + skip :], name, which, above)
            if found is not None:
                key = tuple(span for pair in found.pairs for span in pair)
                if key not in seen:
                    seen.add(key)
                    yield found


def _left(text: str, row: Row, place: Span) -> bool:
    return bool(text[row.start : place[0]].strip(" \t\"'*|"))


def _block_begin(text: str, rows: list[Row], places: list[list[Span]], good: list[bool]) -> int | None:
    """Return the first row of the examples: instructions above them may hold the separator too."""
    at = next((i for i, fits in enumerate(good) if fits and not is_open(text[places[i][0][1] : rows[i].end])), None)
    if at is None:
        return None
    counts: dict[int, int] = {}
    plain: dict[int, int] = {}
    for row, fits in zip(rows, good, strict=True):
        if fits:
            counts[row.paragraph] = counts.get(row.paragraph, 0) + 1
        else:
            plain[row.paragraph] = plain.get(row.paragraph, 0) + 1
    most = max(counts.values())
    if most >= 2 and counts[rows[at].paragraph] < most:
        # The paragraph with most pairs, and what follows it, is the list.
        main = next(p for p in counts if counts[p] == most)
        if rows[at].paragraph < main and (counts[rows[at].paragraph] == 1 or plain.get(rows[at].paragraph)):
            at = next(i for i, row in enumerate(rows) if row.paragraph == main and good[i])
    if all(text[a:b] in ":：" for found in places for a, b in found[:1]):
        # A line that ends in a colon announces what follows.
        for index in range(min(len(rows) - 3, at + 3), at - 1, -1):
            if good[index] and not text[places[index][-1][1] : rows[index].end].strip():
                at = next(i for i in range(index + 1, len(rows)) if good[i] or i == len(rows) - 1)
                break
    if not good[at]:
        return None
    # A sentence with the separator in it, followed by a line without one, is not the first example.
    while at + 2 < len(rows) and not good[at + 1] and sum(good[at + 2 :]) >= 2 and not rows[at].numbered:
        following = next((i for i in range(at + 1, len(rows)) if good[i]), None)
        if following is None:
            break
        at = following
    return at


def _odd_first(rows: list[Row], places: list[list[Span]], begin: int, text: str) -> bool:
    """Return whether the first row looks unlike the others, as an instruction does."""
    if begin + 3 > len(rows) or not places[begin + 1]:
        return False
    first, others = rows[begin], rows[begin + 1 :]
    if _names_columns(text, first, others):
        return True
    if first.numbered or first.announced:
        return False
    if any(row.numbered or row.bulleted or row.announced for row in others[:2]) and not first.bulleted:
        return True
    shown = text[first.start : first.end]
    usual = max(row.end - row.start for row in others)
    if shown.endswith((".", "!", "?")) or len(shown) > 1.3 * usual or first.paragraph != others[0].paragraph:
        return True
    words = [len(text[r.start : p[0][0]].split()) for r, p in zip(rows[begin:], places[begin:], strict=True) if p]
    return words[0] > 2 + max(words[1:])


def _names_columns(text: str, first: Row, others: Sequence[Row]) -> bool:
    """Return whether a row names the columns: it is in capitals and the others are not, or it holds labels."""
    shown = text[first.start : first.end]
    if shown.isupper() and not any(text[row.start : row.end].isupper() for row in others):
        return True
    words = words_of(shown)
    return 2 <= len(words) <= 4 and is_asking(words[0]) and is_answering(words[-1])


class _Entry(NamedTuple):
    """A row that holds the separator: its number, and what stands on both sides."""

    at: int
    left: Span
    right: Span


@dataclass(slots=True)
class _Asked:
    """The open item of a block, and what is known about it."""

    query: Span | None = None
    slot: bool = False
    cue: str = ""
    tail: int = 0
    end: int = 0
    flaws: int = 0
    facts: tuple[tuple[str, float], ...] = ()


def _entries(text: str, rows: Sequence[Row], places: Sequence[list[Span]], which: str) -> list[_Entry]:
    """Return the rows with the separator, split at its first or last place."""
    found = []
    for index, (row, place_of) in enumerate(zip(rows, places, strict=True)):
        if not place_of or not _left(text, row, place_of[0]):
            continue
        place = place_of[0] if which == "first" else place_of[-1]
        ends_open = is_open(text[place_of[-1][1] : row.end]) and text[row.start : place_of[-1][0]].strip()
        if ends_open and index == len(rows) - 1:
            place = place_of[-1]
        start = row.start + 7 if text.startswith("assert ", row.start) else row.start
        found.append(_Entry(index, (start, place[0]), (place[1], row.end)))
    return found


def _block(
    text: str, rows: list[Row], places: list[list[Span]], name: str, which: str, above: Span | None
) -> Reading | None:
    """Return the reading of rows that hold the separator; ``above`` is a short passage in front of them."""
    entries = _entries(text, rows, places, which)
    if not 2 <= len(entries) <= MOST_RECORDS:
        return None
    quotes = not text.startswith("assert ", rows[0].start)
    pairs: list[tuple[Span, Span]] = []
    waiting: list[_Entry] = []
    last = entries[-1]
    for entry in entries:
        shown = text[slice(*entry.right)]
        if is_open(shown) and (entry is last or not is_answer_sign(shown)):
            waiting.append(entry)
        else:
            pairs.append((_side(text, entry.left, quotes, name), _side(text, entry.right, quotes, name)))
    asked = _open_item(text, rows, entries, waiting, pairs, quotes, name)
    if asked.query is None and asked.tail == 0 and above is not None and pairs:
        found = asked_item(text, above, [text[slice(*given)] for given, _ in pairs])
        if found is not None and found[1] in {"quoted", "colon", "alike"}:
            asked.query, how, asked.tail = found
            asked.facts = ((f"asked_{how}", 1.0), ("asked_above", 1.0))
    if not pairs:
        return None
    has_place = {entry.at for entry in entries}
    many = sum(len(places[entry.at]) > 1 for entry in entries)
    flaws = asked.flaws + sum(index not in has_place for index in range(last.at))
    chosen = [rows[entry.at] for entry in entries]
    facts = (
        ("tail", min(1.0, asked.tail / 60)),
        ("several_separators", many / len(entries)),
        ("last_separator", float(which == "last" and many > 0)),
        ("numbered", float(sum(row.numbered for row in chosen) >= 2)),
        ("bulleted", float(sum(row.bulleted for row in chosen) >= 2)),
        ("announced", float(any(row.announced for row in chosen))),
        ("apart", float(len({row.paragraph for row in chosen[:-1]}) > 1)),
        *asked.facts,
    )
    pairs = [_without_bracket(text, given, answer) for given, answer in pairs]
    query = _bracket_opened(text, asked.query) if asked.query is not None else None
    return Reading(name, tuple(pairs), query, (rows[0].start, asked.end), ("", ""), asked.slot, asked.cue, flaws, facts)


def _open_item(
    text: str, rows: list[Row], entries: list[_Entry], waiting: list[_Entry], pairs: list[tuple[Span, Span]],
    quotes: bool, name: str,
) -> _Asked:  # fmt: skip
    """Return the open item: a row without an output, a sentence behind the rows, or the last row behind a word like ``now``."""
    last = entries[-1]
    trailing = rows[last.at + 1 :]
    behind = sum(row.end - row.start for row in trailing)
    inputs = [given for given, _ in pairs]
    if waiting and waiting[-1] is last:
        query = without_lead(text, _side(text, last.left, quotes, name), inputs)
        cue = text[slice(*last.right)].strip()
        return _Asked(query, True, cue, behind, rows[last.at].end, len(waiting) - 1)
    if len(waiting) == 1:
        query = _side(text, waiting[0].left, quotes, name)
        return _Asked(query, True, "", behind, rows[-1].end, 1)
    if trailing:
        found = asked_item(text, (trailing[0].start, trailing[-1].end), [text[slice(*given)] for given in inputs])
        if found is None:
            return _Asked(tail=behind, end=rows[-1].end, flaws=len(waiting))
        query, how, tail = found
        return _Asked(query, tail=tail, end=rows[-1].end, flaws=len(waiting), facts=((f"asked_{how}", 1.0),))
    lead = text[slice(*last.left)].strip().lower()
    if len(pairs) > 1 and (lead.partition(" ")[0] in _LEADS or lead.startswith("please complete")):
        pairs.pop()
        query = _side(text, last.right, quotes, name)
        return _Asked(query, end=rows[-1].end, flaws=len(waiting), facts=(("asked_lead", 1.0),))
    return _Asked(end=rows[-1].end, flaws=len(waiting))


def _without_bracket(text: str, left: Span, right: Span) -> tuple[Span, Span]:
    """Return a pair without the brackets around the two of it: ``(red, #FF0000)``."""
    opened = _bracket_opened(text, left)
    if right[0] == right[1]:
        return left, right
    if opened != left and text[right[1] - 1] == BRACKETS[text[left[0]]] and right[1] - right[0] > 1:
        return unwrapped(text, opened), unwrapped(text, (right[0], right[1] - 1))
    return left, right


def _bracket_opened(text: str, span: Span) -> Span:
    """Return the span without a bracket at its start that is not closed in it."""
    start, end = span
    closing = BRACKETS.get(text[start : start + 1], "")
    return (start + 1, end) if closing and end - start > 1 and closing not in text[start:end] else span


def without_lead(text: str, query: Span, inputs: Sequence[Span]) -> Span:
    """Return the open item without an introduction that no other item has: ``Now: tea =``."""
    start, end = query
    for sign in (": ", "? ", "：", ", "):
        at = text.find(sign, start, end)
        if at < 0 or any(sign in text[a:b] for a, b in inputs):
            continue
        lead = text[start:at].lower().split()
        if (
            len(lead) <= 5
            and text[at + len(sign) : end].strip()
            and (sign != ", " or lead[:1] in (["and"], ["now"], ["then"]))
        ):
            return unwrapped(text, (at + len(sign), end), comma=True)
    return query


def _side(text: str, span: Span, quotes: bool, name: str) -> Span:
    start, end = trimmed(text, *span)
    if name == "bar":
        start, end = trimmed(text, start, end, "|")
    start, end = unwrapped(text, (start, end), quotes=quotes, comma=True, semicolon=name not in _CODE)
    return start, end

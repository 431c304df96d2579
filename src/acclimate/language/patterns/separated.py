"""Examples around a separator (an arrow, an equals sign, a colon, ...): one per line, or several on a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from acclimate.language.patterns.asked import asked_item
from acclimate.language.patterns.fields import MOST_RECORDS
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
_BETWEEN: Final = (", ", "; ", ",", ";", " | ", " / ", ". ", "，", "、", "。", "  ", " • ", " and ", " ")
_MOST_ROWS: Final = 400
_LONGEST_ROW: Final = 4000


@dataclass(frozen=True, slots=True)
class _Row:
    start: int
    end: int
    paragraph: int
    bulleted: bool
    numbered: bool
    announced: bool


def by_separator(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield one or two readings for each separator."""
    rows = _rows(text, lines)
    if not rows:
        return
    for name, signs, spaced in SEPARATORS:
        if not any(sign in text for sign in signs):
            continue
        if 2 <= len(rows) <= _MOST_ROWS and name != "bracket":
            yield from _on_rows(text, rows, name, signs, spaced)
        if name not in {"tab", "spaces", "comma", "semicolon", "dots"}:
            yield from _in_line(text, rows, name, signs, spaced)


def _rows(text: str, lines: Sequence[Line]) -> list[_Row]:
    found: list[_Row] = []
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
        found.append(_Row(past, tail, paragraph, bulleted, numbered, announced))
    merged: list[_Row] = []
    for row in found:
        # A heading without text of its own announces the line below it.
        if merged and merged[-1].start >= merged[-1].end and (merged[-1].announced or merged[-1].numbered):
            before = merged.pop()
            row = _Row(row.start, row.end, row.paragraph, row.bulleted, before.numbered, before.announced)
        merged.append(row)
    return [row for row in merged if row.start < row.end]


def _quoted(text: str, start: int, end: int) -> list[Span]:
    """Return the spans between double quotes on a line; none where they do not pair."""
    if end - start > _LONGEST_ROW or text.count('"', start, end) % 2:
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
    if name not in {"tab", "spaces"} and (quoted := _quoted(text, start, end)):
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


def _on_rows(text: str, rows: list[_Row], name: str, signs: Sequence[str], spaced: bool) -> Iterator[Reading]:
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
            found = _block(text, rows[begin + skip :], places[begin + skip :], name, which, begin + skip, above)
            if found is not None:
                key = tuple(span for pair in found.pairs for span in pair)
                if key not in seen:
                    seen.add(key)
                    yield found


def _left(text: str, row: _Row, place: Span) -> bool:
    return bool(text[row.start : place[0]].strip(" \t\"'*|"))


def _block_begin(text: str, rows: list[_Row], places: list[list[Span]], good: list[bool]) -> int | None:
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


def _odd_first(rows: list[_Row], places: list[list[Span]], begin: int, text: str) -> bool:
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


def _names_columns(text: str, first: _Row, others: Sequence[_Row]) -> bool:
    """Return whether a row names the columns: it is in capitals and the others are not, or it holds labels."""
    shown = text[first.start : first.end]
    if shown.isupper() and not any(text[row.start : row.end].isupper() for row in others):
        return True
    words = words_of(shown)
    return 2 <= len(words) <= 4 and is_asking(words[0]) and is_answering(words[-1])


def _block(
    text: str,
    rows: list[_Row],
    places: list[list[Span]],
    name: str,
    which: str,
    above: int,
    above_text: Span | None = None,
) -> Reading | None:
    entries: list[tuple[int, Span, Span]] = []
    plain: list[int] = []
    flaws = 0
    many = 0
    for index, (row, found) in enumerate(zip(rows, places, strict=True)):
        if not found or not _left(text, row, found[0]):
            plain.append(index)
            continue
        place = found[0] if which == "first" else found[-1]
        if is_open(text[found[-1][1] : row.end]) and text[row.start : found[-1][0]].strip():
            place = (
                found[-1]
                if which == "last"
                or len(found) == 1
                or not text[found[0][1] : row.end].strip()
                or index == len(rows) - 1
                else found[0]
            )
        many += len(found) > 1
        entries.append((index, (row.start, place[0]), (place[1], row.end)))
    if len(entries) < 2 or len(entries) > MOST_RECORDS:
        return None
    asserted = text.startswith("assert ", rows[0].start)
    quotes = not asserted
    if asserted:
        entries = [(i, (a + 7 if text.startswith("assert ", a) else a, b), right) for i, (a, b), right in entries]
    closing = name == "bar"
    pairs: list[tuple[Span, Span]] = []
    query: Span | None = None
    slot, cue, tail, end = False, "", 0, rows[-1].end
    last = entries[-1][0]
    waiting: list[tuple[int, Span]] = []
    for index, left, right in entries:
        given = _side(text, left, quotes, name)
        answer = _side(text, right, quotes, name)
        shown = text[right[0] : right[1]]
        if is_open(shown) and (index == last or not is_answer_sign(shown)):
            waiting.append((index, given))
            continue
        if closing and answer[1] > answer[0] and text[answer[1] - 1] == "|":
            answer = trimmed(text, answer[0], answer[1] - 1)
        pairs.append((given, answer))
    inner_plain = [i for i in plain if i < last]
    trailing = [i for i in plain if i > last]
    flaws += len(inner_plain)
    asked_facts: tuple[tuple[str, float], ...] = ()
    if waiting and waiting[-1][0] == last:
        query, slot = _without_lead(text, waiting[-1][1], [g for g, _ in pairs]), True
        end = rows[last].end
        cue = text[entries[-1][2][0] : entries[-1][2][1]].strip()
        tail = sum(rows[i].end - rows[i].start for i in trailing)
        flaws += len(waiting) - 1
    elif len(waiting) == 1:
        query, slot = waiting[0][1], True
        flaws += 1
        tail = sum(rows[i].end - rows[i].start for i in trailing)
    elif trailing:
        found = asked_item(text, (rows[trailing[0]].start, rows[trailing[-1]].end), [text[a:b] for (a, b), _ in pairs])
        if found is not None:
            query, how, unexplained = found
            asked_facts = ((f"asked_{how}", 1.0),)
            tail = unexplained
            end = rows[trailing[-1]].end
        else:
            tail = sum(rows[i].end - rows[i].start for i in trailing)
    elif pairs:
        # The open item may be the last pair line: "Now do this one: narrow".
        index, left, right = entries[-1]
        lead = text[left[0] : left[1]].strip().lower()
        if lead.split(" ")[0] in {
            "now",
            "your",
            "and",
            "query",
            "next",
            "then",
            "test",
            "try",
            "todo",
            "new",
            "question",
            "complete",
            "final",
            "last",
            "finally",
            "homework",
            "mine",
        } or lead.startswith(("please complete", "predict")):
            pairs.pop()
            query = _side(text, right, quotes, name)
            asked_facts = (("asked_lead", 1.0),)
    if query is None and not trailing and above_text is not None:
        asked = asked_item(text, above_text, [text[a:b] for (a, b), _ in pairs])
        if asked is not None and asked[1] in {"quoted", "colon", "alike"}:
            query, how, tail = asked
            asked_facts = ((f"asked_{how}", 1.0), ("asked_above", 1.0))
    if not pairs:
        return None
    pairs = [(_open_bracket(text, a, b)) for a, b in pairs]
    if (
        query is not None
        and text[query[0]] in "([{"
        and ("()[]{}"["([{".index(text[query[0]]) * 2 + 1]) not in text[query[0] : query[1]]
    ):
        query = query[0] + 1, query[1]
    paragraphs = {rows[i].paragraph for i, _, _ in entries[:-1]}
    facts = (
        ("tail", min(1.0, tail / 60)),
        ("several_separators", many / len(entries)),
        ("last_separator", float(which == "last" and many > 0)),
        ("numbered", float(sum(rows[i].numbered for i, _, _ in entries) >= 2)),
        ("bulleted", float(sum(rows[i].bulleted for i, _, _ in entries) >= 2)),
        ("announced", float(any(rows[i].announced for i, _, _ in entries))),
        ("apart", float(len(paragraphs) > 1)),
        ("plain_above", float(above > 0)),
        *asked_facts,
    )  # fmt: skip
    return Reading(name, tuple(pairs), query, (rows[0].start, end), ("", ""), slot, cue, flaws, facts)


def _open_bracket(text: str, left: Span, right: Span) -> tuple[Span, Span]:
    """Return a pair without the brackets around the two of it: ``(red, #FF0000)``."""
    closing = {"(": ")", "[": "]", "{": "}"}.get(text[left[0]], "")
    if (
        closing
        and closing not in text[left[0] : left[1]]
        and text[right[1] - 1] == closing
        and left[1] - left[0] > 1
        and right[1] - right[0] > 1
    ):
        return unwrapped(text, (left[0] + 1, left[1])), unwrapped(text, (right[0], right[1] - 1))
    return left, right


def _without_lead(text: str, query: Span, inputs: Sequence[Span]) -> Span:
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
            and (sign != ", " or lead[0] in {"and", "now", "then"})
        ):
            return unwrapped(text, (at + len(sign), end), comma=True)
    return query


def _side(text: str, span: Span, quotes: bool, name: str) -> Span:
    start, end = trimmed(text, *span)
    if name == "bar":
        start, end = trimmed(text, start, end, "|")
    start, end = unwrapped(text, (start, end), quotes=quotes, comma=True)
    return start, end


def _in_line(text: str, rows: list[_Row], name: str, signs: Sequence[str], spaced: bool) -> Iterator[Reading]:
    """Yield the reading of the last line that holds several pairs beside each other."""
    chosen = None
    for index in range(len(rows) - 1, -1, -1):
        row = rows[index]
        if row.end - row.start > _LONGEST_ROW:
            continue
        found = occurrences(text, row.start, row.end, name, signs, spaced)
        if len(found) >= 2:
            chosen = index, found
            break
    if chosen is None:
        return
    index, found = chosen
    row = rows[index]
    quoted = _quoted(text, row.start, row.end)
    for between in _BETWEEN:
        if between not in text[row.start : row.end] or (between.strip() and between.strip() in signs):
            continue
        reading = _segments(text, rows, index, found, between, name, quoted)
        if reading is not None:
            yield reading
            if reading.query is not None and len(reading.pairs) >= 2:
                return


def _segments(
    text: str, rows: list[_Row], index: int, found: list[Span], between: str, name: str, quoted: list[Span]
) -> Reading | None:
    row = rows[index]
    cuts = []
    at = text.find(between, row.start, row.end)
    while at >= 0 and len(cuts) < 200:
        if not any(a < at < b for a, b in quoted[:60]):
            cuts.append(at)
        at = text.find(between, at + len(between), row.end)
    edges = [row.start, *[c for c in cuts], row.end]
    pairs: list[tuple[Span, Span]] = []
    query: Span | None = None
    slot, cue, flaws, tail, asked_facts = False, "", 0, 0, ()
    position = 0
    first_at = row.start
    # A run of segments without a separator belongs to the item before it: "a, b -> c" has a comma inside.
    pieces: list[tuple[int, int, list[Span]]] = []
    for left, right in zip(edges, edges[1:], strict=False):
        begin = left + (len(between) if left != row.start else 0)
        inside = []
        while position < len(found) and found[position][0] < right:
            if found[position][0] >= begin - 1:
                inside.append(found[position])
            position += 1
        pieces.append((begin, right, inside))
    with_one = sum(len(inside) >= 1 for _, _, inside in pieces)
    if with_one < 2:
        return None
    more = sum(len(inside) > 1 for _, _, inside in pieces[1:])
    if more:
        return None
    rest_at: int | None = None
    for number, (begin, end, inside) in enumerate(pieces):
        if not inside:
            if pairs:
                rest_at = begin if rest_at is None else rest_at
                flaws += number < len(pieces) - 1 and any(p[2] for p in pieces[number + 1 :])
            continue
        place = inside[-1]
        left = (_after_lead(text, begin, place[0]) if not pairs else _after_and(text, begin, place[0]), place[0])
        if not pairs:
            first_at = left[0]
        right_end = end
        if name == "bracket":
            close = text.find(")", place[1], end)
            right_end = close if close >= 0 else end
        right = (place[1], right_end)
        shown = text[right[0] : right[1]]
        if not text[left[0] : left[1]].strip():
            flaws += 1
            continue
        given = unwrapped(text, left, comma=True)
        if is_open(shown) and not any(p[2] for p in pieces[number + 1 :]):
            query, slot, cue = _without_lead(text, given, [g for g, _ in pairs]), True, shown.strip()
            tail = row.end - end + sum(r.end - r.start for r in rows[index + 1 :])
            break
        if not any(p[2] for p in pieces[number + 1 :]):
            # The last pair may be followed by a sentence that asks.
            stop = _sentence_end(text, right[0], row.end if between == ". " else right[1])
            if stop is not None and text[stop : row.end].strip(" .?!"):
                right = (right[0], stop)
                rest_at = stop + 1
        answer = without_stop(text, unwrapped(text, right, comma=True))
        answer = _closed(text, answer)
        pairs.append((given, answer))
    pairs = _same_words(text, pairs)
    if pairs:
        first_at = pairs[0][0][0]
    if query is None and pairs:
        start = rest_at if rest_at is not None else (rows[index + 1].start if index + 1 < len(rows) else None)
        if start is not None:
            asked = asked_item(text, (start, rows[-1].end), [text[a:b] for (a, b), _ in pairs])
            if asked is not None:
                query, how, tail = asked
                asked_facts = ((f"asked_{how}", 1.0),)
            else:
                tail = rows[-1].end - start
    if not pairs or (len(pairs) < 2 and query is None):
        return None
    facts = (
        ("in_line", 1.0),
        (f"between_{between.strip() or 'space'}", 1.0),
        ("tail", min(1.0, tail / 60)),
        ("plain_above", float(index > 0)),
        *asked_facts,
    )
    return Reading(f"{name}_inline", tuple(pairs), query, (first_at, rows[-1].end), ("", ""), slot, cue, flaws, facts)


def _after_lead(text: str, start: int, end: int) -> int:
    """Return where the first item begins: after the last sentence or colon in front of it."""
    best = start
    for sign in (
        ". ",
        ": ",
        "? ",
        "! ",
        "; ",
        "：",
        "。",
        " - ",
        " — ",
        "\n",
        "e.g. ",
        "e.g., ",
        "example, ",
        "instance, ",
    ):
        at = text.rfind(sign, start, end - 1)
        if at >= 0 and text[at + len(sign) : end].strip():
            best = max(best, at + len(sign))
    for opening, closing in ("()", "[]", "{}"):
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
    while start < end and text[start] in " \t":
        start += 1
    if text.startswith("e.g. ", start):
        start += 5
    start = after_number(text, start, end)
    stop = start
    while stop < end and text[stop].isalpha():
        stop += 1
    word = text[start:stop].lower()
    if (
        word in {"and", "so", "then", "et", "und", "y", "but", "that", "if", "e"}
        and stop < end
        and text[stop].isspace()
        and text[stop:end].strip()
    ):
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

"""Examples in running text: analogies, function calls, quoted pairs, repeated sentences, sequences to continue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from acclimate.language.patterns.asked import asked_item
from acclimate.language.patterns.inline import without_stop
from acclimate.language.patterns.separated import ARROWS
from acclimate.language.patterns.text import (
    Line,
    Reading,
    Span,
    after_bullet,
    after_number,
    is_open,
    trimmed,
    unwrapped,
)

_IS_TO: Final = (
    " is to ", " are to ", " is 2 ", " is related to ", " relates to ", " are related to ", " belongs to ", " es a ", " ist zu ", " verhält sich zu ", " verhalten sich zu ",
    " est à ", " is like ", " sta a ", " está para ", " staat tot ", " ma się do ", " goes with ", " belongs with ", " is analogous to ", " pairs with ",
    " corresponds to ", " is for ", " be to ", " is the counterpart of ", " stands to ", " jest do ", " is linked to ", " относится к ", "之于", " matches ", " is associated with ",
)  # fmt: skip
_AS: Final = (
    ", so ", " as ", " just as ", " like ", " como ", " wie ", " comme ", " so ", " the way ", " the same way ", " jak ", " tak jak ", " come ", " zoals ", "，正如", "正如",
    ", just as ", " what ", " ce que ", " assim como ", " so wie ", " come ", " similarly ", " then ", " analogously ", "; ", ", ", ". ", "\n", " in the same way ", " как ",
)  # fmt: skip
_ASKS: Final = frozenset(
    "what who which wat was que qué quoi whom ¿qué ¿quién quien quién welches chi czego cosa che".split()
)
_OPENING: Final = frozenset(
    "let if since because so ok complete and then analogy analogously the a an as just like by with that".split()
)
_MOST_UNITS: Final = 40
_LONGEST_UNIT: Final = 300
_MOST_TOKENS: Final = 60


def _cut_words(text: str, span: Span, most: int = 60) -> Span:
    """Return at most the last characters of a span, from the last sentence or clause on."""
    start, end = trimmed(text, *span)
    best = max(start, end - most)
    for sign in (". ", "? ", "! ", ": ", "; ", "\n", ", ", " — ", "：", "。", "，"):
        at = text.rfind(sign, best, end)
        if at >= 0 and text[at + len(sign) : end].strip():
            best = max(best, at + len(sign))
    start = best
    while True:
        start = trimmed(text, start, end)[0]
        stop = start
        while stop < end and text[stop].isalpha():
            stop += 1
        if stop < end and text[start:stop].lower() in _OPENING - {"the", "a", "an"} and text[stop] in " ,:":
            start = stop + 1
            continue
        break
    return unwrapped(text, (start, end), comma=True)


def _first_words(text: str, start: int, end: int) -> Span:
    """Return the span up to the end of the clause that begins at ``start``."""
    stop = end
    for sign in ("\n", ". ", ", ", "; ", "? ", "! ", " — ", "。", "，", "？", "?"):
        at = text.find(sign, start, stop)
        if at >= 0:
            stop = at
    return unwrapped(text, (start, stop), comma=True)


def analogies(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield the readings of ``a is to b as c is to`` and ``a : b :: c :``."""
    yield from _completed_analogies(text, lines)
    low = text.lower()
    if " is to " not in low and "is to" in low:
        low = "".join(" " if c.isspace() else c for c in low)
    for connective in _IS_TO:
        if len(low) != len(text):
            break
        first = low.find(connective)
        if first < 0 and connective.strip() and low.rstrip(' ?._:"').endswith(connective.rstrip()):
            first = low.rfind(connective.rstrip())
        if first < 0:
            continue
        places: list[Span] = []
        at = first
        bare = connective.rstrip()
        while at >= 0 and len(places) < 40:
            if at + len(bare) >= len(low) or not low[at + len(bare)].isalnum() or connective[-1] != " ":
                places.append((at, at + len(bare)))
            at = low.find(bare, at + len(bare))
        if len(places) == 1 and " " in connective.strip():
            # The second link may be shortened: "a verhält sich zu b wie c zu".
            short = " " + connective.strip().rpartition(" ")[2]
            at = low.rfind(short)
            if at > places[0][1] and (at + len(short) == len(low) or not low[at + len(short)].isalpha()):
                places.append((at, at + len(short)))
        if len(places) < 2:
            continue
        found = _linked(text, low, places, connective.strip())
        if found is not None:
            yield found
    for double in ("::", "∷", " = ", " as "):
        if (
            double in text
            and (len(double) < 3 or (":" in text or "/" in text))
            and "::" not in text.replace(double, "")
        ):
            found = _colons(text, double)
            if found is not None:
                yield found


def _linked(text: str, low: str, places: list[Span], name: str) -> Reading | None:
    """Read ``a LINK b AS c LINK d`` from the places of the link."""
    items: list[tuple[Span, Span]] = []
    left = _cut_words(text, (0, places[0][0]))
    first = left[0]
    for number, (_, stop) in enumerate(places):
        limit = places[number + 1][0] if number + 1 < len(places) else len(text)
        if number + 1 < len(places):
            split = None
            for sign in _AS:
                at = low.find(sign, stop, limit)
                if (
                    at >= 0
                    and low[at + len(sign) : limit].strip()
                    and low[stop:at].strip()
                    and (split is None or at < split[0] or (at == split[0] and len(sign) > split[1] - split[0]))
                ):
                    split = at, at + len(sign)
            if split is None:
                return None
            items.append((left, unwrapped(text, (stop, split[0]), comma=True)))
            left = _cut_words(text, (split[1], limit))
        else:
            items.append((left, _first_words(text, stop, limit)))
    asking = [at for at, (term, _) in enumerate(items) if _is_asked(text, term)]
    if len(asking) == 1 and len(items) >= 2:
        # "What is to France as Tokyo is to Japan?" asks for the first term.
        others = [(_bare(text, b), _bare(text, a)) for at, (a, b) in enumerate(items) if at != asking[0]]
        query = _bare(text, items[asking[0]][1])
        if all(a[0] < a[1] and b[0] < b[1] for a, b in others) and query[0] < query[1]:
            return Reading(
                "analogy", tuple(others), query, (first, len(text)), ("", ""), False, "", 0, (("asks_first", 1.0),)
            )
    *pairs, (query, rest) = items
    shown = text[rest[0] : rest[1]].strip(" .?_*\"'")
    after = text[places[-1][1] :].strip()
    opened = (
        is_open(after[:12])
        or not shown
        or shown.split()[0].lower() in _ASKS
        or is_open(text[rest[0] : rest[1]])
        or after[:1] in ":_?…."
    )
    cleaned = [(_bare(text, a), _bare(text, b)) for a, b in pairs]
    if not opened:
        cleaned.append((_bare(text, query), _bare(text, rest)))
    tail = len(after) if opened and len(after) > 60 else 0
    if any(a[0] >= a[1] or b[0] >= b[1] or a[1] - a[0] > 70 or b[1] - b[0] > 70 for a, b in cleaned):
        return None
    return Reading(
        "analogy", tuple(cleaned), _bare(text, query) if opened else None, (first, len(text)), ("", ""), opened, "", 0,
        ((f"link_{name.replace(' ', '_')}", 1.0), ("tail", min(1.0, tail / 60)), ("before", min(1.0, first / 200))),
    )  # fmt: skip


def _is_asked(text: str, term: Span) -> bool:
    """Return whether a term is a question word or a gap."""
    shown = text[slice(*term)].strip().lower()
    return is_open(shown) or shown.split(" ")[0].strip("?¿") in _ASKS


def _bare(text: str, span: Span) -> Span:
    """Return a term without emphasis, quotes and a full stop."""
    start, end = unwrapped(text, span, comma=True)
    while end > start and text[end - 1] in ".:" and end - start > 2:
        end -= 1
    return unwrapped(text, (start, end), comma=True)


def _completed_analogies(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield the reading of whole analogies, one a line, the last of which lacks its last term."""
    for link in (" is to", ":"):
        filled = [line for line in lines if not line.blank]
        rows = []
        for line in filled:
            shown = text[line.start : line.end]
            count = shown.count(link)
            both = (
                count == 2 and (" as " in shown or "::" in shown)
                if link == " is to"
                else shown.count("::") == 1 and count >= 4
            )
            rows.append((line, both))
        good = [line for line, both in rows if both]
        if len(good) < 3 or not rows[-1][1]:
            continue
        pairs: list[tuple[Span, Span]] = []
        query = None
        for line in good:
            start = after_number(text, after_bullet(text, line.start, line.end), line.end)
            at = text.rfind(link, line.start, line.end)
            stop = at + len(link)
            rest = text[stop : line.end]
            given = trimmed(text, start, stop)
            if is_open(rest):
                query = given if line is good[-1] else query
            else:
                pairs.append((given, trimmed(text, stop, line.end)))
        if query is not None and len(pairs) >= 2:
            yield Reading("analogy_lines", tuple(pairs), query, (good[0].start, good[-1].end), slot=True)


def _colons(text: str, double: str) -> Reading | None:
    """Read ``a : b :: c : ?``; several of them may stand one a line, or three and more pairs beside each other."""
    pairs: list[tuple[Span, Span]] = []
    query: Span | None = None
    first, end, at = -1, 0, 0
    rows = text.splitlines(keepends=True)
    if len(rows) > 60:
        return None
    for number, row in enumerate(rows):
        start, stop = at, at + len(row)
        at = stop
        places: list[int] = []
        place = text.find(double, start, stop)
        while place >= 0 and len(places) < 20:
            places.append(place)
            place = text.find(double, place + len(double), stop)
        if not places:
            continue
        if not text[places[-1] + len(double) : stop].strip() and number + 1 < len(rows):
            # The second half stands on the next line.
            stop += len(rows[number + 1])
        edges = [(start, places[0])] + [
            (left + len(double), right) for left, right in zip(places, [*places[1:], stop], strict=True)
        ]
        for position, edge in enumerate(edges):
            part = _two(text, edge, from_end=position == 0)
            if part is None:
                return None
            left, right = part
            first = left[0] if first < 0 else first
            answer = text[right[0] : right[1]].split("(")[0].split("\n")[0]
            if position and (is_open(answer) or answer.strip(' "').lower().rstrip("?") in _ASKS):
                query = left
            else:
                pairs.append((left, right))
        end = stop
    if not pairs:
        return None
    tail = len(text[end:].strip())
    return Reading(
        "colons",
        tuple(pairs),
        query,
        (first, end),
        ("", ""),
        query is not None,
        "",
        0,
        (("tail", min(1.0, tail / 60)),),
    )


def _two(text: str, span: Span, *, from_end: bool) -> tuple[Span, Span] | None:
    """Split at a single colon, arrow or ``is to``."""
    best: Span | None = None
    for sign in (":", *ARROWS, " is to ", "/"):
        at = text.rfind(sign, *span) if from_end else text.find(sign, *span)
        if at >= 0 and text[at : at + 2] != "::" and (best is None or sign != "/"):
            best = at, at + len(sign)
            if sign != "/":
                break
    if best is None:
        return None
    left = _cut_words(text, (span[0], best[0])) if from_end else unwrapped(text, (span[0], best[0]), comma=True)
    right = (best[1], span[1])
    if not from_end:
        stop = text.find("\n", right[0], right[1])
        right = (right[0], stop if stop >= 0 else right[1])
    right = trimmed(text, *right)
    if left[0] >= left[1]:
        return None
    return left, unwrapped(text, right, comma=True) if from_end else right


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    whole: Span
    inner: Span
    value: Span | None


def functions(text: str) -> Iterator[Reading]:
    """Yield the reading of ``f(2) = 5, f(3) = 7. What is f(4)?``."""
    calls: dict[str, list[_Call]] = {}
    at = text.find("(")
    count = 0
    while at >= 0 and count < 400:
        count += 1
        begin = at
        while begin > 0 and at - begin < 16 and (text[begin - 1].isalnum() or text[begin - 1] in "_$"):
            begin -= 1
        close = text.find(")", at + 1, at + 80)
        line_end = text.find("\n", at, at + 80)
        if (
            begin < at
            and text[begin].isalpha()
            and close > at + 1
            and not (0 <= line_end < close)
            and "(" not in text[at + 1 : close]
        ):
            after = close + 1
            while after < len(text) and text[after] == " ":
                after += 1
            value: Span | None = None
            for sign in ("===", "==", "=", "->", "→", "↦", "is ", "returns ", "gives ", "yields ", ":"):
                if text.startswith(sign, after):
                    value = _value(text, after + len(sign))
                    break
            calls.setdefault(text[begin:at], []).append(
                _Call(text[begin:at], (begin, close + 1), trimmed(text, at + 1, close), value)
            )
        at = text.find("(", at + 1)
    for found in calls.values():
        if len(found) < 2:
            continue
        done = [c for c in found if c.value is not None and not is_open(text[c.value[0] : c.value[1]])]
        known = {text[c.inner[0] : c.inner[1]] for c in done}
        waiting = [c for c in found if c not in done and text[c.inner[0] : c.inner[1]] not in known]
        if not done or (len(done) < 2 and not waiting):
            continue
        last_is_open = bool(waiting) and waiting[-1] is found[-1]
        asserted = text.rfind("assert ", max(0, done[0].whole[0] - 8), done[0].whole[0]) >= 0
        query = waiting[-1] if waiting else None
        flaws = len({text[c.inner[0] : c.inner[1]] for c in waiting}) - 1 if waiting else 0
        pairs = tuple((c.inner, unwrapped(text, c.value)) for c in done if c.value)
        tail = len(text[query.whole[1] :].strip(" ?.=_\n")) if query else 0
        facts = (
            ("asserted", float(asserted)),
            ("query_last", float(last_is_open)),
            ("tail", min(1.0, tail / 60)),
            ("before", min(1.0, done[0].whole[0] / 300)),
        )
        yield Reading(
            "function", pairs, query.inner if query else None, (done[0].whole[0], len(text)), ("", ""),
            query is not None, "", flaws, facts,
        )  # fmt: skip


def _value(text: str, start: int) -> Span:
    """Return the value that begins at ``start``: up to the end of the line, clause or sentence."""
    end = text.find("\n", start)
    end = len(text) if end < 0 else end
    end = min(end, start + 100)
    depth, quoted = 0, ""
    at = start
    while at < end:
        sign = text[at]
        if quoted:
            quoted = "" if sign == quoted else quoted
        elif sign in "\"'" and not (at > start and text[at - 1].isalnum()):
            quoted = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
            if depth < 0:
                break
        elif (
            depth == 0 and sign in ",;" and (at + 1 >= end or not text[at + 1].isdigit() or not text[at - 1].isdigit())
        ) or (depth == 0 and sign == "." and (at + 1 >= end or text[at + 1].isspace())):
            break
        at += 1
    for word in (" and ", " what", " with ", " but "):
        place = text.find(word, start, at)
        if place >= 0:
            at = place
    return trimmed(text, start, at)


def tuples(text: str) -> Iterator[Reading]:
    """Yield the reading of ``(0, 10), (3, 7), (9, ?)``: brackets that hold two items, the last one open."""
    for opening, closing in ("()", "[]"):
        found: list[tuple[Span, Span]] = []
        at = text.find(opening)
        while at >= 0 and len(found) <= 60:
            stop = text.find(closing, at, at + 120)
            if stop > at + 2 and opening not in text[at + 1 : stop]:
                inner = at + 1, stop
                place = next((p for sign in (", ", " / ", ",", "/") if (p := text.find(sign, *inner)) >= 0), -1)
                sign_end = place + 1
                if place > at + 1 and text.count(text[place], *inner) == 1 and text[place] in ",/":
                    found.append((unwrapped(text, (at + 1, place)), unwrapped(text, (sign_end, stop))))
                elif place > at + 1 and text[place : place + 3] == " / " and text.count(" / ", *inner) == 1:
                    found.append((unwrapped(text, (at + 1, place)), unwrapped(text, (place + 3, stop))))
            at = text.find(opening, at + 1)
        if not 3 <= len(found) <= 60 or not is_open(text[slice(*found[-1][1])]):
            continue
        *pairs, (query, gap) = found
        tail = len(text[gap[1] :].strip(f"{closing} .?!}}\n"))
        facts = (("tail", min(1.0, tail / 60)), ("round", float(opening == "(")))
        yield Reading("tuples", tuple(pairs), query, (pairs[0][0][0], gap[1]), slot=True, facts=facts)


def slots(text: str) -> Iterator[Reading]:
    """Yield readings of quoted items, or of numbers, that come in pairs with similar words between: ``'big' is 'bigger'``."""
    for form, items in (("quoted", _quoted_items(text)), ("numbers", _numbers(text))):
        count = len(items)
        if count < 3 or count > 81 or count % 2 == 0:
            continue
        links = [_link(text, items[i][1], items[i + 1][0]) for i in range(0, count - 1, 2)]
        gaps = [_link(text, items[i][1], items[i + 1][0]) for i in range(1, count - 1, 2)]
        alike = sum(_similar(links[0], link) for link in links) / len(links)
        if any(len(link) > 90 for link in links) or any(len(gap) > 160 for gap in gaps):
            continue
        if not all(any(c.isalpha() or c in "->=→" for c in link) for link in links):
            continue
        pairs = tuple((trimmed(text, *items[i]), trimmed(text, *items[i + 1])) for i in range(0, count - 1, 2))
        query = trimmed(text, *items[-1])
        rest = text[items[-1][1] :].strip("\"'”’`.?! \n")
        facts = (
            ("alike", alike),
            ("alike_gaps", sum(_similar(gaps[0], gap) for gap in gaps) / len(gaps)),
            ("tail", min(1.0, len(rest) / 60)),
            ("asks", float("?" in text[items[-2][1] :] or text.rstrip()[-1:] in ".:")),
            ("before", min(1.0, items[0][0] / 300)),
            ("shown_before", float(text[query[0] : query[1]] in {text[a:b] for (a, b), _ in pairs})),
        )
        yield Reading(form, pairs, query, (items[0][0], len(text)), ("", ""), False, "", 0, facts)
        if form == "numbers":
            yield from _with_units(text, pairs, query, facts)


def _with_units(
    text: str, pairs: tuple[tuple[Span, Span], ...], query: Span, facts: tuple[tuple[str, float], ...]
) -> Iterator[Reading]:
    """Yield the readings in which the word behind every number, the same for all inputs or outputs, belongs to it."""
    inputs, outputs = [a for a, _ in pairs] + [query], [b for _, b in pairs]
    longer_in, longer_out = _one_word_longer(text, inputs), _one_word_longer(text, outputs)
    for given, answers, name in (
        (longer_in, longer_out, "both"), (longer_in, outputs, "inputs"), (inputs, longer_out, "outputs"),
    ):  # fmt: skip
        if given is None or answers is None:
            continue
        yield Reading(
            "numbers", tuple(zip(given, answers, strict=False)), given[-1], (given[0][0], len(text)), ("", ""), False, "", 0,
            (*facts, (f"unit_{name}", 1.0)),
        )  # fmt: skip


def _one_word_longer(text: str, spans: Sequence[Span]) -> list[Span] | None:
    found, words = [], set()
    for start, end in spans:
        stop = end
        if stop < len(text) and text[stop] == " ":
            stop += 1
        begin = stop
        while stop < len(text) and stop - begin < 14 and (text[stop].isalpha() or text[stop] in "°%€$£"):
            stop += 1
        if stop == begin:
            return None
        words.add(text[begin:stop].lower().rstrip("s"))
        found.append((start, stop))
    return found if len(words) == 1 else None


def _link(text: str, start: int, end: int) -> str:
    return text[start:end].strip("\"'”’`").strip().lower()


def _similar(left: str, right: str) -> bool:
    """Return whether two connecting passages are alike: equal, or they share half of their words."""
    if left == right:
        return True
    a, b = set(left.split()), set(right.split())
    return 2 * len(a & b) >= max(len(a), len(b)) > 0


def _quoted_items(text: str) -> list[Span]:
    for opening, closing in (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("「", "」"), ("`", "`")):
        if text.count(opening) < 3:
            continue
        found: list[Span] = []
        at = text.find(opening)
        while at >= 0 and len(found) < 100:
            if opening == "'" and at > 0 and text[at - 1].isalnum():
                at = text.find(opening, at + 1)
                continue
            stop = text.find(closing, at + 1, at + 200)
            while opening == "'" and 0 <= stop < len(text) - 1 and text[stop + 1].isalnum():
                stop = text.find(closing, stop + 1, at + 200)
            if stop < 0 or "\n" in text[at:stop]:
                at = text.find(opening, at + 1)
                continue
            found.append((at + 1, stop))
            at = text.find(opening, stop + 1)
        return found
    return []


def _numbers(text: str) -> list[Span]:
    if len(text) > 1500:
        return []
    found: list[Span] = []
    at = 0
    while at < len(text) and len(found) < 60:
        sign = text[at]
        if sign.isdigit() and (at == 0 or not (text[at - 1].isalnum() or text[at - 1] in "_#")):
            start = at - 1 if at and text[at - 1] in "-+$€" and (at == 1 or not text[at - 2].isalnum()) else at
            while at < len(text) and (
                text[at].isalnum() or (text[at] in ".,:/" and at + 1 < len(text) and text[at + 1].isdigit())
            ):
                at += 1
            found.append((start, at))
        else:
            at += 1
    return found


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


_CONTINUE: Final = (
    "come next", "comes next", "next number", "next term", "next letter", "next one", "next element", "next item", "next word", "next in", "continue", "sequence", "series",
    "extend", "keep counting", "keep going", "what follows", "missing", "sigue", "weiter", "suite", "fill in the blank", "next row", "fort", "próxim", "prossim", "próximo", "下一个", "následuj",
    "next?", "what's next", "whats next", "complete the", "complete each", "pattern",
)  # fmt: skip
_TERM_SIGNS: Final = frozenset(",;→ \t-|")


def sequences(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield sequences to continue; they have no pairs, and the whole sequence is the query."""
    if len(text) > 1500:
        return
    low = text.lower()
    asked = any(word in low for word in _CONTINUE)
    for line in reversed([line for line in lines if not line.blank]):
        span = _run_of_terms(text, line)
        if span is None:
            continue
        body = text[span[0] : span[1]]
        opened = body.rstrip().endswith(("?", "...", "…", "_", "❓", ")")) or " ? " in body or "__" in body
        terms = (
            [t.strip() for t in body.replace(";", ",").replace("→", ",").split(",")]
            if "," in body or ";" in body or "→" in body
            else body.split()
        )
        terms = [t for t in terms if t]
        regular = _regular(terms)
        if len(terms) >= 3 and (opened or asked) and (regular or asked):
            facts = (
                ("asked", float(asked)),
                ("opened", float(opened)),
                ("regular", float(regular)),
                ("terms", min(10.0, len(terms)) / 10),
                ("lines", min(5.0, len(lines)) / 5),
            )
            yield Reading("sequence", (), span, span, ("", ""), opened, "", 0, facts)
            return


def _run_of_terms(text: str, line: Line) -> Span | None:
    """Return the run of short terms that a line holds: after the last colon or question mark in front of it."""
    start, end = line.start, line.end
    shown = text[start:end]
    for sign in (": ", "： ", "? ", "：", "| "):
        at = shown.find(sign)
        if at >= 0 and len(shown) - at - len(sign) >= 5 and any(c in ",;→ " for c in shown[at + len(sign) :].strip()):
            rest = shown[at + len(sign) :].split()
            if len(rest) >= 3:
                start += at + len(sign)
                break
    start, end = trimmed(text, start, end)
    body = text[start:end]
    words = body.split()
    if (
        len(words) < 3
        and body.count(",") < 2
        and not (words and len(body) > 4 and not any(c.isascii() and c.isalpha() for c in body))
    ):
        return None
    if any(len(w) > 16 for w in words) or len(words) > 45:
        return None
    # A sentence behind the run is no part of it.
    for sign in ("... ", "? ", ". "):
        at = body.find(sign)
        if (
            at > 4
            and body[at + len(sign) :].strip()
            and body[at + len(sign)].isalpha()
            and body[:at].count(",") + body[:at].count(" ") >= 2
        ):
            end = start + at + len(sign.strip()) * (sign != ". ")
            break
    return trimmed(text, start, end)


def _regular(terms: list[str]) -> bool:
    """Return whether the terms are alike: mostly numbers, mostly at most three characters, or few different ones."""
    digits = sum(any(c.isdigit() for c in term) for term in terms)
    short = sum(len(term) <= 3 for term in terms)
    return digits >= 0.7 * len(terms) or short >= 0.9 * len(terms) or len(set(terms)) <= 0.6 * len(terms)

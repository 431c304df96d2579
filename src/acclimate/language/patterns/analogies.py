"""Analogies: ``a is to b as c is to``, ``a : b :: c :``, in several languages and with the gap anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

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
    whole = list(_completed_analogies(text, lines))
    if whole:
        yield from whole
        return
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

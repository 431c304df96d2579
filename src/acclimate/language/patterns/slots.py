"""Quoted items, or numbers, that come in pairs with similar words between: ``'big' is 'bigger', 'low' is``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from acclimate.language.patterns.text import Reading, Span, trimmed


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

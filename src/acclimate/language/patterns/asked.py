"""The open item where it stands in a sentence of its own: ``What about "moon"?``, ``Now do this one: narrow``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from acclimate.language.patterns.text import Span, after_announcement, after_bullet, after_number, trimmed, unwrapped

_LEADS: Final = frozenset(
    """and now so then next finally ok okay please what about how is are would be for do does try with to the same this one it you your turn query
    task test target question todo complete continue translate convert classify label apply given new item case word rule of encode decode write
    maintenant nun jetzt ahora und et y der die das pour für para wie was como che e qual è welche which will become give return mean written becomes
    homework mine last at i we they goes in if say says type put enter enters tell me work out calculate find predict value code answer give
    that by could can using on judge compute""".split()
)
_BEFORE_ITEM: Final = frozenset(
    "is for of about to with on does do would was are if at judge predict calculate try value compute".split()
)
_ENDS: Final = frozenset(
    "become becomes give return mean written coded encoded turn get be yield produce map then".split()
)
_QUOTE_PAIRS: Final = (("“", "”"), ("‘", "’"), ("«", "»"), ("「", "」"), ('"', '"'), ("`", "`"), ("'", "'"))
_LONGEST: Final = 400
Asked = tuple[Span, str, int]


def asked_item(text: str, span: Span, inputs: Sequence[str]) -> Asked | None:
    """Return the span of the item that a passage asks about, how it was found, and how many characters are unexplained.

    Args:
        text: the prompt.
        span: of the passage after the last example.
        inputs: of the examples; an item that was already answered is no open item.
    """
    start, end = trimmed(text, *span)
    if start == end or end - start > _LONGEST:
        return None
    quoted = _quoted_spans(text, start, end)
    fresh = [q for q in quoted if text[q[0] : q[1]].strip() and text[q[0] : q[1]] not in inputs]
    if len(fresh) == 1 and len(quoted) <= 2:
        return trimmed(text, *fresh[0]), "quoted", max(0, end - fresh[0][1] - 40)
    if len(fresh) > 1:
        return None
    alike = _with_same_start(text, start, end, inputs)
    if alike is not None:
        return alike, "alike", 0
    alike = _with_same_sign(text, start, end, inputs)
    if alike is not None:
        return alike, "alike", 0
    rows = [r for r in text[start:end].splitlines() if r.strip()]
    if len(rows) > 3:
        return None
    if len(rows) > 1:
        # The first or the last line is the item, the other an instruction.
        first_end = start + text[start:end].find("\n")
        last_start = start + text[start:end].rfind("\n") + 1
        found = _in_line(text, last_start, end, inputs)
        if found is not None:
            return found[0], found[1], first_end - start if found[1] == "plain" else 0
        found = _in_line(text, start, first_end, inputs)
        return (found[0], found[1], end - first_end) if found is not None else None
    found = _in_line(text, start, end, inputs)
    if found is not None:
        return found[0], found[1], 0
    sentences = _sentences(text, start, end)
    if len(sentences) > 1:
        # A sentence that asks comes first, the last of them before the others.
        asking = [s for s in reversed(sentences) if text[s[1] - 1] in "?？"]
        for begin, stop in [*asking, *(s for s in sentences if s not in asking)]:
            found = _in_line(text, begin, stop, inputs)
            if found is not None and found[1] != "plain":
                return found[0], found[1], 0 if (begin, stop) in asking else (end - start) // 2
    return None


def _sentences(text: str, start: int, end: int) -> list[Span]:
    found, begin = [], start
    for at in range(start, end - 1):
        if text[at] in ".?!。？" and (text[at + 1].isspace() or text[at] in "。？"):
            found.append(trimmed(text, begin, at + 1))
            begin = at + 1
    found.append(trimmed(text, begin, end))
    return [span for span in found if span[0] < span[1]][:8]


def _with_same_sign(text: str, start: int, end: int, inputs: Sequence[str]) -> Span | None:
    """Return the item with the sign that stands between two words in all inputs, such as ``4 # 2``."""
    if len(inputs) < 2:
        return None
    shared = set(inputs[0]).intersection(*inputs[1:])
    for sign in sorted(shared, key=inputs[0].index):
        if sign.isalnum() or sign.isspace() or sign in ".,'\"-()/:_" or any(len(i.split(sign)) != 2 for i in inputs):
            continue
        at = text.find(sign, start, end)
        if at < 0 or text.find(sign, at + 1, end) >= 0:
            continue
        left, right = at, at + 1
        spaced = at > start and text[at - 1] == " "
        left -= spaced
        right += spaced
        while left > start and (text[left - 1].isalnum() or text[left - 1] in ".,-") and not text[left - 1].isspace():
            left -= 1
        while right < end and (
            text[right].isalnum() or (text[right] in ".,-" and right + 1 < end and text[right + 1].isalnum())
        ):
            right += 1
        if left < at and right > at + 1:
            return trimmed(text, left, right)
    return None


def _with_same_start(text: str, start: int, end: int, inputs: Sequence[str]) -> Span | None:
    """Return the item that begins like all inputs, such as a call of the same function."""
    if len(inputs) < 2:
        return None
    low, high = min(inputs), max(inputs)
    size = 0
    while size < min(len(low), len(high)) and low[size] == high[size]:
        size += 1
    shared = low[:size]
    while shared and not (shared[-1] in "([{ <" or not shared[-1].isalnum()):
        shared = shared[:-1]
    if len(shared.strip()) < 2:
        return None
    at = text.find(shared, start, end)
    if at < 0:
        return None
    closing = {"(": ")", "[": "]", "{": "}"}
    opening = next((c for c in reversed(shared) if c in closing), "")
    if opening:
        depth, stop = 0, at
        while stop < end:
            depth += (text[stop] in "([{") - (text[stop] in ")]}")
            stop += 1
            if depth == 0 and text[stop - 1] in ")]}":
                break
        if low.endswith(closing[opening]):
            return at, stop
        return None
    stop = at
    while (
        stop < end
        and text[stop] not in ",;?!\n"
        and not (text[stop] == "." and (stop + 1 >= end or text[stop + 1].isspace()))
    ):
        stop += 1
    item = unwrapped(text, (at, stop), comma=True)
    return item if text[item[0] : item[1]] not in inputs and item[1] - item[0] < 2 * max(map(len, inputs)) else None


def _quoted_spans(text: str, start: int, end: int) -> list[Span]:
    found: list[Span] = []
    for opening, closing in _QUOTE_PAIRS:
        at = text.find(opening, start, end)
        while at >= 0:
            if opening == "'" and at > start and text[at - 1].isalnum():
                at = text.find(opening, at + 1, end)
                continue
            stop = text.find(closing, at + 1, end)
            while opening == "'" and 0 <= stop < end - 1 and text[stop + 1].isalnum():
                stop = text.find(closing, stop + 1, end)
            if stop < 0:
                break
            if not any(a <= at <= b for a, b in found):
                found.append((at + 1, stop))
            at = text.find(opening, stop + 1, end)
    return sorted(found)


def _in_line(text: str, start: int, end: int, inputs: Sequence[str]) -> tuple[Span, str] | None:
    start = after_bullet(text, start, end)
    past = after_announcement(text, start, end)
    start = past if past < end else start
    past = after_number(text, start, end)
    start, end = trimmed(text, past if past < end else start, end)
    if start == end:
        return None
    shown = text[start:end]
    for sign in (": ", ":\t", "："):
        at = shown.rfind(sign)
        if at > 0 and len(shown[:at].split()) <= 9 and shown[at + len(sign) :].strip():
            body = unwrapped(text, (start + at + len(sign), end))
            return (body, "colon") if text[body[0] : body[1]] not in inputs else None
    stop = end
    asks = text[stop - 1] in "?？"
    while stop > start and text[stop - 1] in "?？!….:=":
        stop -= 1
    stop = trimmed(text, start, stop)[1]
    if "? " in text[start:stop] or ". " in text[start:stop]:
        return None
    words = _words(text, start, stop)
    low = [text[a:b].lower().strip(",") for a, b in words]
    usual = max((len(i.split()) for i in inputs), default=1)
    at = 0
    while at < len(low) - 1 and low[at] in _LEADS:
        at += 1
    last = len(low)
    while last > at + 1 and low[last - 1] in _ENDS:
        last -= 1
    if last - at > usual + 1 and last > 2:
        # Other words stand in front of the item: it follows the last preposition.
        back = last - 1
        while back > at and low[back - 1] not in _BEFORE_ITEM:
            back -= 1
        if back > at and last - back <= usual:
            at = back
    if at < last and (at > 0 or asks):
        item = unwrapped(text, (words[at][0], words[last - 1][1]), comma=True)
        if last - at <= max(6, usual) and text[item[0] : item[1]] not in inputs and item[0] < item[1]:
            return item, "lead" if at > 0 else "question"
        return None
    if 0 < len(low) <= max(3, usual + 2) and not asks and shown[-1] not in ".!:" and shown not in inputs:
        return unwrapped(text, (start, end), comma=True), "plain"
    return None


def _words(text: str, start: int, end: int) -> list[Span]:
    found, at = [], start
    for word in text[start:end].split():
        at = text.find(word, at, end)
        found.append((at, at + len(word)))
        at += len(word)
    return found

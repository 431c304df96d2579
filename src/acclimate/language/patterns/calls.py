"""Function calls and bracketed pairs: ``f(2) = 5, f(3) = 7. What is f(4)?``, ``(0, 10), (3, 7), (9, ?)``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from acclimate.language.patterns.text import Reading, Span, is_open, trimmed, unwrapped


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
        has_value = [c.value is not None and not is_open(text[slice(*c.value)]) for c in found]
        done = [c for c, has in zip(found, has_value, strict=True) if has]
        known = {text[c.inner[0] : c.inner[1]] for c in done}
        waiting = [
            c for c, has in zip(found, has_value, strict=True) if not has and text[c.inner[0] : c.inner[1]] not in known
        ]
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

"""Sequences to continue; they have no examples, and the whole sequence is the open item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from acclimate.language.patterns.text import Line, Reading, Span, trimmed

_CONTINUE: Final = (
    "come next", "comes next", "next number", "next term", "next letter", "next one", "next element", "next item", "next word", "next in", "continue", "sequence", "series",
    "extend", "keep counting", "keep going", "what follows", "missing", "sigue", "weiter", "suite", "fill in the blank", "next row", "fort", "próxim", "prossim", "próximo", "下一个", "následuj",
    "next?", "what's next", "whats next", "complete the", "complete each", "pattern",
)  # fmt: skip


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

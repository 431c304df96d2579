"""A parser for pairs in repeated sentences: units of a prompt that are equal except for two gaps.

In ``I typed 3, pressed it and saw 27. I typed 4, pressed it and saw 64.`` the words that both sentences share form a
template, and the two gaps where they differ are input and output. No list of separators is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import combinations, pairwise
from typing import Final

from acclimate.language.patterns.items import Reading, is_blank, strip_markup

_TOKEN: Final = re.compile(r"\w+|\s+|[^\w\s]")
_UNITS: Final = (r"\n", r"(?<=[.!?;])\s+", r"\s*[,;]\s+(?:and\s+|so\s+)?")
_QUESTION: Final = re.compile(r"\b(?:what|which|how|where|who|was|qué|quoi)\b", re.IGNORECASE)
_EMPTY_WORDS: Final = frozenset("the a an is are it this that what which code word in of to for".split())
_LONGEST_UNIT: Final = 400
_MOST_UNITS: Final = 40


def repeated(text: str) -> Iterator[Reading]:
    """Yield the reading of the template that gives most pairs; its units are lines, sentences or clauses."""
    best: tuple[int, Reading] | None = None
    for splitter in _UNITS:
        units = [u.strip() for u in re.split(splitter, text) if u.strip()][:_MOST_UNITS]
        if len(units) < 2 or max(map(len, units)) > _LONGEST_UNIT:
            continue
        for first, second in [*pairwise(units[:8]), *combinations(units[:4], 2)]:
            frame = _frame(first, second)
            if frame is None:
                continue
            found = _filled(frame, units)
            score = len(found.pairs) + 3 * (found.query is not None) + 2 * found.query_in_slot
            if len(found.pairs) >= 2 and (best is None or score > best[0]):
                best = (score, found)
        if best is not None and best[1].query is not None:
            break
    if best is not None:
        yield best[1]


def _frame(first: str, second: str) -> tuple[str, str, str] | None:
    """Return the text before, between and after the two gaps of a template that fits both units, or None."""
    left, right = _TOKEN.findall(first), _TOKEN.findall(second)
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    pieces: list[str] = []
    at_left = at_right = 0
    for block in blocks:
        gap = block.a > at_left or block.b > at_right
        shared = "".join(left[block.a : block.a + block.size])
        if gap and not pieces:
            pieces.append("")
        if gap and block.size and not re.search(r"\w\w|[^\w\s]", shared) and block.a + block.size < len(left):
            # A space or a single letter that both units share by chance belongs to the gap.
            at_left, at_right = block.a + block.size, block.b + block.size
            if pieces and pieces[-1] is not None and len(pieces) >= 1 and not _ends_in_gap(pieces):
                pieces.append("\0")
            continue
        if gap and not _ends_in_gap(pieces):
            pieces.append("\0")
        if block.size:
            if pieces and pieces[-1] != "\0":
                pieces[-1] += shared
            else:
                pieces.append(shared)
        at_left, at_right = block.a + block.size, block.b + block.size
    fixed = "".join(piece if piece != "\0" else "\0" for piece in pieces).split("\0")
    if len(fixed) != 3 or not re.search(r"\w|[^\w\s,.]", fixed[1]):
        return None
    return fixed[0], fixed[1], fixed[2]


def _ends_in_gap(pieces: Sequence[str]) -> bool:
    return bool(pieces) and pieces[-1] == "\0"


def _bounded(fixed: str) -> str:
    """Return a regular expression for ``fixed`` that does not start or end inside a word."""
    return ("\\b" if re.match(r"\w", fixed) else "") + re.escape(fixed) + ("\\b" if re.search(r"\w$", fixed) else "")


def _filled(frame: tuple[str, str, str], units: Sequence[str]) -> Reading:
    before, between, behind = (part.strip() for part in frame)
    pattern = re.compile(
        rf"^.{{0,60}}?{_bounded(before)}\s*(?P<x>.+?)\s*{_bounded(between)}\s*(?P<y>.*?)\s*{_bounded(behind)}[\s.;,]*$",
        re.DOTALL,
    )
    pairs: list[tuple[str, str]] = []
    query, asked_at = None, -1
    for index, unit in enumerate(units):
        match = pattern.match(unit)
        if match and (not before or unit.startswith(before) or index == 0):
            given, answer = strip_markup(match["x"]), strip_markup(match["y"])
            if is_blank(answer) or answer.startswith(("?", "...", "…")):
                query, asked_at = given, index
            elif not _QUESTION.match(given):
                pairs.append((given, answer))
            continue
        rest = unit[len(before) :].strip() if before and unit.startswith(before) else unit if not before else ""
        for length in range(len(between), 0, -1):
            if rest.endswith(between[:length].strip()) and between[:length].strip():
                query, asked_at = strip_markup(rest[: len(rest) - len(between[:length].strip())]), index
                break
    if query is None and units and asked_at < 0 and _QUESTION.search(units[-1]) and before:
        # The question repeats the words before the first gap: "if I type 10, what will I see?"
        words = before.split()
        for count in range(min(3, len(words)), 0, -1):
            lead = re.escape(" ".join(words[-count:]))
            match = re.search(rf"\b{lead}\s+[\"'“]?([\w.,$€°%+-]+(?:\s[\w°%]{{1,3}}\b)?)", units[-1], re.IGNORECASE)
            if match and match[1].lower() not in _EMPTY_WORDS:
                query = strip_markup(match[1].rstrip(",.?"))
                break
    return Reading(tuple(pairs), query, "frame", query_in_slot=asked_at >= 0)

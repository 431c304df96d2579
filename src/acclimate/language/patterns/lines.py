"""Parsers for pairs around a separator (an arrow, an equals sign, a colon, ...), one per line or several on a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from acclimate.language.patterns.items import ARROWS, SEPARATORS, Reading, is_blank, strip_bullet, strip_markup

_NUMBER: Final = re.compile(
    r"""^\s*[*_]{0,2}(?:
        [(\[]?(?:\d{1,2}|[a-zA-Z]|[ivx]{2,4}|[IVX]{2,4})[.)\]]+ | \d{1,2}\s*(?:[:°/-]|st|nd|rd|th)(?=\s) | [#№]\s?\d{1,2}[:.)]? |
        (?:no|nr|item|step|n°|line|row|entry|word|number|task|pair|problem|puzzle|case|exercise|question|point)\.?\s?[\#°]?\d{1,2}\s?[:.)=-]? |
        \d️?⃣ | [①②③④⑤⑥⑦⑧⑨⑩]
    )[*_]{0,2}\s+""",
    re.VERBOSE | re.IGNORECASE,
)
_EXAMPLE: Final = re.compile(
    r"""^[\s\#*_>(\[]*(?:
        (?:an?\ |the\ |another\ |one\ more\ )?
        (?:first|second|third|fourth|fifth|1st|2nd|3rd|next|last|worked)?\s*
        (?:example|exemple|ejemplo|beispiel|esempio|voorbeeld|ex|sample|demo|demonstration|instance|illustration|specimen|
           case|shot|e\.?g)s?\b\.?
        \s*(?:[\#№]?\s*[(\[]?(?:\d{1,2}|[A-Za-z]|[ivx]{1,4}|one|two|three|four|five|six)[)\]]?)?(?![\w])
    )[*_\])]*\s*(?:[:.)—–-]+(?!>))?[*_]*\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_CUE: Final = re.compile(
    r"""^[\s>*\-•]*(?:
        (?:and\ |so\ |then\ |ok\ |okay\ |please\ )*
        (?:now|then|next|finally|your\ turn|query|task|test|target|question|problem|todo|to\ do|now\ you|you|and|apply\ (?:it|this|the\ \w+)|
           do|try|what\ about|how\ about|what\ is|what\ would\ be|complete|continue|translate|convert|given|new\ (?:item|input|one|word)|
           input|same\ for|do\ the\ same|i\ am\ stuck\ at|stuck\ on|missing|maintenant|nun|jetzt|ahora|und|et|y|for)
        (?:\ (?:do|try|for|with|to|the\ same|same|it|this|one|apply|complete|about|you|convert|translate|is|classify|label|what|rule|new|item|case|word|your\ turn|in|way|like|pour|für|para|und|et|that|on|thing|here|last|turn|goes))*
    )\s*[:,\-–—]?\s+(?P<rest>.+)$""",
    re.VERBOSE | re.IGNORECASE,
)
_SEGMENT: Final = re.compile(
    r"\s*(?:;|\n|(?<=[\w?)\"'”.])\s*[,•]\s+(?=\S)|(?<=[^\d.\s])\.\s+|\s{2,}(?=\S)|\s/\s|\s\|\s)\s*"
)


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    numbered: bool
    example: bool


def _lines(text: str) -> list[_Line]:
    found = []
    for raw in text.splitlines():
        # A tab at the end is a separator without an output behind it.
        line = strip_bullet(re.sub(r"^\s*>\s+", "", raw)).lstrip().rstrip(" ")
        line = re.sub(r"^\|\s*(.*?)\s*\|?$", r"\1", line) if line.startswith("|") else line
        if not line.strip() or set(line) <= set("`=-*_#~+"):
            continue
        example = _EXAMPLE.match(line)
        if example and example.end() and (re.search(r"\d|:|[.)]\s*$", example[0]) or example.end() == len(line)):
            found.append(_Line(line[example.end() :], numbered=False, example=True))
            continue
        number = _NUMBER.match(line)
        found.append(_Line(line[number.end() :] if number else line, numbered=number is not None, example=False))
    return found


def pairs_on_lines(text: str) -> Iterator[Reading]:
    """Yield one reading for each separator that splits the lines of the prompt into pairs."""
    lines = _merged(_lines(text))
    if len(lines) >= 2:
        yield from _by_separator(lines)


def pairs_in_segments(text: str) -> Iterator[Reading]:
    """Yield readings of a line that holds several pairs, divided by commas, semicolons or full stops."""
    for raw in text.splitlines():
        line = re.sub(r"^[^:\n]{0,60}:\s+(?=\S+\s*(?:->|=|→|=>|:))", "", raw)
        line = re.sub(r"\((?:see|e\.g\.|ex\.?|like|cf\.?):?\s*", ", ", line)
        parts = [part for part in _SEGMENT.split(line) if part and part.strip()]
        if len(parts) >= 2:
            flat = []
            for part in parts:
                item = re.sub(r"^(?:and|so|then|et|und|y)\s+", "", part.strip())
                number = _NUMBER.match(item)
                flat.append(_Line(item[number.end() :] if number else item, number is not None, example=False))
            yield from _by_separator(flat, in_line=True)


def _merged(lines: Sequence[_Line]) -> list[_Line]:
    """Join a line that holds only a list number or the word example with the line below it."""
    found: list[_Line] = []
    for line in lines:
        before = found[-1] if found else None
        starts_over = line.numbered or line.example
        if before is not None and not starts_over and not before.text:
            found[-1] = _Line(line.text, before.numbered, before.example)
        elif before is not None and not starts_over and re.match(rf"^(?:=|:|{ARROWS})", line.text):
            found[-1] = _Line(f"{before.text} {line.text}", before.numbered, before.example)
        else:
            found.append(line)
    return [line for line in found if line.text.strip()]


def _by_separator(lines: Sequence[_Line], *, in_line: bool = False) -> Iterator[Reading]:
    for name, separator in SEPARATORS:
        if in_line and name in ("spaces", "spaced_slash", "bar"):
            continue
        split: list[tuple[_Line, str, str]] = []
        plain: list[tuple[int, _Line]] = []
        for index, line in enumerate(lines):
            parts = re.split(separator, line.text, maxsplit=1)
            if name == "spaces" and len(line.text) > 80:
                parts = []
            if len(parts) == 2 and parts[0].strip():
                split.append((line, strip_markup(parts[0]), parts[1].strip()))
            else:
                plain.append((index, line))
        done = [(line, given, answer) for line, given, answer in split if not is_blank(answer)]
        waiting = [(line, given) for line, given, answer in split if is_blank(answer)]
        if len(done) < (2 if not waiting else 1):
            continue
        query = _strip_lead_in(waiting[-1][1]) if waiting else _query_without_separator(plain, lines)
        yield Reading(
            tuple((given, strip_markup(answer)) for _, given, answer in done),
            query,
            name,
            numbered=sum(line.numbered for line, _, _ in done) >= 2,
            announced_as_examples=any(line.example for line, _, _ in done),
            query_in_slot=bool(waiting),
        )


def _strip_lead_in(given: str) -> str:
    """Return a query without its introduction: ``now you: Japan`` is ``Japan``."""
    match = re.match(r"^.{0,60}?[:—–?]\s+(?P<rest>\S.*)$", given, re.DOTALL)
    if match and re.match(
        r"^(?:and|now|so|your|next|task|query|then|ok|please|the|last|final|this|mine|new|test)\b", given, re.I
    ):
        return strip_markup(match["rest"])
    match = re.match(r"^(?:and|now|so|then|et|und|y)\s+(?:now\s+|for\s+|pour\s+)?(?P<rest>\S.*)$", given, re.IGNORECASE)
    return strip_markup(match["rest"]) if match else given


def _query_without_separator(plain: Sequence[tuple[int, _Line]], lines: Sequence[_Line]) -> str | None:
    """Return the query from the lines without the separator: the last that reads as a question or an item, or None."""
    for index, line in reversed(plain):
        text = line.text.strip()
        if match := re.search(
            r"(?:\b(?:do|for|about|convert|with|is|of|to|like|classify|label|at)\b|:)\s*[\"“'‘`]([^\"”'’`]+)[\"”'’`]",
            text,
        ):
            return strip_markup(match[1])
        if match := re.match(
            r"^(?:and|what about|how about|now|so|then)\s+(?:for\s+|pour\s+)?([^?]{1,80})\s*\?*$", text, re.I
        ):
            return strip_markup(match[1])
        if match := _CUE.match(text):
            return strip_markup(re.sub(r"[?!.…]+$", "", match["rest"]) if "?" in text[-3:] else match["rest"])
        if match := re.match(r"^[^:]{3,70}:\s+(\S.*)$", text):
            return strip_markup(match[1])
        if index == len(lines) - 1 and len(text.split()) <= 6 and not re.search(r"[.!]$|\?\s+\w", text):
            return strip_markup(text.rstrip("?").strip())
    return None

"""How far a field reaches: what belongs to an answer, and what to the heading, the separator or the instruction behind it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

from acclimate.language.patterns.text import Line, Span, after_announcement, is_open, is_rule, shape_of, trimmed

_LONGEST_HEADING: Final = 70
_LONGEST_CUE: Final = 120
_CALLS: Final = frozenset("now your next query new yours turn test finally question continue go over to".split())


def line_of(lines: Sequence[Line], at: int) -> int:
    """Return the number of the line that an offset is on."""
    return bisect_left(lines, at + 1, key=lambda line: line.start) - 1


def headings_above(text: str, lines: Sequence[Line], starts: Sequence[int]) -> set[str]:
    """Return the shapes of lines that stand above every record, the first one included: ``Example 1``, ``<example>``."""
    alone = [_line_alone(text, lines, start) for start in starts]
    if len(starts) > 2 and all(alone):
        return set(alone)
    shapes: list[set[str]] = []
    for start in starts:
        at = line_of(lines, start) - 1
        above: set[str] = set()
        while at >= 0 and len(above) < 3 and lines[at].end - lines[at].start <= _LONGEST_HEADING:
            if not lines[at].blank:
                above.add(shape_of(text[lines[at].start : lines[at].end]))
            elif above:
                break
            at -= 1
        shapes.append(above)
    if len(shapes) < 2:
        return set()
    seen = Counter(shape for above in shapes[1:] for shape in above)
    return {s for s, times in seen.items() if s in shapes[0] and times >= max(1, (len(shapes) - 1) // 2)}


def _line_alone(text: str, lines: Sequence[Line], start: int) -> str:
    """Return the shape of the line right above an offset where a blank line is above it, else an empty text."""
    at = line_of(lines, start) - 1
    if (
        at < 0
        or lines[at].blank
        or (at > 0 and not lines[at - 1].blank and not is_rule(text[lines[at - 1].start : lines[at - 1].end]))
    ):
        return ""
    return (
        shape_of(text[lines[at].start : lines[at].end]) if lines[at].end - lines[at].start <= _LONGEST_HEADING else ""
    )


def answer_in(
    text: str, body: Span, headings: set[str], *, alone: bool = False, blanks: bool = False
) -> tuple[Span, int]:
    """Return the span of the answer in the text up to the next record, and how many characters behind it are unexplained.

    Args:
        text: the prompt.
        body: from the label of the answer to the next record.
        headings: shapes of lines that stand above every record.
        alone: all other answers have one line, so that a line with a colon behind this one is no part of it.
        blanks: other answers have blank lines in them, so that this one does not end at one.
    """
    start, end = body
    rows = text[start:end].splitlines(keepends=True)
    offsets, at = [], start
    for row in rows:
        offsets.append(at)
        at += len(row)
    stop = len(rows)
    while stop > 1 and _leads_on(rows[stop - 1].strip(), headings):
        stop -= 1
    filled = next((i for i in range(stop) if rows[i].strip()), stop)
    depth, fenced, after_blank, lost = 0, False, False, 0
    for i in range(filled, stop):
        row = rows[i].strip()
        if not row:
            after_blank = True
            continue
        if i > filled and depth <= 0 and not fenced:
            ends = is_rule(row) and len(set(row)) == 1
            ends = ends or (after_blank and not blanks and rows[i][:1] not in " \t" and not _goes_on(row))
            if ends or (alone and row.endswith(":") and i == stop - 1):
                lost = sum(len(r.strip()) for r in rows[i:stop] if not is_rule(r.strip())) if ends else 0
                stop = i
                break
        fenced ^= row.startswith("```")
        depth += sum(map(row.count, "{[(")) - sum(map(row.count, "}])"))
        after_blank = False
    return trimmed(text, start, offsets[stop] if stop < len(rows) else end), lost


def _leads_on(row: str, headings: set[str]) -> bool:
    """Return whether a line at the end of an answer belongs to the next record."""
    return not row or is_rule(row) or shape_of(row) in headings or is_announcement(row)


def _goes_on(row: str) -> bool:
    return row[0] in "}])|-*•" or row.startswith("```")


def is_announcement(row: str) -> bool:
    """Return whether a line only announces the next example or the open item."""
    if len(row) > _LONGEST_HEADING:
        return False
    if after_announcement(row, 0, len(row)) == len(row):
        return True
    plain = row.strip("#*_=-:. ").lower().split()
    if not plain or len(plain) > 5 or plain[0] not in _CALLS:
        return False
    return row.endswith(":") or row[0] in "#*=-" or plain[:2] in (["your", "turn"], ["now", "you"])


def is_template(given: str, answer: str, *, first: bool) -> bool:
    """Return whether a record is the template that describes the fields, not an example."""
    if any(
        ("${" in part and "}" in part) or (part.startswith("{{") and "}}" in part) or _is_slot(part)
        for part in (given, answer)
    ):
        return True
    return first and (given in {"...", "…"} or answer.endswith(("...", "…")) or " ...\n" in answer)


def _is_slot(part: str) -> bool:
    """Return whether a field is a slot in angle brackets or braces, not a tag, code or JSON."""
    wrapped = len(part) > 2 and part[0] + part[-1] in ("<>", "{}") and part[1].isalpha()
    return wrapped and part.count("<") <= 1 and not any(sign in part for sign in '\n"/')


def open_body(text: str, body: Span, answers: Sequence[str], *, own_line: bool) -> Span | None:
    """Return the span of what stands in the place of a missing answer, or None where the answer is there.

    Args:
        text: the prompt.
        body: from the label of the answer to the end of the prompt or of the field.
        answers: of the examples.
        own_line: the answers of the examples begin on the line below their label.
    """
    start, end = body
    span = trimmed(text, start, end)
    shown = text[slice(*span)]
    if is_open(shown) or is_cue(shown, answers):
        return span
    # Further text may follow the gap: a blank line, or a remark in brackets, lies between.
    line_end = text.find("\n", start, end)
    if line_end < 0:
        return None
    same_line, rest = text[start:line_end].strip(), text[line_end:end]
    if is_open(same_line):
        blank = rest[: len(rest) - len(rest.lstrip())].count("\n") >= 2
        if blank or (not own_line and answers) or rest.lstrip()[:1] in "([":
            return trimmed(text, start, line_end)
    elif is_cue(same_line, answers) and rest.startswith("\n\n"):
        return trimmed(text, start, line_end)
    return None


def is_cue(shown: str, answers: Sequence[str]) -> bool:
    """Return whether ``shown`` only begins an answer: most answers begin so, or it is not finished."""
    body = shown.strip()
    if not body or len(body) > _LONGEST_CUE:
        return False
    low = body.rstrip(".… ").lower()
    alike = sum(answer.lower().startswith(low) and len(answer) > len(low) + 1 for answer in answers)
    if answers and alike >= max(1, (2 * len(answers) + 2) // 3):
        return True
    if low.startswith(("let's think", "let’s think", "let us think")):
        return True
    if "\n" in body:
        return False
    if body[-1] in "{[(:,“‘" or body.endswith("```"):
        return True
    return (body[-1] == '"' and body.count('"') % 2 == 1) or body.count("{") > body.count("}")


def without_tail(text: str, span: Span) -> tuple[Span, int]:
    """Return an open item that ends the prompt without the paragraphs behind it, and how many characters those have."""
    start, end = span
    shown = text[start:end]
    at = min((place for place in (shown.find("\n\n"), shown.find("\r\n\r\n")) if place >= 0), default=-1)
    if at < 0:
        return span, 0
    return trimmed(text, start, start + at), len(shown[at:].strip())

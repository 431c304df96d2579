"""Examples of which only one side is marked: the answer, the input, or neither."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from acclimate.language.patterns.extents import answer_in, headings_above, is_cue, line_of
from acclimate.language.patterns.markers import Marked, Marker
from acclimate.language.patterns.records import MOST_RECORDS
from acclimate.language.patterns.text import Line, Reading, Span, is_open, is_rule, trimmed, unwrapped

_MOST_STEPS: Final = 600
_ARROWS: Final = frozenset({"=>", "->", "→"})
_PROMPTS: Final = frozenset({">>>", "$"})
_COMMENTS: Final = frozenset({"#", "--", "//", "%"})


def _by_key(marks: Sequence[Marker]) -> dict[str, list[Marker]]:
    found: dict[str, list[Marker]] = {}
    for mark in marks:
        if mark.key and not mark.is_option:
            found.setdefault(mark.key, []).append(mark)
    return found


class _Part(NamedTuple):
    """An input without a label, the mark of its answer, and the answer."""

    given: Span
    mark: Marker
    answer: Span


def answers_marked(text: str, lines: Sequence[Line], stream: Marked) -> Iterator[Reading]:
    """Yield readings of inputs without a label: a paragraph, then the label of the answer."""
    steps = 0
    for key, marks in _by_key(stream.marks).items():
        alone = key == ">>>" and text[marks[0].end : marks[0].end + 2].strip(" ")[:1] in ("\n", "\r", "")
        if not 2 <= len(marks) <= MOST_RECORDS or (key in {"0.", "#", ">", "$", ">>>"} and not alone):
            continue
        steps += len(marks)
        if steps > _MOST_STEPS:
            return
        rows = [line_of(lines, mark.start) for mark in marks]
        own = [not text[m.end : lines[r].end].strip() for m, r in zip(marks[:-1], rows, strict=False)]
        if any(own) and not all(own):
            continue
        parts = _parts(text, lines, marks, rows, own_line=all(own))
        found = _below(text, stream, parts, own_line=all(own)) if parts else None
        if found is not None:
            yield found


def _parts(
    text: str, lines: Sequence[Line], marks: Sequence[Marker], rows: Sequence[int], *, own_line: bool
) -> list[_Part]:
    """Return inputs and answers; none where something else than a paragraph stands between two answers."""
    parts: list[_Part] = []
    before = -1
    for position, (mark, row) in enumerate(zip(marks, rows, strict=True)):
        bottom = row - 1
        while bottom > before and lines[bottom].blank:
            bottom -= 1
        if bottom <= before:
            return []
        top = bottom
        while (
            top - 1 > before
            and not lines[top - 1].blank
            and not is_rule(text[lines[top - 1].start : lines[top - 1].end])
        ):
            top -= 1
        following = rows[position + 1] if position + 1 < len(rows) else None
        before = _answer_ends(text, lines, row, following, own_line=own_line)
        parts.append(_Part((lines[top].start, lines[bottom].end), mark, trimmed(text, mark.end, lines[before].end)))
    heights = [text.count("\n", *part.given) for part in parts]
    if len(parts) > 1 and heights[0] > max(heights[1:]):
        # Without a blank line between, the first input would take in the instruction above it.
        top = line_of(lines, parts[0].given[1] - 1) - max(heights[1:])
        parts[0] = parts[0]._replace(given=(lines[top].start, parts[0].given[1]))
    return parts


def _answer_ends(text: str, lines: Sequence[Line], row: int, following: int | None, *, own_line: bool) -> int:
    """Return the last line of the answer whose label is on ``row``; ``following`` has the next label."""
    limit = following - 1 if following is not None else len(lines)
    stop = row
    if own_line:
        stop = row + 1
        while stop < len(lines) and lines[stop].blank and following is not None:
            stop += 1
        while stop + 1 < limit and not lines[stop + 1].blank:
            stop += 1
        return min(stop, len(lines) - 1)
    apart = any(lines[r].blank for r in range(row + 1, limit))
    while (
        stop + 1 < limit
        and not lines[stop + 1].blank
        and not is_rule(text[lines[stop + 1].start : lines[stop + 1].end])
    ):
        # Where no blank line follows, only lines that are indented more go on.
        if not apart and (following is None or lines[stop + 1].indent <= lines[row].indent):
            break
        stop += 1
    return stop


def _below(text: str, stream: Marked, parts: Sequence[_Part], *, own_line: bool) -> Reading | None:
    pairs = tuple((_field(text, part.given), _field(text, part.answer)) for part in parts[:-1])
    answers = [text[slice(*part.answer)] for part in parts[:-1]]
    last = parts[-1]
    shown = text[last.mark.end :].strip()
    ends_open = is_open(shown) or is_cue(shown, answers)
    if not ends_open and not is_open(text[slice(*last.answer)]):
        return None
    tail = 0 if ends_open else len(text[last.answer[1] :].strip())
    labelled = sum(any(m.name and not m.is_option for m in _within(stream, *part.given)) for part in parts)
    facts = (
        ("unlabelled_input", 1.0),
        ("labels_inside", labelled / len(parts)),
        ("tail", min(1.0, tail / 60)),
        ("decorated", float(last.mark.key[:1] in "#*[<")),
        ("sign_label", float(not last.mark.name)),
        ("own_line", float(own_line)),
        ("uneven", float(len({text.count("\n", *part.given) for part in parts}) > 1)),
    )
    block = (parts[0].given[0], len(text) - tail)
    label = last.mark.name or last.mark.key
    return Reading(
        "below", pairs, _field(text, last.given), block, ("", label), True, shown if ends_open else "", 0, facts
    )


def _field(text: str, span: Span) -> Span:
    start, end = trimmed(text, *span)
    return unwrapped(text, (start, end), quotes=text[start : start + 1] not in "{[")


def _within(stream: Marked, start: int, end: int) -> Sequence[Marker]:
    at = bisect_left(stream.marks, start, key=lambda mark: mark.start)
    stop = bisect_left(stream.marks, end, key=lambda mark: mark.start)
    return stream.marks[at : min(stop, at + 20)]


def inputs_marked(text: str, lines: Sequence[Line], stream: Marked) -> Iterator[Reading]:
    """Yield readings in which the input is the line of a mark and the output what stands below it."""
    for key, marks in _by_key(stream.marks).items():
        if key == "#":
            # Headings of an instruction come before the comments that are inputs.
            headed = max((mark.start for mark in stream.marks if mark.key.startswith("##")), default=-1)
            marks = [mark for mark in marks if mark.start > headed]
        if key in _ARROWS or not 2 <= len(marks) <= MOST_RECORDS or (len(marks) == 2 and marks[0].name):
            continue
        found = _above(text, lines, stream, key, marks)
        if found is not None:
            yield found


def _above(text: str, lines: Sequence[Line], stream: Marked, key: str, marks: Sequence[Marker]) -> Reading | None:
    rows = [line_of(lines, mark.start) for mark in marks]
    given = [
        unwrapped(text, (m.end, lines[r].end), quotes=key not in _PROMPTS) for m, r in zip(marks, rows, strict=True)
    ]
    rest = text[lines[rows[-1]].end :].strip()
    if not is_open(rest) or given[-1][0] == given[-1][1]:
        return None
    headings = headings_above(text, lines, [mark.start for mark in marks])
    pairs: list[tuple[Span, Span]] = []
    cut = flaws = 0
    for mark, row, asked, following in zip(marks, rows, given, marks[1:], strict=False):
        below = (lines[row].end, following.start)
        code = key in _COMMENTS and _has_indent(lines, row, following.start)
        answer, lost = answer_in(text, below, headings, blanks=code and lines[row].indent == 0)
        cut += lost
        flaws += any(m.name and not m.is_option for m in _within(stream, *below))
        if answer[0] == answer[1]:
            flaws += 2
        elif mark.end <= asked[0]:
            pairs.append((asked, answer))
    if not pairs:
        return None
    last = marks[-1]
    facts = (
        ("unlabelled_output", 1.0),
        ("cut", min(1.0, cut / 80)),
        ("sign_label", float(not last.name)),
        ("numbered_label", float(key == "0.")),
        ("prompt_sign", float(key in _PROMPTS)),
        ("comment", float(key in _COMMENTS)),
    )
    block = (marks[0].start, len(text))
    return Reading("above", tuple(pairs), given[-1], block, (last.name or last.key, ""), True, rest, flaws, facts)


def _has_indent(lines: Sequence[Line], row: int, stop: int) -> bool:
    """Return whether a line below ``row`` and before ``stop`` is indented, as code is."""
    at = row + 1
    while at < len(lines) and lines[at].start < stop:
        if lines[at].indent > 0:
            return True
        at += 1
    return False


def nothing_marked(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield the reading of blocks of two lines, input above and output below, the last of which has one line."""
    blocks: list[list[Line]] = [[]]
    ruled = 0
    for line in lines:
        if line.blank or is_rule(text[line.start : line.end]):
            ruled += not line.blank
            if blocks[-1]:
                blocks.append([])
        else:
            blocks[-1].append(line)
    blocks = [block for block in blocks if block]
    if not 3 <= len(blocks) <= MOST_RECORDS or len(blocks[-1]) != 1:
        return
    count = len(blocks) - 1
    first = count
    while first > 0 and len(blocks[first - 1]) == 2:
        first -= 1
    if first > 0 and len(blocks[first - 1]) > 2 and (ruled or len(blocks[first - 1]) <= 4):
        # Instructions stand right above the first example.
        first -= 1
        blocks[first] = blocks[first][-2:]
    if count - first < 2 or first > 8:
        return
    pairs = tuple((unwrapped(text, above[:2]), unwrapped(text, below[:2])) for above, below in blocks[first:count])
    query = blocks[-1][0]
    facts = (("ruled", float(ruled >= count - first - 1)), ("no_cue", 1.0))
    block = (blocks[first][0].start, query.end)
    yield Reading("blocks", pairs, unwrapped(text, query[:2]), block, slot=True, facts=facts)

"""Examples whose fields are marked: labels, headings, chat turns, tags, code prompts, comments.

One engine reads all of them from the marks that :mod:`markers` finds. A record begins at the mark of its input and holds
one mark of its output; the last record is the open item. All text between belongs to a field or counts as unexplained.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from acclimate.language.patterns import markers as marking
from acclimate.language.patterns.markers import Marked, Marker
from acclimate.language.patterns.roles import REPLIES, TURNS
from acclimate.language.patterns.text import (
    Line,
    Reading,
    Span,
    after_announcement,
    after_bullet,
    is_answer_sign,
    is_open,
    is_rule,
    lines_of,
    shape_of,
    trimmed,
    unwrapped,
)

MOST_RECORDS: Final = 130
_MOST_KEYS: Final = 8
_MOST_STEPS: Final = 1200
_SEPARATORS: Final = "/|,;"
_ARROWS: Final = ("->", "=>", "→", "-->", "==>")
_LONGEST_HEADING: Final = 70


def labelled(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield the readings of every kind of mark."""
    streams = [marking.on_lines(text, list(lines)), marking.chat_tokens(text), marking.tags(text)]
    inline = marking.inline(text)
    if len(inline.marks) > len({_line_of(lines, mark.start) for mark in inline.marks}):
        streams.append(inline)
        wide = marking.inline(text, words=3)
        if wide.marks != inline.marks:
            streams.append(wide)
    for stream in streams:
        yield from _pairs(text, lines, stream)
        if stream.form == "lines":
            yield from _answer_label_only(text, lines, stream)
            yield from _input_label_only(text, lines, stream)


def _line_of(lines: Sequence[Line], at: int) -> int:
    return bisect_left(lines, at + 1, key=lambda line: line.start) - 1


@dataclass(slots=True)
class _Record:
    """The marks of one record: of its input, of its output, and where the next one begins."""

    asked: Marker
    answered: Marker | None
    stop: int


def _pairs(text: str, lines: Sequence[Line], stream: Marked) -> Iterator[Reading]:
    places: dict[str, list[int]] = {}
    for index, mark in enumerate(stream.marks):
        if mark.key:
            places.setdefault(mark.key, []).append(index)
    often = [key for key, where in places.items() if 2 <= len(where) <= MOST_RECORDS]
    often = sorted(sorted(often, key=lambda key: -len(places[key]))[:_MOST_KEYS], key=lambda key: places[key][0])
    once = [key for key, where in places.items() if len(where) == 1]
    steps = 0
    for first in often:
        if first in {"=>", "->", "-->", "==>", "→"} or stream.marks[places[first][0]].is_option:
            continue
        if first == "0." and len({text[stream.marks[at].start : stream.marks[at].end] for at in places[first]}) == 1:
            # The first options of several questions.
            continue
        count = len(places[first])
        # With one example and the open item the label of the answer may occur once.
        partners = [key for key in often if key != first]
        if count == 2:
            partners += [key for key in once if places[key][0] > places[first][0]][:4]
        for second in partners:
            if places[second][0] < places[first][0] or len(places[second]) < count - 1 - count // 5:
                continue
            steps += count + len(places[second])
            if steps > _MOST_STEPS:
                return
            records = _records(text, stream, places[first], places[second])
            if records is not None:
                found = _read(text, lines, stream, records, places)
                if found is not None:
                    yield found


def _records(text: str, stream: Marked, firsts: list[int], seconds: list[int]) -> list[_Record] | None:
    """Return one record for each mark of an input, or None where most have no output."""
    records, without = [], 0
    for position, index in enumerate(firsts):
        following = firsts[position + 1] if position + 1 < len(firsts) else len(stream.marks)
        at = bisect_left(seconds, index)
        inside = at < len(seconds) and seconds[at] < following
        stop = stream.marks[following].start if following < len(stream.marks) else len(text)
        records.append(_Record(stream.marks[index], stream.marks[seconds[at]] if inside else None, stop))
        without += not inside
    return records if without <= 1 + len(firsts) // 4 else None


def _read(
    text: str, lines: Sequence[Line], stream: Marked, records: list[_Record], places: dict[str, list[int]]
) -> Reading | None:
    marks, first, second = stream.marks, records[0].asked, next(r.answered for r in records if r.answered)
    starts = [mark.start for mark in marks]
    inputs_of: list[list[Marker]] = []
    outputs_of: list[list[Marker]] = []
    for record in records:
        low = bisect_left(starts, record.asked.end)
        middle = bisect_left(starts, record.answered.start) if record.answered else bisect_left(starts, record.stop)
        high = bisect_left(starts, record.stop)
        inputs_of.append(
            [m for m in marks[low:middle] if m.key and not m.is_option and m.key not in {"0.", "#", ">"}][:12]
        )
        outputs_of.append(
            [m for m in marks[middle + 1 : high] if m.key and not m.is_option and m.key not in {"0.", "#", ">"}][:12]
        )
    count = len(records)
    in_fields = _common([{m.key for m in found} for found in inputs_of], count)
    out_fields = _common([{m.key for m in found} for found in outputs_of[:-1]], max(2, count - 1))
    several_in, several_out = bool(in_fields), bool(out_fields)
    if stream.inline and (several_in or several_out):
        return None
    holder = several_in and all(
        bool(inner) and inner[0].key in in_fields and not text[record.asked.end : inner[0].start].strip()
        for record, inner in zip(records, inputs_of, strict=True)
    )
    out_holder = several_out and all(
        bool(inner) and inner[0].key in out_fields and not text[record.answered.end : inner[0].start].strip()
        for record, inner in zip(records[:-1], outputs_of, strict=False)
        if record.answered
    )
    headings = _headings(text, lines, records)
    pairs: list[tuple[Span, Span]] = []
    open_at: list[tuple[int, Span, str]] = []
    bodies: list[Span] = []
    flaws, cut, tail = 0, 0, 0
    spans: list[tuple[Span, Span | None, int]] = []
    for position, record in enumerate(records):
        given_end = record.answered.start if record.answered else record.stop
        spans.append((_given(text, stream, record, given_end, several_in, holder), None, given_end))
        bodies.append((record.answered.end, record.stop) if record.answered else (record.stop, record.stop))
    complete = [(r, b) for r, b in zip(records[:-1], bodies[:-1], strict=True) if r.answered]
    paragraphs = sum("\n\n" in text[b[0] : b[1]].strip().replace("\r", "") for _, b in complete[:-1])
    answers: list[str] = []
    multiline = False
    for position, (record, body) in enumerate(zip(records, bodies, strict=True)):
        is_last = position == count - 1
        given = spans[position][0]
        if is_last:
            break
        if record.answered is None:
            flaws += 1
            continue
        next_lines = position == len(records) - 2 and not multiline and len(answers) >= 1
        span, lost = _answer(
            text, stream, record, body, headings, several_out, out_holder, single=next_lines, blanks=paragraphs > 0
        )
        cut += lost
        shown = text[span[0] : span[1]]
        if _is_placeholder(text[given[0] : given[1]], shown, first=position == 0):
            flaws += 0
            continue
        if is_open(shown) and not is_answer_sign(shown):
            open_at.append((position, given, shown))
            flaws += 1
            continue
        multiline = multiline or "\n" in shown
        pairs.append((given, span))
        answers.append(shown if not several_out else text[record.answered.end : span[1]].strip())
    last, body = records[-1], bodies[-1]
    query, slot, cue, block_end = None, False, "", len(text)
    own_line = bool(complete) and all(text[b[0] : b[1]].lstrip(" \t\r")[:1] == "\n" for _, b in complete)
    if last.answered is None:
        given = _given(text, stream, last, len(text), several_in, holder)
        inner = inputs_of[-1]
        longest_given = max((text[a:b].count("\n") for (a, b), _ in pairs), default=0)
        given, tail = _without_tail(
            text, given, any("\n\n" in text[a:b].replace("\r", "") for (a, b), _ in pairs), longest_given
        )
        query, slot, block_end = given, True, given[1]
        unfinished = bool(inner) and is_open(text[inner[-1].end :])
        facts_no_cue = 1.0
        flaws += 2 * unfinished
    else:
        facts_no_cue = 0.0
        state, cue_span = _open_body(text, stream, last, body, answers, own_line)
        if state:
            query, slot = spans[-1][0], True
            cue = text[cue_span[0] : cue_span[1]]
            block_end = cue_span[1]
            tail = len(text[cue_span[1] :].strip("\"'`*_()[]{}<>|.?… \r\n\t"))
        else:
            span, lost = _answer(
                text, stream, last, body, headings, several_out, out_holder, single=not multiline, blanks=paragraphs > 0
            )
            tail = lost
            block_end = span[1]
            if not is_open(text[span[0] : span[1]]):
                pairs.append((spans[-1][0], span))
    if query is None and len(open_at) == 1:
        query, slot = open_at[0][1], True
        flaws -= 1
    elif query is None:
        signs = [i for i, (_, (a, b)) in enumerate(pairs) if is_open(text[a:b])]
        if len(signs) == 1 and len(pairs) > 2:
            query, slot = pairs.pop(signs[0])[0], True
            flaws += 1
    if stream.form == "inline":
        pairs = [(_inline_end(text, a), _inline_end(text, b)) for a, b in pairs]
        if all(text[b - 1 : b] == "." and " " not in text[a:b] and text.count(".", a, b) == 1 for _, (a, b) in pairs):
            pairs = [(a, (b[0], b[1] - 1)) for a, b in pairs]
        query = _inline_end(text, query) if query else None
    pairs = [(_field(text, a, stream, whole=several_in), _field(text, b, stream, whole=several_out)) for a, b in pairs]
    if query is not None:
        query = _field(text, query, stream, whole=several_in)
    if not pairs:
        return None
    frequent = [
        k
        for k, where in places.items()
        if len(where) >= max(2, count - 1) and k not in {"0.", "#", ">"} and not marks[where[0]].is_option
    ]
    earlier = sum(places[k][0] < places[first.key][0] for k in frequent)
    last_key = next((m.key for m in reversed(marks) if m.key and not m.is_option and m.key != "0."), "")
    facts = (
        ("earlier_labels", float(min(3, earlier))),
        ("ends_with_answer_label", float(last_key == second.key)),
        ("no_cue", facts_no_cue),
        ("input_fields", float(min(3, len(in_fields)))),
        ("output_fields", float(min(3, len(out_fields)))),
        ("cut", min(1.0, cut / 80)),
        ("tail", min(1.0, tail / 60)),
        ("same_number", float(len(places[first.key]) - len(places[second.key]) in (0, 1))),
        ("own_line", float(own_line)),
        ("decorated", float(first.key[:1] in "#*[<" or stream.closed)),
        ("sign_label", float(not first.name)),
    )
    return Reading(
        stream.form, tuple(pairs), query, (first.start, block_end), (first.name or first.key, second.name or second.key),
        slot, cue, flaws, facts,
    )  # fmt: skip


def _common(found: list[set[str]], count: int) -> set[str]:
    """Return the keys that most of the records have."""
    seen = Counter(key for keys in found for key in keys)
    return {key for key, times in seen.items() if times >= 2 and times >= 0.6 * count}


def _given(text: str, stream: Marked, record: _Record, end: int, several: bool, holder: bool) -> Span:
    """Return the span of an input."""
    if several:
        if record.asked.name in TURNS:
            return trimmed(text, record.asked.end, end)
        if holder:
            # The label only holds the other fields together.
            return trimmed(text, _closing(stream, record.asked), end)
        return trimmed(text, record.asked.name_start, end)
    if stream.closed:
        end = min(end, _closing(stream, record.asked))
    return trimmed(text, record.asked.end, end)


def _closing(stream: Marked, mark: Marker) -> int:
    """Return where the next mark after ``mark`` begins."""
    at = bisect_left(stream.marks, mark.end, key=lambda other: other.start)
    return stream.marks[at].start if at < len(stream.marks) else 1 << 60


def _field(text: str, span: Span, stream: Marked, *, whole: bool) -> Span:
    start, end = trimmed(text, *span)
    code = stream.form == "lines" and text[start : start + 1] in "{["
    multi = "\n" in text[start:end]
    return unwrapped(text, (start, end), quotes=not (whole or code or multi), comma=False)


def _inline_end(text: str, span: Span) -> Span:
    start, end = trimmed(text, *span)
    while end > start:
        before = end
        if text[end - 1] in _SEPARATORS or (text[end - 1] in "([{-" and end - 2 >= start and text[end - 2].isspace()):
            end -= 1
        for arrow in _ARROWS:
            if text.endswith(arrow, start, end):
                end -= len(arrow)
        while end > start and text[end - 1].isspace():
            end -= 1
        if end == before:
            break
    return start, end


def _headings(text: str, lines: Sequence[Line], records: list[_Record]) -> set[str]:
    """Return the shapes of lines that stand before every record, the first one included: ``Example 1``, ``<example>``."""
    shapes: list[set[str]] = []
    for record in records:
        at = _line_of(lines, record.asked.start) - 1
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


def _answer(
    text: str,
    stream: Marked,
    record: _Record,
    body: Span,
    headings: set[str],
    several: bool,
    holder: bool,
    *,
    single: bool,
    blanks: bool,
) -> tuple[Span, int]:
    """Return the span of an output, and how many characters behind it are unexplained."""
    assert record.answered is not None
    start, end = body
    if stream.closed and not several:
        return trimmed(text, start, min(end, _closing(stream, record.answered))), 0
    piece = text[start:end]
    rows = piece.splitlines(keepends=True)
    offsets, at = [], start
    for row in rows:
        offsets.append(at)
        at += len(row)
    stop = len(rows)
    # Headings, separators and announcements at the end belong to the next record.
    while stop > 1:
        row = rows[stop - 1].strip()
        if not row or is_rule(row) or shape_of(row) in headings or _is_announcement(row):
            stop -= 1
        else:
            break
    filled = next((i for i in range(stop) if rows[i].strip()), stop)
    lost = 0
    depth, fence, seen_blank = 0, False, False
    for i in range(filled, stop):
        row = rows[i]
        body_row = row.strip()
        if i > filled and depth <= 0 and not fence:
            if is_rule(body_row) and body_row[0] not in "." and len(set(body_row)) == 1:
                lost, stop = _length(rows[i + 1 : stop]), i
                break
            if seen_blank and body_row and not blanks and row[:1] not in " \t" and not _goes_on(body_row):
                lost, stop = _length(rows[i:stop]), i
                break
            if single and body_row and body_row.endswith(":") and i == stop - 1:
                stop = i
                break
        if not body_row:
            seen_blank = True
            continue
        if body_row.startswith("```"):
            fence = not fence
        depth += sum(body_row.count(c) for c in "{[(") - sum(body_row.count(c) for c in "}])")
        seen_blank = False
    end = offsets[stop] if stop < len(rows) else end
    begin = record.answered.name_start if several and not holder and record.answered.name not in REPLIES else start
    return trimmed(text, begin, end), lost


def _length(rows: Sequence[str]) -> int:
    return sum(len(row.strip()) for row in rows if not is_rule(row.strip()))


def _goes_on(row: str) -> bool:
    return row[0] in "}])|-*•" or row.startswith("```")


_CALLS: Final = frozenset("now your next query new yours turn test finally question continue go over to".split())


def _is_announcement(row: str) -> bool:
    """Return whether a line only announces the next example or the open item."""
    if len(row) > _LONGEST_HEADING:
        return False
    end = after_announcement(row, 0, len(row))
    if end == len(row):
        return True
    plain = row.strip("#*_=-:. ").lower().split()
    return (
        bool(plain)
        and len(plain) <= 5
        and plain[0] in _CALLS
        and (row.endswith(":") or row[0] in "#*=-" or plain[:2] in (["your", "turn"], ["now", "you"]))
    )


def _is_placeholder(given: str, answer: str, *, first: bool) -> bool:
    """Return whether a record is the template that describes the fields."""
    for part in (given, answer):
        body = part.strip()
        if ("${" in body and "}" in body) or (body.startswith("{{") and "}}" in body):
            return True
        if (
            len(body) > 2
            and body[0] + body[-1] in ("<>", "{}")
            and body[1].isalpha()
            and "\n" not in body
            and '"' not in body
            and "/" not in body
            and body.count("<") <= 1
        ):
            return True
        if first and (body in {"...", "…"} or (body.endswith(("...", "…")) and part is answer) or " ...\n" in answer):
            return True
    return False


def _open_body(
    text: str, stream: Marked, last: _Record, body: Span, answers: Sequence[str], own_line: bool
) -> tuple[bool, Span]:
    """Return whether the output of the last record is missing, and the span of what stands in its place."""
    start, end = body
    if stream.closed:
        end = min(end, _closing(stream, last.answered)) if last.answered else end
    span = trimmed(text, start, end)
    shown = text[span[0] : span[1]]
    if is_open(shown) or is_cue(shown, answers):
        return True, span
    # Further text may follow the gap: a blank line, or a remark in brackets, lies between.
    line_end = text.find("\n", start, end)
    line_end = end if line_end < 0 else line_end
    same_line = text[start:line_end].strip()
    if line_end < end and is_open(same_line):
        rest = text[line_end:end]
        gap = rest[: len(rest) - len(rest.lstrip())].count("\n")
        if gap >= 2 or (not own_line and answers) or rest.lstrip()[:1] in "([":
            return True, trimmed(text, start, line_end)
    if line_end < end and is_cue(same_line, answers) and text[line_end:end].lstrip("\r")[:2] == "\n\n":
        return True, trimmed(text, start, line_end)
    return False, span


def is_cue(shown: str, answers: Sequence[str]) -> bool:
    """Return whether ``shown`` only begins an answer: all answers begin so, or it is not finished."""
    body = shown.strip()
    if not body or len(body) > 120:
        return False
    low = body.rstrip(".… ").lower()
    alike = sum(answer.lower().startswith(low) and len(answer) > len(low) + 1 for answer in answers)
    if answers and alike >= max(1, (2 * len(answers) + 2) // 3) and alike >= 1:
        return True
    if low.startswith(("let's think", "let’s think", "let us think")):
        return True
    if "\n" in body:
        return False
    if body[-1] in '{[(:,"“‘' or body.endswith("```") or body.startswith("```"):
        opened = body.count('"') % 2 == 1 or body[-1] in "{[(:,“‘" or body.endswith("```")
        return opened
    return body.count("{") > body.count("}")


def _without_tail(text: str, given: Span, blanks: bool, most_breaks: int) -> tuple[Span, int]:
    """Return an open item that ends the prompt without instructions behind it, and their length."""
    if blanks:
        return given, 0
    start, end = given
    at, shown = start, text[start:end].replace("\r\n", "\n")
    head, gap, rest = shown.partition("\n\n")
    if not gap:
        return given, 0
    lead = text[start:end]
    position = lead.find("\n\n")
    if position < 0:
        position = lead.find("\r\n\r\n")
    return trimmed(text, at, start + position), len(rest.strip())


def _answer_label_only(text: str, lines: Sequence[Line], stream: Marked) -> Iterator[Reading]:
    """Yield readings of inputs without a label: a paragraph, then the label of the answer."""
    places: dict[str, list[Marker]] = {}
    for mark in stream.marks:
        alone = mark.key == ">>>" and text[mark.end : mark.end + 2].strip(" ")[:1] in ("\n", "\r", "")
        if mark.key and not mark.is_option and (alone or mark.key not in {"0.", "#", ">", "$", ">>>"}):
            places.setdefault(mark.key, []).append(mark)
    steps = 0
    for key, marks in places.items():
        if not 2 <= len(marks) <= MOST_RECORDS:
            continue
        steps += len(marks)
        if steps > _MOST_STEPS // 2:
            return
        rows = [_line_of(lines, mark.start) for mark in marks]
        own = [text[m.end : lines[r].end].strip() == "" for m, r in zip(marks, rows, strict=True)]
        own_line = all(own[:-1])
        if any(own[:-1]) and not own_line:
            continue
        pairs: list[tuple[Span, Span]] = []
        answers: list[str] = []
        begins = -1
        heights: set[int] = set()
        parts: list[tuple[Span, Marker, Span]] = []
        good = True
        for position, (mark, row) in enumerate(zip(marks, rows, strict=True)):
            last = position == len(marks) - 1
            bottom = row - 1
            while bottom > begins and lines[bottom].blank:
                bottom -= 1
            top = bottom
            while (
                top - 1 > begins
                and not lines[top - 1].blank
                and not is_rule(text[lines[top - 1].start : lines[top - 1].end])
            ):
                top -= 1
            if bottom <= begins:
                good = False
                break
            heights.add(bottom - top)
            if not own_line:
                stop = row
                limit = rows[position + 1] - 1 if not last else len(lines)
                apart = any(lines[r].blank for r in range(row + 1, limit))
                while (
                    stop + 1 < limit
                    and not lines[stop + 1].blank
                    and (apart or _continues(text, lines, stop + 1, rows, position))
                    and not is_rule(text[lines[stop + 1].start : lines[stop + 1].end])
                ):
                    stop += 1
            else:
                stop = row + 1
                while stop < len(lines) and lines[stop].blank and not last:
                    stop += 1
                while (
                    stop + 1 < len(lines) and not lines[stop + 1].blank and (last or stop + 1 < rows[position + 1] - 1)
                ):
                    stop += 1
            stop = min(stop, len(lines) - 1)
            answer = trimmed(text, mark.end, lines[stop].end)
            begins = stop
            parts.append(((lines[top].start, lines[bottom].end), mark, answer))
        if not good:
            continue
        if len({h for h in heights}) > 1 and parts:
            # Without blank lines between, the first input would take in the instruction above it.
            usual = [text[a:b].count("\n") for (a, b), _, _ in parts[1:]]
            first_rows = text[parts[0][0][0] : parts[0][0][1]].count("\n")
            if first_rows > max(usual, default=0):
                top_line = _line_of(lines, parts[0][0][1] - 1) - max(usual, default=0)
                parts[0] = ((lines[top_line].start, parts[0][0][1]), parts[0][1], parts[0][2])
        for given, mark, answer in parts[:-1]:
            pairs.append((_field(text, given, stream, whole=False), _field(text, answer, stream, whole=False)))
            answers.append(text[answer[0] : answer[1]])
        (given, mark, answer) = parts[-1]
        shown = text[mark.end :].strip()
        open_end = is_open(shown) or is_cue(shown, answers)
        if not open_end and not is_open(text[answer[0] : answer[1]]):
            continue
        tail = 0 if open_end else len(text[answer[1] :].strip())
        labelled_inputs = sum(
            any(
                other.key and other.key not in {"0.", "#"} and a <= other.start < b and not other.is_option
                for other in _within(stream, a, b)
            )
            for (a, b), _, _ in parts
        )
        facts = (
            ("unlabelled_input", 1.0),
            ("labels_inside", labelled_inputs / len(parts)),
            ("tail", min(1.0, tail / 60)),
            ("decorated", float(key[:1] in "#*[<")),
            ("sign_label", float(not mark.name)),
            ("own_line", float(own_line)),
            ("uneven", float(len(heights) > 1)),
        )
        yield Reading(
            "below", tuple(pairs), _field(text, given, stream, whole=False), (parts[0][0][0], len(text) - tail),
            ("", mark.name or mark.key), True, shown if open_end else "", 0, facts,
        )  # fmt: skip


def _continues(text: str, lines: Sequence[Line], row: int, rows: Sequence[int], position: int) -> bool:
    """Return whether an answer that begins on the line of its label goes on in ``row``: it is indented more."""
    return (
        position + 1 < len(rows) and row < rows[position + 1] - 1 and lines[row].indent > lines[rows[position]].indent
    )


def _within(stream: Marked, start: int, end: int) -> Sequence[Marker]:
    at = bisect_left(stream.marks, start, key=lambda mark: mark.start)
    stop = bisect_left(stream.marks, end, key=lambda mark: mark.start)
    return stream.marks[at : min(stop, at + 20)]


def _input_label_only(text: str, lines: Sequence[Line], stream: Marked) -> Iterator[Reading]:
    """Yield readings in which the input is the line of a mark and the output what stands below it."""
    places: dict[str, list[Marker]] = {}
    for mark in stream.marks:
        if mark.key and not mark.is_option and mark.key not in {"=>", "->", "→"}:
            places.setdefault(mark.key, []).append(mark)
    for key, marks in places.items():
        if key == "#":
            # Headings of an instruction come before the comments that are inputs.
            below = max((mark.start for mark in stream.marks if mark.key.startswith("##")), default=-1)
            marks = [mark for mark in marks if mark.start > below]
        if not 2 <= len(marks) <= MOST_RECORDS or (len(marks) == 2 and marks[0].name):
            continue
        rows = [_line_of(lines, mark.start) for mark in marks]
        pairs: list[tuple[Span, Span]] = []
        headings = _headings(text, lines, [_Record(m, None, 0) for m in marks])
        cut = flaws = 0
        for position, mark in enumerate(marks[:-1]):
            stop = marks[position + 1].start
            record = _Record(mark, Marker(0, 0, lines[rows[position]].end, "", ""), stop)
            inner = [m for m in _within(stream, lines[rows[position]].end, stop) if m.name and not m.is_option]
            span, lost = _answer(
                text,
                stream,
                record,
                (lines[rows[position]].end, stop),
                headings,
                False,
                False,
                single=False,
                blanks=key in {"#", "--", "//"}
                and lines[rows[position]].indent == 0
                and _indented(text, lines, rows[position], stop),
            )
            cut += lost
            flaws += bool(inner)
            given = unwrapped(text, (mark.end, lines[rows[position]].end), quotes=key not in {">>>", "$"})
            if span[0] == span[1]:
                flaws += 2
                continue
            pairs.append((given, span))
        last = marks[-1]
        rest = text[lines[rows[-1]].end :].strip()
        query = unwrapped(text, (last.end, lines[rows[-1]].end), quotes=key not in {">>>", "$"})
        if not pairs or not (is_open(rest)) or query[0] == query[1]:
            continue
        facts = (
            ("unlabelled_output", 1.0),
            ("cut", min(1.0, cut / 80)),
            ("sign_label", float(not last.name)),
            ("numbered_label", float(key == "0.")),
            ("prompt_sign", float(key in {">>>", "$"})),
            ("comment", float(key in {"#", "--", "//", "%"})),
        )
        yield Reading(
            "above",
            tuple(pairs),
            query,
            (marks[0].start, len(text)),
            (last.name or last.key, ""),
            True,
            rest,
            flaws,
            facts,
        )


def _indented(text: str, lines: Sequence[Line], row: int, stop: int) -> bool:
    """Return whether the text below a comment is code with indented lines."""
    at = row + 1
    while at < len(lines) and lines[at].start < stop:
        if lines[at].indent > 0:
            return True
        at += 1
    return False


def unlabelled_blocks(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
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
    at = count
    while at > 0 and len(blocks[at - 1]) == 2:
        at -= 1
    if at > 0 and len(blocks[at - 1]) > 2 and (ruled or len(blocks[at - 1]) <= 4):
        # Instructions stand right above the first example.
        at -= 1
        blocks[at] = blocks[at][-2:]
    if count - at < 2 or at > 8:
        return
    pairs = tuple((unwrapped(text, block[0][:2]), unwrapped(text, block[1][:2])) for block in blocks[at:count])
    query = blocks[-1][0]
    yield Reading(
        "blocks", pairs, unwrapped(text, query[:2]), (blocks[at][0].start, query.end), slot=True,
        facts=(("ruled", float(ruled >= count - at - 1)), ("no_cue", 1.0)),
    )  # fmt: skip


__all__ = ["MOST_RECORDS", "after_bullet", "is_cue", "labelled", "lines_of", "unlabelled_blocks"]

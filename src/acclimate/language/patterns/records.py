"""Records of marked fields: a record begins at the mark of its input and holds one mark of its output.

One engine reads labels on lines, labels inside lines, tags and chat tokens (:mod:`markers`). The last record is the open
item. All text between belongs to a field or counts as unexplained.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from acclimate.language.patterns import markers as marking
from acclimate.language.patterns.extents import answer_in, headings_above, is_template, line_of, open_body, without_tail
from acclimate.language.patterns.markers import Marked, Marker
from acclimate.language.patterns.roles import REPLIES, TURNS
from acclimate.language.patterns.text import Line, Reading, Span, is_answer_sign, is_open, trimmed, unwrapped

#: Most examples that are read; longer lists are data.
MOST_RECORDS: Final = 130
#: Marks that introduce a line but name no field.
SIGNS: Final = frozenset({"0.", "#", ">"})
_ARROWS: Final = ("->", "=>", "→", "-->", "==>")
_MOST_KEYS: Final = 8
_MOST_STEPS: Final = 1200
_MOST_FIELDS: Final = 12
_SEPARATORS: Final = "/|,;"


class _Record(NamedTuple):
    """The marks of one record: of its input, of its output, and where the next one begins."""

    asked: Marker
    answered: Marker | None
    stop: int


def marked_streams(text: str, lines: Sequence[Line]) -> list[Marked]:
    """Return the marks of every kind that a prompt has; those at the starts of lines come first."""
    streams = [marking.on_lines(text, list(lines)), marking.chat_tokens(text), marking.tags(text)]
    inline = marking.inline(text)
    if len(inline.marks) > len({line_of(lines, mark.start) for mark in inline.marks}):
        streams.append(inline)
        wide = marking.inline(text, words=3)
        if wide.marks != inline.marks:
            streams.append(wide)
    return streams


def in_records(text: str, lines: Sequence[Line], stream: Marked) -> Iterator[Reading]:
    """Yield a reading for every two marks that may be those of input and output."""
    places: dict[str, list[int]] = {}
    for index, mark in enumerate(stream.marks):
        if mark.key:
            places.setdefault(mark.key, []).append(index)
    often = [key for key, where in places.items() if 2 <= len(where) <= MOST_RECORDS]
    often = sorted(sorted(often, key=lambda key: -len(places[key]))[:_MOST_KEYS], key=lambda key: places[key][0])
    once = [key for key, where in places.items() if len(where) == 1]
    steps = 0
    for first in often:
        count = len(places[first])
        if not _may_begin(text, [stream.marks[at] for at in places[first]]):
            continue
        # With one example and the open item the label of the answer may occur once.
        partners = [key for key in often if key != first]
        partners += [key for key in once if places[key][0] > places[first][0]][:4] if count == 2 else []
        for second in partners:
            if places[second][0] < places[first][0] or len(places[second]) < count - 1 - count // 5:
                continue
            steps += count + len(places[second])
            if steps > _MOST_STEPS:
                return
            records = _records(text, stream, places[first], places[second])
            found = _Reader(text, lines, stream, records, places).reading() if records else None
            if found is not None:
                yield found


def _may_begin(text: str, marks: Sequence[Marker]) -> bool:
    """Return whether records may begin with these marks: no arrows, and not the first options of several questions."""
    first = marks[0]
    if first.key in _ARROWS or first.is_option:
        return False
    return first.key != "0." or len({text[mark.start : mark.end] for mark in marks}) > 1


def _records(text: str, stream: Marked, firsts: Sequence[int], seconds: Sequence[int]) -> list[_Record] | None:
    """Return one record for each mark of an input, or None where too many have no output."""
    records, without = [], 0
    for position, index in enumerate(firsts):
        following = firsts[position + 1] if position + 1 < len(firsts) else len(stream.marks)
        at = bisect_left(seconds, index)
        inside = at < len(seconds) and seconds[at] < following
        stop = stream.marks[following].start if following < len(stream.marks) else len(text)
        records.append(_Record(stream.marks[index], stream.marks[seconds[at]] if inside else None, stop))
        without += not inside
    other = _with_other_label(text, stream, firsts, seconds)
    if other is not None and records[-1].answered is not None:
        records[-1] = records[-1]._replace(stop=other.asked.start)
        records.append(other)
    return records if without <= 1 + len(firsts) // 4 else None


def _with_other_label(text: str, stream: Marked, firsts: Sequence[int], seconds: Sequence[int]) -> _Record | None:
    """Return the open item whose input has a label of its own: ``Note to classify: ... Class:`` behind ``Note: ... Class: ...``."""
    if len(firsts) < 2 or len(seconds) != len(firsts) + 1 or seconds[-2] < firsts[-1]:
        return None
    between = stream.marks[seconds[-2] + 1 : seconds[-1]]
    asked = next((mark for mark in between if mark.name and mark.key not in SIGNS and not mark.is_option), None)
    answered = stream.marks[seconds[-1]]
    if asked is None or text[answered.end :].strip("\"'`?_. \r\n"):
        return None
    return _Record(asked, answered, len(text))


@dataclass(slots=True)
class _Open:
    """The open item, what stands in the place of its output, and how far the block of examples reaches."""

    query: Span | None
    end: int
    cue: str = ""
    tail: int = 0


class _Reader:
    """Reads records of which the marks are known."""

    def __init__(
        self, text: str, lines: Sequence[Line], stream: Marked, records: list[_Record], places: Mapping[str, list[int]]
    ) -> None:
        self.text, self.stream, self.records, self.places = text, stream, records, places
        self.flaws = self.cut = 0
        inputs, outputs = zip(*(self._inner(record) for record in records), strict=True)
        count = len(records)
        self.input_fields = _common(inputs, count)
        self.output_fields = _common(outputs[:-1], max(2, count - 1))
        #: A label that only holds other fields together is no field of its own.
        self.holds_inputs = bool(self.input_fields) and all(
            not inner or self._holds(record.asked, inner, self.input_fields)
            for record, inner in zip(records, inputs, strict=True)
        )
        self.holds_outputs = bool(self.output_fields) and all(
            self._holds(record.answered, inner, self.output_fields)
            for record, inner in zip(records[:-1], outputs, strict=False)
            if record.answered
        )
        self.last_inner = inputs[-1]
        self.headings = headings_above(text, lines, [record.asked.start for record in records])
        bodies = [text[r.answered.end : r.stop] for r in records[:-1] if r.answered]
        self.own_line = bool(bodies) and all(body.lstrip(" \t\r")[:1] == "\n" for body in bodies)
        ends = [(r.answered.end, r.stop) for r in records[:-2] if r.answered]
        whole = [answer_in(text, body, self.headings, blanks=True)[0] for body in ends]
        self.blanks = any("\n\n" in text[slice(*answer)].replace("\r", "") for answer in whole)

    def _inner(self, record: _Record) -> tuple[list[Marker], list[Marker]]:
        """Return the marks of further fields in the input and in the output of a record."""
        marks = self.stream.marks
        low = bisect_left(marks, record.asked.end, key=lambda mark: mark.start)
        high = bisect_left(marks, record.stop, key=lambda mark: mark.start)
        middle = (
            high if record.answered is None else bisect_left(marks, record.answered.start, key=lambda mark: mark.start)
        )
        # Behind "A:" as the label of the input, "B:" is another field and not an option.
        options = record.asked.name == "a"
        return _fields(marks[low:middle], options=options), _fields(marks[middle + 1 : high], options=options)

    def _holds(self, mark: Marker | None, inner: Sequence[Marker], fields: set[str]) -> bool:
        """Return whether nothing stands between a mark and the first field in it."""
        return (
            mark is not None
            and bool(inner)
            and inner[0].key in fields
            and not self.text[mark.end : inner[0].start].strip()
        )

    def reading(self) -> Reading | None:
        """Return the reading, or None where no example is complete or fields stand beside each other on a line."""
        if self.stream.inline and (self.input_fields or self.output_fields):
            return None
        pairs, unanswered, answers = self._complete()
        asked = self._last(pairs, answers)
        if asked.query is None:
            asked.query = self._in_the_middle(pairs, unanswered)
        whole_in, whole_out = bool(self.input_fields), bool(self.output_fields)
        if self.stream.inline:
            pairs, asked.query = self._beside(pairs, asked.query)
        pairs = [(self._field(given, whole=whole_in), self._field(answer, whole=whole_out)) for given, answer in pairs]
        if not pairs:
            return None
        query = self._field(asked.query, whole=whole_in) if asked.query is not None else None
        first, second = self.records[0].asked, next(r.answered for r in self.records if r.answered)
        return Reading(
            self.stream.form, tuple(pairs), query, (first.start, asked.end),
            (first.name or first.key, second.name or second.key), query is not None, asked.cue, self.flaws,
            self._facts(first, second, asked.tail),
        )  # fmt: skip

    def _complete(self) -> tuple[list[tuple[Span, Span]], list[Span], list[str]]:
        """Return the examples before the last record, the inputs without an output, and the texts of the outputs."""
        pairs: list[tuple[Span, Span]] = []
        unanswered: list[Span] = []
        answers: list[str] = []
        for position, record in enumerate(self.records[:-1]):
            given = self._given(record, record.answered.start if record.answered else record.stop)
            if record.answered is None:
                self.flaws += 1
                continue
            # Behind the last example, a line may announce the open item.
            alone = position == len(self.records) - 2 and bool(answers) and not any("\n" in a for a in answers)
            answer, lost = self._answer(record.answered, record.stop, alone=alone)
            self.cut += lost
            shown = self.text[slice(*answer)]
            if is_template(self.text[slice(*given)], shown, first=position == 0):
                continue
            if is_open(shown) and not is_answer_sign(shown):
                unanswered.append(given)
                self.flaws += 1
                continue
            pairs.append((given, answer))
            answers.append(self.text[record.answered.end : answer[1]].strip())
        return pairs, unanswered, answers

    def _last(self, pairs: list[tuple[Span, Span]], answers: Sequence[str]) -> _Open:
        """Return the open item of the last record; where it is complete, it is added to the examples."""
        text, last = self.text, self.records[-1]
        if last.answered is None:
            given, tail = self._given(last, len(text)), 0
            if not any("\n\n" in text[slice(*i)].replace("\r", "") for i, _ in pairs):
                given, tail = without_tail(text, given)
            # An empty field of another name is what should be filled in, not part of the input.
            self.flaws += 2 * (bool(self.last_inner) and is_open(text[self.last_inner[-1].end :]))
            return _Open(given, given[1], tail=tail)
        given = self._given(last, last.answered.start)
        end = min(last.stop, self._next(last.answered)) if self.stream.closed else last.stop
        gap = open_body(text, (last.answered.end, end), answers, own_line=self.own_line)
        if gap is not None:
            tail = len(text[gap[1] :].strip("\"'`*_()[]{}<>|.?… \r\n\t"))
            return _Open(given, gap[1], text[slice(*gap)], tail)
        answer, lost = self._answer(last.answered, last.stop, alone=not any("\n" in a for a in answers))
        if not is_open(text[slice(*answer)]):
            pairs.append((given, answer))
        return _Open(None, answer[1], tail=lost)

    def _in_the_middle(self, pairs: list[tuple[Span, Span]], unanswered: Sequence[Span]) -> Span | None:
        """Return the only record without an output, or the only one whose output is a question mark, taken from ``pairs``."""
        if len(unanswered) == 1:
            self.flaws -= 1
            return unanswered[0]
        signs = [index for index, (_, answer) in enumerate(pairs) if is_open(self.text[slice(*answer)])]
        if len(signs) == 1 and len(pairs) > 2:
            self.flaws += 1
            return pairs.pop(signs[0])[0]
        return None

    def _given(self, record: _Record, end: int) -> Span:
        """Return the span of an input: with its first label where it has several fields, but never with the name of a turn."""
        start = record.asked.end
        if self.input_fields:
            if self.holds_inputs:
                following = self._next(record.asked)
                start = following if not self.text[start:following].strip() else start
            elif record.asked.name not in TURNS:
                start = record.asked.name_start
        elif self.stream.closed:
            end = min(end, self._next(record.asked))
        return trimmed(self.text, start, end)

    def _answer(self, mark: Marker, stop: int, *, alone: bool) -> tuple[Span, int]:
        """Return the span of an output and how many characters behind it are unexplained."""
        if self.stream.closed and not self.output_fields:
            return trimmed(self.text, mark.end, min(stop, self._next(mark))), 0
        span, lost = answer_in(self.text, (mark.end, stop), self.headings, alone=alone, blanks=self.blanks)
        if self.output_fields and not self.holds_outputs and mark.name not in REPLIES:
            span = mark.name_start, span[1]
        return span, lost

    def _next(self, mark: Marker) -> int:
        """Return where the next mark begins."""
        marks = self.stream.marks
        at = bisect_left(marks, mark.end, key=lambda other: other.start)
        return marks[at].start if at < len(marks) else len(self.text)

    def _field(self, span: Span, *, whole: bool) -> Span:
        """Return a field without quotes around it, unless it is code or several fields."""
        start, end = trimmed(self.text, *span)
        code = self.stream.form == "lines" and self.text[start : start + 1] in "{["
        return unwrapped(self.text, (start, end), quotes=not (whole or code))

    def _beside(
        self, pairs: Sequence[tuple[Span, Span]], query: Span | None
    ) -> tuple[list[tuple[Span, Span]], Span | None]:
        """Return fields that stand beside each other without the separators at their ends."""
        text = self.text
        kept = [(_before_separator(text, given), _before_separator(text, answer)) for given, answer in pairs]
        if all(text[b - 1 : b] == "." and " " not in text[a:b] and text.count(".", a, b) == 1 for _, (a, b) in kept):
            kept = [(given, (a, b - 1)) for given, (a, b) in kept]
        return kept, _before_separator(text, query) if query else None

    def _facts(self, first: Marker, second: Marker, tail: int) -> tuple[tuple[str, float], ...]:
        marks, places, count = self.stream.marks, self.places, len(self.records)
        frequent = [
            where[0] for key, where in places.items()
            if len(where) >= max(2, count - 1) and key not in SIGNS and not marks[where[0]].is_option
        ]  # fmt: skip
        last_key = next((m.key for m in reversed(marks) if m.key and not m.is_option and m.key != "0."), "")
        return (
            ("earlier_labels", float(min(3, sum(at < places[first.key][0] for at in frequent)))),
            ("ends_with_answer_label", float(last_key == second.key)),
            ("no_cue", float(self.records[-1].answered is None)),
            ("input_fields", float(min(3, len(self.input_fields)))),
            ("output_fields", float(min(3, len(self.output_fields)))),
            ("cut", min(1.0, self.cut / 80)),
            ("tail", min(1.0, tail / 60)),
            ("same_number", float(len(places[first.key]) - len(places[second.key]) in (0, 1))),
            ("own_line", float(self.own_line)),
            ("decorated", float(first.key[:1] in "#*[<" or self.stream.closed)),
            ("sign_label", float(not first.name)),
        )


def _fields(marks: Sequence[Marker], *, options: bool) -> list[Marker]:
    """Return the marks that name a field; ``options`` counts those of options too."""
    named = [mark for mark in marks if mark.key and mark.key not in SIGNS and (options or not mark.is_option)]
    return named[:_MOST_FIELDS]


def _common(found: Sequence[Sequence[Marker]], count: int) -> set[str]:
    """Return the keys that most of the records have."""
    seen = Counter(key for marks in found for key in {mark.key for mark in marks})
    return {key for key, times in seen.items() if times >= 2 and times >= 0.6 * count}


def _before_separator(text: str, span: Span) -> Span:
    start, end = trimmed(text, *span)
    before = -1
    while end > start and end != before:
        before = end
        if text[end - 1] in _SEPARATORS or (text[end - 1] in "([{-" and end - 2 >= start and text[end - 2].isspace()):
            end -= 1
        for arrow in _ARROWS:
            if text.endswith(arrow, start, end):
                end -= len(arrow)
        while end > start and text[end - 1].isspace():
            end -= 1
    return start, end

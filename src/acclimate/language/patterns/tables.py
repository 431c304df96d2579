"""Examples in the rows of a table: bars, commas, semicolons or tabs between cells, the last cell of the last row open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from acclimate.language.patterns.records import MOST_RECORDS
from acclimate.language.patterns.roles import is_answering, is_asking
from acclimate.language.patterns.text import Line, Reading, Span, is_answer_sign, is_open, trimmed, unwrapped

_RULE: Final = frozenset("|-:+= ")
_DELIMITERS: Final = {",": "comma", ";": "semicolon", "|": "bar", "\t": "tab"}
_Row = list[Span]


def tables(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Yield the readings of bar tables and of delimited rows."""
    if "|" in text:
        yield from _bars(text, lines)
    if "<td" in text:
        yield from _html(text, lines)
    for delimiter in ",;\t|":
        if text.count(delimiter) >= 3:
            yield from _delimited(text, lines, delimiter)


def _bars(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    """Read the last run of lines that begin with a bar."""
    block: list[Line] = []
    after = len(lines)
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        shown = text[line.start : line.end]
        if not line.blank and (shown[0] == "|" or (shown[0] == "+" and set(shown) <= _RULE)):
            block.append(line)
            after = index + 1 if len(block) == 1 else after
        elif block and not (line.blank and index > 0 and text.startswith("|", lines[index - 1].start)):
            break
    block.reverse()
    if len(block) < 3:
        return
    rows: list[_Row] = []
    header: _Row | None = None
    for line in block:
        if set(text[line.start : line.end]) <= _RULE and "-" in text[line.start : line.end]:
            if len(rows) == 1:
                header = rows.pop()
            continue
        rows.append(_cells(text, line, "|"))
    ruled = header is not None
    if header is None and len(rows) > 3 and _is_header(text, rows):
        header, rows = rows[0], rows[1:]
    yield from _read(text, rows, header, ruled, "table", block, _rest(text, lines, after), quotes=True)


def _html(text: str, lines: Sequence[Line]) -> Iterator[Reading]:
    rows: list[_Row] = []
    header: _Row | None = None
    at = text.find("<tr")
    end = at
    while at >= 0 and len(rows) <= MOST_RECORDS:
        stop = text.find("<tr", at + 3)
        end = stop if stop >= 0 else len(text)
        for name in ("td", "th"):
            cells: _Row = []
            cell = text.find(f"<{name}", at, end)
            while cell >= 0:
                begin = text.find(">", cell, end) + 1
                close = text.find(f"</{name}>", cell, end)
                close = close if close >= 0 else end
                if begin > 0:
                    cells.append(trimmed(text, begin, close))
                cell = text.find(f"<{name}", close, end)
            if cells and name == "td":
                rows.append(cells)
            elif cells:
                header = cells
        at = stop
    close = text.find("</table>", end - 20 if end > 20 else 0)
    after = text[close + 8 :] if close >= 0 else ""
    yield from _read(text, rows, header, header is not None, "html", lines, len(after.strip()), quotes=False)


def _rest(text: str, lines: Sequence[Line], after: int) -> int:
    return len(text[lines[after].start :].strip()) if after < len(lines) else 0


def _cells(text: str, line: Line, delimiter: str) -> _Row:
    start, end = line.start, line.end
    if delimiter == "|":
        start += text[start] == "|"
        closed = end > start and text[end - 1] == "|"
        end -= closed
    elif delimiter == "\t":
        while end < len(text) and text[end] == "\t":
            end += 1
    cells, begin, quoted, at = [], start, False, start
    while at < end:
        sign = text[at]
        if sign == '"' and delimiter != "|":
            quoted = not quoted
        elif sign == delimiter and not quoted:
            if delimiter != "|" or at + 1 >= end or text[at + 1] != "|":
                cells.append(trimmed(text, begin, at))
            begin = at + 1
        at += 1
    cells.append(trimmed(text, begin, end))
    return cells


def _delimited(text: str, lines: Sequence[Line], delimiter: str) -> Iterator[Reading]:
    block: list[tuple[Line, _Row]] = []
    after = len(lines)
    width = 0
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        if line.blank:
            if block:
                break
            continue
        if delimiter == "|" and set(text[line.start : line.end]) <= _RULE:
            continue
        cells = _cells(text, line, delimiter) if delimiter in text[line.start : line.end + 1] else []
        fits = len(cells) >= 2 and (not width or len(cells) == width or len(block) == 1)
        if fits and block and len(block) == 1 and len(cells) != len(block[0][1]):
            # The open row may lack its last cell.
            fits = len(cells) == len(block[0][1]) + 1
        if fits:
            if not block:
                after = index + 1
            block.append((line, cells))
            width = len(cells) if len(block) > 1 else 0
            if len(block) > MOST_RECORDS:
                return
        elif block:
            break
        else:
            continue
    block.reverse()
    if len(block) < 3:
        return
    rows = [cells for _, cells in block]
    header = rows[0] if _is_header(text, rows) else None
    yield from _read(
        text, rows[1:] if header else rows, header, False, "delimited", [line for line, _ in block],
        _rest(text, lines, after), quotes=True, delimiter=delimiter,
    )  # fmt: skip


def _quoted_cell(text: str, span: Span) -> Span:
    """Return a cell without the quotes around it; quotes inside are doubled there, and stay as they are."""
    start, end = trimmed(text, *span)
    if end - start >= 2 and text[start] == text[end - 1] == '"':
        return trimmed(text, start + 1, end - 1)
    return unwrapped(text, (start, end))


def _is_header(text: str, rows: list[_Row]) -> bool:
    """Return whether the first row names the columns."""
    first, others = rows[0], rows[1:-1]
    names = [text[a:b].strip("\"'") for a, b in first]
    if any(not name or any(c.isdigit() for c in name) for name in names) or len(others) < 2:
        return False
    if any(len(name.split()) > 3 for name in names):
        return False
    low = [name.lower().strip() for name in names]
    columns = [[text[row[i][0] : row[i][1]] for row in others if i < len(row)] for i in range(len(first))]
    outputs = columns[-1]
    if low[-1] in {o.lower() for o in outputs}:
        return False
    votes = 0
    votes += 2 * (is_asking(low[0]) and is_answering(low[-1]))
    votes += 1 * (is_asking(low[0]) or is_answering(low[-1]))
    votes += 2 * all(value[:1] in ("'", '"') for value in columns[0]) * (text[first[0][0]] not in "\"'")
    votes += 2 * all(name.isupper() for name in names) * (not any(value.isupper() for value in columns[0]))
    votes += 2 * any(all(any(c.isdigit() for c in value) for value in column) for column in columns)
    votes += 2 * (len(set(outputs)) < len(outputs))
    votes += 1 * all(name == name.lower() for name in names) * all(value[:1].isupper() for value in columns[0])
    votes += 1 * all(name == name.lower() for name in names) * all(value[:1].isupper() for value in outputs)
    votes += 1 * (len(first) > 2)
    votes += 1 * all(len(value) > 2 * len(names[0]) for value in columns[0])
    return votes >= 2


def _read(
    text: str, rows: list[_Row], header: _Row | None, ruled: bool, form: str, block: Sequence[Line], tail: int, *,
    quotes: bool, delimiter: str = "|",
) -> Iterator[Reading]:  # fmt: skip
    if not 2 <= len(rows) <= MOST_RECORDS:
        return
    width = len(header) if header else Counter(len(row) for row in rows).most_common(1)[0][0]
    if width < 2:
        return
    pairs: list[tuple[Span, Span]] = []
    query: Span | None = None
    waiting: list[tuple[int, Span]] = []
    flaws = 0
    cue = ""
    for index, row in enumerate(rows):
        if len(row) == width - 1:
            row = [*row, (row[-1][1], row[-1][1])]
        if len(row) != width:
            flaws += 1
            continue
        given = (row[0][0], row[-2][1])
        cell = _quoted_cell if delimiter in ",;\t" else unwrapped
        given = cell(text, given) if width == 2 and quotes else trimmed(text, *given)
        answer = cell(text, row[-1]) if quotes else trimmed(text, *row[-1])
        shown = text[row[-1][0] : row[-1][1]]
        if is_open(shown) and (index == len(rows) - 1 or not is_answer_sign(shown)):
            waiting.append((index, given))
            cue = shown
        else:
            pairs.append((given, answer))
    if waiting and waiting[-1][0] == len(rows) - 1:
        query = waiting[-1][1]
        flaws += len(waiting) - 1
    elif len(waiting) == 1 and is_answer_sign(cue):
        query = waiting[0][1]
        flaws += 1
    labels = ("", "")
    if header:
        labels = (text[header[0][0] : header[0][1]].lower(), text[header[-1][0] : header[-1][1]].lower())
    facts = (
        ("columns", float(min(4, width))),
        ("two_columns", float(width == 2)),
        ("header", float(header is not None)),
        ("ruled", float(ruled)),
        ("tail", min(1.0, tail / 60)),
        ("question_sign", float("?" in cue)),
        (f"delimiter_{_DELIMITERS[delimiter]}", 1.0),
    )
    if pairs:
        yield Reading(
            form, tuple(pairs), query, (block[0].start, block[-1].end), labels, query is not None, cue, flaws, facts
        )

"""Examples written as JSON: objects or pairs in a list, one object a line, chat messages; the last may be cut off."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from acclimate.language.patterns.extents import is_cue
from acclimate.language.patterns.records import MOST_RECORDS
from acclimate.language.patterns.roles import is_answering, is_asking
from acclimate.language.patterns.text import Reading, Span, after_signs, is_open, trimmed


@dataclass(slots=True)
class _Entry:
    key: str
    start: int
    value: Span
    whole: Span
    closed: bool = True


@dataclass(slots=True)
class _Object:
    start: int
    end: int
    entries: list[_Entry] = field(default_factory=list)
    depth: int = 0


def json_records(text: str) -> Iterator[Reading]:
    """Yield the reading of the objects in a prompt that have the same keys."""
    if '"' not in text or ("{" not in text and "[" not in text and "(" not in text):
        return
    objects = [o for o in _scan(text) if o.entries]
    if not objects or len(objects) > 2 * MOST_RECORDS:
        return
    yield from _messages(text, objects)
    yield from _alternating(text, objects)
    if len(objects) < 2:
        return
    shapes = Counter(tuple(e.key for e in o.entries) for o in objects if len(o.entries) >= 2)
    for keys, _ in shapes.most_common(2):
        yield from _alike(text, objects, keys)


def _scan(text: str) -> list[_Object]:
    """Return all objects, and all lists of two values, in the order in which they begin."""
    found: list[_Object] = []
    stack: list[_Object] = []
    kinds: list[str] = []
    key: tuple[str, int] | None = None
    at, size, written = 0, len(text), len(text.rstrip())
    while at < size:
        sign = text[at]
        if sign in "{[(" and (sign != "(" or text.startswith('"', at + 1)):
            following = text[at + 1 : at + 60].lstrip()[:1]
            if not stack and following not in '"{[(':
                at += 1
                continue
            made = _Object(at, size, depth=len(stack))
            if stack and kinds[-1] == "{" and key is not None:
                stack[-1].entries.append(_Entry(key[0], key[1], (at, size), (at, size), closed=False))
                key = None
            elif stack and kinds[-1] in "[(":
                stack[-1].entries.append(_Entry(str(len(stack[-1].entries)), at, (at, size), (at, size), closed=False))
            stack.append(made)
            kinds.append(sign)
            found.append(made)
            at += 1
        elif sign in "}])":
            if stack and kinds[-1] == {"}": "{", "]": "[", ")": "("}[sign]:
                if key is not None:
                    stack[-1].entries.append(_Entry(key[0], key[1], (at, at), (at, at)))
                    key = None
                stack[-1].end = at + 1
                stack.pop()
                kinds.pop()
                if stack and stack[-1].entries and not stack[-1].entries[-1].closed:
                    entry = stack[-1].entries[-1]
                    entry.value = entry.whole = (entry.value[0], at + 1)
                    entry.closed = True
            else:
                stack.clear()
                kinds.clear()
                key = None
            at += 1
        elif sign == '"' and stack:
            stop = _end_of_string(text, at + 1)
            closed = stop < size
            inner = (at + 1, stop)
            after = stop + 1
            after = after_signs(text, after, size, " \t\r\n")
            if kinds[-1] == "{" and key is None:
                if after < size and text[after] == ":" and stop - at < 60:
                    key = text[inner[0] : inner[1]], at
                    at = after + 1
                    if at >= written:
                        stack[-1].entries.append(_Entry(key[0], key[1], (size, size), (size, size), closed=False))
                        key = None
                    continue
                stack.clear()
                kinds.clear()
                at = stop + 1
                continue
            name, start = key if key is not None else (str(len(stack[-1].entries)), at)
            stack[-1].entries.append(_Entry(name, start, inner, (at, min(stop + 1, size)), closed))
            key = None
            at = stop + 1
        elif stack and sign not in " \t\r\n,:":
            stop = at
            while stop < size and text[stop] not in ",}])\n":
                stop += 1
            span = trimmed(text, at, stop)
            if kinds[-1] == "{" and key is not None:
                stack[-1].entries.append(_Entry(key[0], key[1], span, span))
                key = None
            elif kinds[-1] in "[(" and stop - at < 40:
                stack[-1].entries.append(_Entry(str(len(stack[-1].entries)), at, span, span))
            else:
                stack.clear()
                kinds.clear()
            at = max(stop, at + 1)
        else:
            if stack and sign == "," and key is not None:
                stack[-1].entries.append(_Entry(key[0], key[1], (at, at), (at, at)))
                key = None
            at += 1
    return found


def _end_of_string(text: str, at: int) -> int:
    """Return where the string that begins at ``at`` ends: at a quote without a backslash before it, or with the text."""
    stop = text.find('"', at)
    stop = len(text) if stop < 0 else stop
    if text.find("\\", at, stop) < 0:
        return stop
    while at < len(text) and text[at] != '"':
        at += 2 if text[at] == "\\" else 1
    return min(at, len(text))


def _alternating(text: str, objects: list[_Object]) -> Iterator[Reading]:
    """Yield the reading of one object in which questions and answers alternate: ``{"a": "hot", "b": "cold", "c": "up", "d": null}``."""
    made = objects[-1]
    entries = [e for e in made.entries if e.key not in {"task", "type", "id"}]
    if not 4 <= len(entries) <= MOST_RECORDS or len(entries) % 2 or entries[0].key == "0":
        return
    shown = [text[slice(*entry.value)] for entry in entries]
    if not (is_open(shown[-1]) or shown[-1] == "null") or any(is_open(value) for value in shown[:-1]):
        return
    spans = [trimmed(text, *entry.value) for entry in entries]
    pairs = tuple(zip(spans[:-2:2], spans[1:-2:2], strict=True))
    tail = len(text[made.end :].strip(" \r\n]}"))
    facts = (
        ("tail", min(1.0, tail / 60)),
        ("keys", float(min(8, len(entries)))),
        ("short_keys", float(all(len(e.key) < 3 for e in entries))),
    )
    yield Reading("alternating", pairs, spans[-2], (made.start, made.end), slot=True, facts=facts)


def _messages(text: str, objects: list[_Object]) -> Iterator[Reading]:
    turns: list[tuple[str, Span, bool]] = []
    end = 0
    for made in objects:
        entries = {e.key: e for e in made.entries}
        role, content = entries.get("role") or entries.get("from"), entries.get("content") or entries.get("value")
        if role is not None:
            who = text[role.value[0] : role.value[1]]
            said = content.value if content else (made.end, made.end)
            turns.append((who, said, content is not None and content.closed))
            end = made.end
    turns = [t for t in turns if t[0] not in {"system", "developer"}]
    pairs: list[tuple[Span, Span]] = []
    query = None
    at = 0
    flaws = 0
    while at < len(turns):
        who, said, _ = turns[at]
        if who in {"assistant", "model", "gpt"}:
            flaws += 1
            at += 1
            continue
        if at + 1 < len(turns) and turns[at + 1][0] != who:
            answer = turns[at + 1][1]
            if is_open(text[answer[0] : answer[1]]):
                query = said
            else:
                pairs.append((said, answer))
            at += 2
        else:
            query = said
            at += 1
    if pairs and query is not None:
        yield Reading(
            "messages", tuple(pairs), query, (objects[0].start, end), ("user", "assistant"), True, "", flaws,
            (("tail", min(1.0, len(text[end:].strip(" \r\n]},")) / 60)),),
        )  # fmt: skip


def _alike(text: str, objects: list[_Object], keys: tuple[str, ...]) -> Iterator[Reading]:
    """Yield the reading of objects with the given keys; the last object may have only the first of them."""
    rows = [
        o for o in objects
        if tuple(e.key for e in o.entries) == keys or (o is objects[-1] and tuple(e.key for e in o.entries) == keys[:-1])
    ]  # fmt: skip
    if len(rows) < 2 or len({o.depth for o in rows}) > 1 or "role" in keys:
        return
    pairs: list[tuple[Span, Span]] = []
    query, cue, flaws = None, "", 0
    answers: list[str] = []
    for index, row in enumerate(rows):
        missing = len(row.entries) < len(keys)
        inputs = row.entries if missing else row.entries[:-1]
        output = None if missing else row.entries[-1]
        given = inputs[0].value if len(inputs) == 1 else trimmed(text, inputs[0].start, inputs[-1].whole[1])
        if len(inputs) == 1 and text[inputs[0].value[0] : inputs[0].value[1]][:1] in "{[":
            given = inputs[0].value
        shown = text[output.value[0] : output.value[1]] if output else ""
        last = index == len(rows) - 1
        if last and (
            output is None or is_open(shown) or shown == "null" or (not output.closed and is_cue(shown, answers))
        ):
            query, cue = given, shown
        elif is_open(shown) and not shown.strip():
            flaws += 1
        else:
            pairs.append((trimmed(text, *given), trimmed(text, *output.value) if output else (0, 0)))
            answers.append(shown)
    if not pairs:
        return
    end = max(rows[-1].end, rows[-1].entries[-1].value[1])
    between = sum(len(text[a.end : b.start].strip(" \r\n\t,")) for a, b in itertools.pairwise(rows))
    facts = (
        ("tail", min(1.0, len(text[end:].strip(' \r\n])},"')) / 60)),
        ("keys", float(min(4, len(keys)))),
        ("between", min(1.0, between / 60)),
        ("roles", float(is_asking(keys[0].lower()) and is_answering(keys[-1].lower()))),
        ("list_of_pairs", float(keys[0] == "0")),
    )
    yield Reading(
        "json", tuple(pairs), trimmed(text, *query) if query else None, (rows[0].start, end),
        (keys[0].lower(), keys[-1].lower()) if keys[0] != "0" else ("", ""), query is not None, cue, flaws, facts,
    )  # fmt: skip

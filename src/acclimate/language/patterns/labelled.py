"""Parsers for pairs with labels: Input/Output, Q/A, chat turns, tags, JSON, tables with a header."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from acclimate.language.patterns.items import Reading, is_blank, strip_bullet, strip_markup

#: Labels of inputs, and labels of outputs.
ASKING: Final = frozenset(
    """input in inputs q question query prompt user human customer me student text sentence review comment tweet message
    source src original before word words singular present problem x given premise headline title article passage phrase
    raw from en english country number term item statement claim instruction old expression email ticket request name
    example_input context document observation stimulus frage eingabe entrada entrée pregunta question_text eng verb
    noun adjective formula element celsius product dish animal company city date string code snippet utterance speaker
    req cmd command task case obs trigger signal mot phrase palabra wort domanda vraag ask demande plaintext plain
    ask_ key left lhs a1 infinitive symptom species wrong messy informal subject sample data line value start
    """.split()
)
ANSWERING: Final = frozenset(
    """output out outputs a answer ans response completion reply assistant ai bot agent model system label sentiment class
    category tag topic target tgt translation result after plural past solution y return intent emotion tone rating
    french german spanish italian dutch latin portuguese swedish fr de es it language capital symbol summary corrected
    correction fix to becomes conclusion hypothesis entity entities verdict decision score type genre antonym synonym
    opposite rewrite rewritten formal normalized normalised parsed abbreviation acronym value antwort ausgabe salida
    sortie réponse respuesta gpt teacher res result_text polarity new spam priority department gender part_of_speech
    fahrenheit right clean lemma expected expansion definition teacher_ cipher ciphertext encoded coded decoded group
    family class_ right_ rhs number name english date code currency unit color colour sound risposta antwoord resp
    diagnosis fixed tidy roman binary hex emoji rhyme kind pos ner completion_ key
    """.split()
)
_LABEL: Final = re.compile(
    r"""^[\s>*•#\-–|]*(?:\(?\d{1,2}[.)\]:]\s*)?(?:[*_]{1,2}|\[|<\|?|\#+\s*)?
    (?P<name>[^\W\d_][\w'’ /.-]{0,28}?)\s*(?:[\#№]?\s*\(?(?P<number>\d{1,2}|[ivx]{1,4})\)?)?\s*
    (?:[*_]{1,2}|\]|\|?>)?\s*(?:[:：=](?!=)|[-–—]?>|\s[-–—](?:\s|$)|(?<=^[QA])\.|(?<=^[qa])\.)\s*(?:[*_]{1,2})?[ \t]*""",
    re.VERBOSE | re.IGNORECASE,
)
_INLINE: Final = re.compile(
    r"(?<![\w'’])(?P<name>[A-Za-z][A-Za-z_]{0,12})(?:[ _]?\d{1,2})?\s*[:=：](?!=|//)[ \t]*", re.IGNORECASE
)
_TAGGED: Final = re.compile(r"<(?P<name>[A-Za-z][\w-]{0,15})>(?P<body>.*?)(?:</(?P=name)>|(?=<)|\Z)", re.DOTALL)
_CHAT: Final = re.compile(
    r"<\|(?:im_start\|>)?(?P<name>[a-z]+)(?:\|>)?\n?(?P<body>.*?)(?=<\||\Z)|\[(?P<inst>INST)\]", re.DOTALL
)
_WHERE_NAME_IS_EXAMPLE: Final = re.compile(
    r"^(?:example|ex|sample|case|demo|shot|item|pair|no|nr|instance)s?$", re.IGNORECASE
)


def _role(name: str) -> str:
    return name.strip().strip("*_[]<>|").strip().lower().replace(" ", "_")


def _paired(turns: Sequence[tuple[str, str]]) -> Reading | None:
    """Return the pairs of turns that alternate between two labels; the last may lack its output."""
    names = [name for name, _ in turns]
    if len(turns) < 3 or len(set(names)) != 2:
        return None
    first, second = names[0], next(name for name in names if name != names[0])
    if any(left == right for left, right in pairwise(names)):
        # Two inputs in a row: the first has no output and is dropped.
        kept = [
            turn for turn, after in zip(turns, [*turns[1:], None], strict=True) if after is None or turn[0] != after[0]
        ]
        return _paired(kept) if len(kept) < len(turns) else None
    pairs, query = [], None
    for index in range(0, len(turns), 2):
        given = strip_markup(turns[index][1])
        answer = turns[index + 1][1].strip() if index + 1 < len(turns) else ""
        if is_blank(answer):
            query = given or query
        else:
            pairs.append((given, strip_markup(answer)))
    return Reading(tuple(pairs), query, "labelled", labels=(first, second), query_in_slot=query is not None)


def _are_roles(first: str, second: str) -> bool:
    return first in ASKING and second in ANSWERING


def labelled_lines(text: str) -> Iterator[Reading]:
    """Yield pairs from lines that start with one of two alternating labels; text below a label belongs to it."""
    turns: list[tuple[str, str]] = []
    for line in text.splitlines():
        if set(line.strip()) <= set("-=_*#~") and line.strip():
            line = ""
        match = _LABEL.match(line)
        if match and not _WHERE_NAME_IS_EXAMPLE.match(match["name"].strip()):
            turns.append((_role(match["name"]), line[match.end() :]))
        elif turns and line.strip():
            name, body = turns[-1]
            turns[-1] = (name, f"{body}\n{line}" if body.strip() else line)
        elif turns and turns[-1][1].strip():
            turns[-1] = (turns[-1][0], turns[-1][1] + "\n")
    yield from _by_two_names(turns)


def labelled_inline(text: str) -> Iterator[Reading]:
    """Yield pairs whose labels stand inside a line: ``Q: 2+2 A: 4 Q: 3+3 A:``."""
    found = list(_INLINE.finditer(text))
    if not found:
        return
    turns = [
        (_role(match["name"]), text[match.end() : after.start() if after else len(text)])
        for match, after in zip(found, [*found[1:], None], strict=True)
    ]
    cleaned = [(name, re.sub(r"(?:[\s|;/,(\[{-]|->|=>|→)+$", "", body)) for name, body in turns]
    yield from _by_two_names(cleaned)


def _by_two_names(turns: Sequence[tuple[str, str]]) -> Iterator[Reading]:
    counts: dict[str, int] = {}
    for name, _ in turns:
        counts[name] = counts.get(name, 0) + 1
    often = [name for name, count in counts.items() if count >= 2]
    for first in often:
        for second in counts:
            if (
                first == second
                or counts[second] < counts[first] - 1
                or (len(often) > 2 and not _are_roles(first, second))
            ):
                continue
            chosen = [_until_blank_line(turn) for turn in turns if turn[0] in (first, second)]
            if chosen and chosen[0][0] == first and (found := _paired(chosen)) is not None:
                yield found


def _until_blank_line(turn: tuple[str, str]) -> tuple[str, str]:
    """Return a turn with its text cut at the first blank line."""
    name, body = turn
    head, _, _ = body.lstrip("\n").partition("\n\n")
    return name, head.strip()


def tagged(text: str) -> Iterator[Reading]:
    """Yield pairs in tags: ``<in>..</in><out>..</out>``, ``[INST]`` and ``<|user|>`` chat formats."""
    asked = re.findall(r"\[INST\](.*?)\[/INST\](.*?)(?=\[INST\]|\Z)", text, re.DOTALL)
    yield from _by_two_names([turn for a, b in asked for turn in (("user", a.strip()), ("assistant", b.strip()))])
    chat = [(match["name"], match["body"].strip()) for match in _CHAT.finditer(text) if match["name"]]
    yield from _by_two_names([turn for turn in chat if turn[0] not in ("im_end", "end", "system")])
    turns = [(_role(match["name"]), match["body"].strip()) for match in _TAGGED.finditer(text)]
    inner = [turn for turn in turns if "<" not in turn[1]]
    for candidate in (turns, inner):
        yield from _by_two_names(candidate)


def json_pairs(text: str) -> Iterator[Reading]:
    """Yield pairs from JSON: one object per line, or an array of objects or of pairs."""
    values = list(_json_values(text))
    for value in values:
        if isinstance(value, list):
            yield from _from_records(value)
        elif isinstance(value, dict):
            for inner in value.values():
                if isinstance(inner, list):
                    yield from _from_records(inner)
    yield from _from_records([value for value in values if isinstance(value, dict)])


def _json_values(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    while (match := re.compile(r"[\[{]").search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, match.start())
        except ValueError:
            partial = re.match(
                r'\{\s*"([^"]+)"\s*:\s*"([^"]*)"\s*,?\s*(?:"([^"]+)"\s*:?\s*)?[?"]*\s*\}?\]?\s*(?:$|\n)',
                text[match.start() :],
            )
            if partial:
                yield {partial[1]: partial[2], partial[3] or "": None}
            at = match.start() + 1
            continue
        yield value


def _from_records(records: Sequence[Any]) -> Iterator[Reading]:
    if len(records) >= 2 and all(isinstance(r, list) and len(r) == 2 for r in records):
        rows = [(str(a), "" if b is None else str(b)) for a, b in records]
        yield _from_rows(rows, "json", ("", ""))
        return
    turns = [r for r in records if isinstance(r, dict)]
    if turns and all({"role", "content"} <= r.keys() for r in turns):
        chat = [(str(r["role"]).lower(), str(r["content"])) for r in turns if r["role"] != "system"]
        if (found := _paired(chat)) is not None:
            yield found
        return
    keys = next((tuple(r) for r in turns if len(r) == 2), ())
    if len(keys) == 2 and len(turns) >= 2:
        kept = [r for r in turns if keys[0] in r and set(r) <= {*keys, ""}]
        rows = [(str(r[keys[0]]), "" if r.get(keys[1]) is None else str(r.get(keys[1]))) for r in kept]
        yield _from_rows(rows, "json", (_role(keys[0]), _role(keys[1])))


def _from_rows(rows: Sequence[tuple[str, str]], form: str, labels: tuple[str, str]) -> Reading:
    done = tuple((a, b) for a, b in rows if a and not is_blank(b))
    waiting = [a for a, b in rows if a and is_blank(b)]
    return Reading(done, waiting[-1] if waiting else None, form, labels=labels, query_in_slot=bool(waiting))


def tables(text: str) -> Iterator[Reading]:
    """Yield pairs from two-column tables: Markdown, HTML, CSV, TSV."""
    lines = [line for line in text.splitlines() if line.strip()]
    bars = [line.strip().strip("|").split("|") for line in lines if line.count("|") >= 1 and line.strip() != "|"]
    html = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    ]
    for rows in (html, bars, _delimited(lines, ","), _delimited(lines, "\t"), _delimited(lines, ";")):
        kept = [
            [cell.strip() for cell in row] for row in rows if not all(re.fullmatch(r"[\s:|+-]*", cell) for cell in row)
        ]
        if len(kept) < 3 or not all(1 <= len(row) <= 2 for row in kept):
            continue
        head = (_role(kept[0][0]), _role(kept[0][1])) if len(kept[0]) == 2 else ("", "")
        has_header = _are_roles(*head) or re.search(r"\|?\s*:?-{2,}:?\s*\||<th>", text) is not None
        body = [
            (strip_markup(row[0]), strip_markup(row[1]) if len(row) == 2 else "")
            for row in (kept[1:] if has_header else kept)
        ]
        if sum(1 for _, answer in body if not is_blank(answer)) >= 2:
            yield _from_rows(body, "table", head if has_header else ("", ""))


def _delimited(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    chosen = [line for line in lines if delimiter in line]
    try:
        return list(csv.reader(io.StringIO("\n".join(chosen)), delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return []


def is_role_pair(found: Reading) -> bool:
    """Return whether the labels of a reading are known ones of an input and an output."""
    return found.labels is not None and _are_roles(*found.labels)


__all__ = ["is_role_pair", "json_pairs", "labelled_inline", "labelled_lines", "strip_bullet", "tables", "tagged"]

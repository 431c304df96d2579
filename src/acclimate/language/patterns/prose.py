"""Parsers for running text: analogies, sequences to continue, function calls, and pairs stated in sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final

from acclimate.language.patterns.items import ARROWS, Reading, is_blank, strip_markup

_END: Final = r"(?:what|who|which\ \w+|wat|\?+|_{2,}|\.{3}|…|\(\?\)|\[\?\]|\*\*\?\*\*|[:\"”'’.]*$)"
_IS_TO: Final = re.compile(
    r"""[\"“'‘*]*(?P<a>[^,;.\n:?*]{1,60}?)[\"”'’*]*[.!?]?[\"”'’]?\s+(?:is|are|be|relates?|belongs?|es|ist|est)\s+(?:related\s+)?(?:to|2|a|zu|à)\s+
        [\"“'‘*]*(?P<b>[^,;\n?]{1,60}?)[\"”'’*]*\s*(?:,?\s*(?:as|like|just\ as|so|como|wie|comme|the\ way)|;)\s+
        [\"“'‘*]*(?P<c>[^,;\n?]{1,60}?)[\"”'’*]*\s+(?:is|are|relates?|es|ist|est)\s+(?:related\s+)?(?:to|2|a|zu|à)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_QUOTED_IS_TO: Final = re.compile(
    r"[\"'“](?P<a>[^\"“”\n]+?)[\"'”] is to [\"'“](?P<b>[^\"“”\n]+?)[\"'”],? as [\"'“](?P<c>[^\"“”\n]+?)[\"'”] is to",
    re.I,
)
_COLONS: Final = re.compile(
    rf"(?P<a>[^:\n;]{{1,60}}?)\s*(?::|{ARROWS})\s*(?P<b>[^:\n]{{1,60}}?)\s*(?:::|∷|\bas\b)\s*(?P<c>[^:\n]{{1,60}}?)\s*(?::|{ARROWS})",
    re.I,
)
_FUNCTION: Final = re.compile(
    r"\b(?P<name>[A-Za-z_]\w{0,12})\s*\(\s*(?P<x>[^()\n]{1,60}?)\s*\)\s*(?:={1,3}|->|→|↦|:|is|returns|gives|yields)\s*(?P<y>[^\n;,]{0,80})"
)
_ASKED_CALL: Final = re.compile(
    r"\b(?P<name>[A-Za-z_]\w{0,12})\s*\(\s*(?P<x>[^()\n]{1,60}?)\s*\)\s*(?:={1,3}\s*)?(?:\?|$|\.)", re.M
)
_TERM: Final = r"(?:\d{1,4}(?:[-:/.]\d{1,4})+|[-+]?\d+(?:[.,/]\d+)?(?:st|nd|rd|th)?|[A-Za-z]{1,12}\d{0,3}|\d+[A-Za-z]{1,2}|[^\w\s,;]{1,4})"
_BETWEEN: Final = r"(?:\s*[,;]\s*|\s+(?:->\s+|-\s+)?)"
_SEQUENCE: Final = re.compile(
    rf"(?<![\w-])(?P<terms>{_TERM}{_BETWEEN}{_TERM}(?:{_BETWEEN}{_TERM}){{0,40}})[\s,;]*(?P<open>\?+|_+|\.{{2,}}|…|\[\?\]|\(\?\))"
)
_MOST_CHARACTERS_A_LINE: Final = 300
_MOST_ANALOGIES: Final = 24
_LOOKS_AHEAD: Final = re.compile(
    r"\b(?:comes? next|next (?:number|term|letter|one|element|item|word|row|in)|continue|complete the (?:sequence|series|pattern)|"
    r"sequence|series|extend|keep (?:counting|going)|what follows|missing (?:number|term|letter)|sigue|weiter|suite|fill in the blank|next row)\b",
    re.IGNORECASE,
)
_STATED_PAIR: Final = re.compile(
    rf"""(?P<x>[\"“'‘`]?[^,;.\n\"“”'‘’`]{{1,40}}?[\"”'’`]?)\s+
        (?:becomes?|turns?\ into|maps?\ to|is\ mapped\ to|gives|yields|returns|means|is\ written\ as|is\ coded\ as|changes?\ to|
           is\ encoded\ as|goes\ to|went\ to|wird\ zu|devient|se\ convierte\ en|{ARROWS}|↦)\s+
        (?P<y>[\"“'‘`]?[^,;.\n?\"“”'‘’`]{{1,40}}[\"”'’`]?)(?=\s*(?:[,;.?\n]|\band\b|\bbut\b|$))""",
    re.VERBOSE | re.IGNORECASE,
)
_INTO: Final = re.compile(
    r"[\"“'‘`](?P<x>[^\"”'’`\n]{1,40})[\"”'’`]\s+(?:into|to|as|with|is|for)\s+[\"“'‘`](?P<y>[^\"”'’`\n]{1,40})[\"”'’`]",
    re.I,
)
_ASKED: Final = re.compile(
    r"""(?:what\ (?:about|is|does|would|will|becomes|goes)|how\ (?:about|do|is|would)|which\b[^?]*|now\ (?:do|try)?|then|and|was\ wird\ aus|for|
        do|apply\ (?:it|the\ \w+)\ to:?|type|is\ the\ code\ for|say)\s+
        (?:(?:the\ (?:code|value|result|answer|word)\ (?:for|of)|is|are|does|do|of|for|they|we|you|write|it|with|to|a|an|the)\s+)*
        [\"“'‘`]?(?P<x>[^\"”'’`?\n,.]{1,60}?)[\"”'’`]?
        (?:\s+(?:become|mean|give|return|map\ to|go\ to|change\ to|written|coded|encoded|turn\ into|under|in\ the\ same)\b.*)?\s*(?:\?+|\.{2,}|$)""",
    re.VERBOSE | re.IGNORECASE,
)


def analogies(text: str) -> Iterator[Reading]:
    """Yield the pairs and the query of ``a is to b as c is to ?`` and ``a : b :: c : ?``."""
    for form, pattern in (("is_to", _QUOTED_IS_TO), ("is_to", _IS_TO), ("double_colon", _COLONS)):
        if (pattern is _COLONS and not re.search(r"::|∷|\bas\b", text)) or len(
            re.findall(r"\bto\b|:", text)
        ) > _MOST_ANALOGIES * 4:
            continue
        matches = list(itertools.islice(pattern.finditer(text), _MOST_ANALOGIES))
        if not matches:
            continue
        pairs, query = [], None
        for match in matches:
            pairs.append((_strip_term(match["a"]), _strip_term(match["b"])))
            after = re.split(r"[\n;]", text[match.end() :].lstrip(' "“*'), maxsplit=1)[0].strip()
            if is_blank(after) or re.match(_END, after, re.VERBOSE | re.IGNORECASE):
                query = _strip_term(match["c"])
            else:
                answer = re.split(r"\s*(?:::|,?\s+as\s+|[.\n])\s*", after, maxsplit=1)[0]
                pairs.append((_strip_term(match["c"]), _strip_term(answer)))
                onward = re.search(r"(?:::|\bas\b)\s*(?P<d>[^:\n?]{1,60}?)\s*(?::|is to)\s*(?:\?|_|$|what)", after)
                query = _strip_term(onward["d"]) if onward else query
        yield Reading(tuple(pair for pair in pairs if all(pair)), query, form)


def _strip_term(text: str) -> str:
    text = (
        re.sub(r"^.*(?::\s|analogy[:.]\s*|,\s*(?=\w+$))", "", text.strip(), flags=re.IGNORECASE)
        if ": " in text
        else text
    )
    text = re.sub(
        r"^(?:let|if|since|because|so|complete|and|then|analogy)\b[:,]?\s+", "", text.strip(), flags=re.IGNORECASE
    )
    return strip_markup(strip_markup(text).strip("*"))


def functions(text: str) -> Iterator[Reading]:
    """Yield the pairs of ``f(2) = 5`` and the query of ``f(4) = ?``."""
    names: dict[str, list[tuple[str, str]]] = {}
    for match in _FUNCTION.finditer(text):
        names.setdefault(match["name"], []).append(
            (strip_markup(match["x"]), re.sub(r"\s+(?:and|what)\b.*$", "", match["y"]).strip())
        )
    for name, calls in names.items():
        done = [(x, strip_markup(y.rstrip("."))) for x, y in calls if not is_blank(y)]
        waiting = [x for x, y in calls if is_blank(y)]
        asked = [m["x"] for m in _ASKED_CALL.finditer(text) if m["name"] == name]
        open_items = waiting or [strip_markup(x) for x in asked if strip_markup(x) not in dict(done)]
        query = open_items[-1] if open_items else None
        if done and (len(done) > 1 or query):
            yield Reading(tuple(done), query, "function", query_in_slot=query is not None)


def sequences(text: str) -> Iterator[Reading]:
    """Yield sequences to continue; they have no pairs, and the whole sequence is the query."""
    asked = _LOOKS_AHEAD.search(text) is not None
    numbers = re.search(r"-?\d[\d.]*(?:(?:\s*[,;]\s*|\s+)-?\d[\d.]*){3,}\W*$", text.strip()) if asked else None
    if numbers:
        yield Reading((), numbers[0].strip(), "sequence")
        return
    rows = [line.strip() for line in text.splitlines() if line.strip()]
    symbols = re.search(r"^[^\w\s]{4,}\s*(?:\?|…|\.{3}|_+)", text.strip())
    growing = [row for row in rows if " " not in row]
    if symbols or (asked and len(growing) >= 3 and len({row[0] for row in growing}) == 1):
        yield Reading((), symbols[0] if symbols else "\n".join(growing), "sequence")
        return
    short = "\n".join(line for line in text.splitlines() if len(line) <= _MOST_CHARACTERS_A_LINE)
    for match in _SEQUENCE.finditer(short):
        terms = re.findall(_TERM, match["terms"])
        if len(terms) >= 3 and (_regular(terms) or asked):
            yield Reading((), short[match.start() : match.end()].strip(), "sequence")
            return
    if asked:
        for line in text.splitlines():
            tail = re.split(r":\s+", line)[-1]
            if len(tail) > _MOST_CHARACTERS_A_LINE:
                continue
            run = re.search(rf"{_TERM}(?:\s*[,;]?\s+{_TERM}){{2,40}}\s*$", tail.strip(" .?"))
            if run and _regular(re.findall(_TERM, run[0])):
                yield Reading((), run[0].strip(), "sequence")
                return


def _regular(terms: list[str]) -> bool:
    """Return whether the terms are alike: mostly numbers, mostly at most three characters, or all capitalised."""
    digits = sum(term[0].isdigit() or term[0] in "+-" for term in terms)
    short = sum(len(term) <= 3 for term in terms)
    return digits >= 0.75 * len(terms) or short >= 0.9 * len(terms) or all(term[:1].isupper() for term in terms)


def told(text: str) -> Iterator[Reading]:
    """Yield pairs stated in sentences: ``cat becomes dbu``, ``'big' into 'bigger'``."""
    for form, pattern in (("told", _STATED_PAIR), ("quoted", _INTO)):
        matches = list(pattern.finditer(text))
        pairs = [(_strip_clause(match["x"]), _strip_clause(match["y"])) for match in matches]
        pairs = [(x, y) for x, y in pairs if x and y and not is_blank(y) and not re.match(r"(?i)what|how|which", x)]
        if not pairs:
            continue
        rest = text[matches[-1].end() :] if matches else text
        asked = [m["x"] for m in _ASKED.finditer(rest)] or [m["x"] for m in _ASKED.finditer(text)]
        query = next(
            (_strip_clause(x) for x in reversed(asked) if _strip_clause(x) not in dict(pairs) and len(x) < 50), None
        )
        yield Reading(tuple(pairs), query, form)


def _strip_clause(text: str) -> str:
    text = re.sub(
        r"^(?:(?:if|when|and|but|given|that|the|word|is|say|input|so|then|code|observation\s*\d*:?|example\s*\d*:?|for|example|in this language|i\s+say|you\s+give\s+it)\s+)+",
        "", text.strip(), flags=re.IGNORECASE,
    )  # fmt: skip
    return strip_markup(strip_markup(text))

"""What all parsers share: a reading, separators, and how items are stripped of markup."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

ARROWS: Final = r"(?:-{1,3}>|={1,3}>|~>|→|⟶|➜|➔|⇒|⟹|➡️?|↦|\|->|>>+)"
#: Regular expressions of the separators between input and output, by name; the least ambiguous first.
SEPARATORS: Final[tuple[tuple[str, str], ...]] = (
    ("arrow", rf"\s*{ARROWS}\s*"),
    ("becomes", r"\s+(?:becomes?|turns? into|maps? to|gives|yields|returns|translates to|corresponds to)\s+"),
    ("tab", r"\s*\t+\s*"),
    ("bar", r"\s*(?<!\|)\|{1,2}(?!\|)\s*"),
    ("double_colon", r"\s*::\s*"),
    ("equals", r"\s*(?<![<>=!])={1,2}(?![>=])\s*"),
    ("tilde", r"\s+~\s+"),
    ("spaced_dash", r"\s+[-–—]+(?:\s+|$)"),
    ("spaced_slash", r"\s+/+(?:\s+|$)"),
    ("dots", r"\s*\.{4,}\s*"),
    ("greater", r"\s+>\s+"),
    ("colon", r"\s*(?<!\d):(?!//)(?!\d{2}\b)\s*"),
    ("digit_colon", r"\s*:\s+"),
    ("spaces", r"\s{3,}"),
)
_BLANK: Final = re.compile(
    r"""[\s"'`“”‘’(\[{<«¿¡*]*(?:
        \?+ | _{1,} | \.{2,} | … | \*{2,}\?\*{2,} | -{2,} |
        (?:what|blank|answer|your\ answer|fill\ in|fill\ this\ in|tbd|todo|unknown|to\ do|mask|to\ fill)\s*\??
    )?[\s"'`“”‘’)\]}>».!?*]*(?:\([^()\n]{0,40}\))?\s*""",
    re.VERBOSE | re.IGNORECASE,
)
#: Unicode categories of characters that leave no mark: control, format, surrogate, and the three kinds of separator.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})
_QUOTES: Final = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」"}
_BULLET: Final = re.compile(r"^\s*(?:[-*•‣◦▪·+>]\s+|[✅👉🔹🔸➤▶]️?\s*)+")


@dataclass(frozen=True, slots=True)
class Reading:
    """One parser's interpretation of a prompt.

    Attributes:
        pairs: input and output of every item that has an output, in order.
        query: the item without an output, or None.
        form: the layout, for instance ``arrow``: a name in :data:`SEPARATORS`, or one that the parser gives.
        numbered: items carry list numbers (``1.``, ``b)``).
        announced_as_examples: items are each introduced by a word such as ``Example``.
        labels: the labels of input and output, such as ``("q", "a")``, where the layout has them.
        query_in_slot: the query stands in the same layout as the pairs, with its output missing, rather than in a
            sentence of its own.
    """

    pairs: tuple[tuple[str, str], ...]
    query: str | None
    form: str
    numbered: bool = False
    announced_as_examples: bool = False
    labels: tuple[str, str] | None = None
    query_in_slot: bool = False

    def without_empty_parts(self) -> Reading | None:
        """Return the reading without pairs that lack an input or an output, and without an empty query.

        A query that is nothing but the separator of the pairs counts as empty. None where no pair is left of those
        there were.
        """
        pairs = tuple((given, answer) for given, answer in self.pairs if has_content(given) and has_content(answer))
        if self.pairs and not pairs:
            return None
        query = self.query
        if query is not None and (not has_content(query) or _is_separator(query, self.form)):
            query = None
        return replace(self, pairs=pairs, query=query, query_in_slot=self.query_in_slot and query is not None)


def has_content(text: str) -> bool:
    """Return whether ``text`` has a visible character: control and format characters, such as U+200B, are none."""
    return any(unicodedata.category(character) not in _INVISIBLE for character in text)


def is_blank(text: str) -> bool:
    """Return whether ``text`` marks a missing output: nothing, ``?``, ``___``, ``...``, or only markup around it."""
    if _BLANK.fullmatch(text):
        return True
    content = strip_markup(text)
    return _BLANK.fullmatch(content) is not None or not has_content(content)


def _is_separator(text: str, form: str) -> bool:
    """Return whether ``text`` is nothing but one or more separators of the layout ``form``."""
    separator = dict(SEPARATORS).get(form, rf"{ARROWS}|[:：=]+")
    return re.fullmatch(rf"(?:{separator}|\s)+", f" {text.strip()} ") is not None


def strip_markup(text: str) -> str:
    """Return ``text`` without the emphasis and quotes around it, and without trailing commas and semicolons."""
    text = text.strip()
    while True:
        before = text
        text = text.strip().rstrip(",;").strip()
        for mark in ("**", "*", "__"):
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and mark not in text[2:-2]:
                text = text[len(mark) : -len(mark)]
        if len(text) >= 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1]
        if len(text) > 2 and text[0] in "\"'`“‘«" and text[-1] in ".!" and _QUOTES.get(text[0]) == text[-2]:
            text = text[1:-2]
        if text == before:
            return text


def strip_bullet(line: str) -> str:
    """Return a line without the list bullets at its start."""
    return _BULLET.sub("", line)


def find_spans(text: str, pairs: Sequence[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
    """Return start and end offset of each pair in ``text``, from its input to its output."""
    spans, at = [], 0
    for given, answer in pairs:
        start = text.find(given, at)
        if start < 0:
            start = max(0, text.find(given))
        end = text.find(answer, start + len(given))
        stop = (end if end >= 0 else start + len(given)) + (len(answer) if end >= 0 else 0)
        spans.append((start, stop))
        at = stop if end >= 0 else at
    return tuple(spans)

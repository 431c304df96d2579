"""Items, and lines that hold a pair of them: the ground that every way of writing examples stands on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ARROWS: Final = r"(?:-{1,3}>|={1,3}>|~>|→|⟶|➜|➔|⇒|⟹|➡️?|↦|\|->|>>+)"
#: Separators of a pair, strongest first: the first that splits enough lines is the one that was meant.
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
_OPEN: Final = re.compile(
    r"""[\s"'`“”‘’(\[{<«¿¡*]*(?:
        \?+ | _{1,} | \.{2,} | … | \*{2,}\?\*{2,} | -{2,} |
        (?:what|blank|answer|your\ answer|fill\ in|fill\ this\ in|tbd|todo|unknown|to\ do|mask|to\ fill)\s*\??
    )?[\s"'`“”‘’)\]}>».!?*]*(?:\([^()\n]{0,40}\))?\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_QUOTES: Final = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」"}
_BULLET: Final = re.compile(r"^\s*(?:[-*•‣◦▪·+>]\s+|[✅👉🔹🔸➤▶]️?\s*)+")


@dataclass(frozen=True, slots=True)
class Found:
    """Examples and open item as some way of writing them gives them.

    Attributes:
        pairs: input and output of every answered item, in order.
        query: the open item, or None.
        form: the way of writing, for instance ``arrow``.
        numbered: items were counted (``1.``, ``b)``).
        called_examples: items were called examples one by one.
        labels: the two role labels, where there are any.
        open_slot: the open item stands where a pair stands, its answer missing, rather than in a sentence of its own.
    """

    pairs: tuple[tuple[str, str], ...]
    query: str | None
    form: str
    numbered: bool = False
    called_examples: bool = False
    labels: tuple[str, str] | None = None
    open_slot: bool = False


def is_open(text: str) -> bool:
    """Say whether ``text`` stands where an answer is missing: nothing, ``?``, ``___``, ``...``."""
    return _OPEN.fullmatch(text) is not None


def bare(text: str) -> str:
    """Return ``text`` without bullets, emphasis, quotes around it, and trailing commas."""
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


def without_bullet(line: str) -> str:
    """Return a line without the mark of a list item in front of it."""
    return _BULLET.sub("", line)


def located(text: str, pairs: Sequence[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
    """Return where each pair stands in ``text``, from the start of its input to the end of its output."""
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

"""What all parsers share: lines and spans of a prompt, and how marks around a field are left out.

Nothing here and in the parsers uses regular expressions: every function looks at a character a bounded number of times,
so that reading takes time in proportion to the length of the prompt.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

#: Start and end offset in the prompt.
Span = tuple[int, int]

#: Unicode categories of characters that leave no mark: control, format, surrogate, and the three kinds of separator.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})
_QUOTES: Final = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}
_CLOSING: Final = frozenset(_QUOTES.values())
_OPEN_WORDS: Final = frozenset(
    """what blank answer your_answer fill_in tbd todo to_do mask null none_yet missing to_fill your_answer_here qué quoi
    was""".split()
)
_BULLETS: Final = frozenset("-*•‣◦▪·+✅👉🔹🔸➤▶–")
_NUMBER_SIGNS: Final = "①②③④⑤⑥⑦⑧⑨⑩"
_ROMAN: Final = frozenset("ivxIVX")
_RULE: Final = frozenset("-=_*#~+.")
#: Words that announce a worked example or the open item when they are followed by a number or stand alone.
ANNOUNCING: Final = frozenset(
    """example exemple ejemplo beispiel esempio voorbeeld ex sample demo demonstration instance illustration specimen case
    shot item no nr entry exercise exemplo пример 例 例子 task pair row line problem puzzle step test point question
    """.split()
)


class Line(NamedTuple):
    """One line of a prompt: where it starts and ends, white space and the line break left out."""

    start: int
    end: int
    indent: int

    @property
    def blank(self) -> bool:
        """Whether nothing visible is on it."""
        return self.start == self.end


def lines_of(text: str) -> list[Line]:
    """Return the lines of ``text``; a blank one has equal start and end."""
    found, at = [], 0
    for raw in text.splitlines(keepends=True):
        body = raw.strip()
        if body:
            indent = len(raw) - len(raw.lstrip())
            found.append(Line(at + indent, at + indent + len(body), indent))
        else:
            found.append(Line(at, at, 0))
        at += len(raw)
    return found


def trimmed(text: str, start: int, end: int, more: str = "") -> Span:
    """Return the span without white space at its ends, and without the characters ``more``."""
    piece = text[start:end]
    if more:
        lead = piece.lstrip(more + " \t\r\n")
        body = lead.rstrip(more + " \t\r\n")
    else:
        lead = piece.lstrip()
        body = lead.rstrip()
    if not body:
        return start, start
    start += len(piece) - len(lead)
    return start, start + len(body)


def has_content(text: str) -> bool:
    """Return whether ``text`` has a visible character: control and format characters, such as U+200B, are none."""
    return any(unicodedata.category(character) not in _INVISIBLE for character in text)


def _quotes_wrap(text: str) -> bool:
    """Return whether the first and last characters are a pair of quotes around everything between them."""
    last = _QUOTES.get(text[0])
    if len(text) < 2 or last != text[-1] or text.startswith("```"):
        return False
    depth = 0
    for at in range(1, len(text) - 1):
        sign = text[at]
        if sign == last or sign == text[0]:
            before, after = text[at - 1], text[at + 1]
            if sign in "'’" and before.isalnum() and after.isalnum():
                continue
            if text[0] != last:
                opens = sign == text[0]
            else:
                opens = (at == 1 or before.isspace() or before in "([{=:") and not after.isspace()
            depth += 1 if opens else -1
            if depth < 0:
                return False
    return depth == 0


def unwrapped(text: str, span: Span, *, quotes: bool = True, comma: bool = False, semicolon: bool = True) -> Span:
    """Return the span without white space, emphasis and quotes that wrap all of it.

    Args:
        text: the prompt.
        span: of the field.
        quotes: whether quotes are left out.
        comma: whether commas and semicolons at the end are left out too.
        semicolon: with ``comma``, whether semicolons are.
    """
    start, end = trimmed(text, *span)
    while start < end:
        before = start, end
        if comma:
            while end > start and text[end - 1] in (",; \t" if semicolon else ", \t"):
                end -= 1
        for mark in ("**", "__", "*"):
            if (
                end - start > 2 * len(mark)
                and text.startswith(mark, start)
                and text.endswith(mark, start, end)
                and text.find(mark, start + len(mark), end - len(mark)) < 0
                and not text[start + len(mark)].isspace()
            ):
                start, end = start + len(mark), end - len(mark)
        for mark in ('"""', "'''"):
            if quotes and text.startswith(mark, start, end):
                if end - start >= 6 and text.endswith(mark, start, end):
                    end -= 3
                start += 3
        if quotes and end - start >= 2 and text[start] in _QUOTES and _quotes_wrap(text[start:end]):
            start, end = start + 1, end - 1
        start, end = trimmed(text, start, end)
        if (start, end) == before:
            break
    return start, end


def is_rule(text: str) -> bool:
    """Return whether a stripped line is only a separator, such as ``---`` or ``###``."""
    return len(text) >= 2 and set(text.replace(" ", "")) <= _RULE and text[0] not in "." and not text.startswith("``")


def is_open(text: str) -> bool:
    """Return whether ``text`` marks a missing output: nothing, ``?``, ``___``, ``...``, or only marks around it."""
    shown = text.strip()
    if shown[:1] in "?_…？" and shown.endswith(")") and shown.find("(") > 0 and "\n" not in shown:
        # A remark may stand behind the gap.
        text = shown[: shown.find("(")]
    body = text.strip(" \t\r\n\"'`“”‘’()[]{}<>«»¿¡*!,;.|।:")
    if not body:
        return True
    if not has_content(body):
        return True
    signs = set(body)
    if signs <= {"?", "？", "."} or signs <= {"_"} or signs <= {"…", "."} or signs <= {"-"} or signs <= {"？"}:
        return len(body) >= 2 or body in {"?", "？", "…", "_", "❓"}
    if body == "❓" or body == "X?" or (signs <= {"_", "?", "\\"} and "_" in signs):
        return True
    word = body.rstrip("?").strip().lower().replace(" ", "_")
    return word in _OPEN_WORDS and (
        body.endswith("?") or text.strip()[:1] in "[<({_*" or word in {"tbd", "todo", "null"}
    )


#: Answers that look open, as they are written in other records than the last.
_ANSWER_SIGNS: Final = frozenset("? - -- … N/A n/a * null tbd TBD todo TODO [] {} ()".split())


def is_answer_sign(text: str) -> bool:
    """Return whether ``text`` may be an answer although it looks open: one question mark or dash, an empty list."""
    return text.strip().strip("\"'`").strip() in _ANSWER_SIGNS


def after_bullet(text: str, start: int, end: int) -> int:
    """Return where the line goes on after quote marks and bullets."""
    while start < end:
        sign = text[start]
        if (
            sign == "\ufe0f"
            or sign in "✅👉🔹🔸➤▶"
            or (
                (sign in _BULLETS or (sign == ">" and not text.startswith(">>", start)))
                and start + 1 < end
                and text[start + 1] in " \t"
            )
        ):
            start += 1
        else:
            break
        start = after_signs(text, start, end, " \t")
    return start


def after_signs(text: str, at: int, end: int, signs: str) -> int:
    """Return the first place from ``at`` on, ``end`` at most, where ``text`` has none of ``signs``."""
    while at < end and text[at] in signs:
        at += 1
    return at


def after_number(text: str, start: int, end: int) -> int:
    """Return where the line goes on after a list number (``1.``, ``b)``, ``(iv)``, ``#3``, ``Example 2:``), or ``start``."""
    at = start
    at = after_signs(text, at, end, "*_")
    if at < end and text[at] in _NUMBER_SIGNS:
        return after_signs(text, at + 1, end, " \t")
    bracket = at < end and text[at] in "(["
    sign = at < end and text[at] in "#№"
    if bracket or sign:
        at += 1
    if sign and at < end and text[at] == " ":
        at += 1
    digits = at
    while digits < end and digits - at < 3 and text[digits].isdigit():
        digits += 1
    mark = digits
    if digits == at:
        while mark < end and mark - at < 4 and text[mark] in _ROMAN:
            mark += 1
        if mark - at < 1 or (mark - at == 1 and text[at] not in _ROMAN):
            mark = at + 1 if at < end and text[at].isalpha() and not 0x2E80 <= ord(text[at]) <= 0x9FFF else at
    if mark == at:
        return start
    stop = mark
    stop = after_signs(text, stop, end, "*_")
    if digits > at and text.startswith("\ufe0f⃣", stop):
        return after_signs(text, stop + 2, end, " \t")
    closers = ".)]" if not sign else ".):]"
    if digits > at and not bracket and not sign and text.startswith((" - ", " – "), stop):
        return after_signs(text, stop + 3, end, " \t")
    if digits > at and not bracket:
        closers += ":°/-" if not sign else ""
    if stop < end and text[stop] in closers:
        if text[stop] in ":/-" and not (stop + 1 < end and text[stop + 1] in " \t"):
            return start
        stop += 1
        if stop < end and text[stop] in ").:" and text[stop - 1] in ")].":
            stop += 1
    elif sign and digits > at:
        pass
    else:
        return start
    stop = after_signs(text, stop, end, "*_")
    if stop < end and text[stop] not in " \t":
        return start
    return after_signs(text, stop, end, " \t")


def after_announcement(text: str, start: int, end: int) -> int:
    """Return where the line goes on after ``Example 3:`` and the like, or ``start``."""
    at = start
    at = after_signs(text, at, end, "#*_>([ ")
    word = at
    while word < end and word - at < 15 and text[word].isalpha():
        word += 1
    if text[at:word].lower() not in ANNOUNCING and text[at:word].lower().rstrip("s") not in ANNOUNCING:
        return start
    stop = word
    if stop < end and text[stop] == ".":
        stop += 1
    stop = after_signs(text, stop, end, " #№°([")
    digits = stop
    while digits < end and digits - stop < 3 and text[digits].isdigit():
        digits += 1
    if (
        digits == stop
        and digits < end
        and text[digits].isalpha()
        and (digits + 1 == end or not text[digits + 1].isalnum())
    ):
        digits += 1
    if digits == stop and text[at:word].lower() not in {
        "example",
        "ex",
        "beispiel",
        "exemple",
        "ejemplo",
        "esempio",
        "sample",
    }:
        return start
    stop = digits
    if stop < end and text[stop].isalnum():
        return start
    while stop < end and (text[stop] in " .:)]*_–—\t" or (text[stop] == "-" and not text.startswith("->", stop))):
        stop += 1
    if stop == digits and digits == word:
        return start
    return stop


def shape_of(text: str) -> str:
    """Return a line with its digits as ``0`` and its letters in lower case, cut at 60 characters."""
    return "".join("0" if c.isdigit() else c for c in text[:60].lower())


def words_of(text: str) -> list[str]:
    """Return runs of letters, in lower case."""
    return "".join(c if c.isalpha() else " " for c in text.lower()).split()


def longest(items: Iterable[str]) -> int:
    """Return the length of the longest item, 0 where there is none."""
    return max(map(len, items), default=0)


@dataclass(frozen=True, slots=True)
class Reading:
    """One parser's complete interpretation of a prompt; every part is a span of the prompt.

    Attributes:
        form: the layout, for instance ``lines`` or ``arrow``.
        pairs: spans of input and output of every example, in order.
        query: span of the open item, or None.
        labels: the labels of input and output, such as ``("q", "a")``; empty where the layout has none.
        block: from the start of the first example to the end of the query and of the cue behind it.
        slot: the query stands in the layout of the examples with its output missing, not in a sentence of its own.
        cue: what stands in the place of the missing output, such as ``SELECT``.
        flaws: how often something in the block did not fit the layout.
        facts: what else the parser knows, by name; the scorer takes it as it is.
    """

    form: str
    pairs: tuple[tuple[Span, Span], ...]
    query: Span | None
    block: Span
    labels: tuple[str, str] = ("", "")
    slot: bool = False
    cue: str = ""
    flaws: int = 0
    facts: tuple[tuple[str, float], ...] = ()

    def usable(self, text: str) -> bool:
        """Return whether every part has a visible character, and there is more than an empty interpretation."""
        parts = [span for pair in self.pairs for span in pair]
        if self.query is not None:
            parts.append(self.query)
        return bool(parts) and all(has_content(text[start:end]) for start, end in parts)

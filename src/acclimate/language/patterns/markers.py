"""Marks that divide a prompt into fields: labels at the start of lines or inside them, tags, and chat tokens."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

from acclimate.language.patterns.roles import ANSWERING, ASKING
from acclimate.language.patterns.text import ANNOUNCING, Line, after_bullet, after_number, after_signs, is_rule

#: Signs that introduce a line of code, a command, a comment or an answer without a name.
_LINE_SIGNS: Final = (
    ">>>",
    "=>",
    "->",
    "-->",
    "==>",
    "→",
    "⇒",
    "➜",
    "↦",
    "$",
    "#",
    "--",
    "//",
    "%",
    "⟶",
    ">",
    "↳",
    "└",
    "┌",
    "»",
    "▸",
    "➤",
    "⇨",
)
_COMMENTS: Final = ("# ", "-- ", "// ", "$ ", "% ")
_ENDERS: Final = (">>>", ">>", ">", "//", "::", "||", "|", "~", "....", "=>", "->", "--")
_MOST_NAME: Final = 48
_MOST_WORDS: Final = 7
_NAME_SIGNS: Final = frozenset(" _-'’/.&#№()°")
_CLOSER: Final = ""
_OPTION_NAMES: Final = frozenset(
    "options choices option choice answers alternatives opciones optionen antwoorden candidates".split()
)
_TOKEN_ENDS: Final = frozenset(
    "im_end end eot_id endoftext eos end_of_turn endofturn /user /assistant /system sep eom_id end_of_text begin_of_text bos".split()
)


class Marker(NamedTuple):
    """One mark.

    Attributes:
        start: where the mark begins, bullets and list numbers before it included.
        name_start: where its name begins.
        end: where its field begins.
        key: equal for marks that are written alike; empty for one that only ends a field.
        name: the name in lower case, without its number.
    """

    start: int
    name_start: int
    end: int
    key: str
    name: str

    @property
    def is_option(self) -> bool:
        """Whether it marks an option of a multiple-choice question, or the list of them."""
        return self.name in _OPTION_NAMES or (len(self.name) == 1 and self.name in "bcdefgh" and self.key[-1:] in ".):")


@dataclass(frozen=True, slots=True)
class Marked:
    """The marks of one kind in a prompt.

    Attributes:
        form: the kind.
        marks: in order.
        closed: a field ends at the next mark, whatever it is.
        inline: fields stand beside each other on a line, so that separators at their ends are left out.
    """

    form: str
    marks: tuple[Marker, ...]
    closed: bool = False
    inline: bool = False


def on_lines(text: str, lines: list[Line]) -> Marked:
    """Return the labels that stand at the starts of lines."""
    found = []
    for line in lines:
        if not line.blank and not is_rule(text[line.start : line.end]) and (mark := _label(text, line)) is not None:
            found.append(mark)
    return Marked("lines", tuple(_settled(text, lines, found)))


def _settled(text: str, lines: list[Line], found: list[Marker]) -> list[Marker]:
    """Return the marks without those that turn out to be something else once all are known."""
    counts = Counter(mark.key for mark in found)
    questions = {key.replace("q", "a") for key in counts if key in {"q.", "q)", "(q"}}
    kept: list[Marker] = []
    for mark, after in itertools.zip_longest(found, found[1:]):
        before = kept[-1] if kept else None
        if (
            mark.key.endswith("|")
            and before is not None
            and before.name
            and not before.key.endswith("|")
            and not text[before.end : mark.start].strip()
        ):
            # A word below a label is what the label names, though it could be one itself.
            continue
        if mark.key in {"a.", "a)", "(a"} and mark.key not in questions:
            # The first option of a multiple-choice question.
            kept.append(mark._replace(key="0.", name=""))
        elif counts[mark.key] == 1 and text.startswith(_COMMENTS, mark.start):
            sign = next(sign for sign in _COMMENTS if text.startswith(sign, mark.start)).strip()
            kept.append(Marker(mark.start, mark.start, mark.start + len(sign), sign, ""))
        elif counts[mark.key] == 1 and mark.key.startswith("##") and text.startswith("##", mark.start):
            # A heading of its own is an input below which the output stands.
            depth = len(mark.key) - len(mark.key.lstrip("#"))
            kept.append(Marker(mark.start, mark.start, mark.start + depth, "#" * depth, ""))
        elif (
            mark.name in ANNOUNCING
            and after is not None
            and after.name
            and not text[mark.end : after.start].strip()
            and any(c.isdigit() for c in text[mark.name_start : mark.end])
        ):
            # "Case 2:" above the first label of a record is its heading.
            continue
        elif mark.key.endswith("|") and counts[f"{mark.name}:"]:
            # The same label, once with a colon and once without.
            kept.append(mark._replace(key=f"{mark.name}:"))
        else:
            kept.append(mark)
    return kept


def _label(text: str, line: Line) -> Marker | None:
    start, end = line.start, line.end
    at = after_bullet(text, start, end)
    if at + 1 < end and unicodedata.category(text[at]) == "So":
        # A picture in front of a label.
        at += 1
        at = after_signs(text, at, end, " \ufe0f")
    found = _framed(text, start, end) or _named(text, start, at, end)
    if found is not None:
        return found
    for sign in _COMMENTS:
        if text.startswith(sign, start):
            found = _named(text, start, start + len(sign), end)
            if found is not None:
                return found
    past = after_number(text, at, end)
    if past > at and not (past == end and text.startswith("# ", at)):
        return _named(text, start, past, end) or Marker(start, past, past, "0.", "")
    for sign in _LINE_SIGNS:
        if text.startswith(sign, start) and (
            start + len(sign) == end or text[start + len(sign)] in " \t" or len(sign) > 2 or ord(sign[0]) > 127
        ):
            after = start + len(sign)
            return Marker(start, start, min(after, end), sign, "")
    return None


def _framed(text: str, start: int, end: int) -> Marker | None:
    """Return the heading on a line such as ``=== E-MAIL ===``, or None."""
    sign = text[start]
    if sign not in "=-~*<" or end - start > 50:
        return None
    body = text[start:end].strip("=-~*<>")
    name = body.strip()
    if (
        not name
        or not name[0].isalpha()
        or body == name
        or not text[start:end].endswith(("=", "-", "~", "*", ">"))
        or len(text[start:end]) - len(body) < 4
    ):
        return None
    low = _without_number(name).lower()
    if len(name.split()) > _MOST_WORDS or not low:
        return None
    return Marker(start, start, end, f"{sign}{low}", low)


def _named(text: str, start: int, at: int, end: int) -> Marker | None:
    """Return the label that begins at ``at``, or None."""
    first = at
    hashes = at
    while hashes < end and text[hashes] == "#":
        hashes += 1
    heading = hashes - at if hashes > at and hashes < end and text[hashes] in " \t" else 0
    if heading:
        at = hashes
        at = after_signs(text, at, end, " \t")
    stars = at
    while stars < end and text[stars] in "*_" and stars - at < 3:
        stars += 1
    bold = text[at:stars]
    at = stars
    bracket = text[at] if at < end and text[at] in "[(" else ""
    at += len(bracket)
    name_at = at
    if at >= end or not (text[at].isalpha()):
        return None
    stop = min(end, at + _MOST_NAME)
    while at < stop and (
        text[at].isalnum()
        or text[at] in _NAME_SIGNS
        or (ord(text[at]) > 127 and unicodedata.category(text[at])[0] == "M")
    ):
        if text[at] in " -/" and _ends_label(text, at, end):
            break
        if bracket == "(" and text[at] == ")":
            break
        if text[at] in ".)" and (at + 1 >= end or text[at + 1] in " \t") and "(" not in text[name_at:at]:
            break
        at += 1
    name = text[name_at:at].rstrip()
    at = name_at + len(name)
    plain = _without_number(name)
    if not plain or plain.count(" ") >= _MOST_WORDS:
        return None
    closed = at
    if bracket:
        if (
            closed < end
            and text[closed] == ("]" if bracket == "[" else ")")
            and (bracket == "[" or plain.lower() in ASKING | ANSWERING)
        ):
            closed += 1
        else:
            return None
    if bold and text.startswith(bold, closed):
        closed += len(bold)
        bold_closed = True
    else:
        bold_closed = False
    while closed < end and text[closed] == " ":
        closed += 1
    low = plain.lower()
    if len(low) == 1 and low not in "qa" and plain != name:
        low += "#"
    decoration = ("#" * heading) + bold + bracket
    sign, after = _terminator(text, closed, end, low)
    if sign:
        if bold and not bold_closed and text.startswith(bold, after):
            after += len(bold)
        if low in ASKING | ANSWERING and sign in "=-":
            sign = ":"
        return Marker(start, first if decoration else name_at, after, f"{decoration}{low}{sign}", low)
    whole = closed == end
    if low in ANNOUNCING and low not in ASKING:
        return None
    if (bracket and (bold_closed or not bold)) or (whole and (heading or (bold and bold_closed))):
        return Marker(start, first, closed, f"{decoration}{low}", low)
    if whole and (name.isupper() or low in ASKING or low in ANSWERING) and len(name) > 1:
        return Marker(start, name_at, closed, f"{low}|", low)
    return None


def _ends_label(text: str, at: int, end: int) -> bool:
    """Return whether a spaced dash or arrow stands at ``at``: it ends a label."""
    if text[at] == " ":
        rest = text[at + 1 : at + 3]
        return rest[:1] in "-–—=" and (at + 2 >= end or rest[1:2] in " >_?")
    return text[at] == "-" and text.startswith("->", at)


def _terminator(text: str, at: int, end: int, name: str) -> tuple[str, int]:
    """Return the sign that ends a label at ``at`` and where the field begins; an empty sign where there is none."""
    if at >= end:
        return "", at
    sign = text[at]
    after = text[at + 1] if at + 1 < end else " "
    if sign in ":：":
        if after == ":" or text.startswith("//", at + 1) or (after.isdigit() and text[at - 1].isdigit()):
            return "", at
        return ":", at + 1
    if sign == "=" and text[at - 1] == " " and after in " \t?_":
        return "=", at + 1
    if sign in "-–—" and text[at - 1] == " " and after in " \t_?":
        return "-", at + 1
    if text.startswith(("->", "=>", "→"), at) and name in ASKING | ANSWERING:
        return "->", at + (1 if sign == "→" else 2)
    if sign in ".)" and after in " \t" and (name in {"q", "a"} or (sign == ")" and len(name) > 1)):
        return sign, at + 1
    if name.count(" ") < 2:
        for ender in _ENDERS:
            if text.startswith(ender, at) and (
                at + len(ender) >= end
                or text[at + len(ender)] in " \t?_."
                or (len(ender) > 1 and ender not in {"->", "=>", "--"})
            ):
                stop = at + len(ender)
                while ender == "...." and stop < end and text[stop] == ".":
                    stop += 1
                return ender, stop
    return "", at


def _without_number(name: str) -> str:
    """Return a label's name without the number behind it: ``Input #2`` and ``Input (2)`` are ``Input``."""
    body = name.rstrip(" )")
    digits = body.rstrip("0123456789")
    if len(digits) < len(body):
        return digits.rstrip(" #№(_-.")
    body = name.strip()
    return body if body.count("(") == body.count(")") else body.rstrip("( ")


def inline(text: str, *, words: int = 1) -> Marked:
    """Return labels wherever they stand: ``Q: 2+2 A: 4 Q: 3+3 A:``, ``[SRC] ja [TGT] yes``.

    Args:
        text: the prompt.
        words: with more than one, a label is all that stands behind a separator or the start of a line.
    """
    found = []
    lows: dict[str, str] = {}
    for at in [place for place, sign in enumerate(text) if sign in ":：=]"]:
        sign = text[at]
        if sign == "]":
            begin = text.rfind("[", max(0, at - _MOST_NAME), at)
            name = text[begin + 1 : at]
            named = name.replace("/", "").replace("_", "").isalnum() and not name.isdigit()
            if begin >= 0 and named and (len(name) > 1 or name in "QAqa"):
                low = _low(name, lows)
                found.append(Marker(begin, begin, at + 1, f"[{low}", low))
            continue
        after = text[at + 1] if at + 1 < len(text) else " "
        if after in "=>/:" or (sign == "=" and after == "~"):
            continue
        stop = at
        while stop > 0 and text[stop - 1] == " " and at - stop < 2:
            stop -= 1
        begin = stop
        while begin > 0 and stop - begin < 16 and (text[begin - 1].isalnum() or text[begin - 1] == "_"):
            begin -= 1
        if words > 1:
            begin = _begin_of_words(text, begin, stop, words)
        before = text[begin - 1] if begin else " "
        if not (before.isspace() or before in "/|,;([{*-\"'。，；"):
            continue
        low = _low(text[begin:stop], lows)
        if low and low[0].isalpha() and (low not in ANNOUNCING or low in ASKING):
            found.append(Marker(begin, begin, at + 1, f"{low}{'=' if sign == '=' else ':'}", low))
    return Marked("inline", tuple(found), inline=True)


def _begin_of_words(text: str, begin: int, stop: int, most: int) -> int:
    """Return where a label of at most so many words begins that ends at ``stop``; its last word does at ``begin``."""
    first = begin
    while first > 0 and stop - first < 30 and text[first - 1] not in "/|,;([{\n:：.?!":
        first -= 1
    while first < begin and text[first].isspace():
        first += 1
    if first == begin:
        return begin
    begins = first == 0 or text[first - 1].isspace() or text[first - 1] in "/|,;([{\n"
    label = text[first:stop]
    return first if begins and len(label.split()) <= most and label.replace(" ", "").isalnum() else begin


def _low(name: str, known: dict[str, str]) -> str:
    """Return a label's name in lower case, without the number behind it; ``known`` keeps those that were asked for."""
    low = known.get(name)
    if low is None:
        low = known[name] = _without_number(name).lower()
    return low


def tags(text: str) -> Marked:
    """Return ``<name>`` tags; ``</name>`` only ends a field."""
    found = []
    lows: dict[str, str] = {}
    at = text.find("<")
    while at >= 0:
        closing = text.startswith("/", at + 1)
        begin = at + 1 + closing
        stop = begin
        while stop < len(text) and stop - begin < 24 and (text[stop].isalnum() or text[stop] in "_-"):
            stop += 1
        name = text[begin:stop]
        end = stop
        if name and name[0].isalpha() and end < len(text):
            if text[end] == " ":
                limit = text.find(">", end, end + 60)
                end = limit if limit >= 0 and "<" not in text[end:limit] else end
            if text[end] == ">":
                low = _low(name, lows) or name.lower()
                key = _CLOSER if closing else f"<{low}"
                found.append(Marker(at, at, end + 1, key, low))
        at = text.find("<", at + 1)
    # A tag that holds nothing but other tags wraps a record; it is no field.
    wraps: dict[str, list[bool]] = {}
    for mark, after in itertools.pairwise(found):
        wraps.setdefault(mark.key, []).append(bool(after.key) and not text[mark.end : after.start].strip())
    outer = {key for key, seen in wraps.items() if key and sum(seen) > len(seen) / 2}
    kept = [
        Marker(mark.start, mark.name_start, mark.end, _CLOSER, mark.name) if mark.key in outer else mark
        for mark in found
    ]
    return Marked("tags", tuple(kept), closed=True)


def chat_tokens(text: str) -> Marked:
    """Return the special tokens of chat templates: ``<|user|>``, ``<|im_start|>user``, ``[INST]``."""
    found = []
    for opening, closing in (("<|", "|>"), ("[INST]", ""), ("[/INST]", ""), ("</s>", ""), ("<s>", ""), ("<start_of_turn>", ""), ("<end_of_turn>", ""), ("<<SYS>>", ""), ("<</SYS>>", "")):  # fmt: skip
        at = text.find(opening)
        while at >= 0:
            end = at + len(opening)
            if closing:
                stop = text.find(closing, end, end + 30)
                name = text[end:stop] if stop >= 0 else ""
                end = stop + len(closing) if stop >= 0 else end
            else:
                name = {"[INST]": "user", "[/INST]": "assistant", "<<SYS>>": "system", "<</SYS>>": "user"}.get(
                    opening, "end"
                )
                name = "im_start" if opening == "<start_of_turn>" else name
            if name in {"im_start", "start_header_id", "start"}:
                stop = end
                while stop < len(text) and stop - end < 16 and text[stop].isalpha():
                    stop += 1
                name, end = text[end:stop], stop
                if text.startswith("<|end_header_id|>", end):
                    end += len("<|end_header_id|>")
            if name and name != "end_header_id":
                low = name.lower()
                found.append(Marker(at, at, end, _CLOSER if low in _TOKEN_ENDS or low == "end" else low, low))
            at = text.find(opening, at + 1)
    found.sort()
    # A system turn inside the first user turn ([INST] <<SYS>> ... <</SYS>>) leaves two marks for one turn.
    kept = [
        mark
        for mark, after in itertools.zip_longest(found, found[1:])
        if not (after is not None and mark.key and mark.key != "assistant" and not text[mark.end : after.start].strip())
    ]
    return Marked("chat", tuple(kept), closed=True)

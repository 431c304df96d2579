"""How probable it is that a reading of a prompt is exactly right: features of the reading, and boosted trees over them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from acclimate.language.patterns.roles import REPLIES, TURNS, is_answering, is_asking
from acclimate.language.patterns.text import Reading, is_rule, words_of

_STRONG_SIGNS: Final = ("->", "=>", "→", "==>", "⇒", "|", "\t", "::")
#: The second option of a multiple-choice question.
_OPTIONS: Final = ("B)", "b)", "\nB.", " B. ", "\nb.", "\n2.", "2)")
_ASKS: Final = frozenset(
    "what which who how why when where whats can could should does do did is are would will".split()
)
_TASKS: Final = frozenset(
    """write give make explain summarise summarize rewrite check find tell list suggest draft turn convert translate help fix review
    which why add put sort compare show tidy sum describe create generate please can could mark scale improve""".split()
)
_EXAMPLE_WORDS: Final = frozenset(
    "example examples sample samples e.g eg demonstration demonstrations demos like beispiel beispiele exemple exemples ejemplo ejemplos".split()
)
_FOLLOW_UPS: Final = frozenset(
    "ok okay thanks thank yes no and but it that this these those they he she also then so hi hello hey my i".split()
)
_MOST_LOOKED_AT: Final = 12
_MOST_LENGTH: Final = 600


def features(text: str, found: Sequence[Reading]) -> list[dict[str, float]]:
    """Return the features of every reading of a prompt, by name; those that are zero are left out."""
    shared = _prompt_features(text)
    counts = Counter(reading.query for reading in found if reading.query is not None)
    slots = sum(reading.slot for reading in found)
    most = max((len(r.pairs) for r in found if r.query is not None), default=0)
    most_in_slot = max((len(r.pairs) for r in found if r.slot), default=0)
    result = []
    for reading in found:
        values = dict(shared)
        values |= _reading_features(text, reading)
        values["readings"] = min(8, len(found)) / 8
        values["readings_with_slot"] = min(6, slots) / 6
        values["same_query"] = float(counts[reading.query] > 1) if reading.query is not None else 0.0
        values["fewer_pairs"] = min(4, most - len(reading.pairs)) if most > len(reading.pairs) else 0.0
        values["fewer_pairs_in_slot"] = (
            min(4, most_in_slot - len(reading.pairs)) if most_in_slot > len(reading.pairs) else 0.0
        )
        result.append({name: value for name, value in values.items() if value})
    return result


def _prompt_features(text: str) -> dict[str, float]:
    rows = [row.strip() for row in text.splitlines() if row.strip()]
    last = rows[-1] if rows else ""
    first = rows[0] if rows else ""
    end = text.rstrip()
    opening = words_of(first[:200])
    closing = words_of(last[:300])
    spoken = set(words_of(text[:1500])) | set(words_of(text[-800:]))
    return {
        "rows": math.log1p(len(rows)),
        "length": math.log1p(len(text)),
        "ends_with_sign": float(end[-1:] in ':=>→|-–/：_"~'),
        "ends_with_gap": float(end.endswith(("?", "__", "...", "…", '?"')) and len(closing) <= 3),
        "ends_with_question": float(end.endswith(("?", "？")) and len(closing) > 3),
        "ends_with_stop": float(end.endswith((".", "!"))),
        "last_asks": float(bool(closing) and len(closing) > 4 and closing[0] in _ASKS),
        "last_tasks": float(bool(closing) and len(closing) > 3 and closing[0] in _TASKS),
        "first_asks": float(bool(opening) and opening[0] in _ASKS),
        "first_tasks": float(bool(opening) and opening[0] in _TASKS),
        "slots": float(_has_slot(text)),
        "example_word": float(bool(spoken & _EXAMPLE_WORDS)),
        "rule_word": float(
            bool(spoken & {"rule", "pattern", "function", "machine", "code", "cipher", "law", "mapping"})
        ),
        "analogy_word": float(bool(spoken & {"analogy", "analogies", "relation", "same", "analogous"})),
    }


def _has_slot(text: str) -> bool:
    """Return whether a line is nothing but a slot: ``{examples}``."""
    return any(
        row[:1] in "{$<["
        and row[-1:] in "}>]"
        and row.strip("{}$<>[]#/ ").replace("_", "").replace(" ", "").isalpha()
        and ">" not in row[1:-1]
        for row in map(str.strip, text.splitlines())
        if 3 <= len(row) <= 40
    )


def _kind_of(text: str) -> str:
    """Return a coarse type: number, word, upper, code, words, sentence or lines."""
    body = text.strip()
    if "\n" in body:
        return "lines"
    bare = body.strip("+-$€°%.,").replace(",", "").replace(".", "").replace(" ", "")
    if bare.isdigit():
        return "number"
    if body[:1] in "{[<(" or any(sign in body for sign in ("()", "==", "{", "</", ");")):
        return "code"
    if body.isupper() and " " not in body:
        return "upper"
    if " " not in body:
        return "word"
    if body[-1:] in ".!?。？！" and body[:1].isupper():
        return "sentence"
    return "words"


def _share(kinds: Sequence[str]) -> float:
    return Counter(kinds).most_common(1)[0][1] / len(kinds) if kinds else 0.0


def _balanced(text: str) -> bool:
    for opening, closing in ("()", "[]", "{}"):
        if abs(text.count(opening) - text.count(closing)) > 0 and not any(e in text for e in (":)", ":(", ";)")):
            return False
    return text.count('"') % 2 == 0


def _reading_features(text: str, reading: Reading) -> dict[str, float]:
    pairs = [(text[a:b], text[c:d]) for (a, b), (c, d) in reading.pairs]
    inputs, outputs = [given for given, _ in pairs], [answer for _, answer in pairs]
    looked_in, looked_out = inputs[:_MOST_LOOKED_AT], outputs[:_MOST_LOOKED_AT]
    query = text[reading.query[0] : reading.query[1]] if reading.query is not None else None
    count = len(pairs)
    values: dict[str, float] = {f"form_{reading.form}": 1.0}
    values["examples"] = min(8, count)
    values["no_query"] = float(query is None)
    values["slot"] = float(reading.slot)
    values["flaws"] = min(5, reading.flaws)
    values["flaw_share"] = reading.flaws / max(1, count + reading.flaws)
    for name, value in reading.facts:
        values[name] = value
    values["cue"] = float(bool(reading.cue.strip("?_. \"'")))
    start, end = reading.block
    values["before_block"] = min(1.0, start / 400)
    lead = text[max(0, start - 160) : start].rstrip()
    values["lead_colon"] = float(lead.endswith((":", "：")))
    values["lead_none"] = float(not lead)
    values["lead_stop"] = float(lead.endswith((".", "!", "。")))
    values["lead_blank_line"] = float(
        "\n" in text[len(lead) : start] if start < 160 else "\n\n" in text[start - 3 : start]
    )
    after = text[end:].strip(" \r\n\t\"'`.?_*)]}>|")
    values["after_block"] = min(1.0, len(after) / 60)
    first, second = reading.labels
    if first or second:
        asking, answering = is_asking(first), is_answering(second)
        values["asking_label"] = float(asking)
        values["answering_label"] = float(answering)
        values["both_labels"] = float(asking and answering)
        turns = first in TURNS and second in REPLIES
        values["turns"] = float(turns)
        if turns:
            lengths = [len(answer.split()) for answer in looked_out]
            values["turns_long"] = float(sum(lengths) / len(lengths) > 8) if lengths else 0.0
            values["turns_without_task"] = float(not lead)
            said = [*looked_in[1:], query or ""]
            values["turns_follow_up"] = sum(bool(w := words_of(s[:60])) and w[0] in _FOLLOW_UPS for s in said) / max(
                1, len(said)
            )
            values["turns_questions"] = sum("?" in answer for answer in looked_out) / max(1, count)
            values["turns_uneven"] = max(lengths, default=0) / (1 + min(lengths, default=0))
        values["label_words"] = float(max(first.count(" "), second.count(" ")))
        values["label_digits"] = float(any(c.isdigit() for c in first + second))
    if not pairs:
        return values
    in_lengths, out_lengths = [len(i) for i in looked_in], [len(o) for o in looked_out]
    values["input_length"] = math.log1p(sum(in_lengths) / len(in_lengths))
    values["output_length"] = math.log1p(sum(out_lengths) / len(out_lengths))
    values["input_spread"] = math.log((1 + max(in_lengths)) / (1 + min(in_lengths)))
    values["output_spread"] = math.log((1 + max(out_lengths)) / (1 + min(out_lengths)))
    kinds_in, kinds_out = (
        [_kind_of(i[:_MOST_LENGTH]) for i in looked_in],
        [_kind_of(o[:_MOST_LENGTH]) for o in looked_out],
    )
    values["inputs_alike"] = _share(kinds_in)
    values["outputs_alike"] = _share(kinds_out)
    values["first_output_odd"] = float(count >= 3 and kinds_out[0] not in kinds_out[1:])
    values["first_input_odd"] = float(count >= 3 and kinds_in[0] not in kinds_in[1:])
    values["last_output_odd"] = float(count >= 3 and kinds_out[-1] not in kinds_out[:-1] and len(out_lengths) == count)
    values["last_output_longer"] = (
        math.log((1 + len(outputs[-1])) / (1 + max(len(o) for o in outputs[:-1]))) if count > 1 else 0.0
    )
    values["first_input_longer"] = (
        math.log((1 + len(inputs[0])) / (1 + max(len(i) for i in inputs[1:]))) if count > 1 else 0.0
    )
    values["distinct_outputs"] = len(set(outputs)) / count
    values["distinct_inputs"] = len(set(inputs)) / count
    values["numbers_out"] = kinds_out.count("number") / len(kinds_out)
    values["sentences_out"] = (kinds_out.count("sentence") + kinds_out.count("lines")) / len(kinds_out)
    values["sentences_in"] = (kinds_in.count("sentence") + kinds_in.count("lines")) / len(kinds_in)
    parts = [part for pair in pairs[:_MOST_LOOKED_AT] for part in pair]
    values["unbalanced"] = sum(not _balanced(part[:_MOST_LENGTH]) for part in parts) / len(parts)
    values["signs_inside"] = sum(any(s in part for s in _STRONG_SIGNS) for part in parts) / len(parts)
    values["blank_lines_inside"] = sum("\n\n" in part or "\n\r\n" in part for part in parts) / len(parts)
    values["label_inside"] = sum(": " in part or ":\n" in part for part in parts) / len(parts)
    values["colon_ends"] = sum(part.endswith((":", "：", "-", "=", "|", ",")) for part in parts) / len(parts)
    values["rule_inside"] = float(
        any(is_rule(row.strip()) for part in parts[-2:] for row in part[:_MOST_LENGTH].splitlines())
    )
    values["stop_inside"] = sum(". " in answer or "? " in answer for answer in looked_out) / len(looked_out)
    values["last_stop_inside"] = float(". " in outputs[-1] or "? " in outputs[-1]) - float(
        count > 1 and (". " in outputs[0] or "? " in outputs[0])
    )
    values["question_marks_out"] = sum("?" in answer for answer in looked_out) / len(looked_out)
    shared = _shared_start([*looked_in, *([query] if query else [])])
    values["inputs_start_alike"] = min(10, len(shared.split())) / 10 if count > 1 else 0.0
    shared = _shared_start(looked_out)
    values["outputs_start_alike"] = min(10, len(shared.split())) / 10 if count > 1 and len(set(outputs)) > 1 else 0.0
    covered = sum(map(len, inputs)) + sum(map(len, outputs)) + (len(query) if query else 0)
    values["coverage"] = covered / max(1, end - start)
    asked = [*looked_in, *([query] if query else [])]
    values["options"] = sum(any(sign in i for sign in _OPTIONS) for i in asked) / len(asked)
    values["letters_out"] = sum(len(o.strip("().")) == 1 for o in looked_out) / len(looked_out)
    values["placeholders"] = sum(_is_placeholder(part) for part in parts) / len(parts)
    values["input_is_output"] = sum(a == b for a, b in pairs) / count
    if query is not None:
        kind = _kind_of(query[:_MOST_LENGTH])
        values["query_placeholder"] = float(_is_placeholder(query))
        values["query_alike"] = kinds_in.count(kind) / len(kinds_in)
        values["query_longer"] = max(0.0, math.log((1 + len(query)) / (1 + max(map(len, inputs)))))
        values["query_shorter"] = max(0.0, math.log((1 + min(map(len, inputs))) / (1 + len(query))))
        values["query_in_inputs"] = float(query in inputs)
        values["query_in_outputs"] = float(query in outputs)
        values["query_is_label"] = float(
            query.strip().lower().rstrip(":") in {first, second} or query.rstrip().endswith(":")
        )
        values["query_lines"] = float("\n" in query and not any("\n" in i for i in inputs))
        values["query_unbalanced"] = float(not _balanced(query[:_MOST_LENGTH]))
        values["query_asks"] = float("?" in query and not any("?" in i for i in inputs))
        words = words_of(query[:80])
        values["query_starts_task"] = float(
            bool(words)
            and (words[0] in _TASKS or words[0] in {"now", "your", "please", "and"})
            and not any((words_of(i[:40]) or [""])[0] == words[0] for i in looked_in)
        )
        values["query_end_alike"] = float(
            query[-1:] in {i[-1:] for i in inputs} or (query[-1:].isalnum() and any(i[-1:].isalnum() for i in inputs))
        )
        values["query_case_alike"] = float(query[:1].isupper() in {i[:1].isupper() for i in inputs})
        values["query_from_end"] = min(1.0, (len(text.rstrip()) - reading.query[1]) / 80) if reading.query else 0.0
    return values


def _is_placeholder(text: str) -> bool:
    """Return whether a part is nothing but a slot to be filled: ``{question}``, ``<text>``, ``${x}``, ``...``."""
    body = text.strip().strip("$")
    return (
        len(body) > 2
        and len(body) < 60
        and "\n" not in body
        and (
            (
                body[0] + body[-1] in ("{}", "<>", "[]")
                and '"' not in body
                and "," not in body
                and not any(c.isdigit() for c in body)
            )
            or set(body) <= {".", "…"}
        )
    )


def _shared_start(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return ""
    low, high = min(parts), max(parts)
    size = 0
    while size < min(len(low), len(high), 120) and low[size] == high[size]:
        size += 1
    return low[:size].rpartition(" ")[0] if size < max(len(low), len(high)) else low[:size]


@dataclass(frozen=True)
class Trees:
    """Boosted regression trees over named features; the sum of their leaves is a log-odds.

    Attributes:
        features: names of the ``F`` features.
        base: log-odds before the first tree.
        split: int16 ``(T, N)``, the feature that a node looks at, -1 in a leaf.
        limit: float32 ``(T, N)``: a value up to the limit goes left.
        left, right: int16 ``(T, N)``, the node to go on with.
        value: float32 ``(T, N)``, of a leaf.
    """

    features: tuple[str, ...]
    base: float
    split: npt.NDArray[np.int16]
    limit: npt.NDArray[np.float32]
    left: npt.NDArray[np.int16]
    right: npt.NDArray[np.int16]
    value: npt.NDArray[np.float32]

    @classmethod
    def load(cls, path: Path) -> Trees:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(
                features=tuple(arrays["features"].tolist()),
                base=float(arrays["base"]),
                **{name: arrays[name] for name in ("split", "limit", "left", "right", "value")},
            )

    def save(self, path: Path) -> None:
        """Write a compressed NumPy archive (``.npz``) with one array for each attribute."""
        np.savez_compressed(
            path, features=np.array(self.features), base=np.array(self.base), split=self.split, limit=self.limit,
            left=self.left, right=self.right, value=self.value,
        )  # fmt: skip

    @cached_property
    def _column(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.features)}

    def log_odds(self, rows: Sequence[Mapping[str, float]]) -> npt.NDArray[np.float64]:
        """Return one log-odds for each row of features; names that the trees do not know count nothing."""
        given = np.zeros((len(rows), len(self.features)), dtype=np.float32)
        for index, row in enumerate(rows):
            for name, value in row.items():
                column = self._column.get(name)
                if column is not None:
                    given[index, column] = value
        trees = np.arange(len(self.split))[None, :]
        at = np.zeros((len(rows), len(self.split)), dtype=np.int64)
        which = np.arange(len(rows))[:, None]
        while True:
            split = self.split[trees, at]
            inner = split >= 0
            if not inner.any():
                break
            go_left = given[which, np.maximum(split, 0)] <= self.limit[trees, at]
            following = np.where(go_left, self.left[trees, at], self.right[trees, at])
            at = np.where(inner, following, at)
        total: npt.NDArray[np.float64] = self.base + self.value[trees, at].sum(axis=1, dtype=np.float64)
        return total

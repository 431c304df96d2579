"""Decide which few-shot pattern a prompt shows, if any, and read its examples and open item.

Every parser gives complete readings of the prompt (:mod:`candidates`): all examples, the open item, and what stays
unexplained. Boosted trees (:mod:`scoring`, ``readings.npz``) say how probable it is that a reading is exactly right. The
best one is taken, unless it is improbable or another is nearly as probable: a wrong reading is worse than none. A linear
classifier (:mod:`classifier`, ``kinds.npz``) names the kind of pattern, and says where there is one that was not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from acclimate.errors import ConfigError
from acclimate.language.examples import Example
from acclimate.language.patterns.candidates import candidates
from acclimate.language.patterns.classifier import Classifier
from acclimate.language.patterns.kinds import kind_features
from acclimate.language.patterns.scoring import Trees, features
from acclimate.language.patterns.text import Reading, Span

Kind = Literal["explicit_examples", "io_pairs", "numbered_sequences", "analogical_reasoning", "rule_learning"]
KINDS: Final[tuple[Kind, ...]] = Kind.__args__  # type: ignore[attr-defined]

#: Sensitivity by domain and kind: a pattern is reported when its probability exceeds one minus the sensitivity, and
#: :data:`LEAST_READ_PROBABILITY`.
DOMAIN_SENSITIVITY: Final[Mapping[str, Mapping[str, float]]] = {
    "mathematics": {"numbered_sequences": 0.9, "explicit_examples": 0.8, "analogical_reasoning": 0.7},
    "language": {"analogical_reasoning": 0.9, "explicit_examples": 0.8, "rule_learning": 0.7},
    "science": {"rule_learning": 0.9, "explicit_examples": 0.8, "io_pairs": 0.7},
}
DEFAULT_SENSITIVITY: Final = 0.5
#: No domain makes a reading count that is less probable than this.
LEAST_READ_PROBABILITY: Final = 0.35
#: Longest prompt that is read, in characters.
MAX_CHARACTERS: Final = 20_000
#: The best reading must be at least this many times as probable as the next one that differs from it.
LEAST_ODDS_RATIO: Final = 1.25
#: A pattern that could not be read is reported, without examples, where it is more probable than this.
LEAST_UNREAD_PROBABILITY: Final = 0.75
_HERE: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Detection:
    """A few-shot pattern in a prompt.

    Attributes:
        kind: one of :data:`KINDS`.
        confidence: probability, from 0 to 1, that the prompt shows a pattern and was read exactly; without examples and
            query, that it shows one.
        examples: input-output pairs, in the order of the prompt; neither side is ever empty. None where the pattern is a
            sequence, or could not be read reliably.
        query: the input without an output, never empty; None where the prompt has none.
        spans: start and end offset of each example in the prompt, from its input to its output.
        query_span: start and end offset of the query in the prompt, or None.
        block: start and end offset of the examples and the query; what stands outside of it is instruction.
    """

    kind: Kind
    confidence: float
    examples: tuple[Example, ...]
    query: str | None
    spans: tuple[Span, ...]
    query_span: Span | None = None
    block: Span = (0, 0)


def detect(text: str, domain: str | None = None) -> Detection | None:
    """Return the few-shot pattern that ``text`` shows, or None.

    Args:
        text: the prompt as it was typed.
        domain: a key of :data:`DOMAIN_SENSITIVITY`, which lowers the threshold of some kinds, or ``general``; None is
            the same as ``general``.

    Raises:
        ConfigError: the domain is unknown.
    """
    if domain is not None and domain not in {*DOMAIN_SENSITIVITY, "general"}:
        raise ConfigError(f"domain must be one of {', '.join(DOMAIN_SENSITIVITY)} or general, got {domain!r}")
    if not text.strip() or len(text) > MAX_CHARACTERS:
        return None
    found = candidates(text)
    odds = readings_trees().log_odds(features(text, found)).tolist() if found else []
    best = max(range(len(found)), key=odds.__getitem__, default=-1)
    reading = found[best] if found else None
    by_kind = _kinds().probabilities(kind_features(text, reading, odds[best] if found else 0.0))
    kind = max(KINDS, key=lambda name: by_kind[name])
    sensitivity = max(DEFAULT_SENSITIVITY, DOMAIN_SENSITIVITY.get(domain or "", {}).get(kind, DEFAULT_SENSITIVITY))
    if reading is not None and _is_clear(found, odds, best):
        confidence = 1 / (1 + math.exp(-odds[best]))
        if confidence > max(1 - sensitivity, LEAST_READ_PROBABILITY):
            examples = tuple(Example(text[a:b], text[c:d]) for (a, b), (c, d) in reading.pairs)
            query = text[reading.query[0] : reading.query[1]] if reading.query is not None else None
            spans = tuple((given[0], answer[1]) for given, answer in reading.pairs)
            return Detection(kind, confidence, examples, query, spans, reading.query, reading.block)
    if 1 - by_kind["none"] > LEAST_UNREAD_PROBABILITY:
        return Detection(kind, 1 - by_kind["none"], (), None, ())
    return None


def _is_clear(found: Sequence[Reading], odds: Sequence[float], best: int) -> bool:
    """Return whether no other reading is nearly as probable as the best one."""
    others = [odd for index, odd in enumerate(odds) if index != best and found[index].query is not None]
    return not others or odds[best] - max(others) >= math.log(LEAST_ODDS_RATIO)


@cache
def readings_trees() -> Trees:
    """Return the trees that score readings."""
    return Trees.load(_HERE / "readings.npz")


@cache
def _kinds() -> Classifier:
    return Classifier.load(_HERE / "kinds.npz")

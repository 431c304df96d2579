"""Decide which few-shot pattern a prompt shows, if any.

Several parsers (:mod:`labelled`, :mod:`lines`, :mod:`prose`, :mod:`skeleton`) each look for input-output pairs in one
family of layouts. A linear classifier (:mod:`classifier`) over what they found and the words of the prompt decides the
kind of pattern, or that there is none; its weights are ``weights.npz``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from acclimate.errors import ConfigError
from acclimate.language.examples import Example
from acclimate.language.patterns import labelled, lines, prose, skeleton
from acclimate.language.patterns.classifier import Classifier
from acclimate.language.patterns.features import features
from acclimate.language.patterns.items import Reading, find_spans

Kind = Literal["explicit_examples", "io_pairs", "numbered_sequences", "analogical_reasoning", "rule_learning"]
KINDS: Final[tuple[Kind, ...]] = Kind.__args__  # type: ignore[attr-defined]

#: Sensitivity by domain and kind: a pattern is reported when its probability exceeds one minus the sensitivity.
DOMAIN_SENSITIVITY: Final[Mapping[str, Mapping[str, float]]] = {
    "mathematics": {"numbered_sequences": 0.9, "explicit_examples": 0.8, "analogical_reasoning": 0.7},
    "language": {"analogical_reasoning": 0.9, "explicit_examples": 0.8, "rule_learning": 0.7},
    "science": {"rule_learning": 0.9, "explicit_examples": 0.8, "io_pairs": 0.7},
}
DEFAULT_SENSITIVITY: Final = 0.5
_MIN_PROBABILITY_WITHOUT_PAIRS: Final = 0.8
_MAX_CHARACTERS: Final = 20_000
_MAX_CANDIDATES: Final = 24
_WEIGHTS: Final = Path(__file__).parent / "weights.npz"
_PARSERS: Final = (
    labelled.json_pairs, labelled.tagged, labelled.labelled_lines, labelled.labelled_inline, labelled.tables,
    prose.functions, prose.analogies, lines.pairs_on_lines, lines.pairs_in_segments, prose.told, prose.sequences,
    skeleton.repeated,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detection:
    """A few-shot pattern in a prompt.

    Attributes:
        kind: one of :data:`KINDS`.
        confidence: probability that the prompt shows any pattern, from 0 to 1.
        examples: input-output pairs, in the order of the prompt; neither side is ever empty.
        query: the input without an output, never empty; None where the prompt has none.
        spans: start and end offset of each example in the prompt, from its input to its output.
    """

    kind: Kind
    confidence: float
    examples: tuple[Example, ...]
    query: str | None
    spans: tuple[tuple[int, int], ...]


def readings(text: str) -> dict[str, Reading]:
    """Return the best reading of each parser that found one, by the parser's name."""
    found: dict[str, Reading] = {}
    for parser in _PARSERS:
        candidates = (reading.without_empty_parts() for reading in itertools.islice(parser(text), _MAX_CANDIDATES))
        best = max((reading for reading in candidates if reading is not None), key=_rank, default=None)
        if best is not None:
            found[parser.__name__] = best
    return found


def _rank(found: Reading) -> tuple[float, ...]:
    # Where two separators fit equally well, the one that comes first on the line is taken.
    shortest = -sum(len(given) for given, _ in found.pairs) / max(1, len(found.pairs))
    return (found.query is not None, labelled.is_role_pair(found), min(len(found.pairs), 20), shortest)


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
    if not text.strip() or len(text) > _MAX_CHARACTERS:
        return None
    found = readings(text)
    odds = _classifier().probabilities(features(text, found))
    kind = max(KINDS, key=lambda k: odds[k])
    confidence = 1 - odds["none"]
    sensitivity = DOMAIN_SENSITIVITY.get(domain or "", {}).get(kind, DEFAULT_SENSITIVITY)
    # Without any pair the decision rests on words alone, so it has to be clearer.
    if confidence <= (1 - sensitivity if found else _MIN_PROBABILITY_WITHOUT_PAIRS):
        return None
    reading = _reading_for(kind, found)
    pairs = reading.pairs if reading else ()
    examples = tuple(Example(*pair) for pair in pairs)
    return Detection(kind, confidence, examples, reading.query if reading else None, find_spans(text, pairs))


_ORDER: Final[Mapping[str, tuple[str, ...]]] = {
    "analogical_reasoning": ("analogies", "labelled_lines", "tables", "pairs_on_lines", "pairs_in_segments", "told", "repeated"),
    "rule_learning": (
        "json_pairs", "tagged", "functions", "repeated", "labelled_lines", "labelled_inline", "tables", "pairs_on_lines",
        "pairs_in_segments", "told",
    ),
    "io_pairs": ("json_pairs", "tagged", "labelled_lines", "labelled_inline", "tables", "repeated", "pairs_on_lines"),
    "numbered_sequences": ("sequences", "pairs_on_lines", "labelled_lines", "pairs_in_segments", "told"),
    "explicit_examples": (
        "pairs_on_lines", "tables", "pairs_in_segments", "labelled_lines", "told", "labelled_inline", "json_pairs",
        "repeated",
    ),
}  # fmt: skip


def _reading_for(kind: Kind, found: Mapping[str, Reading]) -> Reading | None:
    """Return the reading that gives the examples: the first complete one in the order of preference of the kind."""
    candidates = [found[name] for name in _ORDER[kind] if name in found]
    if kind == "numbered_sequences" and (pairs := [f for f in candidates if f.numbered and f.pairs]):
        candidates = pairs
    complete = [f for f in candidates if f.query is not None and (f.pairs or f.form == "sequence")]
    return next(iter(complete or candidates), None)


@cache
def _classifier() -> Classifier:
    return Classifier.load(_WEIGHTS)

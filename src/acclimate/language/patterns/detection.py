"""Decide which pattern a prompt shows, if any.

Parsers read the prompt in every way they know (:mod:`labelled`, :mod:`lines`, :mod:`prose`); a small linear classifier,
whose weights lie beside this file, weighs what they found and a few words of the prompt.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from acclimate.errors import ConfigError
from acclimate.language.examples import Example
from acclimate.language.patterns import labelled, lines, prose, skeleton
from acclimate.language.patterns.features import features
from acclimate.language.patterns.items import Found, located

Kind = Literal["explicit_examples", "io_pairs", "numbered_sequences", "analogical_reasoning", "rule_learning"]
KINDS: Final[tuple[Kind, ...]] = Kind.__args__  # type: ignore[attr-defined]

#: How readily a kind is seen in prompts of a domain: a pattern counts when it is likelier than one minus this.
DOMAIN_SENSITIVITY: Final[Mapping[str, Mapping[str, float]]] = {
    "mathematics": {"numbered_sequences": 0.9, "explicit_examples": 0.8, "analogical_reasoning": 0.7},
    "language": {"analogical_reasoning": 0.9, "explicit_examples": 0.8, "rule_learning": 0.7},
    "science": {"rule_learning": 0.9, "explicit_examples": 0.8, "io_pairs": 0.7},
}
DEFAULT_SENSITIVITY: Final = 0.5
_SURE_BY_WORDING: Final = 0.8
_MAX_CHARACTERS: Final = 20_000
_WEIGHTS: Final = Path(__file__).parent / "weights.json"
_PARSERS: Final = (
    labelled.json_pairs, labelled.tagged, labelled.labelled_lines, labelled.labelled_inline, labelled.tables,
    prose.functions, prose.analogies, lines.pairs_on_lines, lines.pairs_in_segments, prose.told, prose.sequences,
    skeleton.repeated,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detection:
    """A pattern in a prompt.

    Attributes:
        kind: which of :data:`KINDS`.
        confidence: that the prompt shows a pattern at all, from 0 to 1.
        examples: the worked ones, in order.
        query: the open item; None where the prompt ends without one.
        spans: of each example in the prompt, from the start of its input to the end of its output.
    """

    kind: Kind
    confidence: float
    examples: tuple[Example, ...]
    query: str | None
    spans: tuple[tuple[int, int], ...]


def readings(text: str) -> dict[str, Found]:
    """Return the best reading of each parser, by the parser's name."""
    found: dict[str, Found] = {}
    for parser in _PARSERS:
        best = max(itertools.islice(parser(text), 24), key=_merit, default=None)
        if best is not None:
            found[parser.__name__] = best
    return found


def _merit(found: Found) -> tuple[float, ...]:
    # Of two separators that fit as well, the one that comes first on the line is meant.
    shortest = -sum(len(given) for given, _ in found.pairs) / max(1, len(found.pairs))
    return (found.query is not None, labelled.is_role_pair(found), min(len(found.pairs), 20), shortest)


def detect(text: str, domain: str | None = None) -> Detection | None:
    """Return the few-shot pattern that ``text`` shows, or None.

    Args:
        text: the prompt as it was typed.
        domain: a key of :data:`DOMAIN_SENSITIVITY`, which lets some kinds count more readily; None for no preference.

    Raises:
        ConfigError: the domain is not known.
    """
    if domain is not None and domain not in {*DOMAIN_SENSITIVITY, "general"}:
        raise ConfigError(f"domain must be one of {', '.join(DOMAIN_SENSITIVITY)} or general, got {domain!r}")
    if not text.strip() or len(text) > _MAX_CHARACTERS:
        return None
    found = readings(text)
    odds = _probabilities(features(text, found))
    kind = max(KINDS, key=lambda k: odds[k])
    confidence = 1 - odds["none"]
    sensitivity = DOMAIN_SENSITIVITY.get(domain or "", {}).get(kind, DEFAULT_SENSITIVITY)
    # Where no parser read anything there is only wording to go by, which has to be clear.
    if confidence <= (1 - sensitivity if found else _SURE_BY_WORDING):
        return None
    reading = _reading_for(kind, found)
    pairs = reading.pairs if reading else ()
    examples = tuple(Example(*pair) for pair in pairs)
    return Detection(kind, confidence, examples, reading.query if reading else None, located(text, pairs))


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


def _reading_for(kind: Kind, found: Mapping[str, Found]) -> Found | None:
    """Return the reading whose examples count: the first in the kind's order that is complete."""
    candidates = [found[name] for name in _ORDER[kind] if name in found]
    if kind == "numbered_sequences" and (pairs := [f for f in candidates if f.numbered and f.pairs]):
        candidates = pairs
    complete = [f for f in candidates if f.query is not None and (f.pairs or f.form == "sequence")]
    return next(iter(complete or candidates), None)


@cache
def _weights() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(_WEIGHTS.read_text())
    return read


def _probabilities(given: Mapping[str, float]) -> dict[str, float]:
    weights = _weights()
    scores = {
        name: weights["bias"][name] + sum(given[f] * w for f, w in row.items() if f in given)
        for name, row in weights["weights"].items()
    }
    top = max(scores.values())
    powers = {name: math.exp(score - top) for name, score in scores.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}

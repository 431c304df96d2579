"""Whether examples can be learned from: how many, of how many classes, without duplicates and contradictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from acclimate.errors import DataError
from acclimate.language.examples import Example, cleaned, validated
from acclimate.media.items import Kind, Limits, MediaExample


@dataclass(frozen=True, slots=True)
class Checked:
    """The examples that are used, and what was found about the others.

    Attributes:
        examples: in the order given, without duplicates and contradictions.
        warnings: sentences for the user.
    """

    examples: tuple[MediaExample, ...]
    warnings: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order in which they first appear."""
        return tuple(dict.fromkeys(example.output for example in self.examples))

    @property
    def kind(self) -> Kind:
        """Of all inputs."""
        return self.examples[0].item.kind


def checked(given: Sequence[MediaExample], *, limits: Limits | None = None) -> Checked:
    """Return the examples that can be used; two files with the same pixels or samples are one input.

    Raises:
        DataError: there are none, too many, or of two kinds; an output is empty; or fewer than two classes are left.
    """
    limits = limits or Limits()
    if not given:
        raise DataError("there are no examples; give at least two, of two classes")
    if len(given) > limits.max_examples:
        raise DataError(f"{len(given)} examples given, at most {limits.max_examples} are used; leave some out")
    kinds = Counter(example.item.kind for example in given)
    if len(kinds) > 1:
        counts = " and ".join(f"{count} of kind {kind}" for kind, count in sorted(kinds.items()))
        raise DataError(f"the examples are {counts}; give one kind at a time")
    for number, example in enumerate(given, 1):
        if not cleaned(example.output):
            raise DataError(f"example {number} ({example.item.name}) has an empty output")
    # The same rules as for text, with the digest of the pixels or samples in place of the input.
    rules = validated(
        [Example(example.item.digest, example.output) for example in given], max_count=limits.max_examples
    )
    first = {(example.item.digest, cleaned(example.output)): example for example in reversed(given)}
    kept = tuple(MediaExample(first[e.input, e.output].item, e.output) for e in rules.examples)
    labels = {example.output for example in kept}
    warnings = _warnings(given, rules.contradictions, len(rules.duplicates))
    if len(labels) < 2:
        only = f"all examples have the output {labels.pop()!r}" if labels else "no example is left"
        because = f" ({'; '.join(warnings)})" if warnings else ""
        raise DataError(f"{only}{because}; give examples of at least two classes")
    return Checked(kept, warnings)


def _warnings(given: Sequence[MediaExample], contradictions: Sequence[str], duplicates: int) -> tuple[str, ...]:
    found = []
    for digest in contradictions:
        names = [f"{e.item.name} ({e.output})" for e in given if e.item.digest == digest]
        found.append(f"{', '.join(names)} are one input with different outputs and are not used")
    if duplicates:
        found.append(f"{duplicates} repeated example(s) dropped")
    return tuple(found)

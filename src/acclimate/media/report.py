"""The report of a request: the answer, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from acclimate.json_values import to_jsonable
from acclimate.media.items import Kind

NONE_OF_THESE: Final = "none of these"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A combination that was compared on held-out examples.

    Attributes:
        encoder, head, views: their names.
        accuracy: share of the held-out examples that were recognised.
        damaged_accuracy: the same of their damaged copies; None where no such copies were made.
        examples: that were held out.
        adapted: whether the encoder's norm parameters had been trained.
    """

    encoder: str
    head: str
    views: str
    accuracy: float | None
    damaged_accuracy: float | None = None
    examples: int = 0
    adapted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An example that is near to the query.

    Attributes:
        name: of the example.
        output: of the example.
        similarity: cosine of the two vectors around the mean of all examples, -1 to 1.
    """

    name: str
    output: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReport:
    """An answer to a query, with its evidence.

    Attributes:
        answer: the most probable label, or :data:`NONE_OF_THESE`.
        label: the most probable label, also where it was refused.
        refused: whether the query was found to be none of the classes.
        probability: that ``label`` is right, if the query is one of the classes.
        probabilities: of every label.
        typicality: share of held-out examples that are at least as far from the others as the query; below 0.05 it is
            unlikely to be of these classes, or it is damaged. None where too few examples could be held out.
        kind: ``image`` or ``audio``.
        query: its name.
        encoder, head, views: what the answer comes from.
        held_out_accuracy: share of the examples that were recognised without having been seen, with that combination.
        held_out_examples: how many they were.
        examples_used: after duplicates and contradictions were dropped.
        tried: everything that was compared.
        nearest: the examples nearest to the query, the nearest first.
        adapted: whether the encoder was trained for this request.
        frozen: the combination that an adapted encoder was compared with; None where nothing was adapted.
        seconds: wall-clock time by part; ``total`` includes all.
        encoding_cpu_seconds, other_cpu_seconds: of this thread: in encoders, and in everything else.
        warnings: for the user.
    """

    answer: str
    label: str
    refused: bool
    probability: float
    probabilities: Mapping[str, float]
    typicality: float | None
    kind: Kind
    query: str
    encoder: str
    head: str
    views: str
    held_out_accuracy: float | None
    held_out_examples: int
    examples_used: int
    tried: tuple[Tried, ...] = ()
    nearest: tuple[Neighbour, ...] = ()
    adapted: bool = False
    frozen: Tried | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    encoding_cpu_seconds: float = 0.0
    other_cpu_seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values: dict[str, Any] = to_jsonable(self)
        return values

    @property
    def status_line(self) -> str:
        """One line that says what was done."""
        trained = "adapted " if self.adapted else ""
        return (
            f"{self.label} with a probability of {self.probability:.0%}: {trained}encoder {self.encoder}, head "
            f"{self.head}, views {self.views}, {self.seconds.get('total', 0.0):.2f} s"
        )

    @property
    def explanation(self) -> str:
        """What the answer rests on, in words."""
        if self.held_out_accuracy is None:
            evidence = f"None of the {self.examples_used} examples could be held out"
        else:
            right = round(self.held_out_accuracy * self.held_out_examples)
            evidence = f"Of {self.held_out_examples} held-out examples {right} were recognised"
        if self.nearest:
            evidence += f"; the nearest example is {self.nearest[0].name} ({self.nearest[0].output})"
        if self.adapted and self.frozen is not None and self.frozen.accuracy is not None:
            evidence += f"; without training the encoder, {self.frozen.accuracy:.0%} were recognised"
        return f"{evidence}. {len(self.tried)} combination(s) of encoder, head and views were compared."

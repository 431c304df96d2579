"""A classifier made from a few examples: encoder, head, probabilities, and what an answer rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from acclimate.errors import DataError
from acclimate.media.calibration import calibrated
from acclimate.media.checks import Checked
from acclimate.media.embeddings import Embeddings
from acclimate.media.heads.protocol import FittedHead
from acclimate.media.items import Item
from acclimate.media.report import NONE_OF_THESE, MediaReport, Neighbour
from acclimate.media.selection import Choice
from acclimate.media.spent import Spent
from acclimate.media.typicality import Typicality

NEAREST: Final = 3
"""Examples that a report names."""
UNUSUAL: Final = 0.05
"""Typicality below which a report warns."""


@dataclass(frozen=True, slots=True, eq=False)
class MediaClassifier:
    """A classifier made from a few examples; :meth:`ask` may be called from several threads.

    Attributes:
        examples: that it was made from.
        choice: encoder, head and views, and what else was compared.
        head: fitted on the examples.
        temperature: of its scores.
        typicality: of the examples.
        refuse_below: a query whose typicality is lower is answered with "none of these"; None never refuses.
        spent: of the preparation: wall-clock seconds, and CPU seconds in encoders and elsewhere.
        embeddings: keeps vectors.
    """

    examples: Checked
    choice: Choice
    head: FittedHead
    temperature: float
    typicality: Typicality
    refuse_below: float | None
    spent: Spent
    embeddings: Embeddings
    warnings: tuple[str, ...] = ()

    def ask(self, query: Item) -> MediaReport:
        """Return the answer to a query with its evidence.

        Raises:
            DataError: the query is of another kind than the examples.
        """
        if query.kind != self.examples.kind:
            raise DataError(f"{query.name}: is of kind {query.kind}, and the examples are of kind {self.examples.kind}")
        began, choice, labels = Spent.now(self.embeddings.cpu_seconds), self.choice, self.examples.labels
        vector = self.embeddings.of(choice.encoder, [query])
        rotated = choice.span.rotated(vector)
        (probabilities,) = calibrated(self.head.log_probabilities(rotated), self.temperature)
        typicality = self.typicality.p_value(np.asarray(vector, np.float64))
        label = labels[int(probabilities.argmax())]
        refused = self.refuse_below is not None and typicality is not None and typicality < self.refuse_below
        spent = Spent.now(self.embeddings.cpu_seconds).since(began)
        return MediaReport(
            answer=NONE_OF_THESE if refused else label,
            label=label,
            refused=refused,
            probability=float(probabilities.max()),
            probabilities=dict(zip(labels, map(float, probabilities), strict=True)),
            typicality=typicality,
            kind=query.kind,
            query=query.name,
            encoder=choice.encoder.info.name,
            head=choice.head,
            views=choice.views.name,
            held_out_accuracy=choice.found.accuracy,
            held_out_examples=choice.found.count,
            examples_used=len(self.examples.examples),
            tried=choice.tried,
            nearest=self._nearest(rotated),
            adapted=choice.adapted,
            frozen=choice.frozen,
            seconds={"examples": self.spent.wall, "query": spent.wall, "total": self.spent.wall + spent.wall},
            encoding_cpu_seconds=self.spent.encoding_cpu + spent.encoding_cpu,
            other_cpu_seconds=self.spent.other_cpu + spent.other_cpu,
            warnings=(*self.warnings, *self._warnings(query, typicality, refused)),
        )

    def _nearest(self, rotated: NDArray[np.float64]) -> tuple[Neighbour, ...]:
        known = self.choice.vectors[:, 0]
        lengths = np.linalg.norm(known, axis=1) * np.linalg.norm(rotated)
        cosines = (known @ rotated[0]) / np.maximum(lengths, 1e-12)
        order = np.argsort(-cosines, kind="stable")[:NEAREST]
        examples = self.examples.examples
        return tuple(
            Neighbour(name=examples[i].item.name, output=examples[i].output, similarity=float(cosines[i]))
            for i in order
        )

    def _warnings(self, query: Item, typicality: float | None, refused: bool) -> tuple[str, ...]:
        found = [
            f"the query is the same as the example {example.item.name} ({example.output})"
            for example in self.examples.examples
            if example.item.digest == query.digest
        ]
        if typicality is not None and typicality < UNUSUAL and not refused:
            found.append(
                f"the query is unlike the examples (only {typicality:.0%} of held-out examples are as far from the "
                "others): it may be none of these, or damaged"
            )
        return tuple(found)

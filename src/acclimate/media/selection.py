"""Choosing encoder, views and head by held-out examples.

Few examples say little: the best of several combinations on twenty-five held-out examples is the best by chance as
often as not. So there is a preferred combination of views and head, the best on the development tasks of
benchmarks/media, and another one is taken only where the held-out examples of the request clearly say so. Encoders
differ more, and the best one is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from acclimate.media.calibration import held_out_log_likelihoods
from acclimate.media.embeddings import Embeddings
from acclimate.media.encoders.protocol import Encoder
from acclimate.media.heads.catalogue import head_named
from acclimate.media.heads.lda import ShrinkageLda
from acclimate.media.heads.protocol import Labels
from acclimate.media.held_out import HeldOut, held_out, parts_of
from acclimate.media.items import Item
from acclimate.media.report import Tried
from acclimate.media.span import Span
from acclimate.media.views.recipes import Views

SCREENING_HEAD: Final = ShrinkageLda.name
"""Compares encoders: it is the quickest to fit, and tells encoders apart as well as the others."""
ENCODER_MARGIN: Final = 0.0
"""Standard errors by which another encoder must be better than the preferred one: encoders differ by far more."""
COMBINATION_MARGIN: Final = 1.5
"""Standard errors by which other views or another head must be better than the preferred ones."""
DAMAGED_WEIGHT: Final = 0.5
"""Of the damaged copies of held-out examples, beside the unchanged ones: queries may be damaged."""
_Option = TypeVar("_Option")


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is compared, in each part the preferred one first.

    Attributes:
        encoders: loaded, of one kind.
        views: the recipes.
        heads: names of the heads.
    """

    encoders: tuple[Encoder, ...]
    views: tuple[Views, ...]
    heads: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What was chosen, and everything that was compared.

    Attributes:
        encoder, head, views: the choice.
        unchanged: the encoder's vectors of the examples without their copies, ``(n, size)``.
        vectors: of every copy of the examples, in the span of the examples, ``(n, copies, dimensions)``.
        span: which the vectors were rotated into.
        found: the held-out predictions of the choice.
        tried: everything that was compared, in order.
        adapted: whether the encoder was trained for this request.
        frozen: what an adapted encoder was compared with.
    """

    encoder: Encoder
    head: str
    views: Views
    unchanged: NDArray[np.floating]
    vectors: NDArray[np.float64]
    span: Span
    found: HeldOut
    tried: tuple[Tried, ...] = ()
    adapted: bool = False
    frozen: Tried | None = None

    @property
    def chosen(self) -> Tried:
        """What ``tried`` says about the choice."""
        return tried_of(self.encoder, self.head, self.views, self.found, adapted=self.adapted)


def choose(items: Sequence[Item], labels: Labels, candidates: Candidates, embeddings: Embeddings) -> Choice:
    """Return the best encoder on held-out examples, with the preferred views and head or clearly better ones.

    First the encoder is chosen, on the examples alone; then views and head together, with that encoder.

    Args:
        items: the examples' inputs.
        labels: their classes, 0 to k - 1.
        candidates: what is compared.
        embeddings: keeps vectors.
    """
    parts = parts_of(labels)
    encoder, tried = _encoder(items, labels, candidates.encoders, embeddings, parts)
    vectors = {views.name: embeddings.of(encoder, items, views) for views in candidates.views}
    # Every combination is asked about the same copies.
    examined = vectors[max(candidates.views, key=lambda views: views.count).name]
    options: list[Choice] = []
    for views in candidates.views:
        span = Span.of(vectors[views.name])
        rotated, asked = span.rotated(vectors[views.name]), span.rotated(examined)
        for name in candidates.heads:
            head = head_named(name, size=examined.shape[2])
            found = held_out(head, rotated, labels, parts, examined=asked)
            options.append(Choice(encoder, name, views, examined[:, 0], rotated, span, found))
    chosen = clearly_best(options, lambda option: scores(option.found), COMBINATION_MARGIN)
    return replace(chosen, tried=tried + tuple(option.chosen for option in options))


def scores(found: HeldOut) -> NDArray[np.float64]:
    """Return how well each held-out example was recognised, unchanged and damaged: 0 to 1."""
    right = found.right().astype(np.float64)
    clean = right[:, 0]
    if right.shape[1] == 1:
        return found.by_example(clean)
    return found.by_example((1 - DAMAGED_WEIGHT) * clean + DAMAGED_WEIGHT * right[:, 1:].mean(1))


def clearly_best(
    options: Sequence[_Option], values: Callable[[_Option], NDArray[np.float64]], margin: float
) -> _Option:
    """Return the first option, or the best of those that are better than it by more than chance would have it.

    Args:
        options: the preferred one first.
        values: of the held-out examples under an option, more is better; in the same order under each.
        margin: standard errors of the mean difference.
    """
    preferred = values(options[0])
    best, gain = options[0], 0.0
    for option in options[1:] if len(preferred) > 1 else ():
        difference = values(option) - preferred
        error = float(difference.std(ddof=1)) / np.sqrt(len(difference))
        if difference.mean() > max(gain, margin * error):
            best, gain = option, float(difference.mean())
    return best


def tried_of(encoder: Encoder, head: str, views: Views, found: HeldOut, *, adapted: bool = False) -> Tried:
    """Return what a report says about a comparison."""
    damaged = found.right()[:, 1:]
    return Tried(
        encoder=encoder.info.name,
        head=head,
        views=views.name,
        accuracy=found.accuracy,
        damaged_accuracy=float(damaged.mean()) if damaged.size else None,
        examples=found.count,
        adapted=adapted,
    )


def _encoder(
    items: Sequence[Item],
    labels: Labels,
    encoders: Sequence[Encoder],
    embeddings: Embeddings,
    parts: Sequence[NDArray[np.int64]],
) -> tuple[Encoder, tuple[Tried, ...]]:
    if len(encoders) == 1 or not parts:
        return encoders[0], ()
    found = {}
    for encoder in encoders:
        vectors = embeddings.of(encoder, items)[:, None]
        head = head_named(SCREENING_HEAD, size=vectors.shape[2])
        found[encoder.identity] = held_out(head, Span.of(vectors).rotated(vectors), labels, parts)
    likelihoods = {identity: held_out_log_likelihoods(SCREENING_HEAD, one) for identity, one in found.items()}
    unchanged = Views("none", "the examples alone")
    tried = tuple(tried_of(encoder, SCREENING_HEAD, unchanged, found[encoder.identity]) for encoder in encoders)
    return clearly_best(encoders, lambda encoder: likelihoods[encoder.identity], ENCODER_MARGIN), tried

"""Training the norm parameters of an encoder on the examples of one request, where held-out examples gain."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.core.selection import TensorFilter, selecting
from acclimate.errors import TTTNotSupportedError
from acclimate.media.embeddings import Embeddings
from acclimate.media.encoders.protocol import Encoder
from acclimate.media.heads.catalogue import head_named
from acclimate.media.heads.protocol import Labels
from acclimate.media.held_out import HeldOut, held_out
from acclimate.media.items import Item
from acclimate.media.selection import Choice, clearly_best, scores, tried_of
from acclimate.media.span import Span
from acclimate.media.views.recipes import Views

logger = logging.getLogger(__name__)
ADAPTATION_MARGIN: Final = 1.0
"""Standard errors by which held-out examples must gain."""


@runtime_checkable
class TrainableEncoder(Encoder, Protocol):
    """An encoder that is a torch network."""

    network: nn.Module

    def tensors(self, values: Sequence[NDArray[np.uint8] | NDArray[np.float32]]) -> Tensor:
        """Return inputs of the network."""
        ...

    def vectors(self, inputs: Tensor) -> Tensor:
        """Return vectors of inputs, through which gradients flow."""
        ...

    def copied(self, identity: str) -> Self:
        """Return an encoder with a copy of the network and another identity."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NormTraining:
    """How the norm parameters are trained.

    Attributes:
        steps: of Adam, each on one random copy of every example.
        learning_rate: of the norm parameters.
        head_learning_rate: of the linear head that is trained with them, and then dropped.
        scale: of the cosines that the head gives.
        seed: of the order of the copies.
    """

    steps: int = 10
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-2
    scale: float = 20.0
    seed: int = 0


def adapted(
    choice: Choice,
    items: Sequence[Item],
    labels: Labels,
    embeddings: Embeddings,
    training: NormTraining | None = None,
) -> Choice:
    """Return ``choice`` with a trained encoder where held-out examples gain, or with what was tried beside it.

    The examples are divided into two halves; an encoder that was trained on one is asked about the other, and so is the
    frozen one, with heads that saw the same half.

    Args:
        choice: with the frozen encoder.
        items: the examples' inputs.
        labels: their classes.
        embeddings: keeps vectors.
        training: by default as :class:`NormTraining` says.

    Raises:
        TTTNotSupportedError: the encoder is no torch network, or a class has a single example.
    """
    training = training or NormTraining()
    before, after = compared(choice, items, labels, embeddings, training)
    tried = (
        *choice.tried,
        tried_of(choice.encoder, choice.head, choice.views, before),
        tried_of(choice.encoder, choice.head, choice.views, after, adapted=True),
    )
    if clearly_best([before, after], scores, ADAPTATION_MARGIN) is before:
        logger.info("the encoder is not trained: held-out examples do not gain")
        return replace(choice, tried=tried)
    own = with_trained_encoder(choice, items, labels, embeddings, training)
    return replace(own, found=after, tried=tried, adapted=True, frozen=tried[-2])


def compared(
    choice: Choice, items: Sequence[Item], labels: Labels, embeddings: Embeddings, training: NormTraining
) -> tuple[HeldOut, HeldOut]:
    """Return what the frozen and the trained encoder lead to on the half of the examples that neither has seen.

    Raises:
        TTTNotSupportedError: see :func:`adapted`.
    """
    encoder = _trainable(choice.encoder)
    if np.bincount(labels).min() < 2:
        raise TTTNotSupportedError("adapting needs two examples of every class: half of them are held out")
    frozen, trained = [], []
    for number, half in enumerate(_halves(labels)):
        kept = np.setdiff1d(np.arange(len(labels)), half)
        own = _trained(encoder, [items[i] for i in kept], labels[kept], choice.views, training, f"half {number}")
        frozen.append(_asked(encoder, choice, items, labels, half, embeddings))
        trained.append(_asked(own, choice, items, labels, half, embeddings))
    return _joined(frozen), _joined(trained)


def with_trained_encoder(
    choice: Choice, items: Sequence[Item], labels: Labels, embeddings: Embeddings, training: NormTraining
) -> Choice:
    """Return the choice with an encoder that was trained on all examples; the other fields are as they were.

    Raises:
        TTTNotSupportedError: the encoder is no torch network for images.
    """
    own = _trained(_trainable(choice.encoder), items, labels, choice.views, training, "all")
    vectors = embeddings.of(own, items, choice.views)
    span = Span.of(vectors)
    return replace(choice, encoder=own, unchanged=vectors[:, 0], vectors=span.rotated(vectors), span=span)


def _trainable(encoder: Encoder) -> TrainableEncoder:
    if isinstance(encoder, TrainableEncoder) and encoder.info.kind == "image":
        return encoder
    raise TTTNotSupportedError(
        f"the encoder {encoder.info.name!r} is no torch network for images; choose one that is, or do not adapt"
    )


def _halves(labels: Labels) -> list[NDArray[np.int64]]:
    """Return two halves of the examples, each with half of every class."""
    rng = np.random.default_rng(0)
    parts: tuple[list[int], list[int]] = ([], [])
    for label in np.unique(labels):
        for k, index in enumerate(rng.permutation(np.flatnonzero(labels == label))):
            parts[k % 2].append(int(index))
    return [np.array(part) for part in parts]


def _trained(
    encoder: TrainableEncoder, items: Sequence[Item], labels: Labels, views: Views, how: NormTraining, name: str
) -> TrainableEncoder:
    """Return a copy of the encoder whose norm parameters were trained on these examples and their copies."""
    digest = hashlib.sha256("".join([name, repr(how), views.name, *(item.digest for item in items)]).encode())
    own = encoder.copied(f"{encoder.identity}:norm:{digest.hexdigest()}")
    copies = [(item.values, *views.of(item)) for item in items]
    truth = torch.from_numpy(labels)
    rng = np.random.default_rng(how.seed)
    with selecting(own.network, TensorFilter(kind="norm_only"), batch_statistics=False) as selection:
        with torch.no_grad():
            start = F.normalize(own.vectors(own.tensors([copy[0] for copy in copies])), dim=1)
        classes = int(labels.max()) + 1
        head = torch.stack([start[truth == c].mean(0) for c in range(classes)]).requires_grad_()
        optimizer = torch.optim.Adam(
            [
                {"params": list(selection.parameters.values()), "lr": how.learning_rate},
                {"params": [head], "lr": how.head_learning_rate},
            ]
        )
        for _ in range(how.steps):
            batch = own.tensors([copy[int(rng.integers(len(copy)))] for copy in copies])
            vectors = F.normalize(own.vectors(batch), dim=1)
            loss = F.cross_entropy(how.scale * vectors @ F.normalize(head, dim=1).T, truth.to(vectors.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return own


def _asked(
    encoder: Encoder, choice: Choice, items: Sequence[Item], labels: Labels, half: NDArray[np.int64], kept: Embeddings
) -> HeldOut:
    """Return what the head says about one half after it was fitted on the other, with this encoder."""
    vectors = kept.of(encoder, items, choice.views)
    head = head_named(choice.head, size=vectors.shape[2])
    return held_out(head, Span.of(vectors).rotated(vectors), labels, [half])


def _joined(parts: Sequence[HeldOut]) -> HeldOut:
    return HeldOut(
        np.concatenate([part.log_probabilities for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.examples for part in parts]),
    )

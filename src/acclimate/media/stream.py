"""A classifier made from a few examples as one torch network, for streams that the vision methods adapt to."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.errors import TTTNotSupportedError
from acclimate.media.adaptation import TrainableEncoder
from acclimate.media.classifier import MediaClassifier
from acclimate.media.heads.protocol import Matrix


@runtime_checkable
class LinearHead(Protocol):
    """A fitted head whose scores are linear in the vector."""

    weights: Matrix
    bias: Matrix


class StreamNetwork(nn.Module):
    """Encoder and head of a classifier: calibrated logits of the labels, in their order.

    ``acclimate.Session`` adapts it as any classifier, for example with ``Blend`` or ``SpectrumFilter``. The encoder's
    network is the classifier's own: give the session ``restore=True``, which puts its weights back.

    Args:
        classifier: whose encoder is a torch network for images and whose head is linear.

    Attributes:
        labels: that the columns of the logits mean.

    Raises:
        TTTNotSupportedError: the encoder or the head is another one.
    """

    def __init__(self, classifier: MediaClassifier) -> None:
        super().__init__()
        choice, head = classifier.choice, classifier.head
        encoder = choice.encoder
        if not isinstance(encoder, TrainableEncoder) or encoder.info.kind != "image":
            raise TTTNotSupportedError(
                f"the encoder {encoder.info.name!r} is no torch network for images; name one that is"
            )
        if not isinstance(head, LinearHead):
            raise TTTNotSupportedError(
                f"the head {choice.head!r} is not linear; make the classifier with 'logistic' or 'lda'"
            )
        self.labels = classifier.examples.labels
        self.encoder = encoder
        self.network = encoder.network
        # The rotation into the span of the examples, the head and its temperature are one linear layer.
        slopes = torch.from_numpy(head.weights @ choice.span.axes / classifier.temperature)
        offset = torch.from_numpy(head.bias / classifier.temperature) - slopes @ torch.from_numpy(choice.span.mean)
        self.register_buffer("slopes", slopes.float())
        self.register_buffer("offset", offset.float())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(n, labels)`` of what the encoder's ``tensors`` returned."""
        vectors = F.normalize(self.encoder.vectors(inputs), dim=1)
        slopes, offset = self.get_buffer("slopes"), self.get_buffer("offset")
        return vectors @ slopes.T + offset

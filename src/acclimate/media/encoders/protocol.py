"""What an encoder is: a frozen network, or a formula, that turns an image or a sound into a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from acclimate.media.items import Kind, Values

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInfo:
    """What an encoder is like.

    Attributes:
        name: as it is chosen.
        kind: what it encodes.
        title: in words.
        licence: of its weights; ``-`` where it has none.
        source: where its weights come from.
        cost_ms: CPU milliseconds for one image of 224 x 224 pixels or one second of sound on one thread, roughly.
    """

    name: str
    kind: Kind
    title: str
    licence: str
    source: str
    cost_ms: float


class Encoder(Protocol):
    """A frozen encoder; :meth:`encode` may be called from several threads."""

    @property
    def info(self) -> EncoderInfo:
        """What it is like."""
        ...

    @property
    def identity(self) -> str:
        """The name with whatever else decides its vectors, such as the digest of its weights."""
        ...

    def encode(self, values: Sequence[Values]) -> Vectors:
        """Return one vector for each image or sound, ``(n, size)``; see :class:`acclimate.media.items.Item`."""
        ...

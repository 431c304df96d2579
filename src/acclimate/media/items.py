"""What is labelled or asked about: one image or one sound, decoded, with its name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["image", "audio"]
Values = NDArray[np.uint8] | NDArray[np.float32]
KINDS: Final[tuple[Kind, ...]] = ("image", "audio")
SAMPLE_RATE_HZ: Final = 16_000
"""Of every sound after reading; what the speech encoders were trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest inputs that are accepted.

    Attributes:
        max_bytes: of a file.
        max_pixels: of an image; read from its header before it is decoded.
        max_seconds: of a sound.
        max_examples: of a request.
        working_side: images with a longer side are reduced to it, because no encoder looks at more.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    max_seconds: float = 60.0
    max_examples: int = 512
    working_side: int = 512


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """An image or a sound.

    Attributes:
        kind: ``image`` or ``audio``.
        values: ``(H, W, 3)`` uint8, or ``(samples,)`` float32 in [-1, 1] at :data:`SAMPLE_RATE_HZ`.
        name: for messages and reports, such as the path as it was written.
        digest: of the values; equal for the same picture in two lossless files.
    """

    kind: Kind
    values: Values
    name: str
    digest: str

    @classmethod
    def of(cls, kind: Kind, values: Values, name: str) -> Item:
        """Return an item with the digest of its values."""
        shape = ",".join(map(str, values.shape)).encode()
        digest = hashlib.sha256(kind.encode() + shape + np.ascontiguousarray(values).tobytes()).hexdigest()
        return cls(kind, values, name, digest)


@dataclass(frozen=True, slots=True, eq=False)
class MediaExample:
    """An image or a sound, and the answer that it should get."""

    item: Item
    output: str

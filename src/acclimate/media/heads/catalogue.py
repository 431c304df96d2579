"""The heads that can be chosen by name."""

from __future__ import annotations

from typing import Final

from acclimate.errors import ConfigError
from acclimate.media.heads.class_means import ClassMeans
from acclimate.media.heads.lda import ShrinkageLda
from acclimate.media.heads.logistic import Logistic
from acclimate.media.heads.protocol import Head

HEAD_NAMES: Final = (Logistic.name, ShrinkageLda.name, ClassMeans.name)
"""The first is taken unless another is better on held-out examples."""


def head_named(name: str, *, size: int | None = None) -> Head:
    """Return a head with its default settings.

    Args:
        name: one of :data:`HEAD_NAMES`.
        size: numbers of a vector before it was rotated into the span of the examples.

    Raises:
        ConfigError: there is none with this name.
    """
    if name == ClassMeans.name:
        return ClassMeans()
    if name == ShrinkageLda.name:
        return ShrinkageLda(size)
    if name == Logistic.name:
        return Logistic()
    raise ConfigError(f"unknown head {name!r}; choose one of {', '.join(HEAD_NAMES)}")

"""Unlabelled images of the kind that a model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from acclimate.core.spectrum import PowerSpectrum

FROM_SOURCE_IMAGES: Final[Mapping[str, bool]] = {"from_source_images": True}
"""Metadata of a method's dataclass field that is computed from source images, and so is not a setting of the user."""


@dataclass(frozen=True, slots=True)
class SourceImages:
    """The available source images and their statistics.

    Attributes:
        batches: returns the model's inputs for all source images, in batches of about the given size, or of the run's
            own size for None; ``batches`` itself is None where there are no source images.
        spectrum: their mean power spectrum; None where it is not stored with the model.
    """

    batches: Callable[[int | None], Iterable[Any]] | None = None
    spectrum: PowerSpectrum | None = None

"""Unlabelled images of the kind that a model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from acclimate.core.spectrum import PowerSpectrum

FROM_SOURCE_IMAGES: Final[Mapping[str, bool]] = {"from_source_images": True}
"""Metadata of a method's dataclass field that is filled from source images, and so is no option of the user's."""


@dataclass(frozen=True, slots=True)
class SourceImages:
    """What is known of the images that a model was trained on.

    Attributes:
        batches: returns the model's inputs for all source images, in batches of about the given size, or of the run's
            own where that is None; itself None where there are no such images.
        spectrum: their mean power spectrum, where it came with the model.
    """

    batches: Callable[[int | None], Iterable[Any]] | None = None
    spectrum: PowerSpectrum | None = None

"""Photos whose crops serve as backgrounds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sklearn.datasets import load_sample_images

from acclimate.errors import DataError
from acclimate.vision.data.corruptions import Uint8Image
from acclimate.vision.data.images import decode
from acclimate.vision.data.records import load_dataset


@lru_cache
def sample_photos() -> tuple[Uint8Image, ...]:
    """Return the two photos that come with scikit-learn, as ``(H, W, 3)``."""
    return tuple(load_sample_images().images)


def load_photos(folder: Path) -> tuple[Uint8Image, ...]:
    """Return the photos in a folder that are at least 32 pixels wide and high.

    Raises:
        DataError: the folder does not exist or holds none.
    """
    photos = tuple(decode(Path(record.image)) for record in load_dataset(folder).records)
    large = tuple(photo for photo in photos if min(photo.shape[:2]) >= 32)
    if not large:
        raise DataError(f"{folder} holds no photo of at least 32 x 32 pixels; give larger ones, or leave --photos out")
    return large

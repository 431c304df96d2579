"""Files whose kind is not known, such as those that a user drops on a page."""

from __future__ import annotations

from acclimate.errors import DataError
from acclimate.media.image_files import image_from_bytes, is_known_image
from acclimate.media.items import Item, Kind, Limits
from acclimate.media.sound_files import sound_from_bytes


def item_from_bytes(content: bytes, *, name: str, limits: Limits | None = None) -> Item:
    """Return the image or the sound that a file with this ``content`` holds.

    Args:
        content: of the file.
        name: for messages and the report.
        limits: by default those of :class:`acclimate.media.Limits`.

    Raises:
        DataError: it is empty, too large, or neither an image nor a sound that can be read.
    """
    limits = limits or Limits()
    if not content:
        raise DataError(f"{name}: is empty")
    if len(content) > limits.max_bytes:
        raise DataError(f"{name}: has {len(content)} bytes, at most {limits.max_bytes} are read")
    if kind_of(content) == "image":
        return image_from_bytes(content, name=name, limits=limits)
    try:
        return sound_from_bytes(content, name=name, limits=limits)
    except DataError as error:
        if "no sound that can be read" in str(error):
            raise DataError(f"{name}: is neither an image nor a sound that can be read") from error
        raise


def kind_of(content: bytes) -> Kind:
    """Return ``image`` where the content has one of the formats that are read, or is HEIF; otherwise ``audio``."""
    return "image" if is_known_image(content) else "audio"

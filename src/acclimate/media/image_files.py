"""Reading images, from files and from bytes, within limits."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from acclimate.errors import DataError
from acclimate.media.items import Item, Limits
from acclimate.vision.data.images import decode

#: That content from others is decoded from; with all that Pillow knows, PostScript would be run by a program outside.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
_HEIF_BRANDS: Final = (b"heic", b"heix", b"mif1", b"msf1", b"hevc")


def read_image(path: Path, *, name: str | None = None, limits: Limits | None = None) -> Item:
    """Return the image in a file, see :func:`acclimate.vision.data.images.decode`, not larger than ``working_side``.

    Args:
        path: of the file.
        name: for messages and the report; by default the path.
        limits: by default those of :class:`Limits`.

    Raises:
        DataError: the file is missing, is no image, or is larger than the limits allow.
    """
    limits = limits or Limits()
    shown = name or str(path)
    _check_pixels(path, shown, limits)
    try:
        pixels = decode(path)
    except DataError as error:
        raise DataError(str(error).replace(str(path), shown)) from error
    if pixels.shape[0] * pixels.shape[1] > limits.max_pixels:
        raise DataError(_too_large(shown, (pixels.shape[1], pixels.shape[0]), limits))
    return Item.of("image", _reduced(pixels, limits.working_side), shown)


def image_from_bytes(content: bytes, *, name: str, limits: Limits | None = None) -> Item:
    """Return the image that a file with this ``content`` holds; see :func:`read_image`.

    Raises:
        DataError: see :func:`read_image`; or it has none of the formats :data:`FORMATS`, and is no HEIF image.
    """
    if not is_known_image(content):
        raise DataError(f"{name}: is no image in one of the formats {', '.join(FORMATS)}, HEIF")
    with tempfile.NamedTemporaryFile(suffix=".image") as file:
        file.write(content)
        file.flush()
        return read_image(Path(file.name), name=name, limits=limits)


def is_known_image(content: bytes) -> bool:
    """Return whether content has one of the formats :data:`FORMATS`, or is a HEIF image."""
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS):
                return True
    except Image.DecompressionBombError:
        return True
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return False


def _check_pixels(path: Path, shown: str, limits: Limits) -> None:
    """Look at the size in the file's header: decoding a huge image would take the memory first."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes that the limit here allows or refuses anyway.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                size = image.size
    except Image.DecompressionBombError as error:
        raise DataError(f"{shown}: has too many pixels ({error}); at most {limits.max_pixels}") from error
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError):
        # Not one of Pillow's formats, or damaged: decoding says so, or reads it.
        return
    if size[0] * size[1] > limits.max_pixels:
        raise DataError(_too_large(shown, size, limits))


def _too_large(shown: str, size: tuple[int, int], limits: Limits) -> str:
    return f"{shown}: has {size[0]} x {size[1]} pixels, at most {limits.max_pixels} are read; reduce the image"


def _reduced(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)

"""Reading images, with an optional corruption, and recording those that cannot be used."""

from __future__ import annotations

import logging
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from acclimate.errors import ConfigError, DataError, first_line
from acclimate.vision.data.corruptions import CORRUPTIONS, Uint8Image, corrupt
from acclimate.vision.data.records import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CorruptionSpec:
    """A corruption and its severity, written ``name:severity`` at the command line."""

    name: str
    severity: int = 5

    @classmethod
    def parse(cls, text: str) -> CorruptionSpec:
        """Return the specification in ``name`` or ``name:severity``.

        Raises:
            ConfigError: the name is unknown or the severity is not 1 to 5.
        """
        name, _, severity = text.partition(":")
        if name not in CORRUPTIONS:
            raise ConfigError(f"unknown corruption {name!r}; choose one of {', '.join(CORRUPTIONS)}")
        if severity and severity not in tuple("12345"):
            raise ConfigError(f"severity must be 1 to 5, got {severity!r} in {text!r}")
        return cls(name, int(severity) if severity else 5)

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"


@dataclass
class ImageReader:
    """Reads the images of records as ``(H, W, 3)`` uint8.

    Attributes:
        corruption: applied to every image; None leaves images unchanged.
        seed: of the corruption; the random numbers of an image depend on this and on its file name.
        skipped: the images that could not be used so far, by path, and why.
        exif_orientation: whether to rotate and mirror images as their EXIF data says; False keeps the stored pixel
            grid.
    """

    corruption: CorruptionSpec | None = None
    seed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    exif_orientation: bool = True

    @contextmanager
    def without_corruption(self) -> Iterator[None]:
        """Inside the block, read images without the corruption, which must not be applied to source images."""
        corruption, self.corruption = self.corruption, None
        try:
            yield
        finally:
            self.corruption = corruption

    def read(self, record: Record) -> Uint8Image:
        """Return the pixels of one image.

        Raises:
            DataError: the file is missing, cannot be decoded, or contains NaN or infinity.
        """
        pixels = decode(Path(record.image), exif_orientation=self.exif_orientation)
        if self.corruption is None:
            return pixels
        # Seeded by name, not by position, so that an image is corrupted in the same way in every run.
        seed = self.seed ^ zlib.crc32(Path(record.image).name.encode())
        return corrupt(pixels, self.corruption.name, severity=self.corruption.severity, seed=seed)

    def check_sizes(self, records: Sequence[Record]) -> None:
        """Check that images have the size that their annotations declare; only headers of files are read.

        Files that cannot be opened are left to :meth:`read_many`.

        Raises:
            DataError: an image has another size, such as width and height exchanged.
        """
        problems = []
        for record in records:
            stored = None if record.declared_size is None else _stored_size(Path(record.image))
            if record.declared_size is None or stored is None:
                continue
            size, turned = stored
            shown = size[::-1] if turned and self.exif_orientation else size
            if shown != record.declared_size:
                problem = size_mismatch(record.image, declared=record.declared_size, found=shown)
                if turned and shown[::-1] == record.declared_size:
                    flag = "with --no-exif-orientation" if self.exif_orientation else "without --no-exif-orientation"
                    problem = (
                        f"{record.image}: width and height of the annotation ({_by(record.declared_size)}) and of the "
                        f"image ({_by(shown)}) are exchanged, because of its EXIF orientation; run {flag}"
                    )
                problems.append(problem)
        if problems:
            more = f" ({len(problems) - 1} more images have another size than declared)" if len(problems) > 1 else ""
            raise DataError(problems[0] + more)

    def read_many(self, records: Sequence[Record]) -> list[tuple[Record, Uint8Image]]:
        """Return the images that can be used; the others are recorded in ``skipped``."""
        usable = []
        for record in records:
            try:
                usable.append((record, self.read(record)))
            except DataError as error:
                if record.image not in self.skipped:
                    logger.warning("skipped %s", error)
                self.skipped[record.image] = str(error)
        return usable


def size_mismatch(image: str, *, declared: tuple[int, int], found: tuple[int, int]) -> str:
    """Return the error message for an image whose size differs from the one that its annotations declare.

    Args:
        image: its path.
        declared: ``(width, height)`` of the annotations.
        found: ``(width, height)`` of the pixels.
    """
    about = f"{image} has {_by(found)} pixels, and its annotations are for {_by(declared)}"
    if found == declared[::-1]:
        return (
            f"{about}: width and height are exchanged; rotate the image as it was annotated, or correct width, height "
            "and boxes"
        )
    # A resized image has the same shape up to the rounding of its sides to whole pixels.
    if abs(declared[0] * found[1] - declared[1] * found[0]) <= max(*declared, *found):
        return (
            f"{about}: the image was resized after it was annotated; give the original one, or scale width, height and "
            "boxes"
        )
    return f"{about}; give the images that were annotated, or correct width and height"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _stored_size(path: Path) -> tuple[tuple[int, int], bool] | None:
    """Return ``(width, height)`` of the stored pixels, and whether EXIF says to exchange them; None if unreadable."""
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            return (int(values.shape[1]), int(values.shape[0])), False
        with Image.open(path) as image:
            # Pillow itself applies the orientation of TIFF files. Of a PNG file without EXIF data before its pixels,
            # getexif decodes the pixels.
            unread = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
            return image.size, not unread and _orientation(image) in _TURNED
    except (*_UNDECODABLE, AttributeError, IndexError):
        return None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error) as error:
        # As viewers do: damaged EXIF data do not keep an image from being shown.
        logger.debug("EXIF data cannot be read: %s", first_line(error))
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _oriented(pixels: Uint8Image, orientation: int) -> Uint8Image:
    """Return ``(H, W, 3)`` as an EXIF orientation says that it is to be shown."""
    if orientation in _TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


_TURNED: Final = range(5, 9)
"""EXIF orientations that exchange width and height."""


def decode(path: Path, *, exif_orientation: bool = True) -> Uint8Image:
    """Return an image file as ``(H, W, 3)`` uint8.

    Args:
        path: of the file.
        exif_orientation: whether to rotate and mirror the image as its EXIF data says, as viewers do.

    Supported are Pillow's formats, and ``.npy`` arrays ``(H, W)`` or ``(H, W, 3)``: uint8, or floats in [0, 1].

    Raises:
        DataError: the file is missing, cannot be decoded, or contains NaN or infinity.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _from_array(np.load(path, allow_pickle=False), path)
        with Image.open(path) as image:
            if image.mode in ("F", "I", "I;16"):
                pixels = _from_array(_float_mode(image), path)
            else:
                pixels = np.asarray(image.convert("RGB"))
            # After the pixels: only then Pillow has read all of the EXIF data.
            return _oriented(pixels, _orientation(image)) if exif_orientation else pixels
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _UNDECODABLE as error:
        raise DataError(f"{path}: cannot be decoded ({first_line(error)})") from error


_UNDECODABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
)


def _float_mode(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, dtype=np.float32)
    if image.mode != "F":
        return values / 65535.0
    return values / 255.0 if np.isfinite(values).all() and values.max() > 1 else values


def _from_array(values: np.ndarray, path: Path) -> Uint8Image:
    if not isinstance(values, np.ndarray) or values.size == 0:
        raise DataError(f"{path}: contains no image array")
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    if values.ndim != 3 or values.shape[2] != 3:
        raise DataError(f"{path}: an array image must be (H, W) or (H, W, 3), got {values.shape}")
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{path}: an array image must contain uint8 or floats in [0, 1], got {values.dtype}")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: contains NaN or infinity")
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"{path}: floats must lie in [0, 1], got {values.min():g} to {values.max():g}")
    pixels: Uint8Image = np.rint(values * 255).astype(np.uint8)
    return pixels

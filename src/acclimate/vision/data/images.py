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

import numpy as np
from PIL import Image, UnidentifiedImageError

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
    """

    corruption: CorruptionSpec | None = None
    seed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

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
        pixels = decode(Path(record.image))
        if self.corruption is None:
            return pixels
        # Seeded by name, not by position, so that an image is corrupted in the same way in every run.
        seed = self.seed ^ zlib.crc32(Path(record.image).name.encode())
        return corrupt(pixels, self.corruption.name, severity=self.corruption.severity, seed=seed)

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


def decode(path: Path) -> Uint8Image:
    """Return an image file as ``(H, W, 3)`` uint8.

    Supported are Pillow's formats, and ``.npy`` arrays ``(H, W)`` or ``(H, W, 3)``: uint8, or floats in [0, 1].

    Raises:
        DataError: the file is missing, cannot be decoded, or contains NaN or infinity.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _from_array(np.load(path, allow_pickle=False), path)
        with Image.open(path) as image:
            if image.mode in ("F", "I", "I;16"):
                return _from_array(_float_mode(image), path)
            return np.asarray(image.convert("RGB"))
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

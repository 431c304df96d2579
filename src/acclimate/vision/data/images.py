"""Reading images, with an optional corruption, and recording those that cannot be used."""

from __future__ import annotations

import dataclasses
import io
import logging
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from acclimate.errors import ConfigError, DataError, first_line
from acclimate.output_files import is_special
from acclimate.vision.data.corruptions import CORRUPTIONS, Uint8Image, corrupt
from acclimate.vision.data.record import Record, Span

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
        scaled: the 16-bit images whose white is another value than 65535, by path, and that value.
        draft_side: JPEG files are decoded at a half, a quarter or an eighth of their size, the smallest of which the
            shorter side has at least so many pixels; None decodes them at their size. The pixels are means of blocks,
            and predictions from them differ a little.
        threads: how many images are decoded at a time.
    """

    corruption: CorruptionSpec | None = None
    seed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    exif_orientation: bool = True
    scaled: dict[str, int] = field(default_factory=dict)
    draft_side: int | None = None
    threads: int = 1
    _full_sizes: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was assumed about the images that were read so far, one line for each assumption."""
        return tuple(
            f"{len(images)} 16-bit images were scaled so that {top} is white, because no value in them is larger or "
            f"the file says so (the first: {images[0]}); if that is wrong, convert them to 8 bits"
            for top in sorted(set(self.scaled.values()))
            if (images := [image for image, found in self.scaled.items() if found == top])
        )

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
        return self._noted(record, self._decoded(record))

    def _decoded(self, record: Record) -> _Decoded:
        """Return an image as it is read, with the corruption; may be called by several threads at a time."""
        found = _decode(
            Path(record.image),
            archived=record.archived,
            exif_orientation=self.exif_orientation,
            draft_side=self.draft_side,
        )
        if self.corruption is None:
            return found
        # Seeded by name, not by position, so that an image is corrupted in the same way in every run.
        seed = self.seed ^ zlib.crc32(Path(record.image).name.encode())
        pixels = corrupt(found.pixels, self.corruption.name, severity=self.corruption.severity, seed=seed)
        return dataclasses.replace(found, pixels=pixels)

    def _noted(self, record: Record, found: _Decoded) -> Uint8Image:
        """Return the pixels of an image, and note what is unusual about it."""
        if found.top is not None and record.image not in self.scaled:
            logger.info("%s: 16-bit values are scaled so that %d is white", record.image, found.top)
            self.scaled[record.image] = found.top
        if found.full_size is not None:
            self._full_sizes[record.image] = found.full_size
        return found.pixels

    def sizes(self, usable: Sequence[tuple[Record, Uint8Image]]) -> tuple[tuple[int, int], ...]:
        """Return ``(width, height)`` of the images that :meth:`read_many` returned, at their full size."""
        return tuple(
            self._full_sizes.pop(record.image, (pixels.shape[1], pixels.shape[0])) for record, pixels in usable
        )

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
        if self.threads > 1 and len(records) > 1:
            with ThreadPoolExecutor(min(self.threads, len(records)), thread_name_prefix="acclimate-decoder") as pool:
                attempts = list(pool.map(self._attempt, records))
        else:
            attempts = [self._attempt(record) for record in records]
        usable = []
        # In the order of the records, whichever was decoded first.
        for record, found in zip(records, attempts, strict=True):
            if isinstance(found, DataError):
                self.skip(record, str(found))
            else:
                usable.append((record, self._noted(record, found)))
        return usable

    def _attempt(self, record: Record) -> _Decoded | DataError:
        try:
            return self._decoded(record)
        except DataError as error:
            return error

    def skip(self, record: Record, reason: str) -> None:
        """Record that an image cannot be used, and why."""
        if record.image not in self.skipped:
            logger.warning("skipped %s", reason)
        self.skipped[record.image] = reason


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


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _stored_size(path: Path) -> tuple[tuple[int, int], bool] | None:
    """Return ``(width, height)`` of the stored pixels, and whether EXIF says to exchange them; None if unreadable."""
    if is_special(path):
        return None
    try:
        if path.suffix.lower() == ".npy":
            values = _mapped(path)
            return (int(values.shape[1]), int(values.shape[0])), False
        with _opened(path, path) as image:
            # Pillow itself applies the orientation of TIFF files. Of a PNG file without EXIF data before its pixels,
            # getexif decodes the pixels.
            unread = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
            return (image.width, image.height), not unread and _orientation(image) in _TURNED
    except (*_UNDECODABLE, DataError, AttributeError, IndexError):
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

    Supported are Pillow's formats, HEIF where pillow-heif is installed, and ``.npy`` arrays ``(H, W)`` or
    ``(H, W, 3)``: uint8, uint16, or floats in [0, 1]. Values of 16 bits are scaled by :func:`_top`.

    Args:
        path: of the file.
        exif_orientation: whether to rotate and mirror the image as its EXIF data says, as viewers do.

    Raises:
        DataError: the file is missing, cannot be decoded, or contains NaN or infinity.
    """
    return _decode(path, exif_orientation=exif_orientation).pixels


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image as it was read.

    Attributes:
        pixels: ``(H, W, 3)``.
        top: the value that became white, where it is not the largest of 16 bits.
        full_size: ``(width, height)`` of the image, where ``pixels`` has another.
    """

    pixels: Uint8Image
    top: int | None = None
    full_size: tuple[int, int] | None = None


def _decode(
    path: Path, *, exif_orientation: bool, draft_side: int | None = None, archived: Span | None = None
) -> _Decoded:
    """Return what :func:`decode` returns, and what is unusual about it."""
    try:
        if archived is None and is_special(path):
            raise DataError(f"{path}: cannot be decoded (it is a device, FIFO or socket; give a file)")
        file = path if archived is None else io.BytesIO(_bytes_of(archived))
        if path.suffix.lower() == ".npy":
            mapped = _mapped(file)
            return _Decoded(*_from_array(mapped, path, declared_top=None))
        with _opened(path, file) as image:
            full_size = image.size
            if draft_side is not None and image.format == "JPEG":
                image.draft("RGB", (draft_side, draft_side))
            is_draft = image.size != full_size
            pixels, top = _from_image(image, path, file)
            # After the pixels: only then Pillow has read all of the EXIF data.
            orientation = _orientation(image) if exif_orientation else 1
            shown = full_size[::-1] if orientation in _TURNED else full_size
            return _Decoded(_oriented(pixels, orientation), top, shown if is_draft else None)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _UNDECODABLE as error:
        raise DataError(f"{path}: cannot be decoded ({first_line(error)})") from error


_UNDECODABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    OverflowError,
    MemoryError,
    SyntaxError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
)
_HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_LARGEST: Final = 65535
_TOPS: Final = (255, 4095, _LARGEST)
"""Largest values of 8, 12 and 16 bits."""


def _bytes_of(span: Span) -> bytes:
    """Return bytes of an archive.

    Raises:
        DataError: the archive ends before them.
    """
    with Path(span.archive).open("rb") as file:
        file.seek(span.offset)
        found = file.read(span.size)
    if len(found) < span.size:
        raise DataError(f"{span.archive}: was cut off after it was listed; write or copy it again")
    return found


def _mapped(file: Path | io.BytesIO) -> np.ndarray:
    """Return the array in a ``.npy`` file without reading it: the size in a damaged header can be beyond any memory."""
    try:
        with np.errstate(over="ignore"):
            mode: Any = None if isinstance(file, io.BytesIO) else "r"
            found: np.ndarray = np.load(file, mmap_mode=mode, allow_pickle=False)
    except TypeError as error:
        # The header's size, as an integer of 64 bits, happens to fit into the file.
        raise ValueError(first_line(error)) from error
    return found


def _opened(path: Path, file: Path | io.BytesIO) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        with nullcontext(file) if isinstance(file, io.BytesIO) else file.open("rb") as reopened:
            reopened.seek(0)
            start = reopened.read(12)
        if start[4:8] != b"ftyp" or start[8:] not in _HEIF_BRANDS:
            raise
    try:
        # Not registered with Pillow, which would change what every other user of Pillow in this process can open.
        from pillow_heif import open_heif
    except ImportError as error:
        raise DataError(
            f'{path}: is a HEIF image, which needs pillow-heif; run: pip install "acclimate[heic]"'
        ) from error
    image: Image.Image = open_heif(file).to_pillow()
    return image


def _content(file: Path | io.BytesIO) -> bytes:
    return file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes()


def _from_image(image: Image.Image, path: Path, file: Path | io.BytesIO) -> tuple[Uint8Image, int | None]:
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        bright = np.isfinite(values).all() and values.max() > 1
        return _from_array(values / 255.0 if bright else values, path, declared_top=None)
    if image.mode == "I" or image.mode.startswith("I;16"):
        declared = _declared_top(image)
        integers = np.asarray(image).astype(np.int64)
        if integers.size and (integers.min() < 0 or integers.max() > _LARGEST):
            raise DataError(
                f"{path}: holds integers from {integers.min()} to {integers.max()}, whose white is unknown; convert it "
                "to 8 or 16 bits"
            )
        return _from_array(integers.astype(np.uint16), path, declared_top=declared)
    if image.mode in ("RGB", "RGBA", "LA") and _has_16_bits(image):
        declared = _declared_top(image)
        # Pillow would keep only the upper 8 bits of colours.
        colours = cv2.imdecode(np.frombuffer(_content(file), np.uint8), cv2.IMREAD_UNCHANGED)
        if colours is not None and colours.dtype == np.uint16:
            colours = colours[..., 2::-1] if colours.ndim == 3 and colours.shape[2] >= 3 else colours
            return _from_array(np.ascontiguousarray(colours), path, declared_top=declared)
    return np.asarray(image.convert("RGB")), None


def _has_16_bits(image: Image.Image) -> bool:
    """Return whether the file of an RGB image, whose pixels are not loaded yet, stores 16 bits for each colour."""
    tiles: Any = getattr(image, "tile", ())
    # cv2 and Pillow turn TIFF files differently.
    turned = image.format == "TIFF" and _orientation(image) != 1
    return bool(tiles) and ";16" in str(tiles[0][3]) and not turned


def _declared_top(image: Image.Image) -> int | None:
    """Return the value that a TIFF file declares as its largest; None where it declares none."""
    tags = getattr(image, "tag_v2", {})
    tops = tags.get(_MAX_SAMPLE_VALUE)
    if tops is None and (bits := tags.get(_BITS_PER_SAMPLE)) is not None:
        depth = max(bits) if isinstance(bits, tuple) else bits
        return 2**depth - 1 if 8 < depth < 16 else None
    top = max(tops) if isinstance(tops, tuple) else tops
    return int(top) if top is not None and 0 < top <= _LARGEST else None


_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281
"""Tags of TIFF."""


def _top(values: np.ndarray, declared_top: int | None) -> int:
    """Return the value of white in an image of 16 bits.

    It is the declared one, or else the largest value of the smallest usual depth (8, 12 or 16 bits) that holds all
    values: cameras and scanners store 12 bits in files of 16 without saying so.
    """
    brightest = int(values.max())
    if declared_top is not None and brightest <= declared_top:
        return declared_top
    return next(top for top in _TOPS if brightest <= top) if brightest else _LARGEST


def _from_array(values: np.ndarray, path: Path, *, declared_top: int | None) -> tuple[Uint8Image, int | None]:
    if not isinstance(values, np.ndarray) or values.size == 0:
        raise DataError(f"{path}: contains no image array")
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    if values.ndim != 3 or values.shape[2] != 3:
        raise DataError(f"{path}: an array image must be (H, W) or (H, W, 3), got {values.shape}")
    if values.dtype == np.uint8:
        return np.array(values, np.uint8), None
    if values.dtype == np.uint16:
        top = _top(values, declared_top)
        scaled: Uint8Image = np.rint(values.astype(np.float32) * np.float32(255 / top)).astype(np.uint8)
        return scaled, None if top == _LARGEST else top
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{path}: an array image must contain uint8, uint16 or floats in [0, 1], got {values.dtype}")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: contains NaN or infinity")
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"{path}: floats must lie in [0, 1], got {values.min():g} to {values.max():g}")
    pixels: Uint8Image = np.rint(np.asarray(values) * 255).astype(np.uint8)
    return pixels, None

"""Records of the images to predict, from a folder, a list file or a COCO file."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acclimate.errors import DataError, first_line
from acclimate.output_files import is_root, is_special
from acclimate.vision.data.archives import expanded, is_archive, local_archives
from acclimate.vision.data.record import Record as Record
from acclimate.vision.data.record_table import NumberedRecords

logger = logging.getLogger(__name__)

_READABLE: Final = (
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .gif .tif .tiff .webp .npy .ppm .pgm .pbm .pnm .tga .jp2 .j2k .jpx "
    ".jpf .avif .heic .heif .hif"
)
# Known as images and not readable: they are counted and named as skipped, instead of being overlooked.
_UNREADABLE: Final = ".cr2 .cr3 .nef .arw .dng .raf .orf .rw2 .exr .hdr .jxl .psd .svg .dcm"
IMAGE_SUFFIXES: Final = frozenset(f"{_READABLE} {_UNREADABLE}".split())
"""Files with these suffixes in a folder are images, whether they can be read or not."""
_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\x93NUMPY")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records, and the categories of their annotations.

    Attributes:
        records: in the order in which they are predicted.
        categories: category names by id; empty where the source has none.
    """

    records: Sequence[Record]
    categories: dict[int, str]


def load_dataset(source: Path | str, *, images_root: Path | None = None, max_images: int | None = None) -> Dataset:
    """Return the records of a source of images.

    Args:
        source: a folder (searched recursively, linked folders included), a text file with one path per line, a COCO
            json, a single image, or WebDataset archives: a tar file, several by braces (``{000..099}.tar``), or a
            folder of tar files that holds no images.
        images_root: the folder that the paths in a list or a COCO file are relative to. Default: the file's folder; for
            a COCO file also its parent, or the folder ``images`` in either.
        max_images: the limit; the first so many are returned.

    Raises:
        DataError: the source is missing, cannot be read, or contains no images.
    """
    source = Path(source)
    if is_archive(str(source)) and not source.is_dir():
        archives = expanded(str(source))
        return _limited(Dataset(local_archives(archives, IMAGE_SUFFIXES), {}), source, max_images)
    try:
        exists = source.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    if not exists:
        raise DataError(f"{source} does not exist; give a folder of images, a list file or a COCO json")
    if source.is_dir():
        dataset = Dataset(_images_in(source), {})
        if not dataset.records and (archives := archives_in(source)):
            dataset = Dataset(local_archives(archives, IMAGE_SUFFIXES), {})
    elif is_special(source):
        raise DataError(f"{source} is a device, FIFO or socket; give a folder of images, a list file or a COCO json")
    elif source.suffix.lower() == ".json":
        dataset = _from_coco(source, images_root)
    elif source.suffix.lower() in IMAGE_SUFFIXES or _is_image(source):
        dataset = Dataset(NumberedRecords("", [str(source)]), {})
    else:
        dataset = _from_list(source, images_root)
    return _limited(dataset, source, max_images)


def has_images(folder: Path) -> bool:
    """Say whether there are images in a folder or below it."""
    return not is_root(folder) and any(_is_image(path) for path in _files_in(folder))


def archives_in(folder: Path) -> list[str]:
    """Return the tar files in a folder and those below it, in the order of their paths.

    Raises:
        DataError: there is a compressed one.
    """
    found = [str(path) for path in _files_in(folder) if is_archive(str(path)) and not is_special(path)]
    return sorted(found, key=lambda name: name.replace(os.sep, "\0"))


def _limited(dataset: Dataset, source: Path, max_images: int | None) -> Dataset:
    """Return the first ``max_images`` of a data set.

    Raises:
        DataError: it has no images.
    """
    if max_images is not None:
        dataset = Dataset(dataset.records[:max_images], dataset.categories)
    if not dataset.records:
        raise DataError(f"{source} contains no images; known suffixes are {', '.join(_READABLE.split())}")
    return dataset


def whole_number(value: Any) -> int:
    """Return an id of a JSON file as an integer: a whole number, or text with one.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"an id must be a whole number, got {value!r}")
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(f"an id must be a whole number, got {value!r}")
    return number


def finite_number(value: Any) -> float:
    """Return a number of a JSON file as a float.

    Raises:
        TypeError, ValueError: it is something else, NaN or infinity.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r}")
    return float(value)


def read_json(path: Path, what: str) -> Any:
    """Return the parsed content of a JSON file, with or without a byte-order mark.

    Raises:
        DataError: the file is missing, is no JSON, or is nested more deeply than Python reads.
    """
    if is_special(path):
        raise DataError(f"{what} {path} is a device, FIFO or socket; give a file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist") from error
    except RecursionError as error:
        raise DataError(f"{what} {path} is nested too deeply to be read as JSON; give another file") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{what} {path} cannot be read as JSON: {first_line(error)}") from error


def _images_in(folder: Path) -> NumberedRecords:
    if is_root(folder):
        raise DataError(f"{folder} is the root of the file system; give a folder of images")
    root = str(folder / "x")[:-1]
    found = NumberedRecords(root, (str(path).removeprefix(root) for path in _files_in(folder) if _is_image(path)))
    return found.sorted_as_paths()


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and those below it, links included; what begins with a dot is left out.

    Linked folders are read after all others, and no folder is read twice, however it is linked.
    """
    folders, linked = [folder], list[Path]()
    seen: set[tuple[int, int]] = set()
    while folders or linked:
        here = folders.pop() if folders else linked.pop(0)
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as scanned:
                # Names alone: entries of a large folder take several times as much memory.
                files, inside = list[str](), list[tuple[str, bool]]()
                for entry in scanned:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        inside.append((entry.name, entry.is_symlink()))
                    else:
                        files.append(entry.name)
        except OSError as error:
            if here == folder:
                raise DataError(f"{folder} cannot be read: {error.strerror}") from error
            logger.warning("the folder %s cannot be read and is left out: %s", here, error.strerror)
            continue
        for name, is_link in sorted(inside):
            (linked if is_link else folders).append(here / name)
        files.sort()
        for name in files:
            yield here / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, for example, which is counted as an image that cannot be used if its name is one's.
        return False


def _is_image(path: Path) -> bool:
    """Return whether a file is known as an image, by its suffix, or where it has none by its first bytes."""
    if is_special(path):
        return False
    if path.suffix:
        # Also a link to a file that is gone: it is counted as an image that cannot be used.
        return path.suffix.lower() in IMAGE_SUFFIXES
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or start[:4] + start[8:] == b"RIFFWEBP" or start[4:8] == b"ftyp"


def _from_list(source: Path, images_root: Path | None) -> Dataset:
    try:
        # Notepad and spreadsheets begin a file with a byte-order mark.
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{source} cannot be read as a list of image paths: {error}") from error
    root = source.parent if images_root is None else images_root
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return Dataset(NumberedRecords("", (str(root / name) for name in names)), {})


def _from_coco(source: Path, images_root: Path | None) -> Dataset:
    content = read_json(source, "COCO file")
    try:
        images = [
            Record(
                str(image["file_name"]),
                whole_number(image["id"]),
                _intrinsics(image.get("intrinsics")),
                declared_size(image),
            )
            for image in content["images"]
        ]
        categories = _categories(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{source} is no COCO file: each image needs file_name and a whole number as id (and intrinsics, where "
            f"given, four numbers fx, fy, cx, cy), each category a whole number as id, and name ({error})"
        ) from error
    if len({image.image_id for image in images}) < len(images):
        raise DataError(f"{source} gives two images the same id; make the ids unique")
    root = _coco_root(source, [image.image for image in images]) if images_root is None else images_root
    records = tuple(dataclasses.replace(image, image=str(root / image.image)) for image in images)
    return Dataset(records, categories)


def _categories(content: Mapping[str, Any]) -> dict[int, str]:
    """Return category names by id, without a root category that no annotation uses.

    Roboflow writes such a root: it is the supercategory of every other one, and no model has a class of its name.
    """
    given = content.get("categories") or []
    names = {whole_number(category["id"]): str(category["name"]) for category in given}
    used = {whole_number(annotation["category_id"]) for annotation in content.get("annotations") or []}
    for number, name in names.items():
        others = [category for category in given if whole_number(category["id"]) != number]
        if number not in used and others and all(category.get("supercategory") == name for category in others):
            return {other: other_name for other, other_name in names.items() if other != number}
    return names


def declared_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return ``(width, height)`` of an image in a COCO file; None where one is missing, null or 0.

    Raises:
        TypeError, ValueError: one is no whole number.
    """
    width, height = (whole_number(image.get(key) or 0) for key in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None


def _intrinsics(values: Any) -> tuple[float, float, float, float] | None:
    if values is None:
        return None
    fx, fy, cx, cy = (float(value) for value in values)
    return fx, fy, cx, cy


def _coco_root(source: Path, names: list[str]) -> Path:
    beside = source.parent
    candidates = (beside, beside / "images", beside.parent, beside.parent / "images")
    return next((root for root in candidates if names and (root / names[0]).exists()), beside)

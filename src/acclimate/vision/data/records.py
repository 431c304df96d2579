"""Records of the images to predict, from a folder, a list file or a COCO file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acclimate.errors import DataError

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy"})


@dataclass(frozen=True, slots=True)
class Record:
    """One image to predict.

    Attributes:
        image: path of the file, as it appears in predictions.
        image_id: the id in the COCO file, or the position in the folder or list, counted from 1.
        intrinsics: ``(fx, fy, cx, cy)`` in pixels, where a COCO file gives them.
        declared_size: ``(width, height)`` in pixels that a COCO file states; None where it states none.
    """

    image: str
    image_id: int
    intrinsics: tuple[float, float, float, float] | None = None
    declared_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records, and the categories of their annotations.

    Attributes:
        records: in the order in which they are predicted.
        categories: category names by id; empty where the source has none.
    """

    records: tuple[Record, ...]
    categories: dict[int, str]


def load_dataset(source: Path | str, *, images_root: Path | None = None, max_images: int | None = None) -> Dataset:
    """Return the records of a source of images.

    Args:
        source: a folder (searched recursively), a text file with one path per line, or a COCO json.
        images_root: the folder that the paths in a list or a COCO file are relative to. Default: the file's folder; for
            a COCO file also its parent, or the folder ``images`` in either.
        max_images: the limit; the first so many are returned.

    Raises:
        DataError: the source is missing, cannot be read, or contains no images.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source} does not exist; give a folder of images, a list file or a COCO json")
    if source.is_dir():
        dataset = Dataset(_numbered(_images_in(source)), {})
    elif source.suffix == ".json":
        dataset = _from_coco(source, images_root)
    else:
        dataset = _from_list(source, images_root)
    if max_images is not None:
        dataset = Dataset(dataset.records[:max_images], dataset.categories)
    if not dataset.records:
        raise DataError(f"{source} contains no images; known suffixes are {', '.join(sorted(IMAGE_SUFFIXES))}")
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
    """Return the parsed content of a JSON file.

    Raises:
        DataError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{what} {path} cannot be read as JSON: {error}") from error


def _images_in(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _numbered(paths: list[Path]) -> tuple[Record, ...]:
    return tuple(Record(str(path), number) for number, path in enumerate(paths, start=1))


def _from_list(source: Path, images_root: Path | None) -> Dataset:
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{source} cannot be read as a list of image paths: {error}") from error
    root = source.parent if images_root is None else images_root
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return Dataset(_numbered([root / name for name in names]), {})


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
        categories = {whole_number(category["id"]): str(category["name"]) for category in content.get("categories", [])}
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

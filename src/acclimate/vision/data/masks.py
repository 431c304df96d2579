"""Class maps of segmented images: run-length encoding as in COCO, and label images (PNG).

A class map is an array ``(H, W)`` of class ids, with :data:`NO_CLASS` where a pixel has none. Encoding and decoding are
written out here, because decoding malformed text with pycocotools writes outside of its memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from acclimate.errors import ConfigError, DataError, first_line
from acclimate.output_files import is_special, open_output
from acclimate.vision.data.record import Record
from acclimate.vision.data.records import finite_number, whole_number

ClassMap = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

NO_CLASS: Final = -1
VOID: Final = 255
"""The value of pixels without class in a label image of 8 bits; in one of 16 bits it is 65535."""

_WIDE_VOID: Final = 65535
_MOST_PIXELS: Final = 1 << 28
# Six bits of each character: five of the number, and whether more follow. A run has 29 bits at most.
_BITS, _MORE, _SIGN, _FIRST, _LONGEST = 5, 32, 16, 48, 7


def encode(mask: Mask) -> dict[str, Any]:
    """Return a mask ``(H, W)`` as COCO's compressed run-length encoding, ``{size: [H, W], counts: text}``."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    runs = np.diff(ends, prepend=0)
    # The first run is of pixels outside of the mask, and may be empty.
    runs = np.concatenate([[0], runs]) if flat[0] else runs
    values = runs.copy()
    values[3:] -= runs[1:-2]
    codes, used = [], []
    active = np.ones(len(values), dtype=bool)
    while active.any():
        code, values = values & (_MORE - 1), values >> _BITS
        more = np.where(code & _SIGN, values != -1, values != 0)
        codes.append(code + _FIRST + more * _MORE)
        used.append(active)
        active = active & more
    text = np.stack(codes, 1)[np.stack(used, 1)].astype(np.uint8).tobytes().decode("ascii")
    return {"size": [int(side) for side in mask.shape], "counts": text}


def decode(rle: Mapping[str, Any]) -> Mask:
    """Return the mask ``(H, W)`` of COCO's compressed run-length encoding.

    Raises:
        ValueError, TypeError, KeyError: it is no such encoding, or its runs do not fill the mask.
    """
    height, width = (whole_number(side) for side in rle["size"])
    if min(height, width) < 1 or height * width > _MOST_PIXELS:
        raise ValueError(f"size must be at least 1 x 1 and at most {_MOST_PIXELS} pixels, got {height} x {width}")
    data = np.frombuffer(rle["counts"].encode("ascii"), dtype=np.uint8).astype(np.int64) - _FIRST
    last = (data & _MORE) == 0
    if len(data) == 0 or data.min() < 0 or data.max() >= 2 * _MORE or not last[-1]:
        raise ValueError("counts is no text of compressed runs")
    starts = np.append(0, np.flatnonzero(last)[:-1] + 1)
    lengths = np.diff(np.append(starts, len(data)))
    if lengths.max() > _LONGEST:
        raise ValueError("counts has a run of more pixels than the mask")
    shifts = _BITS * (np.arange(len(data)) - np.repeat(starts, lengths))
    values = np.add.reduceat((data & (_MORE - 1)) << shifts, starts)
    values -= np.where(data[last] & _SIGN, np.int64(1) << (_BITS * lengths), 0)
    # From the fourth run on, the difference from the run before the last is stored.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0 or values.max() > height * width or values.sum() != height * width:
        raise ValueError(f"the runs of counts do not fill a mask of {height} x {width} pixels")
    flat = np.repeat(np.arange(len(values)) % 2 == 1, values)
    return flat.reshape(width, height).T


def segments(class_map: ClassMap, probabilities: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return one segment for each class in a class map, ordered by class id.

    Args:
        class_map: ``(H, W)``.
        probabilities: ``(H, W)``, of each pixel's class; their mean is the segment's score.
    """
    found = []
    for label in np.unique(class_map[class_map != NO_CLASS]).tolist():
        mask = class_map == label
        score = float(np.clip(probabilities[mask].mean(dtype=np.float64), 0, 1))
        found.append({"class_id": label, "score": score, "area": int(mask.sum()), "segmentation": encode(mask)})
    return found


def checked_segments(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the segments of a predictions file with numbers of the right types; runs are checked by decoding.

    Raises:
        KeyError, TypeError, ValueError: a part is missing or of another type.
    """
    return [
        {
            **segment,
            "class_id": _class_id(segment["class_id"]),
            "score": finite_number(segment["score"]),
            "segmentation": _checked_encoding(segment["segmentation"]),
        }
        for segment in given
    ]


def _checked_encoding(rle: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(rle["counts"], str):
        raise TypeError("counts must be text, COCO's compressed run-length encoding")
    return {"size": [whole_number(side) for side in rle["size"]], "counts": rle["counts"]}


def _class_id(value: Any) -> int:
    number = whole_number(value)
    if not 0 <= number < _WIDE_VOID:
        raise ValueError(f"class_id must lie between 0 and {_WIDE_VOID - 1}, got {number}")
    return number


def class_map_of(entry: Mapping[str, Any]) -> ClassMap:
    """Return the class map of a prediction; of segments that overlap, the later one counts.

    Raises:
        DataError: a segment cannot be decoded, or has another size than the image.
    """
    shape = (entry["height"], entry["width"])
    found = np.full(shape, NO_CLASS, dtype=np.int32)
    try:
        for segment in entry["segments"]:
            if tuple(segment["segmentation"]["size"]) != shape:
                raise ValueError(f"size {segment['segmentation']['size']} is not the image's, {list(shape)}")
            found[decode(segment["segmentation"])] = segment["class_id"]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"the segments of {entry['image']} cannot be decoded ({first_line(error)}); give a file that acclimate "
            "export wrote"
        ) from error
    return found


def mask_names(images: Sequence[str]) -> dict[str, str]:
    """Return the name of the label image of each image, with folders relative to those that all images share.

    It is the image's with the suffix ``.png``; where two images would share it, that is added to their own suffixes.
    """
    # Without '..', so that no name leads out of the folder.
    paths = {image: Path(os.path.normpath(Path(image).absolute())) for image in images}
    if not paths:
        return {}
    shared = os.path.commonpath([path.parent for path in paths.values()])
    relative = {image: path.relative_to(shared) for image, path in paths.items()}
    short = [path.parent / f"{path.stem}.png" for path in relative.values()]
    return {
        image: str(name if short.count(name) == 1 else path.parent / f"{path.name}.png")
        for (image, path), name in zip(relative.items(), short, strict=True)
    }


def refuse_replacing(folder: Path, records: Iterable[Record]) -> None:
    """Check that no label image would replace an image.

    Raises:
        ConfigError: one would.
    """
    images = {os.path.realpath(record.image) for record in records}
    for name in mask_names([record.image for record in records]).values():
        if os.path.realpath(folder / name) in images:
            raise ConfigError(f"--masks {folder} would replace the image {folder / name}; name another folder")


def write_label_images(folder: Path, entries: Sequence[Mapping[str, Any]]) -> Iterator[Path]:
    """Write the class map of each prediction as a PNG file, and yield their paths.

    A pixel's value is its class id, and :data:`VOID` where it has none. Files have 16 bits where a class id is 255 or
    more.

    Raises:
        DataError: a file cannot be written.
    """
    wide = any(segment["class_id"] >= VOID for entry in entries for segment in entry["segments"])
    names = mask_names([entry["image"] for entry in entries])
    for entry in entries:
        found = class_map_of(entry)
        values = np.where(found == NO_CLASS, _WIDE_VOID if wide else VOID, found)
        path = folder / names[entry["image"]]
        with open_output(path) as file:
            Image.fromarray(values.astype(np.uint16 if wide else np.uint8)).save(file, format="png")
        yield path


def read_label_image(path: Path) -> ClassMap:
    """Return the values of a label image, whose pixels are class ids: one channel of 8 or 16 bits, or a palette.

    Raises:
        DataError: the file is missing, cannot be decoded, or has several channels.
    """
    if is_special(path):
        raise DataError(f"the label image {path} is a device, FIFO or socket; give a file")
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError, EOFError) as error:
        raise DataError(f"the label image {path} cannot be decoded: {first_line(error)}") from error
    if values.ndim != 2 or mode == "F":
        raise DataError(
            f"{path} is no label image: its pixels are colours (mode {mode}), and class ids need one channel; convert "
            "it, or give the folder with the class ids"
        )
    return values.astype(np.int32)


def without_suffix(image: str) -> str:
    """Return a path without the last suffix of its name."""
    path = PurePath(image)
    return str(path.parent / path.stem)

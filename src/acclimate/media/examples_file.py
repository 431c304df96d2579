"""Files of labelled images and sounds, read and decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acclimate.errors import DataError
from acclimate.media.example_lines import read_lines
from acclimate.media.image_files import read_image
from acclimate.media.items import Item, Kind, Limits, MediaExample
from acclimate.media.sound_files import read_sound


def read_examples(path: str | Path, *, limits: Limits | None = None) -> tuple[MediaExample, ...]:
    """Read JSON lines of examples; paths are relative to the file.

    Raises:
        DataError: the file or one that it names cannot be read, a line is not an example, or the kinds are mixed.
    """
    limits, file = limits or Limits(), Path(path)
    return tuple(
        MediaExample(read_item(line.kind, file.parent / line.path, name=line.path, limits=limits), line.output)
        for line in read_lines(file, max_examples=limits.max_examples)
    )


def read_item(kind: Kind, path: str | Path, *, name: str | None = None, limits: Limits | None = None) -> Item:
    """Return the image or the sound in a file.

    Args:
        kind: what it is.
        path: of the file.
        name: for messages and the report; by default the path.
        limits: by default those of :class:`Limits`.

    Raises:
        DataError: it is missing, no regular file, too large, or not of this kind.
    """
    limits, file = limits or Limits(), Path(path)
    shown = name or str(path)
    try:
        if not file.exists():
            raise DataError(f"{shown}: no such file")
        if not file.is_file():
            raise DataError(f"{shown}: is a folder or a special file; give a file")
        size = file.stat().st_size
    except (OSError, ValueError) as error:
        raise DataError(f"{shown}: cannot be read ({error})") from error
    if not size:
        raise DataError(f"{shown}: is empty")
    if size > limits.max_bytes:
        raise DataError(f"{shown}: has {size} bytes, at most {limits.max_bytes} are read")
    return (read_image if kind == "image" else read_sound)(file, name=shown, limits=limits)


def examples_from_files(
    given: Sequence[tuple[str | Path, str]], kind: Kind, *, limits: Limits | None = None
) -> tuple[MediaExample, ...]:
    """Return examples from pairs of a path and an output.

    Raises:
        DataError: see :func:`read_item`.
    """
    return tuple(MediaExample(read_item(kind, path, limits=limits), output) for path, output in given)

"""Predictions as WebDataset archives: a tar file with a member ``KEY.json`` for each sample, in order."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from acclimate.vision.models.adapter import Entry


def sample_key(entry: Entry, archive: str | None) -> str:
    """Return the key of the sample that an entry is of.

    Args:
        entry: with ``image`` and ``image_id``.
        archive: the path of the one archive that all images are from. Keys are then those of its samples, so that
            images and predictions are joined by them. With None the key is ``image_id`` with twelve digits: names of
            images in several folders or archives need not differ.
    """
    number = f"{entry['image_id']:012d}"
    if archive is None:
        return number
    folder, slash, name = str(entry["image"]).removeprefix(f"{archive}/").rpartition("/")
    key = name.partition(".")[0]
    return f"{folder}{slash}{key}" if key else number


def write_samples(file: IO[bytes], entries: Iterable[Entry], key_of: Callable[[Entry], str]) -> None:
    """Write entries as an archive; the same entries give the same bytes, and memory does not grow with their number."""
    with tarfile.TarFile(fileobj=file, mode="w") as tar:
        for entry in entries:
            content = json.dumps(entry, allow_nan=False).encode()
            member = tarfile.TarInfo(f"{key_of(entry)}.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            # tarfile keeps every member that it has written.
            tar.members = []  # type: ignore[attr-defined]


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of an archive in order.

    Raises:
        tarfile.TarError, ValueError: it is damaged.
        OSError: it cannot be read.
    """
    with tarfile.open(path, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]
            content = tar.extractfile(member)
            if content is not None:
                yield json.load(content)

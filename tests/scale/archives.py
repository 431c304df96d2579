"""WebDataset archives made of folders of images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any


def write_archive(
    path: Path, images: list[Path], *, fields: list[dict[str, Any]] | None = None, root: str = ""
) -> Path:
    """Write an archive with a sample of a class, a json member and the image for each file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            key = f"{root}{number:06d}"
            fields_of_it = {} if fields is None else fields[number]
            for kind, content in (
                ("cls", str(number % 3).encode()),
                ("json", json.dumps(fields_of_it).encode()),
                (image.suffix[1:], image.read_bytes()),
            ):
                add(tar, f"{key}.{kind}", content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def without_end(content: bytes) -> bytes:
    """Return an archive as it is when it was cut off after its last member."""
    length = len(content.rstrip(b"\0"))
    return content[: -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE]

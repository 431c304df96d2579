"""Images in WebDataset archives: tar files in which the members of a sample stand side by side.

Only headers are read here, and each image is named by its place in the archive, so that images are read in any order,
by any thread, and again after an interruption, without unpacking. Python's ``tarfile`` does that with exact positions.
The library ``webdataset`` yields samples one after the other and tells no positions.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, overload

from acclimate.errors import ConfigError, DataError, first_line
from acclimate.vision.data.record import Record, Span
from acclimate.vision.data.record_table import NumberedRecords

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIX: Final = ".tar"
_COMPRESSED: Final = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BLOCK_BYTES: Final = 512
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image in an archive.

    Attributes:
        name: of the member.
        offset, size: of its bytes in the archive.
        value: of the field that was asked for, in the sample's json member; None where it has none.
    """

    name: str
    offset: int
    size: int
    value: str | None = None


def is_archive(path: str) -> bool:
    """Say whether a path names a tar file, or several by braces.

    Raises:
        DataError: it names a compressed one, in which nothing can be found by its position.
    """
    name = path.lower()
    if name.endswith(_COMPRESSED):
        raise DataError(
            f"{path} is a compressed archive, in which images cannot be found by their position; decompress it (images "
            "are compressed already)"
        )
    return name.endswith(ARCHIVE_SUFFIX)


def expanded(path: str) -> list[str]:
    """Return the paths that braces stand for: ``{000..099}`` counts, with as many digits; ``{a,b}`` lists.

    Raises:
        ConfigError: they stand for more than a million names.
    """
    found = _BRACES.search(path)
    if found is None:
        return [path]
    inside = found[1]
    counted = _RANGE.fullmatch(inside)
    if counted is not None:
        first, last = int(counted[1]), int(counted[2])
        if abs(last - first) >= _MOST_NAMES:
            raise ConfigError(f"{path} names more than {_MOST_NAMES} archives; name fewer")
        step, digits = (1 if last >= first else -1), min(len(counted[1]), len(counted[2]))
        parts = [f"{number:0{digits}d}" for number in range(first, last + step, step)]
    elif "," in inside:
        parts = inside.split(",")
    else:
        # No list: braces that belong to the name.
        return [path[: found.end()] + rest for rest in expanded(path[found.end() :])]
    rests = expanded(path[found.end() :])
    return [path[: found.start()] + part + rest for part, rest in itertools.product(parts, rests)]


def images_in(
    file: BinaryIO, archive: str, suffixes: frozenset[str], field: str | None = None
) -> Iterator[ArchivedImage]:
    """Yield the images of an archive in their order; memory does not depend on how many there are.

    A sample is a run of members with the same key: folder and base name up to the first dot. What follows the dot is
    the member's kind, such as ``jpg`` or ``seg.png``. The image of a sample is its first member whose whole kind is
    that of an image, or else the first one whose kind ends so. As the format has it, folders, links, and members whose
    base names are ``__so__`` are left out.

    Args:
        file: the archive, from its first byte; it must be able to seek.
        archive: its name, for messages.
        suffixes: of images, with their dot.
        field: of each sample's json member, whose value is wanted.

    Raises:
        DataError: the archive is damaged, cut off, or of another kind. Images before the damage were yielded.
    """
    count = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = _members(tar, archive)
            for key, sample in itertools.groupby(members, key=lambda member: _key(member.name)):
                image = _image_of(file, archive, key, sample, suffixes, field)
                if image is not None:
                    count += 1
                    yield image
            # Python takes a header that it cannot read for the end.
            file.seek(tar.offset)
            end = file.read(_BLOCK_BYTES)
    except tarfile.TarError as error:
        raise _damaged(archive, count, first_line(error)) from error
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {first_line(error)}") from error
    if len(end) < _BLOCK_BYTES:
        raise _damaged(archive, count, "it ends before its end mark")
    if any(end):
        raise _damaged(archive, count, f"no header can be read at byte {tar.offset}")


def _damaged(archive: str, count: int, why: str) -> DataError:
    return DataError(f"{archive} is damaged or cut off after {count} images ({why}); write or copy it again")


def _members(tar: tarfile.TarFile, archive: str) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        # tarfile keeps every member that it has seen.
        tar.members = []  # type: ignore[attr-defined]
        base = PurePosixPath(member.name).name
        if not member.isreg() or (base.startswith("__") and base.endswith("__")):
            continue
        if member.issparse():
            raise DataError(f"{archive}: {member.name} is stored with holes; write the archive without --sparse")
        yield member


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return f"{path.parent}/{path.name.partition('.')[0]}"


def _image_of(
    file: BinaryIO,
    archive: str,
    key: str,
    sample: Iterable[tarfile.TarInfo],
    suffixes: frozenset[str],
    field: str | None,
) -> ArchivedImage | None:
    whole: tarfile.TarInfo | None = None
    ending: tarfile.TarInfo | None = None
    value, others = None, 0
    for member in sample:
        kind = "." + PurePosixPath(member.name).name.partition(".")[2].lower()
        if kind in suffixes:
            others += whole is not None
            whole = whole or member
        elif PurePosixPath(kind).suffix in suffixes:
            others += ending is not None
            ending = ending or member
        elif kind == ".json" and field is not None:
            value = _value(file, archive, member, field)
    image = whole or ending
    if image is None:
        return None
    if others:
        logger.warning("%s: the sample %s has several images, and %s is read", archive, key, image.name)
    return ArchivedImage(image.name, image.offset_data, image.size, value)


def _value(file: BinaryIO, archive: str, member: tarfile.TarInfo, field: str) -> str | None:
    file.seek(member.offset_data)
    try:
        found: Any = json.loads(file.read(member.size))
        value = found.get(field)
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{archive}: {member.name} holds no JSON object ({first_line(error)})") from error
    return None if value is None else str(value)


def local_archives(paths: Sequence[str], suffixes: frozenset[str]) -> ArchivedRecords:
    """Return the images in archives on this machine, one archive after the other.

    Raises:
        DataError: an archive is missing or damaged.
    """

    def images() -> Iterator[tuple[int, ArchivedImage]]:
        for number, path in enumerate(paths):
            try:
                with Path(path).open("rb") as file:
                    for image in images_in(file, path, suffixes):
                        yield number, image
            except FileNotFoundError as error:
                raise DataError(f"{path} does not exist; give a tar file, a folder of them, or {{000..099}}") from error
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error

    return ArchivedRecords(paths, images())


class ArchivedRecords(Sequence[Record]):
    """Records of images in archives, numbered from 1, in a few bytes each; see :class:`NumberedRecords`.

    Args:
        archives: their paths.
        images: with the number of the archive that each is in.
    """

    def __init__(self, archives: Sequence[str], images: Iterable[tuple[int, ArchivedImage]]) -> None:
        self._archives = tuple(archives)
        self._which, self._offsets, self._sizes = array("L"), array("Q"), array("Q")

        def names() -> Iterator[str]:
            for number, image in images:
                self._which.append(number)
                self._offsets.append(image.offset)
                self._sizes.append(image.size)
                yield f"{self._archives[number]}/{image.name}"

        self._numbered = NumberedRecords("", names())

    def __len__(self) -> int:
        return len(self._numbered)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> ArchivedRecords: ...

    def __getitem__(self, index: int | slice) -> Record | ArchivedRecords:
        if isinstance(index, slice):
            part = object.__new__(ArchivedRecords)
            part._archives, part._numbered = self._archives, self._numbered[index]
            part._which, part._offsets, part._sizes = self._which, self._offsets, self._sizes
            return part
        record = self._numbered[index]
        position = record.image_id - 1
        archive = self._archives[self._which[position]]
        return replace(record, archived=Span(archive, self._offsets[position], self._sizes[position]))

    def __repr__(self) -> str:
        return f"ArchivedRecords({len(self._archives)} archives, {len(self)} images)"


def only_archive(records: Sequence[Record]) -> str | None:
    """Return the path of the archive that all records are from; None where there are several, or none."""
    if isinstance(records, ArchivedRecords) and len(records._archives) == 1:
        return records._archives[0]
    return None

"""Dividing a data set into shards: one stream each, in the order of its images."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from acclimate.errors import ConfigError, DataError
from acclimate.storage import file_system, is_remote, naming_problems
from acclimate.vision.data.archives import expanded, images_in, is_archive
from acclimate.vision.data.record import Record, Span
from acclimate.vision.data.records import IMAGE_SUFFIXES, archives_in, has_images, load_dataset, read_json

logger = logging.getLogger(__name__)
FOLDER: Final = "folder"


@dataclass(frozen=True, slots=True)
class Shard:
    """The images of one stream.

    Attributes:
        name: the folder or the value that they share.
        records: in the order of the stream; their ids are those in the whole data set. Empty for an archive, which the
            worker that has the shard lists: their ids are then the positions in the archive, from 1.
        archive: path of the tar file that is the shard; None where it is no archive.
        stamp: of the archive's content, as its file system tells it.
    """

    name: str
    records: tuple[Record, ...] = field(repr=False)
    archive: str | None = None
    stamp: str = ""

    @property
    def file_name(self) -> str:
        """The name as part of a path."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.") or "shard"
        if plain == self.name:
            return plain
        # Two names that differ in other characters must not share a folder.
        return f"{plain}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Divided:
    """A data set divided into shards.

    Attributes:
        shards: in the order in which their first images come.
        categories: category names by id; empty where the source has none.
    """

    shards: tuple[Shard, ...]
    categories: Mapping[int, str]


def divided(
    source: str,
    shard_by: str = FOLDER,
    *,
    images_root: Path | None = None,
    max_images: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Divided:
    """Return the shards of a source of images.

    Args:
        source: a folder, a list file, a COCO json, a Parquet file with the column ``image``, or WebDataset archives (a
            tar file, several by braces, or a folder of them); a local path, or an fsspec path such as
            ``s3://bucket/images``.
        shard_by: ``folder``: images in one folder, or in one archive, are one stream; or the name of a column of the
            Parquet file, or of a field of each image of the COCO file or of the json member of each sample of archives,
            whose values name the streams.
        images_root: see :func:`acclimate.vision.data.records.load_dataset`.
        max_images: the limit; the first so many are used.
        options: for the file system.

    Raises:
        DataError: the source cannot be read, or contains no images.
        ConfigError: it has no such column.
    """
    suffix = PurePosixPath(source).suffix.lower()
    is_remote_folder = is_remote(source) and not is_archive(source) and suffix not in (".json", ".parquet")
    names = _listed(source, options) if is_remote_folder else []
    archives = _archives(source, names)
    if archives and shard_by == FOLDER and max_images is None:
        return Divided(_archive_shards(archives, options), {})
    if archives:
        records, values = _from_archives(archives, None if shard_by == FOLDER else shard_by, max_images, options)
        categories: Mapping[int, str] = {}
    elif suffix == ".parquet":
        records, values, categories = _from_parquet(source, shard_by, options)
    elif is_remote(source):
        records, values, categories = _from_remote(source, names, shard_by, options)
    else:
        dataset = load_dataset(source, images_root=images_root)
        records, categories = list(dataset.records), dataset.categories
        values = _coco_values(Path(source), shard_by) if suffix == ".json" and shard_by != FOLDER else None
    if not records:
        raise DataError(f"{source} contains no images")
    if values is None:
        if shard_by != FOLDER:
            raise ConfigError(
                f"--shard-by {shard_by} names a column, and {source} has none; use --shard-by folder, or a COCO json "
                "or a Parquet file"
            )
        values = _folders([record.image for record in records])
    records, values = records[:max_images], values[:max_images]
    by_name: dict[str, list[Record]] = {}
    for record, name in zip(records, values, strict=True):
        by_name.setdefault(name, []).append(record)
    return Divided(tuple(Shard(name, tuple(found)) for name, found in by_name.items()), categories)


def _archives(source: str, names: Sequence[str]) -> list[str]:
    """Return the paths of a source's tar files; empty where it is no source of them.

    ``names``: of the files below it, if it is a folder that is not on this machine.
    """
    if is_archive(source):
        return expanded(source)
    if not is_remote(source):
        folder = Path(source)
        if not folder.is_dir() or has_images(folder):
            return []
        return archives_in(folder)
    if any(_is_image(name) for name in names):
        return []
    return [name for name in names if is_archive(name)]


def _archive_shards(archives: Sequence[str], options: Mapping[str, Any] | None) -> tuple[Shard, ...]:
    """Return a shard for each archive; the bytes of none are read."""
    folders = _folders(archives)
    is_one_folder = len(set(folders)) == 1
    shards = []
    for archive, folder in zip(archives, folders, strict=True):
        found, path = file_system(archive, dict(options or {}))
        try:
            with naming_problems(archive, "cannot be read"):
                told = found.info(path)
                stamp = json.dumps([told.get("size"), str(told.get("ETag") or told.get("mtime") or "")])
        except DataError as error:
            # The worker that gets the shard finds the same.
            logger.warning("%s", error)
            stamp = "missing"
        name = PurePosixPath(archive).stem
        shards.append(Shard(name if is_one_folder else f"{folder}/{name}", (), archive, stamp))
    return tuple(shards)


def _from_archives(
    archives: Sequence[str], field_name: str | None, max_images: int | None, options: Mapping[str, Any] | None
) -> tuple[list[Record], list[str] | None]:
    """List archives one after the other, and return their images and the values of a field, or their archives."""
    records: list[Record] = []
    values: list[str | None] = []
    for archive in archives:
        found, path = file_system(archive, dict(options or {}))
        with naming_problems(archive, "cannot be read"), found.open(path, "rb") as file:
            for image in images_in(file, archive, IMAGE_SUFFIXES, field_name):
                span = Span(archive, image.offset, image.size)
                records.append(Record(f"{archive}/{image.name}", len(records) + 1, archived=span))
                values.append(PurePosixPath(archive).stem if field_name is None else image.value)
                if len(records) == max_images:
                    break
        if len(records) == max_images:
            break
    return records, _values(values, field_name or FOLDER, "the archives")


def listed(shard: Shard, local: Path) -> Shard:
    """Return the shard of an archive with its images.

    Args:
        shard: without them.
        local: the archive on this machine.

    Raises:
        DataError: it is damaged or contains no images.
    """
    archive = shard.archive or ""
    with local.open("rb") as file:
        records = tuple(
            Record(f"{archive}/{image.name}", number, archived=Span(archive, image.offset, image.size))
            for number, image in enumerate(images_in(file, archive, IMAGE_SUFFIXES), start=1)
        )
    if not records:
        raise DataError(f"{archive} contains no images; name other archives")
    return replace(shard, records=records)


def _folders(images: Sequence[str]) -> list[str]:
    """Return the folder of each image, relative to those that all share; the last of these where nothing is left."""
    parents = [tuple(image.split("/")[:-1]) for image in images]
    distinct = set(parents)
    shared = max(0, len(parents[0]) - 1)
    if len(distinct) > 1:
        # Part by part, and not as os.path does it: an fsspec path begins with "s3://".
        columns = zip(*distinct, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, columns))
    return ["/".join(parent[shared:]) or (parent[-1] if parent else "all") for parent in parents]


def _coco_values(path: Path, column: str) -> list[str]:
    images = read_json(path, "COCO file")["images"]
    return _values([image.get(column) for image in images], column, str(path))


def _values(found: Sequence[Any], column: str, source: str) -> list[str]:
    missing = sum(value is None for value in found)
    if missing:
        raise ConfigError(
            f"--shard-by {column}: {missing} of {len(found)} images in {source} have no {column!r}; give each one, or "
            "use --shard-by folder"
        )
    return [str(value) for value in found]


def _from_parquet(
    source: str, shard_by: str, options: Mapping[str, Any] | None
) -> tuple[list[Record], list[str] | None, Mapping[int, str]]:
    import pyarrow.parquet

    found, path = file_system(source, dict(options or {}))
    with naming_problems(source, "cannot be read as Parquet"), found.open(path, "rb") as file:
        columns = pyarrow.parquet.read_table(file).to_pydict()
    if "image" not in columns:
        raise ConfigError(f"{source} has no column 'image' with paths; its columns are {', '.join(columns)}")
    images = [str(image) for image in columns["image"]]
    base = source.rpartition("/")[0]
    images = [image if is_remote(image) or image.startswith("/") or not base else f"{base}/{image}" for image in images]
    ids = columns.get("image_id") or range(1, len(images) + 1)
    records = [Record(image, int(number)) for image, number in zip(images, ids, strict=True)]
    if shard_by == FOLDER:
        return records, None, {}
    if shard_by not in columns:
        raise ConfigError(f"--shard-by {shard_by}: {source} has no such column; it has {', '.join(columns)}")
    return records, _values(columns[shard_by], shard_by, source), {}


def _from_remote(
    source: str, names: Sequence[str], shard_by: str, options: Mapping[str, Any] | None
) -> tuple[list[Record], list[str] | None, Mapping[int, str]]:
    found, root = file_system(source, dict(options or {}))
    if PurePosixPath(source).suffix.lower() == ".json":
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "annotations.json"
            with naming_problems(source, "cannot be read"):
                found.get_file(root, str(local))
            # The root only marks where the names begin: they are put behind the folder of the file.
            dataset = load_dataset(local, images_root=Path("/"))
            values = _coco_values(local, shard_by) if shard_by != FOLDER else None
        base = source.rpartition("/")[0]
        records = [
            Record(f"{base}{record.image}", record.image_id, record.intrinsics, record.declared_size)
            for record in dataset.records
        ]
        return records, values, dataset.categories
    images = filter(_is_image, names)
    return [Record(name, number) for number, name in enumerate(images, start=1)], None, {}


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _listed(source: str, options: Mapping[str, Any] | None) -> list[str]:
    """Return the fsspec paths of all files below a folder that is not on this machine, folder by folder."""
    found, root = file_system(source, dict(options or {}))
    protocol = source.partition("://")[0]
    with naming_problems(source, "cannot be listed"):
        names = [f"{protocol}://{name.lstrip('/')}" for name in found.find(root)]
    return sorted(names, key=lambda name: name.replace("/", "\0"))

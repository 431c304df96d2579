"""Dividing a data set into shards: one stream each, in the order of its images."""

from __future__ import annotations

import hashlib
import itertools
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from acclimate.errors import ConfigError, DataError
from acclimate.storage import file_system, is_remote
from acclimate.vision.data.record import Record
from acclimate.vision.data.records import IMAGE_SUFFIXES, load_dataset, read_json

FOLDER: Final = "folder"


@dataclass(frozen=True, slots=True)
class Shard:
    """The images of one stream.

    Attributes:
        name: the folder or the value that they share.
        records: in the order of the stream; their ids are those in the whole data set.
    """

    name: str
    records: tuple[Record, ...] = field(repr=False)

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
        source: a folder, a list file, a COCO json or a Parquet file with the column ``image``; a local path, or an
            fsspec path such as ``s3://bucket/images``.
        shard_by: ``folder``: images in one folder are one stream; or the name of a column of the Parquet file, or of a
            field of each image of the COCO file, whose values name the streams.
        images_root: see :func:`acclimate.vision.data.records.load_dataset`.
        max_images: the limit; the first so many are used.
        options: for the file system.

    Raises:
        DataError: the source cannot be read, or contains no images.
        ConfigError: it has no such column.
    """
    suffix = PurePosixPath(source).suffix.lower()
    if suffix == ".parquet":
        records, values, categories = _from_parquet(source, shard_by, options)
    elif is_remote(source):
        records, values, categories = _from_remote(source, shard_by, options)
    else:
        dataset = load_dataset(source, images_root=images_root)
        records, categories = list(dataset.records), dataset.categories
        values = _coco_values(Path(source), shard_by) if suffix == ".json" and shard_by != FOLDER else None
    if values is None:
        if shard_by != FOLDER:
            raise ConfigError(
                f"--shard-by {shard_by} names a column, and {source} has none; use --shard-by folder, or a COCO json "
                "or a Parquet file"
            )
        values = _folders([record.image for record in records])
    records, values = records[:max_images], values[:max_images]
    if not records:
        raise DataError(f"{source} contains no images")
    by_name: dict[str, list[Record]] = {}
    for record, name in zip(records, values, strict=True):
        by_name.setdefault(name, []).append(record)
    return Divided(tuple(Shard(name, tuple(found)) for name, found in by_name.items()), categories)


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
    try:
        with found.open(path, "rb") as file:
            columns = pyarrow.parquet.read_table(file).to_pydict()
    except (OSError, ValueError) as error:
        raise DataError(f"{source} cannot be read as Parquet: {error}") from error
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
    source: str, shard_by: str, options: Mapping[str, Any] | None
) -> tuple[list[Record], list[str] | None, Mapping[int, str]]:
    found, root = file_system(source, dict(options or {}))
    protocol = source.partition("://")[0]
    if PurePosixPath(source).suffix.lower() == ".json":
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "annotations.json"
            try:
                found.get_file(root, str(local))
            except (OSError, ValueError) as error:
                raise DataError(f"{source} cannot be read: {error}") from error
            # The root only marks where the names begin: they are put behind the folder of the file.
            dataset = load_dataset(local, images_root=Path("/"))
            values = _coco_values(local, shard_by) if shard_by != FOLDER else None
        base = source.rpartition("/")[0]
        records = [
            Record(f"{base}{record.image}", record.image_id, record.intrinsics, record.declared_size)
            for record in dataset.records
        ]
        return records, values, dataset.categories
    try:
        names = [name for name in found.find(root) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    except (OSError, ValueError) as error:
        raise DataError(f"{source} cannot be listed: {error}") from error
    names.sort(key=lambda name: name.replace("/", "\0"))
    return [Record(f"{protocol}://{name.lstrip('/')}", n) for n, name in enumerate(names, start=1)], None, {}

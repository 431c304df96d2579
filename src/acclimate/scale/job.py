"""What an export of shards is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from acclimate.errors import ConfigError
from acclimate.json_values import to_jsonable
from acclimate.scale.shards import FOLDER, Shard
from acclimate.vision.data.images import CorruptionSpec
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.run.config import AUTO
from acclimate.vision.run.resume import file_stamps

BATCHES_PER_COMMIT: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedJob:
    """The images to predict, how they are divided, the model, the settings, and the folder to write to.

    Attributes:
        source, shard_by, images_root, max_images: see :func:`acclimate.scale.shards.divided`.
        output: a local folder, or an fsspec path of one.
        format: ``acclimate``: files of rows, one a commit; or ``webdataset``: when a shard is done, its rows become one
            tar file; see :mod:`acclimate.vision.data.prediction_archives`.
        storage_options: for the file systems of source and output, such as ``endpoint_url``.
        adapter: the options of the adapter and its model; local paths must be there on every worker.
        ttt, preset, ttt_source, probe_images, load_state: see :class:`acclimate.vision.run.export.ExportJob`. Every
            shard begins with the unadapted model, or with ``load_state``.
        corruption, exif_orientation, draft_side, read_ahead, strict: see there.
        batch_size: without TTT; None means the adapter's own.
        batches_per_commit: after how many batches rows and state are committed. More cost less, and a worker that is
            lost repeats more.
        resume: whether to go on with an export in the output folder.
        attempts: how often a shard may lose its worker without a commit in between before it counts as failed.

    Raises:
        ConfigError: a setting cannot be kept exactly across workers.
    """

    source: str
    output: str
    format: Literal["acclimate", "webdataset"] = "acclimate"
    shard_by: str = FOLDER
    images_root: Path | None = None
    max_images: int | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    ttt: Mapping[str, Any] | None = None
    preset: str | None = None
    ttt_source: Path | None = None
    probe_images: Path | None = None
    load_state: Path | None = None
    corruption: CorruptionSpec | None = None
    exif_orientation: bool = True
    draft_side: int | None = None
    read_ahead: int = 2
    strict: bool = False
    batch_size: int | None = None
    batches_per_commit: int = BATCHES_PER_COMMIT
    resume: bool = False
    attempts: int = 3

    def __post_init__(self) -> None:
        given = self.ttt or {}
        if self.format not in ("acclimate", "webdataset"):
            raise ConfigError(
                f"--format {self.format} is one file for all images; leave it out of sharded exports, or use webdataset"
            )
        if given.get("method") == AUTO:
            raise ConfigError("auto chooses by the whole data set; name the method for sharded exports")
        if given.get("max_seconds") is not None:
            raise ConfigError(
                "--ttt-max-seconds ends adaptation at another image in every run, so a lost worker could not be "
                "replaced exactly; leave it out of sharded exports, or use --ttt-max-batches"
            )
        if given.get("probe") and self.probe_images is None:
            raise ConfigError(
                "a probe made of the stream's first batch is gone when a worker is replaced; give --ttt-probe-images"
            )
        for name in ("batches_per_commit", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    def key(self, shard: Shard) -> str:
        """Return a digest of all that the rows of a shard depend on."""
        made_from = {
            "adapter": to_jsonable(self.adapter),
            "weights": file_stamps(self.adapter.checkpoint, self.adapter.model),
            "ttt": to_jsonable(self.ttt),
            "preset": self.preset,
            "ttt_source": str(self.ttt_source),
            "probe_images": str(self.probe_images),
            "load_state": file_stamps(None if self.load_state is None else str(self.load_state)),
            "corruption": str(self.corruption),
            "exif_orientation": self.exif_orientation,
            "draft_side": self.draft_side,
            "strict": self.strict,
            "batch_size": self.batch_size,
            "batches_per_commit": self.batches_per_commit,
            "shard": shard.name,
            "format": self.format,
        }
        if shard.archive is not None:
            made_from["archive"] = [shard.archive, shard.stamp]
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
        for record in shard.records if shard.archive is None else ():
            what: list[Any] = [record.image, record.image_id]
            if record.archived is not None:
                what += [record.archived.offset, record.archived.size]
            digest.update(json.dumps(what).encode())
        return digest.hexdigest()

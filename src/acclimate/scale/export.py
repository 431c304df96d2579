"""The export of a sharded data set: shards, workers, and the manifest of what they wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from acclimate.errors import CheckpointError, ConfigError, DataError, InputError, first_line
from acclimate.json_values import to_jsonable
from acclimate.scale.commits import Rows, rows_of
from acclimate.scale.drivers import Driver, sole_driver
from acclimate.scale.job import ShardedJob
from acclimate.scale.ray_engine import OnProgress, ShardProgress, ShardResult, run_on_ray
from acclimate.scale.shard_run import ShardWorker
from acclimate.scale.shards import Divided, Shard, divided
from acclimate.storage import Folder

MANIFEST: Final = "manifest.json"
_FORMAT: Final = "acclimate export manifest 1"
Engine = Literal["ray", "here"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedResult:
    """The results of a sharded export.

    Attributes:
        images: in all shards; ``rows``: predictions that were written; ``skipped``: images that could not be used.
        shards: how many there are; ``failed``: why some of them ended early, by name.
    """

    images: int
    rows: int
    skipped: int
    shards: int
    failed: dict[str, str]


def export_shards(
    job: ShardedJob,
    *,
    engine: Engine = "ray",
    workers: int = 2,
    address: str | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> ShardedResult:
    """Predict every image of the job's source, shard by shard, and write rows, states and a manifest.

    Args:
        job: what to do.
        engine: ``ray``, or ``here``: in this process, one shard after the other.
        workers: how many Ray actors.
        address: of a running Ray cluster; None starts one on this machine for the export.
        on_progress: called whenever a shard has advanced.

    Raises:
        InputError: the source, a setting or the output folder cannot be used, or another driver is writing to it. A
            shard that fails is in the result.
    """
    folder = Folder(job.output, dict(job.storage_options))
    if engine == "ray" and not folder.is_shared:
        raise ConfigError(f"{job.output} is in the memory of one process; give a folder that all workers see")
    found = divided(
        job.source,
        job.shard_by,
        images_root=job.images_root,
        max_images=job.max_images,
        options=job.storage_options,
    )
    names = [shard.file_name for shard in found.shards]
    if len(set(names)) < len(names):
        raise DataError("two shards have names that differ only in characters that files do not keep; rename one")
    # Said at once, and not after waiting for what a killed driver left.
    _refuse_replacing(folder, job)
    with sole_driver(folder) as driver:
        _refuse_replacing(folder, job)

        def note(progress: ShardProgress) -> None:
            driver.check()
            on_progress(progress)

        manifest = _Manifest(folder, job, found, driver)
        manifest.begin()
        if engine == "ray":
            run_on_ray(
                job,
                found.shards,
                found.categories,
                workers=min(workers, len(found.shards)),
                address=address,
                on_progress=note,
                on_result=manifest.add,
            )
        else:
            _run_here(job, found, note, manifest.add)
        return manifest.end()


def _refuse_replacing(folder: Folder, job: ShardedJob) -> None:
    if not job.resume and folder.read(MANIFEST) is not None:
        raise ConfigError(
            f"{job.output} already holds an export; add --resume to go on with it, or choose another folder"
        )


def _run_here(
    job: ShardedJob, found: Divided, on_progress: OnProgress, on_result: Callable[[ShardResult], None]
) -> None:
    worker = ShardWorker(job, dict(found.categories))
    for shard in found.shards:
        last = None

        def note(commit: Any, shard: Shard = shard) -> None:
            nonlocal last
            last = commit
            on_progress(
                ShardProgress(
                    shard=shard.name,
                    images=len(shard.records) or commit.images,
                    adapted=commit.adapted,
                    predicted=commit.predicted,
                    finished=commit.finished,
                )
            )

        error = None
        try:
            last = worker.run(shard, note)
        except InputError as problem:
            error = str(problem)
        except Exception as problem:  # noqa: BLE001 - one shard must not end the others
            error = f"{type(problem).__name__}: {first_line(problem)}"
        on_result(ShardResult(shard, last, error, 1))


class _Manifest:
    """Writes what is known of each shard; whole at any time."""

    def __init__(self, folder: Folder, job: ShardedJob, found: Divided, driver: Driver) -> None:
        self._folder, self._job, self._driver = folder, job, driver
        self._shards: dict[str, dict[str, Any]] = {
            shard.name: {"name": shard.name, "images": len(shard.records), "status": "unfinished", "rows": []}
            for shard in found.shards
        }

    def begin(self) -> None:
        """Write the manifest of an export that begins or goes on."""
        self._write(finished=False)

    def add(self, result: ShardResult) -> None:
        """Note what became of a shard."""
        entry = self._shards[result.shard.name]
        commit = result.commit
        entry |= {"status": "finished" if result.error is None else "failed", "attempts": result.attempts}
        if result.error is not None:
            entry["error"] = result.error
        if commit is not None:
            entry["images"] = entry["images"] or commit.images
            entry["rows"] = to_jsonable(commit.rows)
            entry["state"] = commit.state
            entry["skipped"] = dict(commit.skipped)
            entry["report"] = to_jsonable(commit.report)
        self._write(finished=False)

    def end(self) -> ShardedResult:
        """Write the manifest of an export that has ended, and return its results."""
        self._write(finished=True)
        shards = self._shards.values()
        return ShardedResult(
            images=sum(shard["images"] for shard in shards),
            rows=sum(part["count"] for shard in shards for part in shard["rows"]),
            skipped=sum(len(shard.get("skipped", ())) for shard in shards),
            shards=len(self._shards),
            failed={shard["name"]: shard["error"] for shard in shards if "error" in shard},
        )

    def _write(self, *, finished: bool) -> None:
        self._driver.check()
        content = {
            "format": _FORMAT,
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": self._job.source,
            "shard_by": self._job.shard_by,
            "adapter": to_jsonable(self._job.adapter),
            "ttt": to_jsonable(self._job.ttt),
            "ended": finished,
            "shards": list(self._shards.values()),
        }
        self._folder.write(MANIFEST, json.dumps(content, indent=1).encode() + b"\n")


def read_rows(output: str, options: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a sharded export: shard by shard as the manifest lists them, each in the order of its stream.

    Raises:
        CheckpointError: there is no manifest, or a file is gone or was changed.
    """
    folder = Folder(output, options)
    content = folder.read(MANIFEST)
    if content is None:
        raise CheckpointError(f"{output} holds no {MANIFEST}; give the output folder of a sharded export")
    for shard in json.loads(content)["shards"]:
        yield from rows_of(folder, [Rows(**part) for part in shard["rows"]])

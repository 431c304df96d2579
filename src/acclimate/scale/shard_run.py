"""One shard from its last commit to its end, on whichever machine this runs."""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from acclimate.errors import DataError, first_line
from acclimate.output_files import open_output
from acclimate.scale.commits import Commit, ShardStore
from acclimate.scale.job import ShardedJob
from acclimate.scale.shards import Shard, listed
from acclimate.storage import Folder, file_system, is_remote, naming_problems
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.prediction_archives import sample_key, write_samples
from acclimate.vision.data.record import Record
from acclimate.vision.data.records import load_dataset
from acclimate.vision.models.adapter import Adapter, Entry, plain_forward
from acclimate.vision.models.loading import make_adapter
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.overlap import ahead
from acclimate.vision.run.settings import resolve_config
from acclimate.vision.run.ttt import TTTRun

logger = logging.getLogger(__name__)

OnCommit = Callable[[Commit], None]
_DOWNLOADS: Final = 8


class ShardWorker:
    """A loaded model, and the shards that are run with it one after the other.

    Args:
        job: what to do.
        categories: category names by id.

    Raises:
        InputError: the model cannot be loaded, or the settings do not fit it.
    """

    def __init__(self, job: ShardedJob, categories: dict[int, str]) -> None:
        self._job = job
        self._reader = ImageReader(job.corruption, exif_orientation=job.exif_orientation, draft_side=job.draft_side)
        self._adapter: Adapter = make_adapter(job.adapter, reader=self._reader, categories=categories)
        self._source = () if job.ttt_source is None else tuple(load_dataset(job.ttt_source).records)
        self._probe = () if job.probe_images is None else tuple(load_dataset(job.probe_images).records)
        self._config: TTTConfig | None = None
        if job.ttt is not None:
            self._config = resolve_config(self._adapter, job.ttt, job.preset, source_records=self._source)
        if self._adapter.calls_model_itself:
            raise DataError(
                f"adapter {self._adapter.info.name!r} has no entries(outputs, batch), which sharded exports need"
            )

    def run(self, shard: Shard, on_commit: OnCommit = lambda commit: None) -> Commit:
        """Run a shard from its last commit to its end, and return its last commit.

        Args:
            shard: the images.
            on_commit: called with the commit to begin from, and with each one after it.

        Raises:
            InputError: an image, a setting or the output folder is the cause.
        """
        store = ShardStore(
            Folder(self._job.output, dict(self._job.storage_options)), shard.file_name, self._job.key(shard)
        )
        commit = store.last()
        on_commit(commit)
        if commit.finished:
            return commit
        self._reader.skipped.clear()
        self._reader.scaled.clear()
        with tempfile.TemporaryDirectory() as scratch:
            local: Path | None = None
            if shard.archive is not None:
                local = self._archive(shard.archive, Path(scratch))
                shard = listed(shard, local)
            with _Progress(self, shard, store, commit, Path(scratch), local) as run:
                for commit in run.steps():
                    on_commit(commit)
        return commit

    def _archive(self, archive: str, scratch: Path) -> Path:
        """Return an archive on this machine: one request brings all of it, in the order in which it is read."""
        found, path = file_system(archive, dict(self._job.storage_options))
        with naming_problems(archive, "cannot be read"):
            if not is_remote(archive):
                Path(path).stat()
                return Path(path)
            target = scratch / "shard.tar"
            found.get_file(path, str(target))
        return target


class _Progress:
    """One shard while it runs."""

    def __init__(
        self, worker: ShardWorker, shard: Shard, store: ShardStore, commit: Commit, scratch: Path, local: Path | None
    ) -> None:
        self._job, self._adapter, self._reader = worker._job, worker._adapter, worker._reader
        self._config, self._source, self._probe = worker._config, worker._source, worker._probe
        self._shard, self._store, self._commit = shard, store, commit
        self._scratch, self._local_archive = scratch, local
        self._stack = ExitStack()
        self._run: TTTRun | None = None
        self._fetched_from: dict[str, str] = {}

    def __enter__(self) -> _Progress:
        if self._config is None:
            return self
        state: Path | None = self._job.load_state
        content = self._store.state(self._commit)
        if content is not None:
            state = self._scratch / "state.safetensors"
            _write_scratch(state, content)
        self._run = self._stack.enter_context(
            TTTRun(
                self._adapter,
                self._config,
                source_records=self._source,
                probe_records=self._probe,
                load_state=state,
                read_ahead=self._job.read_ahead,
            )
        )
        self._run.continue_after(self._commit.batches)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stack.close()

    @property
    def _chunk(self) -> int:
        if self._config is None:
            size = self._job.batch_size or self._adapter.batch_size
        else:
            size = 1 if self._config.reset == "sample" else self._config.batch_size
        return size * self._job.batches_per_commit

    def steps(self) -> Iterator[Commit]:
        """Make the rest of the shard, and yield each commit."""
        records = self._shard.records
        if self._run is not None and self._config is not None and self._config.reset == "stream":
            yield from self._adapt(self._run, records)
        while self._commit.predicted < len(records):
            first = self._commit.predicted
            part = records[first : first + self._chunk]
            with self._fetched(part) as local:
                entries = self._predicted(local, first)
                self._refuse_skipped()
                rows = [
                    {**entry, "shard": self._shard.name, "position": position}
                    for entry, position in self._placed(entries, part, first)
                ]
                predicted = first + len(part)
                finished = predicted == len(records) and self._job.format != "webdataset"
                yield self._commits(rows, predicted=predicted, finished=finished)
        if not self._commit.rows:
            first_reason = next(iter(self._commit.skipped.values()), "there are none")
            raise DataError(f"none of the {len(records)} images can be used; the first: {first_reason}")
        if self._job.format == "webdataset":
            yield self._packed()

    def _packed(self) -> Commit:
        """Make one archive of all rows; the shard is finished with it."""
        archive = self._scratch / "rows.tar"
        with open_output(archive) as file:
            key_of = functools.partial(sample_key, archive=self._shard.archive)
            write_samples(file, self._store.rows(self._commit), key_of)
        self._commit = self._store.replace_rows(self._commit, archive, finished=True, report=self._report())
        return self._commit

    def _report(self) -> dict[str, Any] | None:
        run = self._run
        return None if run is None else {"warnings": list(run.report().warnings), "batches": run.batches}

    def _adapt(self, run: TTTRun, records: Sequence[Record]) -> Iterator[Commit]:
        limit = None if self._config is None else self._config.max_batches
        while self._commit.adapted < len(records):
            if self._commit.predicted or (limit is not None and run.batches >= limit):
                return
            first = self._commit.adapted
            part = records[first : first + self._chunk]
            with self._fetched(part) as local:
                run.adapt(local)
                self._refuse_skipped()
                yield self._commits([], adapted=first + len(part))

    def _predicted(self, records: Sequence[Record], first: int) -> list[Entry]:
        adapter, run = self._adapter, self._run
        if run is None or self._config is None:
            forward = plain_forward(adapter)
            size = self._job.batch_size or adapter.batch_size
            loader = ahead(adapter.build_loader(records, batch_size=size), self._job.read_ahead)
            with closing(loader) as batches:
                return [entry for batch in batches for entry in adapter.entries(forward(batch.inputs), batch)]
        if self._config.reset == "sample":
            found = run.sample(records, done=first)
        elif self._config.reset == "online":
            found = run.online(records)
        else:
            found = run.predict(records)
        return [entry for batch in found for entry in batch]

    def _placed(self, entries: Sequence[Entry], part: Sequence[Record], first: int) -> Iterator[tuple[Entry, int]]:
        """Yield each entry with its position in the shard, and with the path of its image as the source gives it."""
        waiting = iter(entries)
        entry = next(waiting, None)
        for position, record in enumerate(part, start=first):
            if entry is not None and entry["image_id"] == record.image_id:
                yield {**entry, "image": record.image}, position
                entry = next(waiting, None)

    def _commits(self, rows: Sequence[dict[str, Any]], **changes: Any) -> Commit:
        run, state = self._run, None
        if run is not None and self._config is not None and self._config.reset != "sample":
            changes["batches"] = run.batches
            # While stream predicts, its state does not change.
            if self._config.reset == "online" or "adapted" in changes or self._commit.state is None:
                path = self._scratch / "saved.safetensors"
                run.session.save_state(path, with_history=True)
                state = path.read_bytes()
        if changes.get("finished"):
            changes["report"] = self._report()
        changes["skipped"] = {**self._commit.skipped, **self._skipped()}
        changes["images"] = len(self._shard.records)
        self._commit = self._store.commit(self._commit, rows=rows, state=state, **changes)
        return self._commit

    def _skipped(self) -> dict[str, str]:
        """Return the images that could not be used so far, under the paths that the source gives them."""
        named = {}
        for image, reason in self._reader.skipped.items():
            origin = self._fetched_from.get(image, image)
            named[origin] = reason.replace(image, origin)
        return named

    def _refuse_skipped(self) -> None:
        if self._job.strict and self._reader.skipped:
            raise DataError(f"an image cannot be used: {next(iter(self._skipped().values()))}")

    @contextmanager
    def _fetched(self, records: Sequence[Record]) -> Iterator[Sequence[Record]]:
        """Yield the records with local files: those of another file system are there inside the block."""
        if not any(is_remote(record.image) for record in records):
            yield records
            return
        if self._local_archive is not None:
            here = [self._in_local_archive(record, self._local_archive) for record in records]
            self._fetched_from = {there.image: record.image for there, record in zip(here, records, strict=True)}
            yield here
            self._reader.skipped.clear()
            return
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            with ThreadPoolExecutor(_DOWNLOADS) as pool:
                local = list(pool.map(lambda record: self._local(record, Path(folder)), records))
            self._fetched_from = {here.image: record.image for here, record in zip(local, records, strict=True)}
            yield local
            # Their names are of files that are gone now.
            self._reader.skipped.clear()

    def _in_local_archive(self, record: Record, local: Path) -> Record:
        span = record.archived
        if span is None:
            return record
        image = f"{local}{record.image.removeprefix(span.archive)}"
        return dataclasses.replace(record, image=image, archived=dataclasses.replace(span, archive=str(local)))

    def _local(self, record: Record, folder: Path) -> Record:
        # Its own name: the random numbers of a corruption depend on it.
        target = folder / str(record.image_id) / PurePosixPath(record.image).name
        target.parent.mkdir()
        span = record.archived
        found, path = file_system(record.image if span is None else span.archive, dict(self._job.storage_options))
        # Another error than a missing file is one of the connection, and not of the image: the shard ends.
        with naming_problems(record.image, "cannot be fetched"):
            try:
                if span is None:
                    found.get_file(path, str(target))
                else:
                    _write_scratch(target, found.cat_file(path, start=span.offset, end=span.offset + span.size))
            except FileNotFoundError as error:
                # Left out, and counted as an image that cannot be used when it is read.
                logger.warning("%s cannot be fetched: %s", record.image, first_line(error))
                target.unlink(missing_ok=True)
        return dataclasses.replace(record, image=str(target), archived=None)


def _write_scratch(path: Path, content: bytes) -> None:
    with path.open("r+b" if path.exists() else "ab") as file:
        file.write(content)

"""The export job: reads images, predicts them with or without adaptation, and writes the predictions file."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from acclimate.errors import ConfigError, DataError
from acclimate.json_values import to_jsonable
from acclimate.output_files import check_folder_writable, check_writable, is_special, open_output
from acclimate.vision.data.archives import only_archive
from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.data.masks import refuse_replacing, write_label_images
from acclimate.vision.data.prediction_archives import sample_key, write_samples
from acclimate.vision.data.predictions import to_coco, wrapping, write_items, write_json
from acclimate.vision.data.records import Dataset, Record, load_dataset
from acclimate.vision.models.adapter import Adapter, Entry, ImageBatch, chunks, plain_forward
from acclimate.vision.models.loading import AdapterOptions, make_adapter
from acclimate.vision.run.auto import Choice
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.export_meta import ttt_meta
from acclimate.vision.run.overlap import Behind, ahead
from acclimate.vision.run.resume import PartialResult, file_stamps
from acclimate.vision.run.settings import settings_for
from acclimate.vision.run.tta import Augmenter, TTAConfig
from acclimate.vision.run.ttt import TTTRun
from acclimate.vision.run.ttt_report import TTTReport

logger = logging.getLogger(__name__)

_MOST_DECODERS: Final = 8
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """The images to predict, the model, the settings, and the files to write.

    Attributes:
        source: a folder, a list file, a COCO json, or WebDataset archives; see :func:`load_dataset`.
        output: the predictions file.
        adapter: the options of the adapter and its model.
        ttt: the settings that were given, by field name of :class:`TTTConfig`; None does not adapt.
        preset: see :meth:`TTTConfig.resolve`.
        ttt_source: unlabelled source images for the methods that use them: a folder, a list or a COCO json.
        probe_images: images of the probe, instead of the stream's first batch; requires the setting ``probe``.
        load_state, save_state: the state file to continue from, and the one to write; see :class:`TTTRun`.
        tta: settings of test-time augmentation.
        wrap: whether to write ``{schema_version, predictions, meta}``.
        format: ``acclimate``, ``coco`` results, or ``webdataset``, a tar file; see
            :mod:`acclimate.vision.data.prediction_archives`.
        masks: a folder for a label image (PNG) of each image, for segmenters.
        log_output: the file for the TTT log.
        images_root, max_images: see :func:`load_dataset`.
        corruption: applied to every image first.
        exif_orientation: whether to rotate images as their EXIF data says.
        batch_size: without TTT; None means the adapter's own.
        strict: whether images that cannot be used are an error.
        draft_side: see :class:`acclimate.vision.data.images.ImageReader`.
        decode_threads: how many images are decoded at a time; None means half as many as there are processors, and
            eight at most.
        read_ahead: how many batches are read and prepared by another thread while the model computes; a third one
            writes predictions. The predictions are the same to the bit. 0 does one after the other.
        resume: whether to continue from the partial file of an interrupted run of the same job.
        config: any text, which is repeated in ``meta.config``.
    """

    source: Path
    output: Path
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    ttt: Mapping[str, Any] | None = None
    preset: str | None = None
    ttt_source: Path | None = None
    probe_images: Path | None = None
    load_state: Path | None = None
    save_state: Path | None = None
    tta: TTAConfig = field(default_factory=TTAConfig)
    wrap: bool = False
    format: Literal["acclimate", "coco", "webdataset"] = "acclimate"
    masks: Path | None = None
    log_output: Path | None = None
    images_root: Path | None = None
    max_images: int | None = None
    corruption: CorruptionSpec | None = None
    exif_orientation: bool = True
    batch_size: int | None = None
    strict: bool = False
    draft_side: int | None = None
    decode_threads: int | None = None
    read_ahead: int = 2
    resume: bool = False
    config: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The results of an export.

    Attributes:
        entries: the predictions, which are read from disk when they are looked at.
        meta: the metadata that ``--wrap`` writes.
        report: the report of the adaptation; None without TTT.
        choice: the choice of ``auto``; None where the method was given.
        skipped: the images that could not be used, by path, and why.
    """

    entries: Sequence[Entry]
    meta: dict[str, Any]
    report: TTTReport | None
    skipped: Mapping[str, str]
    choice: Choice | None = None


def export(job: ExportJob, *, progress: Progress | None = None) -> ExportResult:
    """Predict every image of the job's source and write the predictions.

    Args:
        job: the images, the model, the settings and the files to write.
        progress: called with the current task (``adapt`` or ``predict``), the images done, and their total number.

    Raises:
        InputError: an input or a setting cannot be used; no output file is written then.
    """
    if job.format != "acclimate" and job.wrap:
        what = "COCO results have" if job.format == "coco" else "a WebDataset archive has"
        raise ConfigError(f"--wrap adds metadata to the predictions file, and {what} no place for it; leave one out")
    if job.resume and is_special(job.output):
        raise ConfigError(
            f"--resume continues from a file beside the output, and {job.output} is a device, FIFO or socket; leave "
            "out --resume, or name a file"
        )
    for target in (job.output, job.log_output, job.save_state):
        if target is not None:
            check_writable(target)
    if job.masks is not None:
        check_folder_writable(job.masks)
    dataset = load_dataset(job.source, images_root=job.images_root, max_images=job.max_images)
    if job.masks is not None:
        refuse_replacing(job.masks, dataset.records)
    if job.read_ahead < 0:
        raise ConfigError(f"--read-ahead is a number of batches, 0 or more; got {job.read_ahead}")
    reader = image_reader(job)
    reader.check_sizes(dataset.records)
    adapter = make_adapter(job.adapter, reader=reader, categories=dataset.categories)
    if job.format == "coco" and adapter.kind not in ("detector", "segmenter"):
        raise ConfigError("COCO results contain boxes or masks, and this model is a classifier; use --format acclimate")
    if job.masks is not None and adapter.kind != "segmenter":
        raise ConfigError(
            f"--masks writes a class for each pixel, and this model is no segmenter but a {adapter.kind}; leave it out"
        )
    source_records = () if job.ttt_source is None else load_dataset(job.ttt_source).records
    config, choice = settings_for(
        adapter, job.ttt, job.preset, dataset.records, source_records=source_records, goes_on=job.load_state is not None
    )
    work = _Work(job, adapter, config, source_records, progress)
    made_from = _made_from(job, dataset, config)
    with PartialResult(
        job.output,
        made_from,
        records=dataset.records,
        others=(*source_records, *work.probe_records),
        resume=job.resume,
        restarts=not work.can_resume,
    ) as partial:
        work.run(dataset.records, partial)
        entries = partial.entries
        _check_skipped(job, reader, entries)
        meta = _meta(job, adapter, dataset, config, work, reader)
        if choice is not None:
            meta["ttt"]["choice"] = to_jsonable(dataclasses.replace(choice, config=None))
            if config is None and job.save_state is not None:
                meta["warnings"].append(f"auto chose not to adapt, so no state was written to {job.save_state}")
        _write(job, dataset, entries, meta)
        partial.finished = True
    return ExportResult(entries=entries, meta=meta, report=work.report, skipped=dict(reader.skipped), choice=choice)


def image_reader(job: ExportJob) -> ImageReader:
    """Return the reader of a job's images."""
    return ImageReader(
        job.corruption,
        exif_orientation=job.exif_orientation,
        draft_side=job.draft_side,
        threads=job.decode_threads or max(1, min(_MOST_DECODERS, (os.cpu_count() or 1) // 2)),
    )


class _Work:
    """Predicts batch by batch, with or without adaptation."""

    def __init__(
        self,
        job: ExportJob,
        adapter: Adapter,
        config: TTTConfig | None,
        source_records: Sequence[Record],
        progress: Progress | None,
    ) -> None:
        self.job, self.adapter, self.config = job, adapter, config
        self.source_records = source_records
        self.probe_records = () if job.probe_images is None else load_dataset(job.probe_images).records
        self.progress = progress
        self.report: TTTReport | None = None
        self.augmenter: Augmenter | None = None
        self.warnings: list[str] = []
        if job.tta.enabled:
            if adapter.calls_model_itself:
                raise ConfigError(
                    f"adapter {adapter.info.name!r} does not support --tta, because it has no entries(outputs, batch); "
                    "leave --tta out"
                )
            self.augmenter = Augmenter(job.tta, adapter.task)
        # The state of an online run, and the random choice of images that tta mirrors, depend on all images before:
        # these runs restart from the first image.
        self.can_resume = not job.tta.enabled and (config is None or config.reset != "online")

    def run(self, records: Sequence[Record], partial: PartialResult) -> None:
        """Add the entries of all records that are not done to ``partial``."""
        start = self._start(records, partial.entries)
        if self.job.resume and not self.can_resume:
            self.warnings.append("resume: online runs and tta restart from the first image")
        if start and self.config is not None:
            self.warnings.append(f"resumed: the report of the adaptation leaves out the first {start} images")
        adapter = self.adapter
        if adapter.calls_model_itself:
            count = start
            for entries in self._entries(records, start):
                partial.add(entries)
                count += len(entries)
                self._count(count, records)
            return

        def write(found: tuple[Any, ImageBatch]) -> None:
            partial.add(adapter.entries(*found))

        count = start
        with Behind(write, is_on=self.job.read_ahead > 0) as writing:
            for outputs, batch in self._outputs(records, start, writing.finish):
                count += len(batch.records)
                self._count(count, records)
                writing.put((outputs, batch))

    def _count(self, count: int, records: Sequence[Record]) -> None:
        if self.progress is not None:
            self.progress("predict", min(count, len(records)), len(records))

    def _start(self, records: Sequence[Record], done: Sequence[Entry]) -> int:
        """Return the position of the first batch that is not done."""
        if not done:
            return 0
        ids = (entry["image_id"] for entry in done)
        finished: int | None = next(ids)
        last = 0
        skipped: list[Record] = []
        # Entries are in the order of the records.
        for position, record in enumerate(records):
            if record.image_id == finished:
                last, finished = position, next(ids, None)
            else:
                skipped.append(record)
            if finished is None:
                break
        size = self._batch_size()
        start = min(len(records), -(-(last + 1) // size) * size)
        # Read again, so that images skipped before the interruption are counted.
        self.adapter.reader.read_many([*skipped, *records[last + 1 : start]])
        return start

    def _batch_size(self) -> int:
        if self.config is None:
            return self.job.batch_size or self.adapter.batch_size
        return 1 if self.config.reset == "sample" else self.config.batch_size

    def _outputs(
        self, records: Sequence[Record], start: int, finish: Callable[[], None]
    ) -> Iterator[tuple[Any, ImageBatch]]:
        """Yield the outputs on each batch from position ``start`` on; ``finish`` waits until all are written."""
        adapter, job = self.adapter, self.job
        if self.config is None:
            forward, augmenter = plain_forward(adapter), self.augmenter
            loader = ahead(adapter.build_loader(records[start:], batch_size=self._batch_size()), job.read_ahead)
            with closing(loader) as batches:
                for batch in batches:
                    yield forward(batch.inputs) if augmenter is None else augmenter(batch.inputs, forward), batch
            return
        with self._ttt_run(self.config) as run:
            yield from run.outputs(records, augment=self.augmenter, done=start, on_batch=self._adapted(len(records)))
            # Inside the block, because the state is written on exit, and a failed run must not write one.
            finish()
            self._finish(run)

    def _entries(self, records: Sequence[Record], start: int) -> Iterator[list[Entry]]:
        """Yield the entries of an adapter that calls its model itself."""
        if self.config is None:
            for part in chunks(records[start:], self._batch_size()):
                yield self.adapter.predict(part)
            return
        with self._ttt_run(self.config) as run:
            yield from run.predictions(
                records, augment=self.augmenter, done=start, on_batch=self._adapted(len(records))
            )
            self._finish(run)

    def _ttt_run(self, config: TTTConfig) -> TTTRun:
        return TTTRun(
            self.adapter,
            config,
            source_records=self.source_records,
            probe_records=self.probe_records,
            load_state=self.job.load_state,
            save_state=self.job.save_state,
            read_ahead=self.job.read_ahead,
        )

    def _finish(self, run: TTTRun) -> None:
        self.report = run.report()
        if self.job.strict:
            _refuse_skipped(self.adapter.reader)

    def _adapted(self, total: int) -> Callable[[int], None]:
        adapted = 0

        def count_images(images: int) -> None:
            nonlocal adapted
            adapted += images
            if self.progress is not None:
                self.progress("adapt", adapted, total)

        return count_images


def _made_from(job: ExportJob, dataset: Dataset, config: TTTConfig | None) -> dict[str, Any]:
    """Return all inputs and settings that the entries of a job depend on, apart from the records."""
    return {
        "categories": to_jsonable(dataset.categories),
        "adapter": to_jsonable(job.adapter),
        "weights": file_stamps(job.adapter.checkpoint, job.adapter.model),
        "ttt_source": str(job.ttt_source),
        "load_state": file_stamps(None if job.load_state is None else str(job.load_state)),
        "probe_images": str(job.probe_images),
        "ttt": to_jsonable(config),
        "tta": to_jsonable(job.tta),
        "corruption": str(job.corruption),
        "exif_orientation": job.exif_orientation,
        "draft_side": job.draft_side,
        "batch_size": job.batch_size,
    }


def _check_skipped(job: ExportJob, reader: ImageReader, entries: Sequence[Entry]) -> None:
    if not reader.skipped:
        return
    if job.strict:
        _refuse_skipped(reader)
    first = next(iter(reader.skipped.values()))
    if not entries:
        raise DataError(f"none of the {len(reader.skipped)} images can be used; the first: {first}")


def _refuse_skipped(reader: ImageReader) -> None:
    if reader.skipped:
        first = next(iter(reader.skipped.values()))
        raise DataError(
            f"{len(reader.skipped)} images cannot be used; the first: {first}; remove them, or leave out --strict"
        )


def _write(job: ExportJob, dataset: Dataset, entries: Sequence[Entry], meta: dict[str, Any]) -> None:
    if job.log_output is not None and (meta["ttt"]["enabled"] or "choice" in meta["ttt"]):
        write_json(job.log_output, {"timestamp": meta["timestamp"], "output": str(job.output), "ttt": meta["ttt"]})
    if job.masks is not None:
        for path in write_label_images(job.masks, entries):
            logger.debug("%s written", path)
    if job.format == "coco":
        write_items(job.output, (result for entry in entries for result in to_coco([entry])))
    elif job.format == "webdataset":
        with open_output(job.output) as file:
            write_samples(file, entries, functools.partial(sample_key, archive=only_archive(dataset.records)))
    else:
        write_items(job.output, entries, wrapped_in=wrapping(meta) if job.wrap else None)


def _meta(
    job: ExportJob,
    adapter: Adapter,
    dataset: Dataset,
    config: TTTConfig | None,
    work: _Work,
    reader: ImageReader,
) -> dict[str, Any]:
    tta: dict[str, Any] = {**to_jsonable(job.tta), "warnings": [], "summary": None}
    if work.augmenter is not None:
        tta |= {"warnings": work.augmenter.warnings(), "summary": work.augmenter.summary()}
    return {
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapter": adapter.info.name,
        "config": job.config or job.adapter.model or "",
        "checkpoint": job.adapter.checkpoint,
        "images": len(dataset.records),
        "skipped": dict(reader.skipped),
        "corruption": None if job.corruption is None else str(job.corruption),
        "masks": None if job.masks is None else str(job.masks),
        "warnings": [*adapter.warnings, *work.warnings, *reader.warnings],
        "tta": tta,
        "ttt": ttt_meta(config, work.report),
    }

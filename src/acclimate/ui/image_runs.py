"""One run over images, without and with adapting, told batch by batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from acclimate.core.norm import batch_norms
from acclimate.errors import CancelledError, ConfigError
from acclimate.registry import METHODS
from acclimate.ui.image_decisions import certainty, class_names, decision, handed_on
from acclimate.ui.image_sets import ImageSet
from acclimate.ui.one_at_a_time import OneAtATime
from acclimate.vision.data.corruptions import Uint8Image
from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.data.records import Dataset, Record, load_dataset
from acclimate.vision.evaluation.evaluate import Interval, Scorer, difference, is_coco, make_scorer
from acclimate.vision.models.adapter import Adapter, Entry, ImageBatch, plain_forward, require_ttt
from acclimate.vision.models.loading import AdapterOptions, make_adapter
from acclimate.vision.run.auto import Choice
from acclimate.vision.run.config import AUTO, TTTConfig, safe_method
from acclimate.vision.run.export_meta import ttt_meta
from acclimate.vision.run.settings import settings_for
from acclimate.vision.run.ttt import TTTRun
from acclimate.vision.run.ttt_report import TTTReport

Play = Literal["damaged", "live"]
#: Images of a run that are kept for showing.
SHOWN_IMAGES: Final = 24
_RESAMPLES: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is run.

    Attributes:
        images: to predict.
        adapter: of the model.
        method: a name in the registry, ``auto``, or ``default``.
        corruption: what is done to the images; None leaves them as they are.
        play: ``damaged``: every image; ``live``: a stream that is clean, then damaged, then clean again.
        most: images, at most.
        batch_size: images in a batch; None takes the method's.
        max_seconds: after which the run ends.
    """

    images: ImageSet
    adapter: AdapterOptions
    method: str
    corruption: CorruptionSpec | None
    play: Play = "damaged"
    most: int = 96
    batch_size: int | None = None
    max_seconds: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSeen:
    """What happened with one batch.

    Attributes:
        images: predicted so far.
        damaged: whether its images were damaged.
        certainty_before, certainty_after: mean score of decisions without and with adapting; None without decisions.
        same: share of images with the same decision.
        verdict, code, reason: of the adaptation step, see :class:`acclimate.core.report.StepReport`.
        used, samples: decisions that contributed to the step, and images in the batch.
        seconds_before, seconds_after: of the batch without and with adapting.
        right_before, right_after: share of its images whose class is right; None without labels of classes.
    """

    images: int
    damaged: bool
    certainty_before: float | None
    certainty_after: float | None
    same: float
    verdict: str
    code: str | None
    reason: str | None
    used: int
    samples: int
    seconds_before: float
    seconds_after: float
    right_before: float | None = None
    right_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An image of the run.

    Attributes:
        record: that it is of.
        damaged: whether it was damaged.
        pixels: as the model was given it, before its own resizing.
        handed_on: as the method's filter handed it on, in the model's size; None where nothing was filtered.
        before, after: what was predicted.
    """

    record: Record
    damaged: bool
    pixels: Uint8Image
    handed_on: Uint8Image | None
    before: Entry
    after: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a run.

    Attributes:
        kind: of the model; ``class_names``: by id.
        method: that was used; ``none`` where ``auto`` found that none helps.
        images: predicted; ``skipped``: that could not be used, with the reasons.
        shown: some images.
        metrics: without and with adapting, by name, where there are labels; ``gain``: of the main one.
        main_metric: its name.
        seconds_before, seconds_after: of all batches.
        choice: of ``auto``.
        notes: warnings of the run.
        counts: steps by verdict.
        ttt: of the adaptation, as exports write it into their files.
    """

    kind: str
    class_names: Mapping[int, str]
    method: str
    images: int
    skipped: Mapping[str, str]
    shown: Sequence[Shown]
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    gain: Interval | None = None
    main_metric: str | None = None
    seconds_before: float = 0.0
    seconds_after: float = 0.0
    choice: Choice | None = None
    notes: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    ttt: Mapping[str, Any] = field(default_factory=dict)


class Runner:
    """Runs jobs one at a time: they share the machine with the language models that are served."""

    def __init__(self) -> None:
        self._turns = OneAtATime()

    def run(self, job: Job, *, tell: Callable[[BatchSeen | Shown], None], cancelled: threading.Event) -> Result:
        """Run a job.

        Args:
            job: to run.
            tell: called after every batch, and with every image that is kept for showing.
            cancelled: set by who does not want the result any more.

        Raises:
            InputError: the images, the model or the method cannot be used.
            CancelledError: the run was cancelled, or took too long.
            BusyError: too many wait.
        """
        with self._turns.turn(cancelled):
            return _Run(job, tell, cancelled).result()


class _Run:
    def __init__(self, job: Job, tell: Callable[[BatchSeen | Shown], None], cancelled: threading.Event) -> None:
        self._job, self._tell, self._cancelled = job, tell, cancelled
        self._dataset: Dataset = job.images.load(job.most)
        self._reader = ImageReader(None)
        self._adapter: Adapter = make_adapter(job.adapter, reader=self._reader, categories=self._dataset.categories)
        self._shown: list[Shown] = []
        self._before: list[Entry] = []
        self._after: list[Entry] = []
        self._seconds = [0.0, 0.0]
        self._began = time.monotonic()

    def result(self) -> Result:
        require_ttt(self._adapter)
        records = self._dataset.records
        source_records = self._source_records()
        given: dict[str, Any] = {"reset": "online"}
        if self._job.method != "default":
            given["method"] = self._job.method
        if self._job.batch_size is not None:
            given["batch_size"] = self._job.batch_size
        self._reader.corruption = self._job.corruption
        config, choice = settings_for(self._adapter, given, None, records, source_records=source_records, goes_on=False)
        report: TTTReport | None = None
        batch_size = config.batch_size if config is not None else self._adapter.batch_size
        if config is None:
            for damaged, part in self._parts():
                self._unadapted(part, damaged, batch_size)
        else:
            with TTTRun(self._adapter, config, source_records=source_records) as run:
                for damaged, part in self._parts():
                    self._adapted(run, part, damaged, batch_size)
                report = run.report()
        return self._result(config, choice, report)

    def _source_records(self) -> Sequence[Record]:
        """Return images of the model's training, where the method compares with them."""
        source, method = self._job.images.source_images, self._job.method
        if source is None:
            return ()
        if method == "default":
            has_batch_norm = bool(batch_norms(self._adapter.get_model()))
            method = safe_method(self._adapter.kind, knows_source=True, has_batch_norm=has_batch_norm)
        uses = method == AUTO or METHODS.info(method).uses_source_images
        return load_dataset(source).records if uses else ()

    def _parts(self) -> Iterator[tuple[bool, Sequence[Record]]]:
        """Yield stretches of the stream with whether they are damaged; the reader damages them."""
        records, corruption = self._dataset.records, self._job.corruption
        third = max(1, len(records) // 3)
        parts: list[tuple[bool, Sequence[Record]]] = [(corruption is not None, records)]
        if self._job.play == "live" and corruption is not None:
            parts = [(False, records[:third]), (True, records[third : 2 * third]), (False, records[2 * third :])]
        for damaged, part in parts:
            self._reader.corruption = corruption if damaged else None
            yield damaged, part

    def _adapted(self, run: TTTRun, records: Sequence[Record], damaged: bool, batch_size: int) -> None:
        plain = _Plain(self._adapter)
        for start in range(0, len(records), batch_size):
            self._check_time()
            part = records[start : start + batch_size]
            for batch in self._adapter.build_loader(part, batch_size=batch_size):
                began = time.perf_counter()
                before = plain.entries(run, batch)
                middle = time.perf_counter()
                outputs, step = run.session.adapt_and_predict(batch.inputs, steps=run.config.steps)
                after = self._adapter.entries(outputs, batch)
                ended = time.perf_counter()
                self._keep(batch, damaged, before, after, handed_on(run.session, batch.inputs))
                self._count(
                    batch, damaged, before, after, (middle - began, ended - middle), step.verdict, step.code,
                    step.reason, step.used,
                )  # fmt: skip

    def _unadapted(self, records: Sequence[Record], damaged: bool, batch_size: int) -> None:
        forward = plain_forward(self._adapter)
        for batch in self._adapter.build_loader(records, batch_size=batch_size):
            self._check_time()
            began = time.perf_counter()
            entries = self._adapter.entries(forward(batch.inputs), batch)
            seconds = time.perf_counter() - began
            self._keep(batch, damaged, entries, entries, None)
            self._count(batch, damaged, entries, entries, (seconds, seconds), "none", None, None, 0)

    def _count(
        self,
        batch: ImageBatch,
        damaged: bool,
        before: list[Entry],
        after: list[Entry],
        seconds: tuple[float, float],
        verdict: str,
        code: str | None,
        reason: str | None,
        used: int,
    ) -> None:
        right = self._right(before), self._right(after)
        self._before += before
        self._after += after
        for side in (0, 1):
            self._seconds[side] += seconds[side]
        same = [decision(a) == decision(b) for a, b in zip(before, after, strict=True)]
        self._tell(
            BatchSeen(
                images=len(self._after),
                damaged=damaged,
                certainty_before=certainty(before),
                certainty_after=certainty(after),
                same=sum(same) / max(1, len(same)),
                verdict=verdict,
                code=code,
                reason=reason,
                used=used,
                samples=len(batch.records),
                seconds_before=seconds[0],
                seconds_after=seconds[1],
                right_before=right[0],
                right_after=right[1],
            )
        )

    def _right(self, entries: list[Entry]) -> float | None:
        truth = self._job.images.truth
        if truth is None or not entries or is_coco(truth) or "classification" not in entries[0]:
            return None
        return make_scorer(truth, entries).score(entries).metrics["accuracy"]

    def _keep(
        self, batch: ImageBatch, damaged: bool, before: list[Entry], after: list[Entry], filtered: Any | None
    ) -> None:
        """Keep some images of every batch, so that those that are shown are of the whole stream."""
        total = max(1, len(self._dataset.records))
        wanted = max(1, round(SHOWN_IMAGES * len(batch.records) / total))
        for row in range(min(wanted, len(batch.records), SHOWN_IMAGES - len(self._shown))):
            record = batch.records[row]
            shown = Shown(
                record=record,
                damaged=damaged,
                pixels=self._reader.read(record),
                handed_on=None if filtered is None else filtered[row],
                before=before[row],
                after=after[row],
            )
            self._shown.append(shown)
            self._tell(shown)

    def _check_time(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError("the run was ended")
        if time.monotonic() - self._began > self._job.max_seconds:
            raise CancelledError(f"the run took longer than {self._job.max_seconds:g} s; take fewer images")

    def _result(self, config: TTTConfig | None, choice: Choice | None, report: TTTReport | None) -> Result:
        metrics: dict[str, tuple[float, float]] = {}
        gain, main = None, None
        if self._job.images.truth is not None and self._before:
            scorer: Scorer = make_scorer(self._job.images.truth, self._before)
            before, after = scorer.score(self._before), scorer.score(self._after)
            main = scorer.metric
            metrics = {name: (value, after.metrics[name]) for name, value in before.metrics.items()}
            gain = difference(scorer, before, after, resamples=_RESAMPLES)
        return Result(
            kind=self._adapter.kind,
            class_names=class_names(self._adapter, self._dataset),
            method="none" if config is None else config.method,
            images=len(self._after),
            skipped=dict(self._reader.skipped),
            shown=tuple(self._shown),
            metrics=metrics,
            gain=gain,
            main_metric=main,
            seconds_before=self._seconds[0],
            seconds_after=self._seconds[1],
            choice=choice,
            notes=() if report is None else report.warnings,
            counts={} if report is None else report.session.counts,
            ttt=ttt_meta(config, report) | ({} if choice is None else {"choice": choice.method}),
        )


class _Plain:
    """The unadapted model beside a run that adapts it."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def entries(self, run: TTTRun, batch: ImageBatch) -> list[Entry]:
        return self._adapter.entries(run.session.predict_as_source(batch.inputs), batch)


def check_folder(folder: Path) -> Path:
    """Return a folder of images that the operator has named.

    Raises:
        ConfigError: it is not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"image_folder {folder} is no folder; give one that exists, or leave the setting out")
    return folder

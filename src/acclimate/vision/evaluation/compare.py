"""Comparison of several methods on the same images: metric, its change with an interval, and cost."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from torch import nn

from acclimate.errors import ConfigError, DataError, InputError, TTTNotSupportedError, first_line
from acclimate.json_values import to_jsonable
from acclimate.output_files import check_folder_writable, check_writable
from acclimate.registry import METHODS
from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.data.predictions import write_json
from acclimate.vision.data.records import Dataset, Record, load_dataset
from acclimate.vision.evaluation.evaluate import (
    Interval,
    Score,
    Scorer,
    check_ignore_value,
    difference,
    is_coco,
    is_label_folder,
    load_labels,
    make_scorer,
)
from acclimate.vision.evaluation.multilabel import load_label_sets
from acclimate.vision.evaluation.pictures import before_and_after
from acclimate.vision.evaluation.segmentation import LabelImages, agreement
from acclimate.vision.models.adapter import Adapter, Entry, ImageBatch, predict_in_batches, require_ttt
from acclimate.vision.models.loading import AdapterOptions, make_adapter
from acclimate.vision.run.auto import Choice, as_flags, choose
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.construct import make_method, option_names
from acclimate.vision.run.export_meta import ttt_meta
from acclimate.vision.run.ttt import TTTRun
from acclimate.vision.run.ttt_report import TTTReport

logger = logging.getLogger(__name__)

BASELINE: Final = "none"
_COCO_RESAMPLES: Final = 200
_ACCURACY_RESAMPLES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The images, the model, and the methods to compare.

    Attributes:
        source: a folder, a list file or a COCO json.
        ground_truth: COCO annotations, class labels or a folder of label images; None compares only the cost, and the
            agreement with the unadapted model.
        ignore_value: the value of pixels in label images that do not count; None takes 255.
        output: a folder for ``comparison.json``, ``comparison.png`` and the predictions.
        methods: names of methods; ``none`` (the unadapted model) is always run. None means all methods that are
            compared by default.
        adapter: the options of the adapter and its model.
        given: TTT settings for all methods; a method option is passed to the methods that have it.
        corruption: applied to every image first.
        exif_orientation: whether to rotate images as their EXIF data says.
        ttt_source: unlabelled source images for the methods that use them.
        images_root, max_images: see :func:`load_dataset`.
        recommend: whether to report the method that ``auto`` chooses for this model and stream.

    Raises:
        ConfigError: a method is unknown, none is named, or a method option belongs to none of them.
    """

    source: Path
    output: Path
    ground_truth: Path | None = None
    ignore_value: int | None = None
    methods: tuple[str, ...] | None = None
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    given: Mapping[str, Any] = field(default_factory=dict)
    corruption: CorruptionSpec | None = None
    exif_orientation: bool = True
    ttt_source: Path | None = None
    images_root: Path | None = None
    max_images: int | None = None
    recommend: bool = False

    def __post_init__(self) -> None:
        known = METHODS.names()
        if not self.compared:
            raise ConfigError(f"name at least one method besides none: {', '.join(known)}")
        for method in self.compared:
            if method not in known:
                raise ConfigError(f"unknown method {method!r}; choose from none, {', '.join(known)}")
        for name in self.given.get("method_options", {}):
            if not any(name in option_names(method) for method in self.compared):
                raise ConfigError(
                    f"none of the methods {', '.join(self.compared)} has an option {name!r}; leave it out"
                )

    @property
    def compared(self) -> tuple[str, ...]:
        """The methods besides ``none``, each once."""
        if self.methods is None:
            return tuple(name for name, info in METHODS.infos().items() if info.compared)
        return tuple(dict.fromkeys(method for method in self.methods if method != BASELINE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method's line in the table.

    Attributes:
        method: its name.
        metrics: by name, in [0, 1]; without ground truth, the share of images predicted as by the unadapted model.
        change: difference of the main metric from the unadapted model's, with its interval; None for the baseline.
        cpu_seconds: CPU time of the run, without reading and preprocessing images and without the Fisher information;
            ``cost``: the same over that of the unadapted model.
        steps: number of steps by verdict.
        warnings: of the run.
        error: why the method could not run on this model; None where it could.
    """

    method: str
    metrics: dict[str, float] = field(default_factory=dict)
    change: Interval | None = None
    cpu_seconds: float = 0.0
    cost: float = 0.0
    steps: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    """The results of a comparison.

    Attributes:
        metric: name of the main metric.
        rows: one for each method, the baseline first.
        picture: the PNG file with example images.
        table: the JSON file with the table.
        images: number of predicted images.
        skipped: the images that could not be used, by path, and why.
        warnings: of the adapter and about the images.
        recommended: the choice of ``auto``; None where it was not requested.
    """

    metric: str
    rows: tuple[Row, ...]
    picture: Path
    table: Path
    images: int
    skipped: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    recommended: Choice | None = None


def compare(comparison: Comparison, *, progress: Callable[[str], None] | None = None) -> ComparisonResult:
    """Run every method on the same images, and write table and picture.

    A method that this model does not support is a row with an ``error``.

    Raises:
        InputError: an input or a setting cannot be used.
    """
    check_folder_writable(comparison.output)
    for name in ("comparison.json", "comparison.png"):
        check_writable(comparison.output / name)
    truth = comparison.ground_truth
    check_ignore_value(truth, comparison.ignore_value)
    if truth is not None and is_label_folder(truth):
        LabelImages(truth)
    elif truth is not None and not is_coco(truth) and load_label_sets(truth) is None:
        load_labels(truth)
    dataset = load_dataset(comparison.source, images_root=comparison.images_root, max_images=comparison.max_images)
    reader = ImageReader(comparison.corruption, exif_orientation=comparison.exif_orientation)
    reader.check_sizes(dataset.records)
    adapter = make_adapter(comparison.adapter, reader=reader, categories=dataset.categories)
    require_ttt(adapter)
    source_records = () if comparison.ttt_source is None else load_dataset(comparison.ttt_source).records
    methods = [BASELINE, *comparison.compared]
    errors: dict[str, str] = {}
    configs: dict[str, TTTConfig] = {}
    for method in methods[1:]:
        try:
            configs[method] = TTTConfig.resolve(_settings(comparison, method), kind=adapter.kind)
        except TTTNotSupportedError as error:
            errors[method] = str(error)
    batch_size = max((config.batch_size for config in configs.values()), default=1)

    for config in configs.values():
        make_method(config)
    clocked = _Clocked(adapter)
    predictions: dict[str, list[Entry]] = {}
    reports: dict[str, TTTReport] = {}
    seconds: dict[str, float] = {}
    for method in [BASELINE, *configs]:
        if progress is not None:
            progress(method)
        try:
            # Warm-up: the first pass of a process, and of a method, includes one-time initialisation.
            first = (dataset.records[:batch_size], source_records[:batch_size])
            _run(clocked, configs.get(method), *first, batch_size)
            clocked.aside_seconds, started = 0.0, time.process_time()
            predictions[method], report = _run(
                clocked, configs.get(method), dataset.records, source_records, batch_size
            )
            seconds[method] = time.process_time() - started - clocked.aside_seconds
            if report is not None:
                reports[method] = report
        except InputError as error:
            if method == BASELINE:
                raise
            errors[method] = str(error)
        except RuntimeError as error:
            if method == BASELINE:
                raise
            # One method may run out of memory, for example; the results of the others are kept.
            logger.exception("%s failed", method)
            errors[method] = f"failed: {first_line(error)}"
    if not predictions[BASELINE]:
        reason = next(iter(reader.skipped.values()), "")
        raise DataError(f"none of the {len(reader.skipped)} images can be used; the first: {reason}")
    scorer = _scorer(comparison, predictions[BASELINE])
    scores = {method: scorer.score(entries) for method, entries in predictions.items()}
    rows = tuple(_row(method, scorer, scores, seconds, reports, errors) for method in methods)
    best = max((row for row in rows if row.error is None), key=lambda row: row.metrics[scorer.metric]).method
    picture = comparison.output / "comparison.png"
    shown = best if best != BASELINE else next((m for m in methods if m != BASELINE and m in predictions), BASELINE)
    before_and_after(
        picture,
        reader,
        predictions[BASELINE],
        predictions[shown],
        title=shown,
        ground_truth=comparison.ground_truth,
        ignore_value=comparison.ignore_value,
    )
    recommended = None
    if comparison.recommend:
        given = {"reset": "online", **comparison.given, "method_options": {}}
        recommended = choose(adapter, given, dataset.records, source_records=source_records)
    table = comparison.output / "comparison.json"
    content = _content(comparison, dataset, reader, scorer, rows, configs, reports)
    if recommended is not None:
        content["recommended"] = {
            **to_jsonable(dataclasses.replace(recommended, config=None)),
            "flags": as_flags(recommended, source=comparison.ttt_source),
        }
    content["warnings"] = [*adapter.warnings, *reader.warnings]
    write_json(table, content)
    for method, entries in predictions.items():
        write_json(comparison.output / f"predictions_{method}.json", entries)
    return ComparisonResult(
        metric=scorer.metric,
        rows=rows,
        picture=picture,
        table=table,
        images=len(predictions[BASELINE]),
        skipped=dict(reader.skipped),
        warnings=(*adapter.warnings, *reader.warnings),
        recommended=recommended,
    )


def _settings(comparison: Comparison, method: str) -> dict[str, Any]:
    options = comparison.given.get("method_options", {})
    own = {name: value for name, value in options.items() if name in option_names(method)}
    # The methods' papers measure online: one pass that predicts and adapts.
    return {"reset": "online", **comparison.given, "method": method, "method_options": own}


class _Clocked:
    """An adapter that measures the CPU time of reading and preprocessing images, which does not count as cost."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.info, self.kind, self.task, self.reader = adapter.info, adapter.kind, adapter.task, adapter.reader
        self.batch_size, self.warnings = adapter.batch_size, adapter.warnings
        self.source_spectrum = adapter.source_spectrum
        self.ttt_refusal, self.calls_model_itself = adapter.ttt_refusal, adapter.calls_model_itself
        self.aside_seconds = 0.0

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        return self._adapter.predict(records)

    def get_model(self) -> nn.Module:
        return self._adapter.get_model()

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        return self._adapter.entries(outputs, batch)

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        batches = iter(self._adapter.build_loader(records, batch_size=batch_size))
        while True:
            started = time.process_time()
            batch = next(batches, None)
            self.aside_seconds += time.process_time() - started
            if batch is None:
                return
            yield batch


def _run(
    adapter: _Clocked,
    config: TTTConfig | None,
    records: Sequence[Record],
    source_records: Sequence[Record],
    batch_size: int,
) -> tuple[list[Entry], TTTReport | None]:
    if config is None:
        batches = predict_in_batches(adapter, records, batch_size=batch_size)
        return [entry for batch in batches for entry in batch], None
    started = time.process_time()
    with TTTRun(adapter, config, source_records=source_records) as run:
        # Entering a run computes the Fisher information, which is needed once for a model and not for each stream.
        adapter.aside_seconds = time.process_time() - started
        return [entry for batch in run.predictions(records) for entry in batch], run.report()


class _AgreementScorer:
    """Scores without ground truth: the share of images with the same most probable class as the unadapted model's.

    Of a segmenter, the share of pixels with the same class.
    """

    metric = "agreement"

    def __init__(self, baseline: Sequence[Entry]) -> None:
        self._baseline = baseline
        self.image_count = len(self._baseline)

    def score(self, entries: Sequence[Entry]) -> Score:
        same = [_agreement(a, b) for a, b in zip(entries, self._baseline, strict=True)]
        return Score({"agreement": sum(same) / len(same)}, same)

    def resampled(self, score: Score, images: Any) -> float:
        return float(sum(score.per_image[image] for image in images.tolist()) / len(images))


def _agreement(first: Entry, second: Entry) -> float:
    return agreement(first, second) if "segments" in first else float(_decision(first) == _decision(second))


def _decision(entry: Entry) -> Any:
    if "classification" in entry:
        return entry["classification"]["class_id"]
    return entry["detections"][0]["class_id"] if entry["detections"] else None


def _scorer(comparison: Comparison, baseline: Sequence[Entry]) -> Scorer:
    if comparison.ground_truth is None:
        return _AgreementScorer(baseline)
    return make_scorer(comparison.ground_truth, baseline, ignore_value=comparison.ignore_value)


def _row(
    method: str,
    scorer: Scorer,
    scores: Mapping[str, Score],
    seconds: Mapping[str, float],
    reports: Mapping[str, TTTReport],
    errors: Mapping[str, str],
) -> Row:
    if method in errors:
        return Row(method=method, error=errors[method])
    change = None
    if method != BASELINE:
        resamples = _COCO_RESAMPLES if scorer.metric == "mAP" else _ACCURACY_RESAMPLES
        change = difference(scorer, scores[BASELINE], scores[method], resamples=resamples)
    report = reports.get(method)
    return Row(
        method=method,
        metrics=scores[method].metrics,
        change=change,
        cpu_seconds=seconds[method],
        cost=seconds[method] / max(seconds[BASELINE], 1e-9),
        steps={} if report is None else report.session.counts,
        warnings=() if report is None else report.warnings,
    )


def _content(
    comparison: Comparison,
    dataset: Dataset,
    reader: ImageReader,
    scorer: Scorer,
    rows: Sequence[Row],
    configs: Mapping[str, TTTConfig],
    reports: Mapping[str, TTTReport],
) -> dict[str, Any]:
    return {
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": str(comparison.source),
        "model": comparison.adapter.model,
        "corruption": None if comparison.corruption is None else str(comparison.corruption),
        "images": len(dataset.records),
        "skipped": dict(reader.skipped),
        "metric": scorer.metric,
        "rows": to_jsonable(rows),
        "ttt": {method: ttt_meta(configs[method], reports[method]) for method in reports},
    }

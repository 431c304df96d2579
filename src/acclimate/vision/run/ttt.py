"""Test-time training of an adapter's model: a run that adapts the model and predicts with it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, Self

from torch import nn

from acclimate.core.budget import Budget
from acclimate.core.method import Method, UsesSourceImages, settings_of
from acclimate.core.norm import batch_norms
from acclimate.core.outputs import sample_count
from acclimate.core.pacing import Pacing
from acclimate.core.programs import unwrapped
from acclimate.core.report import SessionReport
from acclimate.core.session import Session
from acclimate.core.source_images import SourceImages
from acclimate.core.task import Task
from acclimate.errors import ConfigError, DataError, SessionError, TTTNotSupportedError
from acclimate.registry import METHODS
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Adapter, Entry, ImageBatch, as_adapter, require_ttt
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.construct import make_guards, make_method, needs_probe
from acclimate.vision.run.overlap import ahead
from acclimate.vision.run.ttt_report import (
    FEW_IMAGES,
    TTTReport,
    differences,
    few_images_warning,
    lost_effects,
    step_warnings,
)

logger = logging.getLogger(__name__)

Predictor = Callable[[Any], Any]
_IMAGES_AHEAD: Final = 8
"""How many images are read ahead where each is adapted to alone."""


class TTTRun:
    """Test-time training of a model, as a context manager.

    Inside the block, predictions go through the session, so that a method's teacher or mixed statistics are used. On
    exit the model is restored, weights included, unless ``keep_weights`` is true.

    Args:
        adapter: an adapter with ``get_model`` and ``build_loader``.
        config: the settings.
        source_records: unlabelled source images, for EATA's Fisher information and for the source spectrum.
        keep_weights: whether to leave the adapted weights (or the teacher's, if it predicts) in the model on exit.
        probe_records: images of the probe, of which the first batch is used; empty uses the stream's first batch.
        load_state: the state file to continue from; ``save_state``: the one to write on exit. Both are safetensors
            files, see :meth:`acclimate.core.Session.save_state`.
        on_report: called with the session's report on exit.
        read_ahead: how many batches another thread reads and prepares before they are needed; where ``config.reset``
            is ``sample``, any number above 0 reads eight images ahead.

    Raises:
        TTTNotSupportedError: the adapter or the model cannot be adapted.
        EmptySelectionError: no parameter of the model is trainable with these settings.
        CheckpointError: the state cannot be read, is another model's or method's, or cannot be written.
        ConfigError: a state file is given with reset ``sample``, which keeps no state.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: TTTConfig,
        *,
        source_records: Sequence[Record] = (),
        keep_weights: bool = False,
        probe_records: Sequence[Record] = (),
        load_state: Path | None = None,
        save_state: Path | None = None,
        on_report: Callable[[SessionReport], None] | None = None,
        read_ahead: int = 0,
    ) -> None:
        adapter = as_adapter(adapter)
        require_ttt(adapter)
        if config.reset != "stream" and adapter.calls_model_itself:
            raise TTTNotSupportedError(
                f"reset {config.reset!r} predicts batch by batch, and adapter {adapter.info.name!r} has no "
                "entries(outputs, batch) to convert outputs to predictions; use reset 'stream'"
            )
        if (load_state or save_state) and config.reset == "sample":
            raise ConfigError(
                "reset 'sample' restores the source model after each image, so there is no state to load or save; use "
                "another reset, or leave the state out"
            )
        self.adapter = adapter
        self.config = config
        self.info = METHODS.info(config.method)
        self._load_state, self._save_state = load_state, save_state
        self._probe_records = probe_records
        self.task: Task = adapter.task
        self.keep_weights = keep_weights
        self._source_records = source_records
        self._on_report = on_report
        self._read_ahead = read_ahead
        self._session: Session | None = None
        self._batches = 0
        self._changed_param_count = 0
        self._smallest_batch = 0
        self._stack = ExitStack()
        self._warnings: list[str] = []

    def __enter__(self) -> Self:
        model = unwrapped(self.adapter.get_model())
        method = self._with_source(make_method(self.config), model)
        self._session = self._stack.enter_context(
            Session(
                model,
                method,
                task=self.task,
                guards=make_guards(self.config),
                budget=Budget(max_seconds=self.config.max_seconds),
                seed=self.config.seed,
                pacing=Pacing() if self.config.paced else None,
                restore=not self.keep_weights,
                on_report=self._on_report,
            )
        )
        if self._probe_records:
            self._session.set_probe(self._given_probe())
        if self._load_state is not None:
            try:
                self._session.load_state(self._load_state)
            except BaseException:
                self._stack.close()
                raise
            self._warnings.append(
                f"continues from the state in {self._load_state}, after {self._session.report().steps_before} steps"
            )
        self._warnings += differences(self.config, self.info)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self._save_state is not None and exc_info[0] is None:
                self.session.save_state(self._save_state)
            if self.keep_weights and exc_info[0] is None:
                self.session.selection.write(self.session.prediction_weights())
        finally:
            self._stack.close()
            self._session = None

    @property
    def session(self) -> Session:
        """The open session."""
        if self._session is None:
            raise SessionError("this run is not open: use it inside 'with TTTRun(...) as run:'")
        return self._session

    @property
    def batches(self) -> int:
        """On how many batches the model was adapted."""
        return self._batches

    def continue_after(self, batches: int) -> None:
        """Count ``batches`` that the run of a loaded state was adapted to, towards ``max_batches``."""
        self._batches = batches

    def predictions(
        self,
        records: Sequence[Record],
        *,
        augment: Callable[[Any, Predictor], Any] | None = None,
        done: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> Iterator[list[Entry]]:
        """Yield the entries of each batch, adapting according to ``config.reset``.

        Args:
            records: the whole stream.
            augment: test-time augmentation, see :meth:`predict`.
            done: number of records that an interrupted run has predicted already; 0 for online runs, which cannot be
                continued.
            on_batch: see :meth:`adapt`.
        """
        if self.adapter.calls_model_itself:
            self.adapt(records, on_batch=on_batch)
            yield from self.predict(records[done:], augment=augment)
            return
        for outputs, batch in self.outputs(records, augment=augment, done=done, on_batch=on_batch):
            yield self.adapter.entries(outputs, batch)

    def outputs(
        self,
        records: Sequence[Record],
        *,
        augment: Callable[[Any, Predictor], Any] | None = None,
        done: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Any, ImageBatch]]:
        """Yield the outputs on each batch, for ``adapter.entries``; the arguments are those of :meth:`predictions`."""
        remaining = records[done:]
        if self.config.reset == "online":
            yield from self._online(remaining, augment)
        elif self.config.reset == "sample":
            yield from self._sample(remaining, augment, done)
        else:
            self.adapt(records, on_batch=on_batch)
            yield from self._predict(remaining, augment)

    def adapt(self, records: Sequence[Record], *, on_batch: Callable[[int], None] | None = None) -> None:
        """Adapt on the records in order, up to ``max_batches``; ``on_batch`` is called with each batch's size.

        Several calls continue one stream, whose limit they share.
        """
        limit = self.config.max_batches
        with closing(self._loader(records)) as batches:
            for batch in itertools.islice(batches, None if limit is None else max(0, limit - self._batches)):
                inputs = batch.inputs
                self._record_size(inputs)
                self._open_probe(inputs)
                report = self.session.adapt(inputs, steps=self.config.steps)
                if report.verdict == "refused":
                    break
                self._batches += 1
                if on_batch is not None:
                    on_batch(len(batch.records) or report.samples)

    def predict(
        self, records: Sequence[Record], *, augment: Callable[[Any, Predictor], Any] | None = None
    ) -> Iterator[list[Entry]]:
        """Yield the entries of each batch, predicted with the adapted model.

        Args:
            records: the images to predict.
            augment: test-time augmentation: a function of inputs and a predictor that returns outputs.
        """
        if self.adapter.calls_model_itself:
            # Such an adapter calls the model directly, so the method's way to predict is installed in the model.
            with self.session.installed():
                yield self.adapter.predict(records)
            return
        for outputs, batch in self._predict(records, augment):
            yield self.adapter.entries(outputs, batch)

    def _predict(
        self, records: Sequence[Record], augment: Callable[[Any, Predictor], Any] | None
    ) -> Iterator[tuple[Any, ImageBatch]]:
        with closing(self._loader(records)) as batches:
            for batch in batches:
                yield self._outputs(batch.inputs, augment), batch

    def online(
        self, records: Sequence[Record], *, augment: Callable[[Any, Predictor], Any] | None = None
    ) -> Iterator[list[Entry]]:
        """Adapt on each batch and yield its entries from the same pass; after ``max_batches`` only predict."""
        for outputs, batch in self._online(records, augment):
            yield self.adapter.entries(outputs, batch)

    def _online(
        self, records: Sequence[Record], augment: Callable[[Any, Predictor], Any] | None
    ) -> Iterator[tuple[Any, ImageBatch]]:
        limit = self.config.max_batches
        with closing(self._loader(records)) as batches:
            for batch in batches:
                self._record_size(batch.inputs)
                if limit is not None and self._batches >= limit:
                    yield self._outputs(batch.inputs, augment), batch
                    continue
                self._open_probe(batch.inputs)
                outputs, report = self.session.adapt_and_predict(batch.inputs, steps=self.config.steps)
                self._batches += report.verdict != "refused"
                if augment is not None:
                    outputs = augment(batch.inputs, _first_from(outputs, self.session.predict))
                yield outputs, batch

    def sample(
        self,
        records: Sequence[Record],
        *,
        augment: Callable[[Any, Predictor], Any] | None = None,
        done: int = 0,
    ) -> Iterator[list[Entry]]:
        """Yield the entry of each image: adapt to it alone, predict it, and restore the source model.

        ``done``: number of images that an interrupted run has predicted; they count towards ``max_batches``.
        """
        for outputs, batch in self._sample(records, augment, done):
            yield self.adapter.entries(outputs, batch)

    def _sample(
        self, records: Sequence[Record], augment: Callable[[Any, Predictor], Any] | None, done: int
    ) -> Iterator[tuple[Any, ImageBatch]]:
        limit = self.config.max_batches
        # One loader for each record, so that images that cannot be used count towards max_batches as well.
        numbered = (
            (position, batch)
            for position, record in enumerate(records, start=done)
            for batch in self.adapter.build_loader([record], batch_size=1)
        )
        with closing(ahead(numbered, _IMAGES_AHEAD * min(1, self._read_ahead))) as found:
            for position, batch in found:
                yield self._sampled(batch, adapts=limit is None or position < limit, augment=augment), batch

    def _sampled(self, batch: ImageBatch, *, adapts: bool, augment: Callable[[Any, Predictor], Any] | None) -> Any:
        self.session.reset()
        self._record_size(batch.inputs)
        if adapts:
            report = self.session.adapt(batch.inputs, steps=self.config.steps)
            self._batches += report.verdict != "refused"
            self._changed_param_count = max(self._changed_param_count, self.session.changed_param_count)
        return self._outputs(batch.inputs, augment)

    def report(self) -> TTTReport:
        """Return the report of the run until now."""
        session = self.session.report()
        warnings = list(self._warnings)
        if self._uses_batch_statistics() and 0 < self._smallest_batch < FEW_IMAGES:
            warnings.append(few_images_warning(self._smallest_batch))
        return TTTReport(
            losses=tuple(session.losses),
            mask_ratio=self.config.mask_prob if "mask_prob" in self.info.own_settings.values() else None,
            updated_param_count=session.updated_param_count,
            changed_param_count=max(session.changed_param_count, self._changed_param_count),
            warnings=tuple(dict.fromkeys((*warnings, *session.notes, *step_warnings(session)))),
            stopped_early=session.stopped_early,
            stop_reason=session.stop_reason,
            batches=self._batches,
            step_metrics=session.steps,
            session=session,
        )

    def warn_about_lost_effects(self) -> None:
        """Add a warning for each effect of the method on predictions that ends with the run."""
        self._warnings += lost_effects(self.config, self.info, batch_statistics=self._uses_batch_statistics())

    def _uses_batch_statistics(self) -> bool:
        settings = settings_of(self.session.method)
        return bool(settings.get("batch_statistics", False) and batch_norms(self.session.model))

    def _record_size(self, inputs: Any) -> None:
        count = sample_count(inputs)
        self._smallest_batch = min(self._smallest_batch or count, count)

    def _outputs(self, inputs: Any, augment: Callable[[Any, Predictor], Any] | None) -> Any:
        return self.session.predict(inputs) if augment is None else augment(inputs, self.session.predict)

    def _loader(self, records: Sequence[Record]) -> Generator[ImageBatch, None, None]:
        return ahead(self._batches_of(records), self._read_ahead)

    def _batches_of(self, records: Sequence[Record]) -> Iterable[ImageBatch]:
        return self.adapter.build_loader(records, batch_size=self.config.batch_size)

    def _open_probe(self, inputs: Any) -> None:
        if needs_probe(self.config) and self.session.probe is None:
            self.session.set_probe(inputs)

    def _given_probe(self) -> Any:
        with self.adapter.reader.without_corruption():
            for batch in self._batches_of(self._probe_records):
                return batch.inputs
        raise DataError(f"none of the {len(self._probe_records)} probe images can be used; check the files")

    def _with_source(self, method: Method, model: nn.Module) -> Method:
        """Return the method with its statistics of source images, which are read without the corruption."""
        if not isinstance(method, UsesSourceImages):
            return method
        with self.adapter.reader.without_corruption():
            source = SourceImages(self._source_batches if self._source_records else None, self.adapter.source_spectrum)
            return method.with_source(model, source, task=self.task)

    def _source_batches(self, size: int | None) -> Iterator[Any]:
        loader = self.adapter.build_loader(self._source_records, batch_size=size or self.config.batch_size)
        return (batch.inputs for batch in loader)


def _first_from(outputs: Any, then: Predictor) -> Predictor:
    """Return a predictor whose first call returns the known ``outputs``, and whose other calls go to ``then``."""
    answers = [outputs]

    def predict(inputs: Any) -> Any:
        return answers.pop() if answers else then(inputs)

    return predict

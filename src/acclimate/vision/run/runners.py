"""The functions that the vision integration plan names: for an adapter and records, or for a model and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from acclimate.core.report import SessionReport
from acclimate.core.selection import TensorFilter
from acclimate.core.session import Session
from acclimate.core.task import Task
from acclimate.errors import ConfigError
from acclimate.methods import Mim, Tent
from acclimate.registry import FilterKind
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Adapter
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt import TTTRun
from acclimate.vision.run.ttt_report import TTTReport


def run_ttt(
    adapter: Adapter,
    records: Sequence[Record],
    config: TTTConfig,
    *,
    source_records: Sequence[Record] = (),
) -> TTTReport:
    """Adapt an adapter's model to the records, before prediction, and leave the adapted weights in it.

    Flags and modes of the model are as before. A method that needs more than weights to predict (batch or mixed
    statistics) cannot leave that behind: predict inside :class:`TTTRun`, as ``acclimate export`` does. The report
    warns where that is so.

    Raises:
        ConfigError: the configuration is not enabled, or asks for ``sample`` or ``online``, which predict as they go.
        TTTNotSupportedError: the adapter lacks ``get_model`` or ``build_loader``.
    """
    if not config.enabled:
        raise ConfigError("run_ttt was called with enabled=False")
    if config.reset != "stream":
        raise ConfigError(f"run_ttt adapts before prediction; reset {config.reset!r} predicts as it goes: use TTTRun")
    with TTTRun(adapter, config, source_records=source_records, keep_weights=True) as run:
        run.adapt(records)
        run.warn_about_what_stays_behind()
        return run.report()


def dry_run(
    adapter: Adapter, config: TTTConfig, *, source_records: Sequence[Record] = ()
) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of each tensor that would move, without moving any."""
    with TTTRun(adapter, config, source_records=source_records) as run:
        return [(name, tuple(parameter.shape)) for name, parameter in run.session.selection.parameters.items()]


@dataclass(frozen=True, slots=True)
class TTTMIMResult:
    """What :func:`run_ttt_mim` did.

    Attributes:
        losses: of every step, in order; None where a batch was skipped.
        mask_ratio: the probability with which a patch was hidden.
        updated_param_count: elements that were selected to move.
        report: the session's whole report.
    """

    losses: tuple[float | None, ...]
    mask_ratio: float
    updated_param_count: int
    report: SessionReport


def run_ttt_mim(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int = 1,
    lr: float = 1e-4,
    mask_prob: float = 0.6,
    patch_size: int = 16,
    mask_value: float = 0.0,
    update_filter: FilterKind = "all",
    seed: int = 0,
    task: Task | None = None,
) -> TTTMIMResult:
    """Adapt ``model`` to ``batches`` by masked images and leave the adapted weights in it.

    Args:
        model: any module; with a method ``reconstruct`` it learns pixels, otherwise consistent predictions.
        batches: what the model takes.
        steps: on each batch.
        lr: of Adam.
        mask_prob: probability of hiding a patch.
        patch_size: side of a patch in pixels.
        mask_value: of hidden pixels.
        update_filter: which parameters may move.
        seed: of the masks.
        task: what the outputs mean; classification by default.
    """
    method = Mim(
        lr=lr,
        mask_probability=mask_prob,
        patch_size=patch_size,
        mask_value=mask_value,
        update=TensorFilter(kind=update_filter),
    )
    with Session(model, method, task=task, seed=seed) as session:
        for batch in batches:
            session.adapt(batch, steps=steps)
        report = session.report()
    return TTTMIMResult(tuple(report.losses), mask_prob, report.updated_param_count, report)


class TentRunner:
    """Tent on a model, for as many batches as you bring.

    Args:
        model: any module.
        lr: of Adam.
        update_filter: which parameters may move.
        task: what the outputs mean; classification by default.
        seed: of everything random.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-4,
        update_filter: FilterKind = "norm_only",
        task: Task | None = None,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._method = Tent(lr=lr, update=TensorFilter(kind=update_filter))
        self._task = task
        self._seed = seed
        self.report: SessionReport | None = None

    def run(self, batches: Iterable[Any], *, steps: int = 1) -> SessionReport:
        """Adapt to the batches and leave the adapted weights in the model; each call starts fresh moments."""
        with Session(self._model, self._method, task=self._task, seed=self._seed) as session:
            for batch in batches:
                session.adapt(batch, steps=steps)
            self.report = session.report()
        return self.report

    @property
    def updated_param_count(self) -> int:
        """Elements that were selected to move in the last run; 0 before the first."""
        return 0 if self.report is None else self.report.updated_param_count

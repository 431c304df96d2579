"""The functions of the vision integration plan, for an adapter and records or for a model and batches."""

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
    """Adapt an adapter's model to the records before prediction, and leave the adapted weights in it.

    Flags and modes of the model are restored. Methods that predict with more than weights (batch or mixed statistics)
    have their full effect only inside :class:`TTTRun`, as in ``acclimate export``; the report warns about that.

    Raises:
        ConfigError: ``enabled`` is false, or ``reset`` is ``sample`` or ``online``, which predict while adapting.
        TTTNotSupportedError: the adapter lacks ``get_model`` or ``build_loader``.
    """
    if not config.enabled:
        raise ConfigError("run_ttt was called with enabled=False; set enabled=True, or do not call it")
    if config.reset != "stream":
        raise ConfigError(
            f"run_ttt adapts before prediction, and reset {config.reset!r} predicts while adapting: use TTTRun"
        )
    with TTTRun(adapter, config, source_records=source_records, keep_weights=True) as run:
        run.adapt(records)
        run.warn_about_lost_effects()
        return run.report()


def dry_run(
    adapter: Adapter, config: TTTConfig, *, source_records: Sequence[Record] = ()
) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of each trainable parameter, without adapting."""
    with TTTRun(adapter, config, source_records=source_records) as run:
        return [(name, tuple(parameter.shape)) for name, parameter in run.session.selection.parameters.items()]


@dataclass(frozen=True, slots=True)
class TTTMIMResult:
    """The results of :func:`run_ttt_mim`.

    Attributes:
        losses: the loss of every step, in order; None where a batch was skipped.
        mask_ratio: the probability with which a patch was masked.
        updated_param_count: number of trainable elements.
        report: the session's report.
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
    """Adapt ``model`` to ``batches`` on masked images (see :class:`Mim`), and leave the adapted weights in it.

    Args:
        model: any module; with a method ``reconstruct`` the target is pixels, otherwise consistent predictions.
        batches: inputs of the model.
        steps: number of steps on each batch.
        lr: of Adam.
        mask_prob: the probability of masking a patch.
        patch_size: side of a patch in pixels.
        mask_value: value of masked pixels.
        update_filter: which parameters are trainable.
        seed: of the masks.
        task: interprets the outputs; classification by default.
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
    """Adapts a model with Tent.

    Args:
        model: any module.
        lr: of Adam.
        update_filter: which parameters are trainable.
        task: interprets the outputs; classification by default.
        seed: of all random numbers.
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
        """Adapt to the batches and leave the adapted weights in the model; each call uses a new optimizer."""
        with Session(self._model, self._method, task=self._task, seed=self._seed) as session:
            for batch in batches:
                session.adapt(batch, steps=steps)
            self.report = session.report()
        return self.report

    @property
    def updated_param_count(self) -> int:
        """Number of trainable elements in the last run; 0 before the first."""
        return 0 if self.report is None else self.report.updated_param_count

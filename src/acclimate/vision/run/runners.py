"""The function names of the integration plan, over the session: for a model and batches, without an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from acclimate.core.report import SessionReport
from acclimate.core.selection import TensorFilter
from acclimate.core.session import Session
from acclimate.core.task import Task
from acclimate.methods import Mim, Tent
from acclimate.registry import FilterKind


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

"""Tent: entropy minimisation over normalisation parameters (Wang et al., ICLR 2021, arXiv 2006.10726)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from acclimate.core.losses import softmax_entropy, weighted_mean
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.task import Task
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Tent:
    """Minimise the mean entropy of the decisions in each batch.

    Attributes:
        lr: of Adam; 1e-3 as in section 4 of the paper for CIFAR.
        betas: of Adam, as in the official code.
        update: the trainable parameters; the paper's are the affine parameters of normalisation layers.
        batch_statistics: whether to normalise with the batch's statistics, as the paper does.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="tent",
        title="Tent",
        paper=Paper(authors="Wang et al.", venue="ICLR", year=2021, arxiv="2006.10726"),
        cost=3.1,
        parameters_of_paper="norm_only",
        presets=(
            Preset(
                name="safe",
                settings={"update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2},
                detector={"lr": 1e-4},
            ),
            Preset(
                name="adapter_only",
                settings={"update_filter": "adapter_only", "lr": 1e-3, "lora_rank": 4, "max_drift": 0.2},
                detector={"lr": 1e-4},
            ),
        ),
        safe_rank={"classifier": 1, "segmenter": 3, "detector": 3},
    )

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    update: TensorFilter = TensorFilter()
    batch_statistics: bool = True

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses."""
        return selecting(model, self.update, batch_statistics=self.batch_statistics)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> None:
        """Return None: Tent has no state."""

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: None,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Make one gradient step on the mean entropy of the batch (eq. 1); the outputs are those before the update."""
        outputs = task.forward(model, batch)
        decisions = task.decisions(outputs)
        if len(decisions) == 0:
            return Step(state, detach(outputs), None, 0)
        loss = weighted_mean(softmax_entropy(decisions.logits), decisions.weights)
        loss.backward()
        optimizer.step()
        return Step(state, detach(outputs), loss.detach(), len(decisions))

    def predict(self, model: nn.Module, inputs: Any, state: None, *, task: Task) -> Any:
        """Return the adapted model's outputs."""
        return task.forward(model, inputs)

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return no notes."""
        return ()

"""SAR: sharpness-aware entropy of reliable samples, with recovery (Niu et al., ICLR 2023, arXiv 2302.12400)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from acclimate.core.losses import entropy_margin_nats, softmax_entropy, weighted_mean
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach
from acclimate.core.precision import precise
from acclimate.core.selection import LAST_BLOCKS, TensorFilter, selecting
from acclimate.core.task import Task
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True)
class SarState:
    """Moving average of the second loss in nats; None before the first."""

    mean_loss_nats: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sar:
    """Minimise the entropy of reliable samples at adversarially perturbed weights; reset to the source near collapse.

    Attributes:
        lr: of the base optimizer. The paper's is 2.5e-4 for ResNet-50 and 1e-3 for ViT at batch 64 (appendix C).
        base: the optimizer inside SAM: ``sgd`` (paper) or ``adam`` (the benchmark setting for CIFAR).
        momentum: of SGD.
        rho: radius of the perturbation (eq. 4; 0.05).
        entropy_margin: E0 as a fraction of ln(classes) (eq. 2; 0.4).
        reset_below_nats: reset to the source when the moving average of the second loss falls below this (0.2).
        loss_momentum: of that moving average (0.9).
        frozen_layers: patterns of layers that are never trainable; the official code's for the last blocks of ResNet-50
            and ViT. They match nothing in other networks.
        update: the trainable parameters.
        batch_statistics: whether to normalise with the batch's statistics.

    Raises:
        ConfigError: the base optimizer is unknown, or rho or the margin is not positive.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sar",
        title="SAR",
        paper=Paper(authors="Niu et al.", venue="ICLR", year=2023, arxiv="2302.12400"),
        cost=5.7,
        parameters_of_paper="norm_only",
        presets=(
            Preset(
                name="sar_safe",
                settings={
                    "update_filter": "norm_only",
                    "lr": 1e-3,
                    "max_drift": 0.2,
                    "method_options": {"base": "adam"},
                },
                detector={"lr": 1e-4},
            ),
        ),
    )
    state_types: ClassVar[tuple[type, ...]] = (SarState,)

    lr: float = 1e-3
    base: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    rho: float = 0.05
    entropy_margin: float = 0.4
    reset_below_nats: float = 0.2
    loss_momentum: float = 0.9
    frozen_layers: tuple[str, ...] = LAST_BLOCKS
    update: TensorFilter = TensorFilter()
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        if self.base not in ("sgd", "adam"):
            raise ConfigError(f"sar: base must be sgd or adam, got {self.base!r}")
        for name in ("rho", "entropy_margin"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"sar: {name} must be positive, got {getattr(self, name)}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses, without ``frozen_layers``."""
        return selecting(model, self.update.without(self.frozen_layers), batch_statistics=self.batch_statistics)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the base optimizer of SAM."""
        if self.base == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, foreach=True)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> SarState:
        """Return a state without a moving average."""
        return SarState(None)

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: SarState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Make one sharpness-aware step (eqs. 2 to 4); the outputs are those before it."""
        outputs = task.forward(model, batch)
        decisions = task.decisions(outputs)
        nothing = Step(state, detach(outputs), None, 0)
        if len(decisions) == 0:
            return nothing
        entropy = softmax_entropy(decisions.logits)
        margin = entropy_margin_nats(self.entropy_margin, decisions.logits.shape[-1])
        reliable = entropy.detach() < margin
        if not bool(reliable.any()):
            return nothing
        weights = decisions.weights
        weighted_mean(entropy[reliable], None if weights is None else weights[reliable]).backward()
        with _perturbed(selection.parameters.values(), self.rho):
            second = task.decisions(task.forward(model, batch))
            second_entropy = softmax_entropy(second.logits)
            keep = second_entropy.detach() < margin
            if task.aligned:
                keep &= reliable
            used = int(keep.sum())
            if used == 0:
                return nothing
            loss = weighted_mean(second_entropy[keep], None if second.weights is None else second.weights[keep])
            loss.backward()
        optimizer.step()
        loss_nats = float(loss.detach())
        mean = loss_nats
        if state.mean_loss_nats is not None:
            mean = self.loss_momentum * state.mean_loss_nats + (1 - self.loss_momentum) * loss_nats
        return Step(SarState(mean), detach(outputs), loss.detach(), used, reset=mean < self.reset_below_nats)

    def predict(self, model: nn.Module, inputs: Any, state: SarState, *, task: Task) -> Any:
        """Return the adapted model's outputs."""
        return task.forward(model, inputs)

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return no notes."""
        return ()


@contextmanager
def _perturbed(parameters: Iterable[nn.Parameter], radius: float) -> Iterator[None]:
    """Inside the block, the weights are moved by ``radius`` along the gradient, and gradients are cleared."""
    perturbed = [parameter for parameter in parameters if parameter.grad is not None]
    values = [parameter.data for parameter in perturbed]
    gradients = [parameter.grad.detach() for parameter in perturbed if parameter.grad is not None]
    with torch.no_grad():
        saved = [value.clone() for value in values]
        precise_gradients = precise(gradients)
        norm = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(precise_gradients))))
        torch._foreach_mul_(precise_gradients, radius / (norm + 1e-12))
        torch._foreach_add_(values, precise_gradients)
    for parameter in perturbed:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(values, saved)

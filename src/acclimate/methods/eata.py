"""EATA: entropy of reliable, non-redundant samples, regularised (Niu et al., ICML 2022, arXiv 2204.02610)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.core.losses import entropy_margin_nats, softmax_entropy, weighted_mean
from acclimate.core.method import Method, Selection, Step
from acclimate.core.outputs import at_least_float32, detach
from acclimate.core.precision import precise
from acclimate.core.programs import no_gradient
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.source_images import FROM_SOURCE_IMAGES, SourceImages
from acclimate.core.task import Classification, Task
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True)
class EataState:
    """Moving average of the kept samples' class probabilities, ``(classes,)``, and the source weights by name."""

    mean_probabilities: Tensor | None
    source: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Eata:
    """Minimise the weighted entropy of samples that are reliable and not redundant, regularised to the source weights.

    Attributes:
        lr: of SGD; 5e-3, the paper's for CIFAR-10 (appendix C).
        momentum: of SGD.
        entropy_margin: E0 as a fraction of the largest entropy, ln(classes) (eq. 3; 0.4 in the paper).
        redundancy_margin: d of eq. 5, the cosine similarity above which a sample is redundant; 0.4 is the official
            code's for CIFAR-10, 0.05 its value for ImageNet.
        probability_momentum: of the moving average of probabilities (eq. 5; 0.9).
        fisher: the Fisher information by parameter name, from :func:`fisher_information`; None without source samples.
        fisher_weight: beta of eq. 8; 1 on CIFAR-10 and 2000 on ImageNet in the official code.
        anchor_weight: weight of the squared distance to the source weights, which replaces the Fisher term where
            ``fisher`` is None. Not in the paper, which omits the term in that case (ETA); 0 does the same.
        update: the trainable parameters.
        batch_statistics: whether to normalise with the batch's statistics.

    Raises:
        ConfigError: a margin is not positive or a weight is negative.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="eata",
        title="EATA",
        paper=Paper(authors="Niu et al.", venue="ICML", year=2022, arxiv="2204.02610"),
        cost=2.8,
        parameters_of_paper="norm_only",
        uses_source_images=True,
        presets=(
            Preset(
                name="eata_safe",
                settings={"update_filter": "norm_only", "lr": 5e-3, "max_drift": 0.2},
                detector={"lr": 5e-4},
            ),
        ),
        auto={"classifier": ({"lr": 5e-4}, {"lr": 5e-3}), "segmenter": ({"lr": 5e-4},)},
        auto_last_resort=True,
    )
    state_types: ClassVar[tuple[type, ...]] = (EataState,)

    lr: float = 5e-3
    momentum: float = 0.9
    entropy_margin: float = 0.4
    redundancy_margin: float = 0.4
    probability_momentum: float = 0.9
    fisher: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False, metadata=FROM_SOURCE_IMAGES)
    fisher_weight: float = 1.0
    anchor_weight: float = 0.1
    update: TensorFilter = TensorFilter()
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        for name in ("entropy_margin", "redundancy_margin"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"eata: {name} must be positive, got {getattr(self, name)}")
        for name in ("fisher_weight", "anchor_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"eata: {name} must not be negative, got {getattr(self, name)}")

    def with_source(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with the Fisher information of the source images (eq. 9); itself without such images."""
        if source.batches is None:
            return self
        return replace(self, fisher=fisher_information(model, source.batches(None), method=self, task=task))

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses."""
        return selecting(model, self.update, batch_statistics=self.batch_statistics)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> EataState:
        """Return a state without a moving average, whose source weights are the present ones."""
        source = selection.copied()
        return EataState(None, source)

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: EataState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Make one gradient step on eq. 8; the outputs are those before the update."""
        outputs = task.forward(model, batch)
        decisions = task.decisions(outputs)
        if len(decisions) == 0:
            return Step(state, detach(outputs), None, 0)
        entropy = softmax_entropy(decisions.logits)
        margin = entropy_margin_nats(self.entropy_margin, decisions.logits.shape[-1])
        keep = entropy.detach() < margin
        probabilities = decisions.class_probabilities()
        # With a single class all decisions have a similarity of 1, and all but the first would be redundant.
        if state.mean_probabilities is not None and probabilities.shape[1] > 1:
            similarity = F.cosine_similarity(state.mean_probabilities[None], probabilities, dim=1)
            keep &= similarity.abs() < self.redundancy_margin
        used = int(keep.sum())
        if used == 0:
            return Step(state, detach(outputs), None, 0)
        kept_entropy = entropy[keep]
        weight = torch.exp(margin - kept_entropy.detach())
        loss = weighted_mean(kept_entropy * weight, None if decisions.weights is None else decisions.weights[keep])
        loss = self._regularised(loss, selection.parameters, state.source)
        loss.backward()
        optimizer.step()
        mean = probabilities[keep].mean(0)
        if state.mean_probabilities is not None:
            mean = torch.lerp(mean, state.mean_probabilities, self.probability_momentum)
        return Step(EataState(mean, state.source), detach(outputs), loss.detach(), used)

    def predict(self, model: nn.Module, inputs: Any, state: EataState, *, task: Task) -> Any:
        """Return the adapted model's outputs."""
        return task.forward(model, inputs)

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return how the weights are regularised where there is no Fisher information."""
        if self.fisher is not None or self.fisher_weight == 0:
            return ()
        if self.anchor_weight == 0:
            return ("eata: without source samples there is no Fisher term; the weights are not regularised",)
        return (
            f"eata: without source samples, the squared distance to the source weights (weight {self.anchor_weight:g}) "
            "replaces the Fisher term",
        )

    def _regularised(
        self, loss: Tensor, parameters: Mapping[str, nn.Parameter], source: Mapping[str, Tensor]
    ) -> Tensor:
        if self.fisher_weight == 0 or (self.fisher is None and self.anchor_weight == 0):
            return loss
        values, anchors = precise(parameters.values()), precise(source[name] for name in parameters)
        differences = torch._foreach_sub(values, anchors)
        squares = torch._foreach_mul(differences, differences)
        weight = self.anchor_weight
        if self.fisher is not None:
            squares = torch._foreach_mul(list(squares), [self.fisher[name] for name in parameters])
            weight = self.fisher_weight
        return loss + weight * torch.cat([square.flatten() for square in squares]).sum()


def fisher_information(
    model: nn.Module, batches: Iterable[Any], *, method: Method | None = None, task: Task | None = None
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of the selected parameters by name (eq. 9).

    As in the official code, labels are the model's own predictions, and the squared gradient of each batch's mean
    cross-entropy is averaged over the batches. The model is not changed.

    Args:
        model: any module.
        batches: the model's inputs for unlabelled source samples (2,000 in the paper).
        method: the method whose trainable parameters are selected; :class:`Eata` by default.
        task: interprets the outputs; classification by default.

    Raises:
        ConfigError: there is no batch.
        TTTNotSupportedError: the model's outputs have no gradient.
    """
    task = Classification() if task is None else task
    selecting_method: Any = Eata() if method is None else method
    with selecting_method.select(model) as selection, torch.enable_grad():
        names, parameters = list(selection.parameters), list(selection.parameters.values())
        totals = precise(torch.zeros_like(parameter) for parameter in parameters)
        count = 0
        for batch in batches:
            decisions = task.decisions(task.forward(model, batch))
            count += 1
            if len(decisions) == 0:
                continue
            logits = decisions.logits
            loss = weighted_mean(F.cross_entropy(logits, logits.argmax(-1), reduction="none"), decisions.weights)
            if not loss.requires_grad:
                raise TTTNotSupportedError(no_gradient(model, "the Fisher information"))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total.add_(at_least_float32(gradient).square())
    if count == 0:
        raise ConfigError("fisher_information needs at least one batch of source samples, got none")
    return {name: total / count for name, total in zip(names, totals, strict=True)}

"""MEMO: one step on the augmented views of each single image (Zhang et al., NeurIPS 2022, arXiv 2110.09506)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from acclimate.core import layout
from acclimate.core.determinism import device_of, generator
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import sample_count
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.source_model import FunctionalModel
from acclimate.core.task import Task, logits_of, require_classifier
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Memo:
    """For each image, minimise the entropy of the mean prediction over its augmented views, then predict the image.

    Each image starts from the model's own weights: the step is made on a copy, in ``predict`` as well as in ``step``.
    An image costs about as much as ``3 * view_count`` predictions without adaptation.

    Attributes:
        lr: of the single gradient step (5e-3, the paper's for CIFAR-10).
        view_count: number of augmented views of each image (32). They are those of :mod:`acclimate.core.views`, not
            AugMix: colours, blur, noise, mirroring, small rotations and shifts.
        source_strength: N of the mixed BatchNorm statistics, see :class:`acclimate.methods.BatchNormStats`; 16 as in
            the paper. The views of an image count as one sample.
        view_seed: seed of the views in ``predict``.
        update: the trainable parameters; the paper's are all parameters.

    Raises:
        ConfigError: there are fewer than two views, or the strength is negative.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="memo",
        title="MEMO",
        paper=Paper(authors="Zhang et al.", venue="NeurIPS", year=2022, arxiv="2110.09506"),
        averages_views=True,
        cost=200.0,
        parameters_of_paper="all",
        kinds=("classifier",),
        adapts_each_image=True,
        also_predicts_with="a step for each image",
        compared=False,
        presets=(Preset(name="memo_safe", settings={"update_filter": "all", "lr": 5e-3}),),
    )

    lr: float = 5e-3
    view_count: int = 32
    source_strength: float = 16.0
    view_seed: int = 0
    update: TensorFilter = TensorFilter(kind="all")

    def __post_init__(self) -> None:
        if self.view_count < 2:
            raise ConfigError(f"memo: view_count must be at least 2, got {self.view_count}")
        if not self.source_strength >= 0:
            raise ConfigError(f"memo: source_strength must not be negative, got {self.source_strength}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses, with statistics in which all views count as one sample."""
        return selecting(model, self.update, batch_statistics=True, batch_weight=1 / (1 + self.source_strength))

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: the step is plain gradient descent on a copy of the weights."""

    def start(self, model: nn.Module, selection: Selection) -> None:
        """Return None: images are independent."""

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: None,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer | None,
        rng: torch.Generator,
    ) -> Step:
        """Predict each image after its own step.

        Raises:
            TTTNotSupportedError: the task is no classifier's.
        """
        outputs, loss = self._adapted(model, batch, task=task, rng=rng)
        return Step(state, outputs, loss, sample_count(batch))

    def predict(self, model: nn.Module, inputs: Any, state: None, *, task: Task) -> Tensor:
        """Predict each image after its own step, as :meth:`step` does.

        Raises:
            TTTNotSupportedError: the task is no classifier's.
        """
        with torch.enable_grad():
            rng = generator(self.view_seed, device_of(model))
            return self._adapted(model, layout.for_learning(inputs), task=task, rng=rng)[0]

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return that images are independent."""
        return ("memo: a copy of the weights is adapted to each image alone; the model's own weights are not updated",)

    def _adapted(self, model: nn.Module, batch: Any, *, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        require_classifier(task, self.info.name)
        weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        predictions, losses = [], []
        for image in task.images(batch).split(1):
            views = [view.batch for view in task.views(image, count=self.view_count, rng=rng)]
            loss = marginal_entropy(logits_of(task.forward(model, torch.cat(views))))
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            adapted = {
                name: weight.detach() if gradient is None else weight.detach() - self.lr * gradient
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            with torch.no_grad():
                predictions.append(
                    logits_of(task.forward(FunctionalModel(model, adapted), task.with_images(batch, image)))
                )
            losses.append(loss.detach())
        return torch.cat(predictions), torch.stack(losses).mean()


def marginal_entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats of the mean prediction over views ``(V, K)`` (eq. 2): a scalar."""
    mean = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return -(mean.exp() * mean).sum()

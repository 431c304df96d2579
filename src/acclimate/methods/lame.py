"""LAME: predictions of a batch corrected by feature similarity (Boudiaf et al., CVPR 2022, arXiv 2201.05718)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.core import layout
from acclimate.core.embeddings import last_linear
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import at_least_float32, detach, sample_count
from acclimate.core.selection import nothing_selected
from acclimate.core.task import Task, correcting_logits, logits_of, require_classifier
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.registry import MethodInfo, Paper, Preset

_CONVERGED: Final = 1e-8
_SMALL: Final = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Lame:
    """Correct the predictions of a batch so that images with similar features get similar ones (eqs. 6 and 7).

    The model is not changed. Features are the inputs of the network's last linear layer. The method is made for streams
    in which consecutive images often have the same class; elsewhere, as in shuffled benchmarks, it lowers the accuracy.

    Attributes:
        affinity: ``rbf``: a Gaussian of the distance, whose width is the mean distance to the ``neighbours``-th image
            (the benchmark repository's choice); ``knn``: 1 for the nearest ``neighbours`` images, else 0 (the official
            code's choice for most data sets); ``linear``: the cosine similarity.
        neighbours: number of nearest images (5).
        max_steps: limit of the fixed-point iteration (100).

    Raises:
        ConfigError: the affinity is unknown, or a number is below 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="lame",
        title="LAME",
        paper=Paper(authors="Boudiaf et al.", venue="CVPR", year=2022, arxiv="2201.05718"),
        cost=1.0,
        kinds=("classifier",),
        needs_gradient=False,
        also_predicts_with="corrections of each batch",
        presets=(Preset(name="lame_safe", settings={"update_filter": "norm_only"}),),
    )

    affinity: Literal["rbf", "knn", "linear"] = "rbf"
    neighbours: int = 5
    max_steps: int = 100

    def __post_init__(self) -> None:
        if self.affinity not in ("rbf", "knn", "linear"):
            raise ConfigError(f"lame: affinity must be rbf, knn or linear, got {self.affinity!r}")
        for name in ("neighbours", "max_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"lame: {name} must be at least 1, got {getattr(self, name)}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select no parameter."""
        return nothing_selected(model)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Return None: no gradient is computed."""

    def start(self, model: nn.Module, selection: Selection) -> None:
        """Return None: there is no state."""

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
        """Return the corrected predictions of the batch, as logits."""
        with torch.no_grad():
            outputs = self.predict(model, layout.for_prediction(batch), state, task=task)
        return Step(state, detach(outputs), None, sample_count(batch))

    def predict(self, model: nn.Module, inputs: Any, state: None, *, task: Task) -> Tensor:
        """Return the corrected predictions, as logits.

        Raises:
            TTTNotSupportedError: the task is no classifier's, or the network has no linear layer.
        """
        with self.installed(model, state, task=task):
            return logits_of(task.forward(model, inputs))

    @contextmanager
    def installed(self, model: nn.Module, state: None, *, task: Task) -> Iterator[None]:
        """Inside the block, ``model`` returns corrected predictions.

        Raises:
            TTTNotSupportedError: the task is no classifier's.
        """
        require_classifier(task, self.info.name)
        with last_linear(model) as last:

            def correct(logits: Tensor) -> Tensor:
                if not last:
                    raise TTTNotSupportedError(
                        "lame compares the inputs of the last linear layer, and this network has no linear layer; "
                        "use another method"
                    )
                return self.corrected(logits, last[0][1].flatten(1))

            with correcting_logits(model, correct):
                yield

    def corrected(self, logits: Tensor, features: Tensor) -> Tensor:
        """Return corrected logits ``(B, K)`` with the same logsumexp as before; features are ``(B, D)``.

        Half precision is computed in float32, because its smallest numbers are too large for the logarithms.
        """
        logits, features = at_least_float32(logits), at_least_float32(features)
        unary = -(logits.softmax(-1) + _SMALL).log()
        kernel = self._kernel(F.normalize(features, dim=-1)).to(logits.dtype)
        assigned = (-unary).softmax(-1)
        energy = float("inf")
        for step in range(self.max_steps):
            pairwise = kernel @ assigned
            assigned = (pairwise - unary).softmax(-1)
            last, energy = energy, float((assigned * (unary - pairwise + assigned.clamp(min=1e-20).log())).sum())
            if step > 1 and abs(energy - last) <= _CONVERGED * abs(last):
                break
        return assigned.clamp(min=1e-20).log() + logits.logsumexp(-1, keepdim=True)

    def _kernel(self, features: Tensor) -> Tensor:
        if self.affinity == "linear":
            return features @ features.T
        distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        count = len(features)
        if self.affinity == "rbf":
            width = distance.topk(min(self.neighbours, count), largest=False).values[:, -1].mean()
            # With a single image, or equal ones, the width is 0; the clamp makes their affinity 1.
            return torch.exp(-distance.square() / (2 * width.square()).clamp(min=_SMALL))
        nearest = distance.topk(min(self.neighbours + 1, count), largest=False).indices[:, 1:]
        return torch.zeros_like(distance).scatter_(-1, nearest, 1.0)

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return that only predictions are changed."""
        return ("lame: the predictions of each batch are corrected together; no weight is updated",)

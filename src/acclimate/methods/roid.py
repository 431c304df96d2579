"""ROID: weighted samples, weight averaging and prior correction (Marsden et al., WACV 2024, arXiv 2306.00650)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.core.losses import soft_cross_entropy, softmax_entropy
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import detach
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.task import Task, correcting_logits, logits_of
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset

_SMALL: Final = 1e-5


@dataclass(frozen=True, slots=True)
class RoidState:
    """Moving average of class probabilities ``(classes)``, None before the first batch, and the source weights."""

    mean_probabilities: Tensor | None
    source: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roid:
    """Minimise the soft likelihood ratio of certain, diverse samples, and average the weights with the source's.

    On a detector the loss is over its candidates, on images with several labels over the labels, and on a segmenter
    over sampled positions, without the consistency term and the prior correction, which require one class for each
    image.

    Attributes:
        lr: of Adam (1e-3, the authors' for CIFAR-10).
        source_momentum: weight of the adapted weights in the average with the source's after each step (eq. 4; 0.99).
        probability_momentum: of the moving average of class probabilities (0.9).
        temperature: of the product of the two sample weights (eq. 3; 1/3).
        clip: upper limit of probabilities in the likelihood ratio (0.99), so that certain samples do not dominate.
        consistency: whether to add the consistency loss between augmented and original images (eq. 6), which doubles
            the cost.
        prior_correction: whether to multiply the logits by the smoothed share of each class in the batch (eq. 9).
        update: the trainable parameters.
        batch_statistics: whether to normalise with the batch's statistics.

    Raises:
        ConfigError: a momentum or the clip lies outside [0, 1], or the temperature is not positive.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="roid",
        title="ROID",
        paper=Paper(authors="Marsden et al.", venue="WACV", year=2024, arxiv="2306.00650"),
        cost=5.0,
        parameters_of_paper="norm_only",
        presets=(
            Preset(
                name="roid_safe",
                settings={"update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2},
                detector={"lr": 1e-4},
            ),
        ),
    )
    state_types: ClassVar[tuple[type, ...]] = (RoidState,)

    lr: float = 1e-3
    source_momentum: float = 0.99
    probability_momentum: float = 0.9
    temperature: float = 1 / 3
    clip: float = 0.99
    consistency: bool = True
    prior_correction: bool = True
    update: TensorFilter = TensorFilter()
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        for name in ("source_momentum", "probability_momentum", "clip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"roid: {name} must lie in [0, 1], got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ConfigError(f"roid: temperature must be positive, got {self.temperature}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses."""
        return selecting(model, self.update, batch_statistics=self.batch_statistics)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> RoidState:
        """Return a state without a moving average, whose source weights are the present ones."""
        source = selection.copied()
        return RoidState(None, source)

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: RoidState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Make one step and average the weights with the source's; the outputs are the corrected ones before it."""
        outputs = task.forward(model, batch)
        decisions = task.decisions(outputs)
        if len(decisions) == 0:
            return Step(state, detach(outputs), None, 0)
        probabilities = decisions.class_probabilities()
        mean = state.mean_probabilities
        if mean is None:
            mean = torch.full_like(probabilities[0], 1 / probabilities.shape[1])
        weights = self._weights(probabilities, softmax_entropy(decisions.logits.detach()), mean)
        used = weights > 0
        if decisions.weights is not None:
            weights = weights * decisions.weights
        total = (self._likelihood_ratio(decisions.logits[used]) * weights[used]).sum()
        if self.consistency and task.exclusive:
            total = total + (self._inconsistency(model, batch, outputs, used, task=task, rng=rng) * weights[used]).sum()
        loss = total / len(decisions)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            adapted = [parameter.data for parameter in selection.parameters.values()]
            source = [state.source[name] for name in selection.parameters]
            torch._foreach_lerp_(adapted, source, 1 - self.source_momentum)
        mean = torch.lerp(probabilities.mean(0), mean, self.probability_momentum)
        corrected = self._with_prior(detach(outputs), task)
        return Step(RoidState(mean, state.source), corrected, loss.detach(), int(used.sum()))

    def predict(self, model: nn.Module, inputs: Any, state: RoidState, *, task: Task) -> Any:
        """Return the adapted model's outputs with prior correction."""
        return self._with_prior(task.forward(model, inputs), task)

    @contextmanager
    def installed(self, model: nn.Module, state: RoidState, *, task: Task) -> Iterator[None]:
        """Inside the block, ``model`` returns logits with prior correction."""
        corrects = self.prior_correction and task.exclusive
        with correcting_logits(model, prior_corrected) if corrects else nullcontext():
            yield

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return what is not used where images have not exactly one class."""
        if task.exclusive:
            return ()
        what = "images with several classes" if task.aligned else "a detector"
        return (f"roid: the consistency term and the prior correction are not used on {what}",)

    def _weights(self, probabilities: Tensor, entropy: Tensor, mean: Tensor) -> Tensor:
        """Return the weight of each sample (eqs. 1 to 3); 0 where its diversity is below the mean."""
        diversity = _to_unit(1 - F.cosine_similarity(mean[None], probabilities, dim=1))
        certainty = _to_unit(-entropy)
        weights = torch.exp(diversity * certainty / self.temperature)
        return torch.where(diversity < diversity.mean(), 0.0, weights)

    def _likelihood_ratio(self, logits: Tensor) -> Tensor:
        """Return the soft likelihood ratio (eq. 5): ``(N, K)`` -> ``(N,)``."""
        probabilities = logits.softmax(-1).clamp(max=self.clip)
        return -(probabilities * (probabilities / (1 - probabilities) + _SMALL).log()).sum(-1)

    def _inconsistency(
        self, model: nn.Module, batch: Any, outputs: Any, used: Tensor, *, task: Task, rng: torch.Generator
    ) -> Tensor:
        """Return the symmetric cross-entropy between augmented and original images, for those in ``used``."""
        images = task.with_images(batch, task.images(batch)[used])
        view = next(iter(task.views(images, count=1, rng=rng)))
        augmented, plain = logits_of(task.forward(model, view.batch)), logits_of(outputs)[used]
        return (soft_cross_entropy(augmented, plain) + soft_cross_entropy(plain, augmented)) / 2

    def _with_prior(self, outputs: Any, task: Task) -> Any:
        return prior_corrected(logits_of(outputs)) if self.prior_correction and task.exclusive else outputs


def prior_corrected(logits: Tensor) -> Tensor:
    """Return logits ``(B, K)`` times the smoothed share of each class in the batch (eqs. 8 and 9), times K.

    The factor K is not in the paper and changes no decision. Without it, equal shares would shrink all logits, and
    every prediction would be uncertain.
    """
    batch, classes = logits.shape
    prior = logits.softmax(-1).mean(0)
    smoothing = max(1 / batch, 1 / classes) / prior.max()
    return logits * (prior + smoothing) / (1 + smoothing * classes) * classes


def _to_unit(values: Tensor) -> Tensor:
    """Return values scaled linearly to [0, 1]; ones where all values are equal, as with a single sample."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.ones_like(values)

"""CoTTA: a weight-averaged teacher and stochastic restoring (Wang et al., CVPR 2022, arXiv 2203.13591)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from acclimate.core import layout
from acclimate.core.losses import weighted_mean
from acclimate.core.method import Selection, Step
from acclimate.core.outputs import at_least_float32, detach
from acclimate.core.precision import precise
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.source_model import FunctionalModel
from acclimate.core.task import Task
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True)
class CottaState:
    """The teacher's and the source model's weights by name."""

    teacher: Mapping[str, Tensor]
    source: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cotta:
    """Train on the predictions of a weight-averaged teacher, and restore a few random weights to the source every step.

    The teacher predicts. Where the source model's confidence on a batch is low, the target is the teacher's mean
    prediction over augmented views, which are computed only then, and without gradient.

    Attributes:
        lr: of Adam (1e-3, section 4).
        betas: of Adam.
        ema: momentum of the teacher's weights (eq. 2; 0.999). The teacher shares the student's buffers, which do not
            change in a session.
        restore_probability: the probability that an element is restored to the source (eq. 8; 0.01).
        view_count: number of augmented views (32, section 3).
        anchor_threshold: the source model's mean confidence below which views are used (p_th of eq. 4; 0.92 is the
            official code's for CIFAR-10). 0 never uses them and saves the source model's forward pass.
        update: the trainable parameters; the paper's are all parameters.
        batch_statistics: whether to normalise with the batch's statistics.

    Raises:
        ConfigError: a fraction lies outside [0, 1], or there are no views.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="cotta",
        title="CoTTA",
        paper=Paper(authors="Wang et al.", venue="CVPR", year=2022, arxiv="2203.13591"),
        averages_views=True,
        cost=33.0,
        parameters_of_paper="all",
        presets=(
            Preset(
                name="cotta_safe",
                settings={"update_filter": "all", "lr": 1e-3, "max_drift": 0.2},
                detector={"lr": 1e-4},
            ),
        ),
        # A mean over augmented views has a higher entropy by nature. The degradation score reaches 1.9 on CIFAR-10,
        # where the method gains thirty points, and 2.1 on the detector of this package.
        certainty_allowance=3.0,
    )
    state_types: ClassVar[tuple[type, ...]] = (CottaState,)

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float = 0.999
    restore_probability: float = 0.01
    view_count: int = 32
    anchor_threshold: float = 0.92
    update: TensorFilter = TensorFilter(kind="all")
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        for name in ("ema", "restore_probability", "anchor_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"cotta: {name} must lie in [0, 1], got {getattr(self, name)}")
        if self.view_count < 1:
            raise ConfigError(f"cotta: view_count must be at least 1, got {self.view_count}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses."""
        return selecting(model, self.update, batch_statistics=self.batch_statistics)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> CottaState:
        """Return a teacher equal to the source."""
        source = selection.copied()
        # Steps of the average are too small for half precision.
        return CottaState({name: at_least_float32(value) for name, value in source.items()}, source)

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: CottaState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Make one step towards the teacher (eqs. 1 to 8); the outputs are the teacher's before its update."""
        student_outputs = task.forward(model, batch)
        teacher_outputs = self._teach(model, batch, state, task=task, rng=rng)
        divergence = task.divergence(student_outputs, teacher_outputs)
        if len(divergence) == 0:
            return Step(state, detach(teacher_outputs), None, 0)
        loss = weighted_mean(divergence, None)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            parameters = [parameter.data for parameter in selection.parameters.values()]
            teacher = torch._foreach_lerp(
                [state.teacher[name] for name in selection.parameters], precise(parameters), 1 - self.ema
            )
            self._restore(parameters, [state.source[name] for name in selection.parameters], rng)
        next_state = CottaState(dict(zip(selection.parameters, teacher, strict=True)), state.source)
        return Step(next_state, detach(teacher_outputs), loss.detach(), len(divergence))

    def predict(self, model: nn.Module, inputs: Any, state: CottaState, *, task: Task) -> Any:
        """Return the teacher's outputs."""
        return task.forward(FunctionalModel(model, state.teacher), inputs)

    def prediction_weights(self, state: CottaState) -> Mapping[str, Tensor]:
        """Return the weights used for prediction, by name: the teacher's."""
        return state.teacher

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return no notes."""
        return ()

    @torch.no_grad()
    def _teach(self, model: nn.Module, batch: Any, state: CottaState, *, task: Task, rng: torch.Generator) -> Any:
        teacher = FunctionalModel(model, state.teacher)
        if not self._source_is_uncertain(model, batch, state, task=task):
            return task.forward(teacher, batch)
        reference = None if task.aligned else task.forward(teacher, batch)
        outputs = [
            view.undo(task.forward(teacher, layout.for_prediction(view.batch)))
            for view in task.views(batch, count=self.view_count, rng=rng)
        ]
        return task.merge(outputs, reference)

    def _source_is_uncertain(self, model: nn.Module, batch: Any, state: CottaState, *, task: Task) -> bool:
        if self.anchor_threshold == 0:
            return False
        decisions = task.decisions(task.forward(FunctionalModel(model, state.source), batch))
        if len(decisions) == 0:
            return True
        confidence = decisions.class_probabilities().amax(-1)
        return float(weighted_mean(confidence, decisions.weights)) < self.anchor_threshold

    def _restore(self, parameters: list[Tensor], source: list[Tensor], rng: torch.Generator) -> None:
        if self.restore_probability == 0:
            return
        sizes = [parameter.numel() for parameter in parameters]
        # One draw for all tensors: a call for each tensor takes longer than generating the numbers.
        chosen = torch.rand(sum(sizes), generator=rng, device=rng.device) < self.restore_probability
        for parameter, value, mask in zip(parameters, source, chosen.split(sizes), strict=True):
            parameter.copy_(torch.where(mask.view_as(parameter), value, parameter))

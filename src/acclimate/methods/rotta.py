"""RoTTA: a class-balanced memory bank, running statistics and a teacher (Yuan et al., CVPR 2023, arXiv 2303.13899)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from acclimate.core import layout, norm
from acclimate.core.losses import soft_cross_entropy, softmax_entropy
from acclimate.core.method import Selection, Step
from acclimate.core.norm import Moments
from acclimate.core.outputs import at_least_float32, detach, sample_count
from acclimate.core.precision import precise
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.source_model import FunctionalModel
from acclimate.core.task import Task, logits_of, require_classifier
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True)
class Remembered:
    """An image ``(C, H, W)`` in the memory bank, its predicted class and entropy in nats, and its age in images."""

    image: Tensor
    label: int
    entropy_nats: float
    age: int = 0


@dataclass(frozen=True, slots=True)
class RottaState:
    """The memory bank, the teacher's weights, both models' running statistics, and the number of images so far."""

    memory: tuple[Remembered, ...]
    teacher: Mapping[str, Tensor]
    teacher_statistics: Mapping[str, Moments] = field(default_factory=dict)
    student_statistics: Mapping[str, Moments] = field(default_factory=dict)
    seen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotta:
    """Train every ``update_every`` images on a class-balanced memory bank of recent images with certain predictions.

    Attributes:
        lr: of Adam (1e-3, section 4.1).
        capacity: maximum number of images in the memory bank (64).
        update_every: number of images between two steps (64).
        statistics_rate: rate of the moving average of BatchNorm's statistics over memory batches (eq. 3; 0.05).
        teacher_rate: rate of the moving average of the student's weights that is the teacher (eq. 9; 0.001).
        age_weight, entropy_weight: weights of an image's age and of its entropy in the score by which images are
            removed (eq. 5; 1 and 1).
        update: the trainable parameters.

    Raises:
        ConfigError: a rate lies outside [0, 1], or a count is below 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="rotta",
        title="RoTTA",
        paper=Paper(authors="Yuan et al.", venue="CVPR", year=2023, arxiv="2303.13899"),
        cost=5.4,
        parameters_of_paper="norm_only",
        kinds=("classifier",),
        also_predicts_with="statistics of the stream",
        presets=(Preset(name="rotta_safe", settings={"update_filter": "norm_only", "lr": 1e-3, "max_drift": 0.2}),),
    )
    state_types: ClassVar[tuple[type, ...]] = (RottaState, Remembered)

    lr: float = 1e-3
    capacity: int = 64
    update_every: int = 64
    statistics_rate: float = 0.05
    teacher_rate: float = 0.001
    age_weight: float = 1.0
    entropy_weight: float = 1.0
    update: TensorFilter = TensorFilter()

    def __post_init__(self) -> None:
        for name in ("statistics_rate", "teacher_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"rotta: {name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("capacity", "update_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rotta: {name} must be at least 1, got {getattr(self, name)}")

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the parameters that ``update`` chooses; the running statistics are part of the state."""
        return selecting(model, self.update, batch_statistics=False)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> RottaState:
        """Return an empty memory bank and a teacher equal to the source."""
        # Steps of the average are too small for half precision.
        return RottaState((), {name: at_least_float32(value) for name, value in selection.copied().items()})

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: RottaState,
        *,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> Step:
        """Add the images to the memory bank, and train on it every ``update_every`` images.

        The outputs are the teacher's from before the step.

        Raises:
            TTTNotSupportedError: the task is no classifier's.
        """
        require_classifier(task, self.info.name)
        with torch.no_grad():
            outputs = self.predict(model, layout.for_prediction(batch), state, task=task)
            logits = logits_of(outputs)
            entropies, labels = softmax_entropy(logits).tolist(), logits.argmax(-1).tolist()
        losses: list[Tensor] = []
        for image, label, entropy in zip(task.images(batch), labels, entropies, strict=True):
            item = Remembered(image.detach().clone(), label, entropy)
            memory = self.with_image(state.memory, item, classes=logits.shape[-1])
            state = replace(state, memory=memory, seen=state.seen + 1)
            if state.seen % self.update_every == 0:
                state, loss = self._learn(model, state, batch, task, selection, optimizer, rng)
                losses.append(loss)
        return Step(state, detach(outputs), torch.stack(losses).mean() if losses else None, sample_count(batch))

    def predict(self, model: nn.Module, inputs: Any, state: RottaState, *, task: Task) -> Any:
        """Return the teacher's outputs under its running statistics."""
        with self.installed(model, state, task=task):
            return task.forward(FunctionalModel(model, state.teacher), inputs)

    def prediction_weights(self, state: RottaState) -> Mapping[str, Tensor]:
        """Return the weights used for prediction, by name: the teacher's."""
        return state.teacher

    @contextmanager
    def installed(self, model: nn.Module, state: RottaState, *, task: Task) -> Iterator[None]:
        """Inside the block, BatchNorm uses the teacher's running statistics."""
        with norm.running_statistics(model, state.teacher_statistics, memory_weight=1.0, rate=0.0):
            yield

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return how many images are stored."""
        return (f"rotta: keeps up to {self.capacity} of the stream's images in memory",)

    def with_image(self, memory: Sequence[Remembered], new: Remembered, *, classes: int) -> tuple[Remembered, ...]:
        """Return the memory bank after one more image, with all ages increased by one (algorithm 1).

        If the new image's class already has its share of the capacity, the new image replaces the worst one of that
        class; if the bank is full, the worst one of the largest classes. If the new image is worse than that one, it
        is not added.
        """
        kept = list(memory)
        held = Counter(item.label for item in kept)
        full_classes = None
        if held[new.label] >= self.capacity / classes:
            full_classes = {new.label}
        elif len(kept) >= self.capacity:
            most = max(held.values())
            full_classes = {label for label, count in held.items() if count == most}
        adds = True
        if full_classes is not None:
            candidates = [position for position, item in enumerate(kept) if item.label in full_classes]
            # Of equally bad images the last one is removed, as in the official code.
            worst = max(
                candidates, key=lambda position: (self._removal_score(kept[position], classes), position), default=None
            )
            if worst is not None:
                adds = self._removal_score(kept[worst], classes) > self._removal_score(new, classes)
                if adds:
                    del kept[worst]
        if adds:
            kept.append(new)
        return tuple(replace(item, age=item.age + 1) for item in kept)

    def _removal_score(self, item: Remembered, classes: int) -> float:
        age = 1 / (1 + math.exp(-item.age / self.capacity))
        return self.age_weight * age + self.entropy_weight * item.entropy_nats / math.log(max(2, classes))

    def _learn(
        self,
        model: nn.Module,
        state: RottaState,
        batch: Any,
        task: Task,
        selection: Selection,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
    ) -> tuple[RottaState, Tensor]:
        """Make one step on the memory bank (eqs. 6 to 9)."""
        # Grouped by class, as in the official code; a stable sort keeps the order within each class.
        items = sorted(state.memory, key=lambda item: item.label)
        images = task.with_images(batch, torch.stack([item.image for item in items]))
        ages = torch.tensor([item.age / self.capacity for item in items])
        weights = torch.exp(-ages) / (1 + torch.exp(-ages))
        rate = self.statistics_rate
        with (
            torch.no_grad(),
            norm.running_statistics(
                model, state.teacher_statistics, memory_weight=1.0, rate=rate, between=False
            ) as teacher_seen,
        ):
            target = logits_of(task.forward(FunctionalModel(model, state.teacher), layout.for_prediction(images)))
        view = next(iter(task.views(images, count=1, rng=rng)))
        with norm.running_statistics(
            model, state.student_statistics, memory_weight=1.0, rate=rate, between=False
        ) as student_seen:
            divergence = soft_cross_entropy(logits_of(task.forward(model, view.batch)), target)
        loss = (divergence * weights.to(divergence)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            student = [parameter.data for parameter in selection.parameters.values()]
            teacher = torch._foreach_lerp(
                [state.teacher[name] for name in selection.parameters], precise(student), self.teacher_rate
            )
        weights_by_name = dict(zip(selection.parameters, teacher, strict=True))
        return replace(
            state, teacher=weights_by_name, teacher_statistics=teacher_seen, student_statistics=student_seen
        ), loss.detach()

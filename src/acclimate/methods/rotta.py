"""RoTTA: a balanced memory of images, slow statistics and a teacher (Yuan et al., CVPR 2023, arXiv 2303.13899)."""

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
from acclimate.core.outputs import detach, sample_count
from acclimate.core.selection import TensorFilter, selecting
from acclimate.core.source_model import FunctionalModel
from acclimate.core.task import Task, logits_of, require_classifier
from acclimate.errors import ConfigError
from acclimate.registry import MethodInfo, Paper, Preset


@dataclass(frozen=True, slots=True)
class Remembered:
    """An image ``(C, H, W)``, the class it was taken for, the entropy of that in nats, and how many came since."""

    image: Tensor
    label: int
    entropy_nats: float
    age: int = 0


@dataclass(frozen=True, slots=True)
class RottaState:
    """The memory, the teacher's weights, the statistics of teacher and student, and how many images came so far."""

    memory: tuple[Remembered, ...]
    teacher: Mapping[str, Tensor]
    teacher_statistics: Mapping[str, Moments] = field(default_factory=dict)
    student_statistics: Mapping[str, Moments] = field(default_factory=dict)
    seen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotta:
    """Learn, every ``update_every`` images, from a memory that holds few, recent and certain images of each class.

    Attributes:
        lr: of Adam (1e-3, section 4.1).
        capacity: images in the memory (64).
        update_every: images between two steps (64).
        statistics_rate: by which BatchNorm's statistics move towards a batch of the memory (eq. 3; 0.05).
        teacher_rate: by which the teacher's weights move towards the student's (eq. 9; 0.001).
        age_weight, entropy_weight: of an image's age and of its entropy when one has to go (eq. 5; 1 and 1).
        update: what may move.

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
        """Select what ``update`` names; statistics are the state's affair."""
        return selecting(model, self.update, batch_statistics=False)

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.lr, foreach=True)

    def start(self, model: nn.Module, selection: Selection) -> RottaState:
        """Return an empty memory and a teacher equal to the source."""
        return RottaState((), selection.copied())

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
        """Take the images into the memory and learn from it when it is time; the outputs are the teacher's before.

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
        """Return the teacher's outputs under its statistics."""
        with self.installed(model, state, task=task):
            return task.forward(FunctionalModel(model, state.teacher), inputs)

    def prediction_weights(self, state: RottaState) -> Mapping[str, Tensor]:
        """Return the weights that predict, by name: the teacher's."""
        return state.teacher

    @contextmanager
    def installed(self, model: nn.Module, state: RottaState, *, task: Task) -> Iterator[None]:
        """Inside the block BatchNorm uses the teacher's statistics."""
        with norm.running_statistics(model, state.teacher_statistics, memory_weight=1.0, rate=0.0):
            yield

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Say what is kept."""
        return (f"rotta: keeps up to {self.capacity} of the stream's images in memory",)

    def with_image(self, memory: Sequence[Remembered], new: Remembered, *, classes: int) -> tuple[Remembered, ...]:
        """Return the memory after one more image, everything in it one older (algorithm 1).

        A class that has its share of the capacity gives up its worst image, and so does the largest class when the
        memory is full; unless the new image is worse still, which then stays out.
        """
        kept = list(memory)
        held = Counter(item.label for item in kept)
        rivals = None
        if held[new.label] >= self.capacity / classes:
            rivals = {new.label}
        elif len(kept) >= self.capacity:
            most = max(held.values())
            rivals = {label for label, count in held.items() if count == most}
        takes = True
        if rivals is not None:
            candidates = [position for position, item in enumerate(kept) if item.label in rivals]
            # Of equals the last goes, as in the official code.
            worst = max(
                candidates, key=lambda position: (self._badness(kept[position], classes), position), default=None
            )
            if worst is not None:
                takes = self._badness(kept[worst], classes) > self._badness(new, classes)
                if takes:
                    del kept[worst]
        if takes:
            kept.append(new)
        return tuple(replace(item, age=item.age + 1) for item in kept)

    def _badness(self, item: Remembered, classes: int) -> float:
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
        """Make one step on the memory (eqs. 6 to 9)."""
        # Grouped by class, as the official code stacks them; a stable sort keeps the order within each.
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
            moved = [parameter.data for parameter in selection.parameters.values()]
            teacher = torch._foreach_lerp(
                [state.teacher[name] for name in selection.parameters], moved, self.teacher_rate
            )
        weights_by_name = dict(zip(selection.parameters, teacher, strict=True))
        return replace(
            state, teacher=weights_by_name, teacher_statistics=teacher_seen, student_statistics=student_seen
        ), loss.detach()

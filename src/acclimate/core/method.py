"""The protocol that every method follows: immutable state in, immutable state out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from acclimate.core.report import to_jsonable
from acclimate.core.source_images import SourceImages
from acclimate.core.task import Task
from acclimate.registry import MethodInfo


@dataclass(frozen=True, slots=True)
class Selection:
    """The trainable parameters of a model, and its buffers.

    Attributes:
        parameters: by name; all of them, and only they, require a gradient inside the selection.
        buffers: by name; every buffer of the model, so that a rollback covers what a forward pass may touch.
        notes: what the user should know about how the model was selected.
        reference_norm: the L2 norm that updates are measured against; None means that of ``parameters``. Low-rank
            weights start near zero, so theirs is the norm of the whole model.
    """

    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reference_norm: float | None = None

    def copied(self) -> dict[str, Tensor]:
        """Return the present values of the parameters by name, as copies."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters of these names."""
        for name, value in weights.items():
            self.parameters[name].copy_(value)

    def drop_gradients(self) -> None:
        """Forget every gradient."""
        for parameter in self.parameters.values():
            parameter.grad = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a method did.

    Attributes:
        state: the method's state after the step.
        outputs: what the model (or the teacher) said about the batch, without gradient.
        loss: the loss that was descended, a scalar; None when there was nothing to learn from or no gradient.
        used: how many decisions contributed; 0 says that nothing in this batch was worth learning from.
        reset: the method asks to be set back to the source weights (SAR's recovery).
    """

    state: Any
    outputs: Any
    loss: Tensor | None
    used: int
    reset: bool = False


class Method(Protocol):
    """One way to adapt a model. Implementations are frozen dataclasses of their own hyper-parameters.

    What only some methods need is asked through protocols of its own: :class:`UsesSourceImages`,
    :class:`PredictsWithOtherWeights`, :class:`Installable`, :class:`HasStateTypes`.
    """

    info: ClassVar[MethodInfo]

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the trainable parameters; leaving the block puts flags and modes back (not the weights)."""
        ...

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer | None:
        """Return an optimizer of ``parameters``; None for a method without gradient."""
        ...

    def start(self, model: nn.Module, selection: Selection) -> Any:
        """Return the method's initial state."""
        ...

    def step(
        self,
        model: nn.Module,
        batch: Any,
        state: Any,
        *,
        task: Task,
        selection: Selection,
        optimizer: Any,
        rng: torch.Generator,
    ) -> Step:
        """Learn from ``batch``: update the selected tensors and return what was done.

        ``optimizer`` is what :meth:`optimizer` returned, and ``rng`` lives on the model's device.
        """
        ...

    def predict(self, model: nn.Module, inputs: Any, state: Any, *, task: Task) -> Any:
        """Return the outputs on ``inputs`` without moving anything."""
        ...

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return what the report should say about how this method treats ``model`` and ``task``."""
        ...


@runtime_checkable
class PredictsWithOtherWeights(Protocol):
    """A method that predicts with weights other than the model's own, such as a teacher's."""

    def prediction_weights(self, state: Any) -> Mapping[str, Tensor]:
        """Return the weights that predict, by parameter name."""
        ...


@runtime_checkable
class Installable(Protocol):
    """A method that changes what the model is given or returns, and can do so for code that calls the model itself."""

    def installed(self, model: nn.Module, state: Any, *, task: Task) -> AbstractContextManager[None]:
        """Inside the block, calling ``model`` predicts as the method does."""
        ...


@runtime_checkable
class UsesSourceImages(Protocol):
    """A method that takes something from unlabelled source images before it begins."""

    def with_source(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with what ``source`` shows; itself where it shows nothing."""
        ...


@runtime_checkable
class HasStateTypes(Protocol):
    """A method whose state is made of dataclasses: files may hold these, and no others."""

    state_types: ClassVar[tuple[type, ...]]


def settings_of(method: Method) -> dict[str, Any]:
    """Return a method's hyper-parameters as plain values; tensors are left out."""
    if not dataclasses.is_dataclass(method):
        return {}
    return {f.name: to_jsonable(getattr(method, f.name)) for f in dataclasses.fields(method) if f.repr}

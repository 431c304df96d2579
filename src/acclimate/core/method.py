"""The protocol that every method follows: immutable state in, immutable state out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from acclimate.core.report import to_jsonable
from acclimate.core.task import Task


@dataclass(frozen=True, slots=True)
class Selection:
    """The tensors of a model that a method may move.

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
    """One way to adapt a model. Implementations are frozen dataclasses of their own hyper-parameters."""

    name: ClassVar[str]

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select what may move; leaving the block puts flags and modes back (not the weights)."""
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
        """Learn from ``batch``: move the selected tensors and return what was done.

        ``optimizer`` is what :meth:`optimizer` returned, and ``rng`` lives on the model's device.
        """
        ...

    def predict(self, model: nn.Module, inputs: Any, state: Any, *, task: Task) -> Any:
        """Return the outputs on ``inputs`` without moving anything."""
        ...

    def notes(self, model: nn.Module, task: Task) -> tuple[str, ...]:
        """Return what the report should say about how this method treats ``model`` and ``task``."""
        ...


def settings_of(method: Method) -> dict[str, Any]:
    """Return a method's hyper-parameters as plain values; tensors are left out."""
    if not dataclasses.is_dataclass(method):
        return {}
    return {f.name: to_jsonable(getattr(method, f.name)) for f in dataclasses.fields(method) if f.repr}

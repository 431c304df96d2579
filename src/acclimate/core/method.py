"""The protocols that methods implement. A method's state is immutable: a step takes one state and returns the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from acclimate.core.source_images import SourceImages
from acclimate.core.task import Task
from acclimate.json_values import to_jsonable
from acclimate.registry import MethodInfo


@dataclass(frozen=True, slots=True)
class Selection:
    """The trainable parameters of a model, and its buffers.

    Attributes:
        parameters: by name; inside the selection they require a gradient, and no other parameter does. A parameter that
            is given under several names is kept under the first.
        buffers: by name; every buffer of the model, so that a rollback restores those that a forward pass changed.
        notes: what the report should say about the selection.
        reference_norm: the L2 norm that updates are divided by; None means that of ``parameters``. For low-rank
            weights, which start near zero, it is the norm of the whole model.
    """

    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reference_norm: float | None = None

    def __post_init__(self) -> None:
        # An optimizer or a snapshot with one tensor twice would update or count it twice.
        first: dict[int, str] = {}
        for name, parameter in self.parameters.items():
            first.setdefault(id(parameter), name)
        if len(first) < len(self.parameters):
            object.__setattr__(self, "parameters", {name: self.parameters[name] for name in first.values()})

    def copied(self) -> dict[str, Tensor]:
        """Return the present values of the parameters by name, as copies."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters, by name."""
        for name, value in weights.items():
            self.parameters[name].copy_(value)

    def drop_gradients(self) -> None:
        """Set every gradient to None."""
        for parameter in self.parameters.values():
            parameter.grad = None


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step of a method.

    Attributes:
        state: the method's state after the step.
        outputs: the outputs of the model (or of the teacher) on the batch, without gradient.
        loss: the scalar loss that was minimised; None where no decision was used or the method computes no gradient.
        used: how many decisions contributed to the update; with 0 the session undoes the step.
        reset: whether the method requests a reset to the source weights (SAR's recovery).
        unadapted: the unadapted model's outputs on the batch, where the method computed them; guards use them then. It
            is the object ``outputs`` itself where nothing was adapted.
        new_stream: whether the method found that the images are of another kind than those before; guards of a
            classifier then forget what adaptation did to those.
        damage: whether the method found that its model gives more classes than the unadapted one because images are
            damaged, and not because they are of few classes; guards then accept decisions that are less certain.
    """

    state: Any
    outputs: Any
    loss: Tensor | None
    used: int
    reset: bool = False
    unadapted: Any = None
    new_stream: bool = False
    damage: bool = False


class Method(Protocol):
    """One way to adapt a model. Implementations are frozen dataclasses of their own hyper-parameters.

    What only some methods do has protocols of its own: :class:`UsesSourceImages`, :class:`PredictsWithOtherWeights`,
    :class:`Installable`, :class:`MayLearnWithoutOutputs`, :class:`HasStateTypes`.
    """

    info: ClassVar[MethodInfo]

    def select(self, model: nn.Module) -> AbstractContextManager[Selection]:
        """Select the trainable parameters; leaving the block restores flags and modes, but not the weights."""
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
        """Adapt on ``batch``: update the selected tensors, and return the outputs and the next state.

        ``optimizer`` is what :meth:`optimizer` returned, and ``rng`` is on the model's device.
        """
        ...

    def predict(self, model: nn.Module, inputs: Any, state: Any, *, task: Task) -> Any:
        """Return the outputs on ``inputs`` without changing the model or the state."""
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
    """A method that changes the model's inputs or outputs, and can do so for code that calls the model directly."""

    def installed(self, model: nn.Module, state: Any, *, task: Task) -> AbstractContextManager[None]:
        """Inside the block, calling ``model`` predicts as the method does."""
        ...


@runtime_checkable
class UsesSourceImages(Protocol):
    """A method that uses statistics of unlabelled source images, measured before adaptation starts."""

    def with_source(self, model: nn.Module, source: SourceImages, *, task: Task) -> Self:
        """Return the method with the statistics of ``source``; the method itself where ``source`` is empty."""
        ...


@runtime_checkable
class MayLearnWithoutOutputs(Protocol):
    """A method with gradient whose loss need not depend on the model's outputs."""

    def learns_from_outputs(self, model: nn.Module) -> bool:
        """Return whether the loss on ``model`` depends on the outputs of its forward pass."""
        ...


@runtime_checkable
class HasStateTypes(Protocol):
    """A method whose state contains dataclasses; a state file may contain these classes and no others."""

    state_types: ClassVar[tuple[type, ...]]


def settings_of(method: Method) -> dict[str, Any]:
    """Return a method's hyper-parameters as plain values; what was measured on source images is left out.

    So it is in methods that a method contains.
    """
    return _shown(method) if dataclasses.is_dataclass(method) else {}


def _shown(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that its representation shows."""
    found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr}
    return {
        name: _shown(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else to_jsonable(part)
        for name, part in found.items()
    }

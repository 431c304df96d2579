"""Number formats: models in half precision learn in float32 copies of their trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from acclimate.core.outputs import at_least_float32
from acclimate.errors import ConfigError

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
"""The number formats that a model can be converted to, by name."""


def parse_dtype(name: str) -> torch.dtype:
    """Return a number format by name.

    Raises:
        ConfigError: it is none of :data:`DTYPES`.
    """
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the number format of the model's first floating-point parameter or buffer; float32 where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


class MasterCopies:
    """An optimizer of parameters in half precision, which updates copies of them in float32.

    Half precision has too few digits for learning: most updates are smaller than the distance between two numbers, and
    Adam's smallest denominator is zero in float16. What else changes the parameters (a rollback, an average with the
    source's) is taken into the copies before the next step.

    Args:
        parameters: of any number formats; those with at least 32 bits are optimised themselves.
        make: returns the optimizer for a list of parameters.

    Attributes:
        masters: the copies, in the order of the parameters.
        inner: the optimizer of the copies.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], make: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
    ) -> None:
        self._parameters = list(parameters)
        self.masters = [
            nn.Parameter(parameter.detach().float()) if _is_half(parameter) else parameter for parameter in parameters
        ]
        self.inner = make(self.masters)

    @property
    def state(self) -> Any:
        """The moments of the optimizer, by copy."""
        return self.inner.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The settings of the optimizer."""
        return self.inner.param_groups

    @property
    def copies(self) -> list[Tensor]:
        """The contents of the copies, without those parameters that are optimised themselves."""
        return [master.data for _, master in self._pairs()]

    @torch.no_grad()
    def step(self) -> None:
        """Make one step of the optimizer on the copies, and write them to the parameters."""
        for parameter, master in self._pairs():
            master.copy_(torch.where(master.to(parameter.dtype) == parameter, master, parameter.float()))
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self.inner.step()
        for parameter, master in self._pairs():
            parameter.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the parameters."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return moments, settings and copies."""
        return {"inner": self.inner.state_dict(), "copies": self.copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.inner.load_state_dict(state["inner"])
        with torch.no_grad():
            for mine, saved in zip(self.copies, state["copies"], strict=True):
                mine.copy_(saved)

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [
            (parameter, master)
            for parameter, master in zip(self._parameters, self.masters, strict=True)
            if master is not parameter
        ]


AnyOptimizer = torch.optim.Optimizer | MasterCopies


def optimizer_for(
    parameters: Sequence[nn.Parameter], make: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer | None]
) -> AnyOptimizer | None:
    """Return the optimizer that ``make`` returns, on float32 copies where a parameter is in half precision."""
    if not any(_is_half(parameter) for parameter in parameters):
        return make(parameters)
    optimizer = make(parameters)
    if optimizer is None:
        return None

    def again(masters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        made = make(masters)
        if made is None:
            raise TypeError("an optimizer was made for the parameters, and none for their copies")
        return made

    return MasterCopies(parameters, again)


def name_of(optimizer: AnyOptimizer | None) -> str:
    """Return the name of an optimizer's class, and whether it updates copies."""
    if isinstance(optimizer, MasterCopies):
        return f"{type(optimizer.inner).__name__} on float32 copies"
    return type(optimizer).__name__


def precise(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors of half precision as float32, for averages whose steps are too small for it."""
    return [at_least_float32(tensor) for tensor in tensors]


def _is_half(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() < 4

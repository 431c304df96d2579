"""One seed, the same run: generators on the right device, and torch's global generators left as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from acclimate.errors import ConfigError, first_line

#: Held by whoever has put another state into torch's global generators, which all threads share.
_GLOBAL_GENERATORS: Final = threading.RLock()


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU where it has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def parse_device(name: str) -> torch.device:
    """Return a device by name.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ConfigError("device 'meta' cannot be used: its tensors have no values; use cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on ``device``: a CPU generator cannot feed ``torch.rand(device="cuda")``."""
    return torch.Generator(device=device).manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the block, and restore their states on exit.

    The generators belong to the whole process: threads must not be in such blocks at once, nor draw from the generators
    meanwhile. Around calls of a model use :class:`ModelDraws`.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class ModelDraws:
    """The random numbers that calls of one model draw from torch's global generators.

    Dropout and stochastic depth take no generator: they draw from the global ones. Inside :meth:`isolated` these are in
    the state in which this object's last block left them, so that all blocks together draw one stream that depends on
    the seed alone: that of ``torch.manual_seed(seed)``. Outside the blocks the caller's own stream goes on as if they
    had not been there.

    Only one thread at a time is in such a block, for as long as one call of a model takes. A model that draws nothing
    (evaluation mode, or rates of zero) leaves the generators alone and waits for nobody.

    Args:
        model: its modules are searched once, for layers that can draw: torch's dropout layers, ``RReLU``, fractional
            pooling, attention and recurrent layers with a dropout rate, and modules of other libraries whose rate is
            called something with ``drop``. A layer that draws and shows none of this is not found: its numbers come
            from the caller's stream.
        seed: of the stream.

    Attributes:
        states: of the generators at the end of the last block; None before the first.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._layers = [module for module in model.modules() if _can_draw(module)]
        device = device_of(model)
        index = device.index if device.type == "cuda" else None
        self._cuda = [] if index is None else [index]
        self._seed = seed
        self.states: list[Tensor] | None = None

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Let calls of the model inside the block draw from the stream of this object."""
        if not any(_draws_now(layer) for layer in self._layers):
            yield
            return
        with _GLOBAL_GENERATORS, torch.random.fork_rng(devices=self._cuda):
            generators = [torch.default_generator, *(torch.cuda.default_generators[index] for index in self._cuda)]
            if self.states is None:
                for one in generators:
                    one.manual_seed(self._seed)
            else:
                for one, state in zip(generators, self.states, strict=True):
                    one.set_state(state)
            try:
                yield
            finally:
                self.states = [one.get_state() for one in generators]

    def reset(self) -> None:
        """Begin the stream again."""
        self.states = None


def _can_draw(module: nn.Module) -> bool:
    """Say whether a forward pass of ``module`` itself can draw from the global generators."""
    return isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d) or bool(_rate_names(module))


def _draws_now(module: nn.Module) -> bool:
    """Say whether a layer that can draw does so with its present mode and rates."""
    if isinstance(module, nn.FractionalMaxPool2d | nn.FractionalMaxPool3d):
        return True
    return module.training and (
        isinstance(module, nn.RReLU) or any(getattr(module, name) > 0 for name in _rate_names(module))
    )


def _rate_names(module: nn.Module) -> list[str]:
    """Return the names of the attributes of ``module`` that are rates of dropout or stochastic depth."""
    kind = type(module).__name__.lower()
    is_dropout = "drop" in kind or "stochasticdepth" in kind
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, float | int)
        and not isinstance(value, bool)
        and ("drop" in name.lower() or (is_dropout and name == "p"))
    ]

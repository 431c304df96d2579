"""Reproducible random numbers: seeded generators on a model's device, and devices by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from acclimate.errors import ConfigError, first_line


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

    Layers that draw from the global generator (dropout, stochastic depth) give the same results for the same seed,
    and the caller's own random numbers are the same as without the block.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield

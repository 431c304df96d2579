"""Limits on the time, the steps and the memory that a session may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from acclimate.errors import ConfigError

StopCode = Literal["max_steps", "max_seconds", "max_bytes"]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a budget allows no further step.

    Attributes:
        code: the name of the limit that is reached, for programs.
        reason: the same in words.
    """

    code: StopCode
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits on a session's adaptation; None means no limit.

    Attributes:
        max_seconds: wall-clock seconds spent in adaptation steps.
        max_steps: adaptation steps, whether they were kept or not.
        max_bytes: bytes that the session holds beyond the model: snapshots, optimizer and method state.

    Raises:
        ConfigError: a limit is negative.
    """

    max_seconds: float | None = None
    max_steps: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_seconds", "max_steps", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} must not be negative, got {value}; leave it out for no limit")

    def exhausted(self, *, seconds: float, steps: int, held_bytes: int) -> Stop | None:
        """Return why no further step may be made, or None."""
        if self.max_steps is not None and steps >= self.max_steps:
            return Stop("max_steps", f"step budget: {steps} of {self.max_steps} steps made")
        if self.max_seconds is not None and seconds >= self.max_seconds:
            return Stop("max_seconds", f"time budget: {self.max_seconds:g} s spent")
        if self.max_bytes is not None and held_bytes > self.max_bytes:
            return Stop("max_bytes", f"memory budget: {held_bytes} bytes held, {self.max_bytes} allowed")
        return None

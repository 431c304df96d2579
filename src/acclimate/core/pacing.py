"""When to learn: a stream that goes on as before teaches little new, and a backward pass costs more than a prediction.

What images look like on the whole is compared with a window of the stream; where it changes, learning resumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from acclimate.core.task import Task
from acclimate.errors import ConfigError

_SMALL: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """Learn from the first batches, from some after each shift, and from one now and then; between them only predict.

    The defaults were chosen on ``tune_jpeg.npz`` with corruptions that are not reported (``benchmarks/cifar``).

    Attributes:
        warm_up: batches at the start, all of which are learned from.
        after_shift: batches from a shift on that are.
        every: after so many batches without learning one is learned from.
        step_scale: factor of the learning rate: fewer steps go further.
        shift_deviations: how many standard errors a batch's mean image statistics must be from the window's.
        window_images: over about how many images the window reaches.

    Raises:
        ConfigError: a number is not positive.
    """

    warm_up: int = 10
    after_shift: int = 1
    every: int = 24
    step_scale: float = 3.0
    shift_deviations: float = 8.0
    window_images: int = 256

    def __post_init__(self) -> None:
        for name in ("warm_up", "after_shift", "every", "step_scale", "shift_deviations", "window_images"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"pacing: {name} must be positive, got {getattr(self, name)}")


class Pace:
    """What is known of the stream, and when it was last learned from."""

    def __init__(self, pacing: Pacing, task: Task) -> None:
        self.pacing = pacing
        self._task = task
        self._window: tuple[Tensor, Tensor, float] | None = None
        self._paused_batches = 0
        self._batches_due = self.pacing.warm_up

    def is_due(self, batch: Any) -> bool:
        """Take ``batch`` into the window and say whether to learn from it."""
        if self._has_shifted(image_statistics(self._task.images(batch))):
            self._batches_due = max(self._batches_due, self.pacing.after_shift)
        if self._batches_due == 0 and self._paused_batches + 1 >= self.pacing.every:
            self._batches_due = 1
        due = self._batches_due > 0
        self._batches_due -= due
        self._paused_batches = 0 if due else self._paused_batches + 1
        return due

    def state_dict(self) -> tuple[Any, ...]:
        """Return what must outlive a restart."""
        return self._window, self._paused_batches, self._batches_due

    def load_state_dict(self, state: tuple[Any, ...]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._window, self._paused_batches, self._batches_due = state

    @contextmanager
    def scaled(self, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
        """Inside the block steps go ``step_scale`` times as far."""
        groups = [] if optimizer is None else optimizer.param_groups
        rates = [group["lr"] for group in groups]
        try:
            for group in groups:
                group["lr"] *= self.pacing.step_scale
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def _has_shifted(self, found: Tensor) -> bool:
        """Compare ``(B, F)`` with the window, and take them into it; after a shift the window begins with them."""
        found = found[found.isfinite().all(1)]
        if len(found) == 0:
            # What cannot be measured is not as before, and must not be what the next batches are held against.
            return True
        count = float(len(found))
        mean, square = found.mean(0), found.square().mean(0)
        if self._window is None:
            self._window = (mean, square, count)
            return False
        window_mean, window_square, window_count = self._window
        variance = (window_square - window_mean.square()).clamp(min=_SMALL)
        error = (variance * (1 / count + 1 / window_count)).sqrt()
        if bool(((mean - window_mean).abs() / error).max() > self.pacing.shift_deviations):
            self._window = (mean, square, count)
            return True
        kept = min(window_count, max(0.0, self.pacing.window_images - count))
        total = kept + count
        self._window = (
            (kept * window_mean + count * mean) / total,
            (kept * window_square + count * square) / total,
            total,
        )
        return False


@torch.no_grad()
def image_statistics(images: Tensor) -> Tensor:
    """Return mean, log contrast and log sharpness of each channel of ``(B, C, H, W)`` images: ``(B, 3 C)``."""
    images = images.float()
    sharpness = (images[..., 1:] - images[..., :-1]).square().mean((2, 3))
    contrast = images.var((2, 3), correction=0)
    return torch.cat([images.mean((2, 3)), (contrast + _SMALL).log(), (sharpness + _SMALL).log()], dim=1)

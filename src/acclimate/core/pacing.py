"""Pacing: adapt only on some batches while the image statistics of a stream stay the same.

Further steps on an unchanged stream improve a model little, and a backward pass costs more than a prediction. The image
statistics of each batch are compared with those of the recent stream; after a change, adaptation resumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from acclimate.core.precision import AnyOptimizer
from acclimate.core.task import Task
from acclimate.errors import ConfigError

_SMALL: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """On which batches to adapt: the first ones, some after each shift, and one at regular intervals.

    The other batches are only predicted. The defaults were chosen on ``tune_jpeg.npz`` with corruptions that are not
    part of the reported benchmark (``benchmarks/cifar``).

    Attributes:
        warm_up: number of batches at the start, all of which are adapted on.
        after_shift: number of batches to adapt on, counted from the one in which a shift is detected.
        every: interval in batches: after ``every`` - 1 batches without adaptation, one is adapted on.
        step_scale: factor of the learning rate, which makes up for the smaller number of steps.
        shift_deviations: number of standard errors between the mean image statistics of a batch and those of the window
            above which a shift is detected.
        window_images: length of the window, in images.

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
    """Applies a :class:`Pacing` to one stream: its window of image statistics, and the batches since the last step."""

    def __init__(self, pacing: Pacing, task: Task) -> None:
        self.pacing = pacing
        self._task = task
        self._window: tuple[Tensor, Tensor, float] | None = None
        self._paused_batches = 0
        self._batches_due = self.pacing.warm_up

    def is_due(self, batch: Any) -> bool:
        """Add ``batch`` to the window, and return whether to adapt on it."""
        if self._has_shifted(image_statistics(self._task.images(batch))):
            self._batches_due = max(self._batches_due, self.pacing.after_shift)
        if self._batches_due == 0 and self._paused_batches + 1 >= self.pacing.every:
            self._batches_due = 1
        due = self._batches_due > 0
        self._batches_due -= due
        self._paused_batches = 0 if due else self._paused_batches + 1
        return due

    def state_dict(self) -> tuple[Any, ...]:
        """Return what is needed to continue after a restart."""
        return self._window, self._paused_batches, self._batches_due

    def load_state_dict(self, state: tuple[Any, ...]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._window, self._paused_batches, self._batches_due = state

    @contextmanager
    def scaled(self, optimizer: AnyOptimizer | None) -> Iterator[None]:
        """Inside the block, learning rates are multiplied by ``step_scale``."""
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
        """Compare statistics ``(B, F)`` with the window and add them to it; after a shift the window restarts."""
        found = found[found.isfinite().all(1)]
        if len(found) == 0:
            # Without finite statistics the stream cannot be called unchanged, and the window must not become NaN.
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
    """Return mean, log variance and log sharpness of each channel of ``(B, C, H, W)`` images: ``(B, 3 C)``."""
    images = images.float()
    sharpness = (images[..., 1:] - images[..., :-1]).square().mean((2, 3))
    contrast = images.var((2, 3), correction=0)
    return torch.cat([images.mean((2, 3)), (contrast + _SMALL).log(), (sharpness + _SMALL).log()], dim=1)

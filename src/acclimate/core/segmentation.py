"""The task of a semantic segmentation network, which gives a class to each pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from acclimate.core import views
from acclimate.core.losses import soft_cross_entropy
from acclimate.core.output_kinds import ENOUGH_VALUES, all_in_unit_interval, rows_sum_to_one
from acclimate.core.outputs import at_least_float32
from acclimate.core.task import Classification, Decisions, View, logits_of
from acclimate.errors import ConfigError, TTTNotSupportedError

_SEQUENCE_STEPS: Final = (0.7548776662466927, 0.5698402909980532)
"""1 / p and 1 / p^2 for the real root p of p^3 = p + 1: the steps of an evenly spread sequence of points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation(Classification):
    """The task of a network that returns logits ``(B, K, h, w)`` of K exclusive classes for each position.

    Logits ``(B, 1, h, w)`` are taken for those of class 1 ("foreground") against class 0. The positions may be coarser
    than the image's pixels. Decisions are a sample of the positions: the same ones in every pass and for every image,
    evenly spread, so that rows of two passes refer to the same positions and their number does not grow with the image.

    Attributes:
        sampled_positions: how many positions of each image are decisions.

    Raises:
        ConfigError: ``sampled_positions`` is below 1.
    """

    sampled_positions: int = 1024

    exclusive = False

    def __post_init__(self) -> None:
        if self.sampled_positions < 1:
            raise ConfigError(f"sampled_positions must be at least 1, got {self.sampled_positions}")

    def forward(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """Return the model's logits ``(B, K, h, w)`` with at least two classes; those of half precision as float32.

        They are the output itself, ``.logits``, ``["logits"]``, ``["out"]`` (torchvision) or the first of a tuple.

        Raises:
            ConfigError: the model returns no logits, or logits of another shape.
        """
        outputs = model(batch)
        if isinstance(outputs, Mapping) and "logits" not in outputs and isinstance(outputs.get("out"), Tensor):
            outputs = outputs["out"]
        logits = at_least_float32(logits_of(outputs))
        if logits.dim() != 4:
            raise ConfigError(
                f"the shape of a segmenter's logits is (B, K, h, w), and this model returned {tuple(logits.shape)}; "
                "a model with one class for each image is a classifier"
            )
        return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits

    def decisions(self, outputs: Any) -> Decisions:
        """Return one row for each sampled position of each image."""
        return Decisions(self._sampled(logits_of(outputs)))

    def divergence(self, student_outputs: Any, teacher_outputs: Any) -> Tensor:
        """Return the cross-entropy of student to teacher in nats at each sampled position: ``(N,)``."""
        return soft_cross_entropy(self._sampled(logits_of(student_outputs)), self._sampled(logits_of(teacher_outputs)))

    def views(self, batch: Any, *, count: int, rng: torch.Generator) -> Iterator[View]:
        """Yield copies with changed colours, blur and noise, half of them mirrored; ``undo`` mirrors logits back."""
        images = self.images(batch)
        copies = views.aligned_copies(images, count=count, rng=rng, pixel_range=self.pixel_range, flips=self.flips)
        for changed, flip in copies:
            yield View(changed.flip(-1), _flipped) if flip else View(changed)

    def mirrored(self, batch: Any) -> View | None:
        """Return the images mirrored left to right; ``undo`` mirrors logits back. None if ``flips`` is false."""
        return View(self.images(batch).flip(-1), _flipped) if self.flips else None

    def mirror(self, batch: Any, chosen: Tensor) -> View:
        """Return the batch with the ``chosen`` ``(B,)`` images mirrored; ``undo`` mirrors their logits back."""

        def flipped(values: Tensor) -> Tensor:
            return torch.where(chosen.to(values.device)[:, None, None, None], values.flip(-1), values)

        return View(flipped(self.images(batch)), lambda outputs: flipped(logits_of(outputs)))

    def check_outputs(self, outputs: Any) -> tuple[str, ...]:
        """Return no remarks.

        Raises:
            TTTNotSupportedError: the outputs are probabilities.
        """
        rows = self._sampled(logits_of(outputs))
        if rows_sum_to_one(rows) or (rows.numel() >= ENOUGH_VALUES and all_in_unit_interval(rows)):
            raise TTTNotSupportedError(
                "the outputs of this segmenter all lie in [0, 1]: they are probabilities, and methods need logits; "
                "return the values before the softmax or the sigmoid"
            )
        return ()

    def _sampled(self, logits: Tensor) -> Tensor:
        """Return the rows ``(B n, K)`` of the sampled positions of ``(B, K, h, w)`` logits, image by image."""
        height, width = logits.shape[-2:]
        chosen = logits.flatten(2)
        if height * width > self.sampled_positions:
            positions = sample_positions(height, width, self.sampled_positions, logits.device)
            chosen = chosen.index_select(2, positions)
        return chosen.transpose(1, 2).flatten(0, 1)


@lru_cache(maxsize=16)
def sample_positions(height: int, width: int, count: int, device: torch.device) -> Tensor:
    """Return ``count`` positions in a flattened ``(height, width)`` grid, evenly spread, in no order of rows.

    They are the points of the additive recurrence with the steps of the plastic number, which any part of the sequence
    spreads evenly; a position may occur twice in a small grid.
    """
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    rows, columns = ((0.5 + steps * step) % 1.0 for step in _SEQUENCE_STEPS)
    return ((rows * height).long() * width + (columns * width).long()).to(device)


def _flipped(outputs: Any) -> Tensor:
    return logits_of(outputs).flip(-1)

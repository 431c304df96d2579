"""Test-time augmentation: some images are also predicted mirrored, and the two predictions are merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from acclimate.core.segmentation import Segmentation
from acclimate.core.task import Classification, Task, View, logits_of
from acclimate.errors import ConfigError
from acclimate.vision.models.detection import Detection


@dataclass(frozen=True, slots=True, kw_only=True)
class TTAConfig:
    """Settings of test-time augmentation.

    Attributes:
        enabled: whether to augment.
        seed: of the random choice of images; None means 0.
        flip_prob: the probability that an image is also predicted mirrored.
        norm_only: whether to merge only the (normalised) boxes, and take scores from the original image.

    Raises:
        ConfigError: the probability lies outside [0, 1].
    """

    enabled: bool = False
    seed: int | None = None
    flip_prob: float = 0.5
    norm_only: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"tta flip_prob must lie in [0, 1], got {self.flip_prob}")


@dataclass
class Augmenter:
    """Predicts with mirrored views, and counts the mirrored images.

    Attributes:
        config: the settings.
        task: mirrors the views, and merges the outputs.
        images, mirrored_images: number of images, and of mirrored ones, so far.
    """

    config: TTAConfig
    task: Task
    images: int = 0
    mirrored_images: int = 0
    _rng: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rng = torch.Generator().manual_seed(self.config.seed or 0)

    def __call__(self, inputs: Any, predict: Callable[[Any], Any]) -> Any:
        """Return the merged outputs on ``inputs``; ``predict`` is called once or twice."""
        plain = predict(inputs)
        count = len(self.task.images(inputs))
        chosen = torch.rand(count, generator=self._rng) < self.config.flip_prob
        self.images += count
        if not bool(chosen.any()):
            return plain
        self.mirrored_images += int(chosen.sum())
        view = _mirrored(self.task, inputs, chosen)
        merged = self.task.merge([plain, view.undo(predict(view.batch))], plain)
        if isinstance(self.task, Detection):
            keys = ("pred_boxes",) if self.config.norm_only else ("logits", "pred_boxes")
            return {**plain, **{key: _where(chosen, merged[key], plain[key]) for key in keys}}
        return plain if self.config.norm_only else _where(chosen, merged, logits_of(plain))

    def summary(self) -> dict[str, int]:
        """Return the counts, for ``meta.tta.summary``."""
        return {"images": self.images, "mirrored": self.mirrored_images}

    def warnings(self) -> list[str]:
        """Return warnings about settings that have no effect or may do harm."""
        found = []
        if not isinstance(self.task, Detection) and self.config.norm_only:
            found.append("tta norm_only merges only boxes, and this model has none: predictions are unchanged")
        if not getattr(self.task, "flips", True):
            found.append("mirrored images may have another class in this task, and tta mirrors them: leave --tta out")
        return found


def _mirrored(task: Task, inputs: Any, chosen: torch.Tensor) -> View:
    if isinstance(task, Detection | Segmentation):
        return task.mirror(inputs, chosen)
    if not isinstance(task, Classification):
        raise ConfigError(
            "test-time augmentation supports the tasks Classification, Segmentation and Detection, not "
            f"{type(task).__name__}; leave --tta out"
        )
    images = task.images(inputs)
    return View(task.with_images(inputs, _where(chosen, images.flip(-1), images)))


def _where(chosen: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    return torch.where(chosen.to(yes.device).view(-1, *[1] * (yes.dim() - 1)), yes, no)

"""What a model's outputs mean, so that a method needs to know only tensors.

A method asks a :class:`Task` for *decisions*: rows of softmax logits, one for each thing the model decided
on (an image for a classifier, a candidate object for a detector). Adapters supply the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from acclimate.core import views
from acclimate.core.losses import soft_cross_entropy
from acclimate.core.outputs import map_tensors
from acclimate.core.views import PixelRange
from acclimate.errors import ConfigError, TTTNotSupportedError


@dataclass(frozen=True, slots=True)
class Decisions:
    """Rows of softmax logits that a loss may learn from.

    Attributes:
        logits: ``(N, K)``; one row for each decision, one column for each alternative.
        weights: ``(N,)`` without gradient: how much each row counts; None counts all alike.
        background: whether the last column means "no object" and is not a class.
    """

    logits: Tensor
    weights: Tensor | None = None
    background: bool = False

    def class_probabilities(self) -> Tensor:
        """Return ``(N, classes)`` probabilities without gradient; a no-object column is left out."""
        probabilities = self.logits.detach().softmax(-1)
        return probabilities[:, :-1] if self.background else probabilities

    def __len__(self) -> int:
        return int(self.logits.shape[0])


def _unchanged(outputs: Any) -> Any:
    return outputs


@dataclass(frozen=True, slots=True)
class View:
    """An augmented copy of a batch, and how to map the outputs on it back to the original; by default as they are."""

    batch: Any
    undo: Callable[[Any], Any] = _unchanged


class Task(Protocol):
    """What a method may ask about a model without knowing what the model is for."""

    def forward(self, model: Callable[..., Any], batch: Any) -> Any:
        """Call ``model`` on ``batch`` and return only what the other functions here need."""
        ...

    def decisions(self, outputs: Any) -> Decisions:
        """Return the rows to learn from; there may be none."""
        ...

    def divergence(self, student_outputs: Any, teacher_outputs: Any) -> Tensor:
        """Return how far the student is from the teacher in nats, ``(N,)``; gradient flows to the student."""
        ...

    def images(self, batch: Any) -> Tensor:
        """Return the images of ``batch``: ``(B, C, H, W)``."""
        ...

    def with_images(self, batch: Any, images: Tensor) -> Any:
        """Return ``batch`` with its images replaced by ``images`` ``(B, C, H, W)``."""
        ...

    def views(self, batch: Any, *, count: int, rng: torch.Generator) -> Iterator[View]:
        """Yield ``count`` augmented copies of ``batch``."""
        ...

    def mirrored(self, batch: Any) -> View | None:
        """Return the batch mirrored left to right; None where what it shows does not survive that."""
        ...

    def merge(self, outputs: Sequence[Any], reference: Any | None) -> Any:
        """Average the outputs on several views, each already undone, into one in the shape of ``reference``."""
        ...

    @property
    def pixel_range(self) -> PixelRange | None:
        """Return the lowest and highest value of a pixel, for all channels or for each; None where it is not known."""
        ...

    @property
    def flips(self) -> bool:
        """Say whether flipped images keep what they show."""
        ...

    @property
    def aligned(self) -> bool:
        """Say whether row i of the decisions means the same thing in any two passes over one batch.

        True for a classifier. A detector's candidates come in another order, and in another number, each time;
        then :meth:`merge` needs the outputs on the batch itself as its reference.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The task of a classifier whose ``(B, K)`` logits are what it returns, or stand in what it returns.

    Attributes:
        pixel_range: the lowest and highest value of a pixel in a batch, for all channels or for each; images are
            augmented within it. None leaves out the augmentations that need a range.
        flips: whether mirrored images keep their class (not so for digits and text).
    """

    pixel_range: PixelRange | None = (0.0, 1.0)
    flips: bool = True

    aligned = True

    def forward(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """Return the model's logits ``(B, K)``.

        Raises:
            ConfigError: the model returns no logits, or logits of another shape.
        """
        logits = logits_of(model(batch))
        if logits.dim() != 2:
            raise ConfigError(
                f"a classifier's logits are (B, K), and this model returned {tuple(logits.shape)}; "
                "give the session the task that it is for, such as acclimate.vision.models.detection.Detection "
                "(in a TorchModel: kind='detector')"
            )
        return logits

    def decisions(self, outputs: Any) -> Decisions:
        """Return one row for each image."""
        return Decisions(logits_of(outputs))

    def divergence(self, student_outputs: Any, teacher_outputs: Any) -> Tensor:
        """Return the cross-entropy of student to teacher in nats: ``(B,)``."""
        return soft_cross_entropy(logits_of(student_outputs), logits_of(teacher_outputs))

    def images(self, batch: Any) -> Tensor:
        """Return ``batch`` itself, which is ``(B, C, H, W)``."""
        if not isinstance(batch, Tensor):
            raise ConfigError(f"Classification takes a tensor (B, C, H, W) as a batch, not {type(batch).__name__}")
        return batch

    def with_images(self, batch: Any, images: Tensor) -> Tensor:
        """Return ``images``."""
        return images

    def views(self, batch: Any, *, count: int, rng: torch.Generator) -> Iterator[View]:
        """Yield the augmented copies of :func:`acclimate.core.views.augmented`; nothing needs undoing."""
        images = self.images(batch)
        for _ in range(count):
            augmented = views.augmented(
                images, rng=rng, pixel_range=self.pixel_range, flip_probability=0.5 * self.flips
            )
            yield View(augmented)

    def mirrored(self, batch: Any) -> View | None:
        """Return the images mirrored, where mirrored images keep their class."""
        return View(self.images(batch).flip(-1)) if self.flips else None

    def merge(self, outputs: Sequence[Any], reference: Any | None) -> Tensor:
        """Return the mean of the logits ``(B, K)`` (CoTTA's official code averages logits)."""
        return torch.stack([logits_of(output) for output in outputs]).mean(0)


def require_classifier(task: Task, method: str) -> None:
    """Check that each row of a task's decisions is an image, the same in every pass.

    Raises:
        TTTNotSupportedError: it is a detector's task.
    """
    if not task.aligned:
        raise TTTNotSupportedError(
            f"{method} compares an image's predictions over several passes, which a detector's queries do not allow; "
            "use spectrum, align, bn, mim or cotta"
        )


@contextmanager
def correcting_logits(model: nn.Module, correct: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, whatever calls ``model`` gets its logits as ``correct`` returns them, in the same container."""

    def changed(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        logits = logits_of(output)
        corrected = correct(logits)
        return map_tensors(lambda tensor: corrected if tensor is logits else tensor, output)

    handle = model.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def logits_of(outputs: Any) -> Tensor:
    """Return the logits in what a classifier returned: a tensor, ``.logits``, ``["logits"]``, or the first of a tuple.

    Raises:
        ConfigError: nothing of that kind is there.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"]  # type: ignore[no-any-return]
    if isinstance(getattr(outputs, "logits", None), Tensor):
        return outputs.logits  # type: ignore[no-any-return]
    if isinstance(outputs, list | tuple) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    found = f"keys {sorted(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
    raise ConfigError(f"no logits in the model's output ({found}): return a tensor (B, K) or a mapping with 'logits'")

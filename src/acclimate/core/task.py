"""Tasks interpret a model's outputs, so that methods work on tensors alone.

A :class:`Task` converts outputs to *decisions*: rows of softmax logits, one for each image of a classifier or each
candidate object of a detector. Adapters supply the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from acclimate.core import views
from acclimate.core.losses import soft_cross_entropy
from acclimate.core.output_kinds import remarks, rows_sum_to_one
from acclimate.core.outputs import at_least_float32, map_tensors
from acclimate.core.views import PixelRange
from acclimate.errors import ConfigError, TTTNotSupportedError


@dataclass(frozen=True, slots=True)
class Decisions:
    """Rows of softmax logits to compute losses from.

    Attributes:
        logits: ``(N, K)``; one row for each decision, one column for each class.
        weights: the weight of each row, ``(N,)`` without gradient; None weights all rows equally.
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
    """An augmented copy of a batch, and the function that maps outputs on it to the original (default: identity)."""

    batch: Any
    undo: Callable[[Any], Any] = _unchanged


class Task(Protocol):
    """The operations on a model's inputs and outputs that methods use."""

    def forward(self, model: Callable[..., Any], batch: Any) -> Any:
        """Call ``model`` on ``batch`` and return the part of its outputs that the other functions use."""
        ...

    def decisions(self, outputs: Any) -> Decisions:
        """Return the decisions in ``outputs``; there may be none."""
        ...

    def divergence(self, student_outputs: Any, teacher_outputs: Any) -> Tensor:
        """Return the divergence of the student from the teacher in nats, ``(N,)``, differentiable in the student."""
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
        """Return the batch mirrored left to right; None where mirroring changes the meaning of the images."""
        ...

    def merge(self, outputs: Sequence[Any], reference: Any | None) -> Any:
        """Average the outputs on several views, each mapped back by :attr:`View.undo`.

        ``reference``: the outputs on the batch itself, which decide the structure of the result; None where
        :attr:`aligned` is true.
        """
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
        """Whether row i of the decisions refers to the same object in any two passes over one batch.

        True for a classifier and a segmenter. A detector's candidates differ in order and number in each pass; then
        :meth:`merge` needs the outputs on the batch itself as its reference.
        """
        ...

    @property
    def exclusive(self) -> bool:
        """Whether each image has exactly one of the classes, and so one row of decisions."""
        ...


def second_view(task: Task, batch: Any) -> View:
    """Return the batch mirrored; where that changes what images show, moved a little instead.

    For tasks in which an image has one decision.
    """
    mirrored = task.mirrored(batch)
    return View(task.with_images(batch, views.moved(task.images(batch)))) if mirrored is None else mirrored


@runtime_checkable
class ChecksOutputs(Protocol):
    """A task that can tell from a model's outputs that they are not what it interprets them as."""

    def check_outputs(self, outputs: Any) -> tuple[str, ...]:
        """Return why the outputs on a batch are probably something else.

        Raises:
            TTTNotSupportedError: they certainly are something else; the message says what, and the remedy.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The task of a classifier that returns logits ``(B, K)``, or a container with them (see :func:`logits_of`).

    Attributes:
        pixel_range: the lowest and highest possible pixel value in a batch, for all channels or for each; augmented
            images are clipped to it. None leaves out the augmentations that need a range.
        flips: whether mirrored images keep their class (False for digits and text).
    """

    pixel_range: PixelRange | None = (0.0, 1.0)
    flips: bool = True

    aligned = True
    exclusive = True

    def forward(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """Return the model's logits ``(B, K)``; those of half precision as float32, for losses and statistics.

        Raises:
            ConfigError: the model returns no logits, or logits of another shape.
        """
        logits = at_least_float32(logits_of(model(batch)))
        if logits.dim() == 1:
            raise ConfigError(
                f"this model returned one number for each image, {tuple(logits.shape)}: if it is the logit of a "
                f"yes-or-no decision, {ONE_LOGIT_REMEDY}"
            )
        if logits.dim() != 2:
            raise ConfigError(
                f"the shape of a classifier's logits is (B, K), and this model returned {tuple(logits.shape)}; "
                "give the session the model's task, such as acclimate.vision.models.detection.Detection "
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
        """Yield augmented copies made by :func:`acclimate.core.views.augmented`; classes are not affected."""
        images = self.images(batch)
        for _ in range(count):
            augmented = views.augmented(
                images, rng=rng, pixel_range=self.pixel_range, flip_probability=0.5 * self.flips
            )
            yield View(augmented)

    def mirrored(self, batch: Any) -> View | None:
        """Return the images mirrored left to right; None if ``flips`` is false."""
        return View(self.images(batch).flip(-1)) if self.flips else None

    def check_outputs(self, outputs: Any) -> tuple[str, ...]:
        """Return why outputs are probably no logits of exclusive classes.

        Raises:
            TTTNotSupportedError: they certainly are none.
        """
        logits = logits_of(outputs)
        if logits.dim() == 2 and logits.shape[1] == 1:
            raise TTTNotSupportedError(
                "this model returns one number for each image, and the softmax of a single logit is always 1: if it "
                f"is the logit of a yes-or-no decision, {ONE_LOGIT_REMEDY}"
            )
        if rows_sum_to_one(logits):
            # Their logarithm has the same softmax, but not the sum of exponentials and the scale that some methods and
            # guards use, and a probability that was rounded to 0 or 1 has no gradient.
            raise TTTNotSupportedError(
                "the outputs of this model are probabilities (each row is non-negative and sums to one), and methods "
                "need logits; return the values before the softmax"
            )
        return remarks(logits)

    def merge(self, outputs: Sequence[Any], reference: Any | None) -> Tensor:
        """Return the mean of the logits ``(B, K)``, as CoTTA's official code does."""
        return torch.stack([logits_of(output) for output in outputs]).mean(0)


ONE_LOGIT_REMEDY: Final = (
    "use kind='multilabel' (the task Multilabel); a model that predicts numbers (regression) has no class "
    "probabilities, and cannot be adapted"
)


def require_classifier(task: Task, method: str) -> None:
    """Check that the task is a classifier's, in which each image has one class and one row of decisions in every pass.

    Raises:
        TTTNotSupportedError: it is a detector's task, or one with several labels for an image.
    """
    if task.aligned and not task.exclusive:
        raise TTTNotSupportedError(
            f"{method} needs exactly one class for each image, and images of this task may have several classes or "
            "none; use tent, eata, sar, cotta, mim, bn or blend"
        )
    if not task.aligned:
        raise TTTNotSupportedError(
            f"{method} compares an image's predictions over several passes, and a detector's queries cannot be matched "
            "between passes; use spectrum, align, bn, mim or cotta"
        )


@contextmanager
def correcting_logits(model: nn.Module, correct: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, ``model`` returns its logits as changed by ``correct``, in the same container."""

    def changed(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        logits = logits_of(output)
        corrected = correct(at_least_float32(logits)).to(logits.dtype)
        return map_tensors(lambda tensor: corrected if tensor is logits else tensor, output)

    handle = model.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def logits_of(outputs: Any) -> Tensor:
    """Return a classifier's logits: the outputs themselves, ``.logits``, ``["logits"]``, or the first of a tuple.

    Raises:
        ConfigError: the outputs contain none of these.
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

"""The task of a DETR-like detector: selects queries to learn from, and matches the queries of two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from acclimate.core import views
from acclimate.core.losses import sigmoid_to_softmax, soft_cross_entropy
from acclimate.core.output_kinds import ENOUGH_VALUES, all_in_unit_interval, rows_sum_to_one
from acclimate.core.outputs import at_least_float32
from acclimate.core.task import Decisions, View
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.vision.data import boxes as box_ops

Head = Literal["sigmoid", "softmax"]
DetectionOutputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The task of a detector that returns ``logits`` ``(B, Q, K)`` and ``pred_boxes`` ``(B, Q, 4)`` of Q queries.

    Most queries predict background, which would dominate an average over all of them. So the decisions are
    *candidates*: queries whose foreground score reaches ``min_foreground``, at most ``max_candidates`` of each image,
    weighted by that score. Images without candidates are not learned from.

    Attributes:
        head: ``sigmoid``: independent scores of the classes (RT-DETR, D-FINE, Deformable DETR); ``softmax``: scores
            with a last column for "no object" (DETR, YOLOS).
        min_foreground: the lowest score of a candidate.
        max_candidates: the limit for each image; those with the highest scores are used.
        match_iou: the overlap (IoU) from which boxes of two passes are taken for the same object.
        box_weight: weight of the L1 distance between matched boxes; that of the cross-entropy is 1 (5 as in DETR's
            loss).
        pixel_range: lowest and highest possible pixel value in a batch, for all channels or for each; None leaves out
            colour changes in views.
        flips: whether mirrored images keep their classes.
        extra_outputs: further keys of the model's output to keep.

    Raises:
        ConfigError: the head is unknown.
    """

    head: Head
    min_foreground: float = 0.3
    max_candidates: int = 100
    match_iou: float = 0.5
    box_weight: float = 5.0
    pixel_range: views.PixelRange | None = None
    flips: bool = True
    extra_outputs: tuple[str, ...] = ()

    aligned = False
    exclusive = False

    def __post_init__(self) -> None:
        if self.head not in ("sigmoid", "softmax"):
            raise ConfigError(f"a detector's head must be sigmoid or softmax, got {self.head!r}")

    def forward(self, model: Callable[..., Any], batch: Any) -> DetectionOutputs:
        """Return ``logits``, ``pred_boxes`` and the extra outputs, without the model's other outputs.

        Outputs of half precision are returned as float32.

        Raises:
            ConfigError: the model's output has no ``logits`` or no ``pred_boxes``.
        """
        outputs = model(**batch) if isinstance(batch, Mapping) else model(batch)
        keys = ("logits", "pred_boxes", *self.extra_outputs)
        try:
            found = {key: outputs[key] if isinstance(outputs, Mapping) else getattr(outputs, key) for key in keys}
        except (KeyError, AttributeError) as error:
            raise ConfigError(
                f"a detector must return a mapping or an object with {', '.join(keys)}; {error} is missing"
            ) from error
        return {key: at_least_float32(value) for key, value in found.items()}

    def decisions(self, outputs: Any) -> Decisions:
        """Return the candidates of all images as rows of ``K + 1`` logits, the last for "no object"."""
        foreground = self.foreground(outputs).detach()
        keep = foreground >= self.min_foreground
        if foreground.shape[1] > self.max_candidates:
            lowest = foreground.topk(self.max_candidates, dim=1).values[:, -1:]
            keep &= foreground >= lowest
        return Decisions(self.softmax_logits(outputs)[keep], foreground[keep], background=True)

    def divergence(self, student_outputs: Any, teacher_outputs: Any) -> Tensor:
        """Return the divergence ``(N,)`` of the student from each of the teacher's candidates that it has a match for.

        It is the cross-entropy in nats to the teacher's classes plus ``box_weight`` times the L1 distance of the boxes.
        """
        student_logits, teacher_logits = self.softmax_logits(student_outputs), self.softmax_logits(teacher_outputs)
        candidates = self.foreground(teacher_outputs).detach() >= self.min_foreground
        terms = []
        for image, mask in enumerate(candidates):
            teacher_boxes = teacher_outputs["pred_boxes"][image][mask]
            if len(teacher_boxes) == 0:
                continue
            student_boxes = student_outputs["pred_boxes"][image]
            overlap, match = box_ops.pairwise_iou(teacher_boxes, student_boxes.detach()).max(1)
            same = overlap >= self.match_iou
            entropy = soft_cross_entropy(student_logits[image][match], teacher_logits[image][mask])
            distance = (student_boxes[match] - teacher_boxes).abs().sum(-1)
            terms.append((entropy + self.box_weight * distance)[same])
        return torch.cat(terms) if terms else student_logits.new_zeros(0)

    def check_outputs(self, outputs: Any) -> tuple[str, ...]:
        """Return no remarks.

        Raises:
            TTTNotSupportedError: the ``logits`` are probabilities.
        """
        if (problem := self.not_logits(outputs["logits"])) is not None:
            raise TTTNotSupportedError(problem)
        return ()

    def not_logits(self, logits: Tensor) -> str | None:
        """Return why ``(B, Q, K)`` values are no logits, with the remedy; None where they may be."""
        if self.head == "softmax" and rows_sum_to_one(logits):
            return (
                "the logits of this detector are probabilities (each row is non-negative and sums to one); return the "
                "values before the softmax"
            )
        if logits.numel() >= ENOUGH_VALUES and all_in_unit_interval(logits):
            return (
                "the logits of this detector all lie in [0, 1]: they are scores, and not logits; return the values "
                "before the sigmoid, or torch.logit(scores, eps=1e-6)"
            )
        return None

    def images(self, batch: Any) -> Tensor:
        """Return the images ``(B, C, H, W)``."""
        images: Tensor = batch["pixel_values"] if isinstance(batch, Mapping) else batch
        return images

    def with_images(self, batch: Any, images: Tensor) -> Any:
        """Return ``batch`` with its images replaced."""
        return {**batch, "pixel_values": images} if isinstance(batch, Mapping) else images

    def views(self, batch: Any, *, count: int, rng: torch.Generator) -> Iterator[View]:
        """Yield copies with changed colours, blur and noise, half of them mirrored; ``undo`` mirrors boxes back."""
        images = self.images(batch)
        copies = views.aligned_copies(images, count=count, rng=rng, pixel_range=self.pixel_range, flips=self.flips)
        for changed, flip in copies:
            view = self.with_images(batch, changed)
            yield self.mirror(view, torch.ones(len(images), dtype=torch.bool)) if flip else View(view)

    def mirrored(self, batch: Any) -> View | None:
        """Return all images mirrored left to right; None if ``flips`` is false."""
        return self.mirror(batch, torch.ones(len(self.images(batch)), dtype=torch.bool)) if self.flips else None

    def mirror(self, batch: Any, chosen: Tensor) -> View:
        """Return the batch with the ``chosen`` ``(B,)`` images and their masks mirrored left to right."""
        chosen = chosen.to(self.images(batch).device)

        def flipped(values: Tensor) -> Tensor:
            return torch.where(chosen.view(-1, *[1] * (values.dim() - 1)), values.flip(-1), values)

        def undo(outputs: Any) -> Any:
            boxes = outputs["pred_boxes"]
            return {**outputs, "pred_boxes": torch.where(chosen[:, None, None], box_ops.mirrored(boxes), boxes)}

        if isinstance(batch, Mapping):
            return View({key: flipped(value) for key, value in batch.items()}, undo)
        return View(flipped(batch), undo)

    def merge(self, outputs: Sequence[Any], reference: Any | None) -> DetectionOutputs:
        """Average the outputs of several passes, matched to the queries of ``reference`` by their boxes.

        In each pass, the match of a reference query is the query with the largest overlap, if that reaches
        ``match_iou``. Class probabilities and boxes are averaged over the reference and all matches. Extra outputs are
        the reference's.
        """
        base: DetectionOutputs = outputs[0] if reference is None else reference
        probabilities, boxes = self._probabilities(base["logits"]), base["pred_boxes"]
        total_probabilities, total_boxes = probabilities.clone(), boxes.clone()
        counts = torch.ones_like(boxes[..., :1])
        for other in outputs:
            if other is base:
                continue
            other_probabilities = self._probabilities(other["logits"])
            for image in range(len(boxes)):
                overlap, match = box_ops.pairwise_iou(boxes[image], other["pred_boxes"][image]).max(1)
                same = (overlap >= self.match_iou).unsqueeze(-1)
                total_probabilities[image] += torch.where(same, other_probabilities[image][match], 0.0)
                total_boxes[image] += torch.where(same, other["pred_boxes"][image][match], 0.0)
                counts[image] += same
        return {**base, "logits": self._logits(total_probabilities / counts), "pred_boxes": total_boxes / counts}

    def foreground(self, outputs: Any) -> Tensor:
        """Return the score of the most probable class of each query: ``(B, Q)`` in [0, 1]."""
        probabilities = self._probabilities(outputs["logits"])
        return (probabilities[..., :-1] if self.head == "softmax" else probabilities).amax(-1)

    def softmax_logits(self, outputs: Any) -> Tensor:
        """Return ``(B, Q, K + 1)`` softmax logits whose last column is "no object"."""
        logits: Tensor = outputs["logits"]
        return sigmoid_to_softmax(logits) if self.head == "sigmoid" else logits

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.head == "sigmoid" else logits.softmax(-1)

    def _logits(self, probabilities: Tensor) -> Tensor:
        safe = probabilities.clamp(1e-7, 1 - 1e-7)
        return torch.logit(safe) if self.head == "sigmoid" else safe.log()

"""The adapter for any torch model that a function ``package.module:factory`` returns.

The factory takes no argument and returns a :class:`TorchModel`, or only a module, which is then taken for a classifier
of images in [0, 1] at their own size. The module must return:

- as a classifier: logits ``(B, K)``, as a tensor or under the key ``logits``;
- as a model with several labels for an image (``multilabel``): logits ``(B, K)`` of a sigmoid for each label;
- as a detector: a mapping with ``logits`` ``(B, Q, K)`` (sigmoid head) or ``(B, Q, K + 1)`` (softmax head, last column
  "no object") and ``pred_boxes`` ``(B, Q, 4)`` as ``(cx, cy, w, h)`` fractions of the image.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from acclimate.core.determinism import parse_device
from acclimate.core.multilabel import Multilabel
from acclimate.core.output_kinds import rows_sum_to_one, to_logits
from acclimate.core.spectrum import PowerSpectrum
from acclimate.core.task import ChecksOutputs, Classification, Task, logits_of
from acclimate.core.views import PixelRange, normalised_range
from acclimate.errors import CheckpointError, ConfigError, DataError, TTTNotSupportedError, first_line
from acclimate.registry import KINDS, AdapterInfo, Kind
from acclimate.vision.data import boxes as box_ops
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.labels import LabelMap
from acclimate.vision.data.predictions import classification_entries, detection_entries, multilabel_entries
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Entry, ImageBatch, chunks, predict_in_batches
from acclimate.vision.models.detection import Detection
from acclimate.vision.models.loading import AdapterOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A module, with the description that the adapter needs.

    Attributes:
        module: takes images ``(B, 3, H, W)``; see :mod:`acclimate.vision.models.torch_adapter` for what it must return.
        kind: ``classifier``, ``multilabel`` or ``detector``.
        head: the type of a detector's class scores, see :class:`acclimate.vision.models.detection.Detection`.
        image_size: ``(width, height)`` to which images are resized; None keeps their size, which must then be the same
            for all images of a batch.
        mean, std: of each channel, for normalisation; None leaves pixels in [0, 1].
        class_names: label of each class, in order.
        flips: whether mirrored images keep their class (False for digits and text).

    Raises:
        ConfigError: the kind is unknown, or only one of mean and std is given.
    """

    module: nn.Module
    kind: Kind = "classifier"
    head: Literal["sigmoid", "softmax"] = "sigmoid"
    image_size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    class_names: tuple[str, ...] = ()
    flips: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind must be {' or '.join(KINDS)}, got {self.kind!r}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"give mean and std together, or neither; got mean {self.mean} and std {self.std}")


class TorchAdapter:
    """Predicts with the model that a factory returns.

    Args:
        factory: ``package.module:callable``; the current folder is searched too.
        checkpoint: a safetensors file to load; None keeps the weights that the factory returns.
        trust_pickle: whether to allow a checkpoint that is not safetensors.
        reader, categories, device, score_threshold, batch_size: as for
            :class:`acclimate.vision.models.transformers_adapter.TransformersAdapter`.

    Raises:
        ConfigError: the factory cannot be found, fails, or returns something else.
        CheckpointError: the checkpoint cannot be loaded, or is a pickle and ``trust_pickle`` is false.
    """

    info: ClassVar[AdapterInfo] = AdapterInfo(
        name="torch",
        title="Any torch module that a function returns",
        model="package.module:factory",
        takes_checkpoint=True,
    )
    calls_model_itself = False

    def __init__(
        self,
        factory: str,
        *,
        checkpoint: str | None = None,
        trust_pickle: bool = False,
        reader: ImageReader | None = None,
        categories: Mapping[int, str] | None = None,
        device: str = "cpu",
        score_threshold: float = 0.05,
        batch_size: int = 64,
    ) -> None:
        made = _made_by(factory)
        if isinstance(made, nn.Module):
            made = TorchModel(module=made)
        if not isinstance(made, TorchModel):
            raise ConfigError(
                f"{factory} returned an object of type {type(made).__name__}; return a TorchModel or a torch module"
            )
        self.model = made
        self.reader = ImageReader() if reader is None else reader
        self.score_threshold = score_threshold
        self.batch_size = batch_size
        self._device = parse_device(device)
        if checkpoint is not None:
            load_checkpoint(made.module, Path(checkpoint), trust_pickle=trust_pickle)
        made.module.to(self._device).eval()
        self.kind: Kind = made.kind
        self._looked = False
        self.source_spectrum: PowerSpectrum | None = None
        self.ttt_refusal: str | None = None
        self.labels = LabelMap.by_name(dict(enumerate(made.class_names)), categories or {})
        self.warnings: tuple[str, ...] = self.labels.warnings
        pixel_range: PixelRange = (0.0, 1.0)
        if made.mean is not None and made.std is not None:
            pixel_range = normalised_range(made.mean, made.std)
        self.task: Task = _task(made, pixel_range)

    @classmethod
    def from_options(cls, options: AdapterOptions, *, reader: ImageReader, categories: Mapping[int, str]) -> Self:
        """Return the adapter for these options."""
        return cls(
            str(options.model),
            checkpoint=options.checkpoint,
            reader=reader,
            categories=categories,
            device=options.device,
            score_threshold=options.score_threshold,
            trust_pickle=options.trust_pickle,
        )

    def get_model(self) -> nn.Module:
        """Return the module."""
        return self.model.module

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        """Yield batches ``(B, 3, H, W)``, resized and normalised as described by the :class:`TorchModel`.

        Raises:
            DataError: ``image_size`` is None and the images of a batch differ in size.
        """
        for part in chunks(records, batch_size):
            usable = self.reader.read_many(part)
            if not usable:
                continue
            sizes = tuple((pixels.shape[1], pixels.shape[0]) for _, pixels in usable)
            if self.model.image_size is None and len(set(sizes)) > 1:
                raise DataError(
                    f"the images of a batch differ in size ({sizes[0]} and {next(s for s in sizes if s != sizes[0])}); "
                    "give the TorchModel an image_size, or use a batch size of 1"
                )
            inputs = torch.stack([self._tensor(pixels) for _, pixels in usable]).to(self._device)
            yield ImageBatch(inputs, tuple(record for record, _ in usable), sizes)

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        """Return the entries of one batch.

        Raises:
            ConfigError: the outputs are not what the model's kind returns.
        """
        if isinstance(self.task, Detection):
            if (problem := self.task.not_logits(outputs["logits"])) is not None:
                raise ConfigError(problem)
            found = _detections(self.task, outputs, threshold=self.score_threshold)
            return detection_entries(found, batch, labels=self.labels)
        logits = logits_of(outputs)
        if self.kind == "multilabel":
            self._look_at(logits)
            return multilabel_entries(logits, batch, labels=self.labels)
        if rows_sum_to_one(logits):
            # The softmax of the logarithm of probabilities is these probabilities.
            logits = to_logits(logits)
            if not self._looked:
                self.warnings += ("the model returns probabilities and no logits; they are written as they are",)
                self._looked = True
        self._look_at(logits)
        return classification_entries(logits, batch, labels=self.labels)

    def _look_at(self, logits: Tensor) -> None:
        """Warn of outputs that are probably no logits; look at those of the first batch only.

        Raises:
            ConfigError: they certainly are none.
        """
        if self._looked or not isinstance(self.task, ChecksOutputs):
            return
        self._looked = True
        try:
            self.warnings += self.task.check_outputs(logits)
        except TTTNotSupportedError as error:
            raise ConfigError(str(error)) from error

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return one entry for each usable record."""
        return [entry for part in predict_in_batches(self, records, batch_size=self.batch_size) for entry in part]

    def _tensor(self, pixels: np.ndarray) -> Tensor:
        if self.model.image_size is not None and self.model.image_size != (pixels.shape[1], pixels.shape[0]):
            pixels = np.asarray(Image.fromarray(pixels).resize(self.model.image_size, Image.Resampling.BILINEAR))
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float().div_(255)
        if self.model.mean is None or self.model.std is None:
            return image
        return (image - torch.tensor(self.model.mean)[:, None, None]) / torch.tensor(self.model.std)[:, None, None]


def _task(model: TorchModel, pixel_range: PixelRange) -> Task:
    if model.kind == "detector":
        return Detection(head=model.head, pixel_range=pixel_range, flips=model.flips)
    of_kind = Multilabel if model.kind == "multilabel" else Classification
    return of_kind(pixel_range=pixel_range, flips=model.flips)


def load_checkpoint(module: nn.Module, path: Path, *, trust_pickle: bool) -> None:
    """Load weights into a module; they must fit exactly.

    Raises:
        CheckpointError: the file is missing, is a pickle and ``trust_pickle`` is false, or does not fit the module.
    """
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(str(path))
        elif trust_pickle:
            tensors = torch.load(path, map_location="cpu", weights_only=False)
            tensors = tensors.get("state_dict", tensors)
        else:
            raise CheckpointError(
                f"{path} is not a safetensors file, and loading a pickle executes code from it; "
                "convert it, or pass --trust-pickle if you trust its source"
            )
        module.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
        # torch lists the tensors that do not fit on the lines after the first one.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"checkpoint {path} cannot be loaded: {reason}") from error


def _detections(task: Detection, outputs: Any, *, threshold: float) -> list[dict[str, Tensor]]:
    logits, boxes = outputs["logits"].detach(), box_ops.corners(outputs["pred_boxes"].detach())
    found = []
    for image in range(len(logits)):
        if task.head == "sigmoid":
            # A query may have several classes: take the best pairs of query and class, as RT-DETR's post-processing.
            classes = logits.shape[-1]
            scores, positions = logits[image].sigmoid().flatten().topk(logits.shape[1])
            labels, queries = positions % classes, positions // classes
        else:
            scores, labels = logits[image].softmax(-1)[:, :-1].max(-1)
            queries = torch.arange(len(scores), device=scores.device)
        keep = scores > threshold
        found.append({"scores": scores[keep], "labels": labels[keep], "boxes": boxes[image][queries[keep]]})
    return found


def _made_by(factory: str) -> Any:
    module_name, _, attribute = factory.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"--model for the torch adapter must be package.module:factory, got {factory!r}")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
        if not callable(found):
            raise ConfigError(f"{factory!r} is a {type(found).__name__}, not a callable that returns a model")
        return found()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{factory!r} or one of its imports cannot be found: {first_line(error)}") from error
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{factory!r} failed: {type(error).__name__}: {first_line(error)}") from error
    finally:
        if added:
            sys.path.remove(here)

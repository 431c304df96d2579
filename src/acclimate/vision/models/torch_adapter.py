"""The adapter for any torch model that a function ``package.module:factory`` returns.

The factory takes no argument and returns a :class:`TorchModel`, or only a module, which is then taken for a classifier
of images in [0, 1] at their own size. The module must return:

- as a classifier: logits ``(B, K)``, as a tensor or under the key ``logits``;
- as a model with several labels for an image (``multilabel``): logits ``(B, K)`` of a sigmoid for each label;
- as a segmenter: logits ``(B, K, h, w)``, which may be coarser than the image, as a tensor or under the key
  ``logits`` or ``out``; one channel is taken for the logits of class 1 against class 0;
- as a detector: a mapping with ``logits`` ``(B, Q, K)`` (sigmoid head) or ``(B, Q, K + 1)`` (softmax head, last column
  "no object") and ``pred_boxes`` ``(B, Q, 4)`` as ``(cx, cy, w, h)`` fractions of the image.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import torch
from torch import Tensor, nn

from acclimate.core.determinism import parse_device
from acclimate.core.multilabel import Multilabel
from acclimate.core.output_kinds import rows_sum_to_one, to_logits
from acclimate.core.outputs import at_least_float32
from acclimate.core.placement import sent
from acclimate.core.precision import dtype_of, parse_dtype
from acclimate.core.programs import Program, unwrapped
from acclimate.core.segmentation import Segmentation
from acclimate.core.spectrum import PowerSpectrum
from acclimate.core.task import ChecksOutputs, Classification, Task, logits_of
from acclimate.core.views import PixelRange
from acclimate.errors import ConfigError, DataError, TTTNotSupportedError, first_line
from acclimate.registry import KINDS, AdapterInfo, Kind
from acclimate.vision.data import boxes as box_ops
from acclimate.vision.data.corruptions import Uint8Image
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.labels import LabelMap
from acclimate.vision.data.predictions import (
    classification_entries,
    detection_entries,
    multilabel_entries,
    segmentation_entries,
)
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Entry, ImageBatch, chunks, predict_in_batches
from acclimate.vision.models.checkpoints import load_checkpoint
from acclimate.vision.models.detection import Detection
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.models.preprocess import (
    Callback,
    Fit,
    Prepared,
    Preprocess,
    ProcessorCall,
    is_image_processor,
    moves_boxes,
    of_module,
    processor_range,
)

_MOST_PAIRS: Final = 1000
"""How many pairs of candidate and class a postprocess gets at least, where there are so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A module, with the description that the adapter needs.

    Attributes:
        module: takes images ``(B, 3, H, W)``; a ``torch.nn.Module``, or a program of TorchScript or ``torch.export``,
            which only methods that change images can adapt. Of a ``DataParallel`` wrapper the module inside is used.
            See :mod:`acclimate.vision.models.torch_adapter` for what it must return.
        kind: ``classifier``, ``multilabel``, ``segmenter`` or ``detector``.
        head: the type of a detector's class scores, see :class:`acclimate.vision.models.detection.Detection`.
        image_size: ``(width, height)`` to which images are resized; None keeps their size, which must then be the same
            for all images of a batch. A segmenter's classes are mapped back to the pixels of the image.
        mean, std: of each channel, for normalisation; None leaves pixels in [0, 1].
        preprocess: replaces ``image_size``, ``mean`` and ``std``: a :class:`Preprocess`, an image processor of
            transformers, or a function of one image ``(H, W, 3)`` (RGB, uint8) that returns a tensor ``(C, H, W)`` or a
            :class:`Prepared`. Where none of the four is given, settings that timm or transformers stored with the
            module are used, see :func:`acclimate.vision.models.preprocess.of_module`.
        pixel_range: values of black and white in the module's input, for a ``preprocess`` that is a function; None
            leaves out augmentations and filters that need them.
        postprocess: of a detector: a function of ``scores`` ``(N,)``, ``labels`` ``(N,)`` and centre boxes ``(N, 4)``
            of one image that returns the positions of the detections to keep, such as
            :class:`acclimate.vision.models.dense.NonMaximumSuppression`.
        class_names: label of each class, in order.
        flips: whether mirrored images keep their class (False for digits and text).

    Raises:
        ConfigError: the kind is unknown, only one of mean and std is given, settings exclude each other, or the image
            processor of a detector or segmenter crops or pads images.
    """

    module: Any
    kind: Kind = "classifier"
    head: Literal["sigmoid", "softmax"] = "sigmoid"
    image_size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    preprocess: Preprocess | Callback | None = None
    pixel_range: PixelRange | None = None
    postprocess: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    class_names: tuple[str, ...] = ()
    flips: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind must be {' or '.join(KINDS)}, got {self.kind!r}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"give mean and std together, or neither; got mean {self.mean} and std {self.std}")
        if self.preprocess is not None and (self.image_size, self.mean) != (None, None):
            raise ConfigError("preprocess replaces image_size, mean and std; give one or the others")
        if self.pixel_range is not None and (self.preprocess is None or isinstance(self.preprocess, Preprocess)):
            raise ConfigError("pixel_range is for a preprocess that is a function; leave it out")
        if self.postprocess is not None and self.kind != "detector":
            raise ConfigError(f"postprocess is for detectors, and kind is {self.kind!r}; leave it out")
        places = {"detector": "boxes", "segmenter": "pixels"}.get(self.kind)
        if places is not None and is_image_processor(self.preprocess) and moves_boxes(self.preprocess):
            raise ConfigError(
                f"{type(self.preprocess).__name__} crops or pads images, and does not say how {places} are mapped "
                "back; use acclimate.vision.models.preprocess.letterbox, or a function that returns a Prepared"
            )


class TorchAdapter:
    """Predicts with the model that a factory returns.

    Args:
        factory: ``package.module:callable``; the current folder is searched too.
        checkpoint: a file with weights to load, see :func:`acclimate.vision.models.checkpoints.load_checkpoint`; None
            keeps those that the factory returns.
        trust_pickle: whether to load a pickle with other objects than tensors, which executes its code.
        dtype: the number format to convert the module to, see :data:`acclimate.core.precision.DTYPES`; None keeps its
            own. Images are converted to it.
        reader, categories, device, score_threshold, batch_size: as for
            :class:`acclimate.vision.models.transformers_adapter.TransformersAdapter`.

    Raises:
        ConfigError: the factory cannot be found, fails, or returns something else.
        CheckpointError: the checkpoint cannot be loaded, or not without executing code and ``trust_pickle`` is false.
    """

    info: ClassVar[AdapterInfo] = AdapterInfo(
        name="torch",
        title="Any torch module that a function returns",
        model="package.module:factory",
        takes_checkpoint=True,
        takes_dtype=True,
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
        dtype: str | None = None,
        score_threshold: float = 0.05,
        batch_size: int = 64,
    ) -> None:
        made = _made_by(factory)
        if isinstance(made, nn.Module) or Program.of(made) is not None:
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
        self.warnings: tuple[str, ...] = ()
        if checkpoint is not None:
            self.warnings += load_checkpoint(_weights_of(made.module), Path(checkpoint), trust_pickle=trust_pickle)
        self._module, self._dtype = _on_device(made.module, self._device, None if dtype is None else parse_dtype(dtype))
        self.kind: Kind = made.kind
        self._looked = False
        self.source_spectrum: PowerSpectrum | None = None
        self.ttt_refusal: str | None = None
        self.labels = LabelMap.by_name(dict(enumerate(made.class_names)), categories or {})
        self.warnings += self.labels.warnings
        self._prepare, pixel_range, found = _preparation(made)
        if found is not None:
            self.warnings += (f"images are prepared as {found} says",)
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
            dtype=options.dtype,
            score_threshold=options.score_threshold,
            trust_pickle=options.trust_pickle,
        )

    def get_model(self) -> nn.Module:
        """Return the module."""
        return self._module

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        """Yield batches ``(B, 3, H, W)``, prepared as described by the :class:`TorchModel`.

        Raises:
            ConfigError: a function that prepares images returns something else than a tensor ``(C, H, W)``.
            DataError: the prepared images of a batch differ in size.
        """
        for part in chunks(records, batch_size):
            usable = self.reader.read_many(part)
            if not usable:
                continue
            sizes = self.reader.sizes(usable)
            prepared = [self._prepared(pixels) for _, pixels in usable]
            shapes = [tuple(one.tensor.shape) for one in prepared]
            if len(set(shapes)) > 1:
                other = next(shape for shape in shapes if shape != shapes[0])
                raise DataError(
                    f"the images of a batch differ in size ({shapes[0][:0:-1]} and {other[:0:-1]}); give the "
                    "TorchModel an image_size or a preprocess, or use a batch size of 1"
                )
            inputs = sent(torch.stack([one.tensor for one in prepared]), self._device, self._dtype)
            maps = tuple(one.boxes for one in prepared)
            yield ImageBatch(inputs, tuple(record for record, _ in usable), sizes, maps)

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        """Return the entries of one batch.

        Raises:
            ConfigError: the outputs are not what the model's kind returns.
        """
        if isinstance(self.task, Detection):
            if (problem := self.task.not_logits(outputs["logits"])) is not None:
                raise ConfigError(problem)
            found = _detections(self.task, outputs, self.model.postprocess, threshold=self.score_threshold)
            for image, box_map in zip(found, batch.box_maps, strict=False):
                image["boxes"] = box_map.corners(image["boxes"])
            return detection_entries(found, batch, labels=self.labels)
        logits = logits_of(outputs)
        if self.kind == "segmenter":
            return segmentation_entries(self._as_logits(logits, classes=1), batch, labels=self.labels)
        if self.kind == "multilabel":
            self._look_at(logits)
            return multilabel_entries(logits, batch, labels=self.labels)
        return classification_entries(self._as_logits(logits, classes=-1), batch, labels=self.labels)

    def _as_logits(self, outputs: Tensor, *, classes: int) -> Tensor:
        """Return outputs as logits, and warn of what they probably are; ``classes`` is the dimension of the classes.

        Raises:
            ConfigError: they certainly are no logits, and no probabilities of exclusive classes either.
        """
        if rows_sum_to_one(outputs.movedim(classes, -1)):
            # The softmax of the logarithm of probabilities is these probabilities.
            outputs = to_logits(outputs)
            if not self._looked:
                self.warnings += ("the model returns probabilities and no logits; they are written as they are",)
                self._looked = True
        self._look_at(outputs)
        return outputs

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

    def _prepared(self, pixels: Uint8Image) -> Prepared:
        made = self._prepare(pixels)
        prepared = made if isinstance(made, Prepared) else Prepared(made)
        if not isinstance(prepared.tensor, Tensor) or prepared.tensor.dim() != 3:
            what = type(made).__name__ if not isinstance(made, Tensor) else f"tensor {tuple(made.shape)}"
            raise ConfigError(f"preprocess must return a tensor (C, H, W) or a Prepared with one, got a {what}")
        return prepared


def _weights_of(module: Any) -> nn.Module:
    """Return the module that a checkpoint is loaded into.

    Raises:
        ConfigError: it is a program that takes no other weights.
    """
    if isinstance(module, torch.export.ExportedProgram | torch.jit.ScriptFunction):
        raise ConfigError(f"an object of type {type(module).__name__} takes no checkpoint; leave --checkpoint out")
    return unwrapped(module)


def _preparation(model: TorchModel) -> tuple[Preprocess | Callback, PixelRange | None, str | None]:
    """Return how images are prepared, the values of black and white, and where that was found if it was not given."""
    prepare, found = model.preprocess, None
    whole = model.kind in ("classifier", "multilabel")
    if prepare is None and (model.image_size, model.mean) == (None, None) and whole:
        stored = of_module(model.module)
        if stored is not None:
            prepare, found = stored
    if prepare is None:
        fit: Fit = "keep" if model.image_size is None else "resize"
        prepare = Preprocess(fit=fit, size=model.image_size, mean=model.mean, std=model.std)
    if isinstance(prepare, Preprocess):
        return prepare, prepare.pixel_range, found
    processor = prepare.processor if isinstance(prepare, ProcessorCall) else prepare
    if is_image_processor(processor):
        known = model.pixel_range if model.pixel_range is not None else processor_range(processor)
        return ProcessorCall(processor), known, found
    return prepare, model.pixel_range, found


def _task(model: TorchModel, pixel_range: PixelRange | None) -> Task:
    if model.kind == "detector":
        return Detection(head=model.head, pixel_range=pixel_range, flips=model.flips)
    if model.kind == "segmenter":
        return Segmentation(pixel_range=pixel_range, flips=model.flips)
    of_kind = Multilabel if model.kind == "multilabel" else Classification
    return of_kind(pixel_range=pixel_range, flips=model.flips)


def _on_device(module: Any, device: torch.device, dtype: torch.dtype | None) -> tuple[nn.Module, torch.dtype]:
    """Return a module in eval mode on a device, and the number format of its inputs.

    Raises:
        ConfigError: a program that torch.export made cannot be moved or converted.
    """
    program = Program.of(module)
    if program is None:
        plain = unwrapped(module).to(device=device, dtype=dtype).eval()
        return plain, dtype_of(plain)
    inner = program.program
    if program.kind == "torch.export":
        tensors = (*inner.parameters(), *inner.buffers())
        if dtype not in (None, dtype_of(inner)) or any(tensor.device != device for tensor in tensors):
            raise ConfigError(
                "a program of torch.export has the device and the number format that it was exported with; export it "
                "again, or leave --device and --dtype out"
            )
        return program, dtype_of(inner)
    if isinstance(inner, nn.Module):
        inner.to(device=device, dtype=dtype).eval()
        return program, dtype_of(inner)
    return program, torch.float32 if dtype is None else dtype


def _detections(
    task: Detection,
    outputs: Any,
    postprocess: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
    *,
    threshold: float,
) -> list[dict[str, Tensor]]:
    logits, boxes = (at_least_float32(outputs[key].detach()) for key in ("logits", "pred_boxes"))
    found = []
    for image in range(len(logits)):
        if task.head == "sigmoid":
            # A query may have several classes: take the best pairs of query and class, as RT-DETR's post-processing.
            classes = logits.shape[-1]
            count = logits.shape[1] if postprocess is None else max(logits.shape[1], _MOST_PAIRS)
            scores, positions = logits[image].sigmoid().flatten().topk(min(count, logits[image].numel()))
            labels, queries = positions % classes, positions // classes
        else:
            scores, labels = logits[image].softmax(-1)[:, :-1].max(-1)
            queries = torch.arange(len(scores), device=scores.device)
        keep = scores > threshold
        scores, labels, centred = scores[keep], labels[keep], boxes[image][queries[keep]]
        if postprocess is not None:
            rows = postprocess(scores, labels, centred)
            scores, labels, centred = scores[rows], labels[rows], centred[rows]
        found.append({"scores": scores, "labels": labels, "boxes": box_ops.corners(centred)})
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

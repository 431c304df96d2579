"""The adapter for detectors, classifiers and semantic segmentation of transformers, from a folder or by hub name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)

from acclimate.core.determinism import parse_device
from acclimate.core.multilabel import Multilabel
from acclimate.core.outputs import at_least_float32
from acclimate.core.placement import sent
from acclimate.core.precision import dtype_of, parse_dtype
from acclimate.core.segmentation import Segmentation
from acclimate.core.spectrum import PowerSpectrum
from acclimate.core.task import Classification, Task, logits_of
from acclimate.core.views import PixelRange, normalised_range
from acclimate.errors import CheckpointError, ConfigError, DataError, first_line
from acclimate.registry import AdapterInfo, Kind
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
from acclimate.vision.models.detection import Detection, Head
from acclimate.vision.models.loading import AdapterOptions

logger = logging.getLogger(__name__)

# A sigmoid for each class, or a softmax whose last column is "no object". Other families can predict, but not adapt.
_HEADS: Final[dict[str, Head]] = {
    "rt_detr": "sigmoid",
    "rt_detr_v2": "sigmoid",
    "d_fine": "sigmoid",
    "deformable_detr": "sigmoid",
    "conditional_detr": "sigmoid",
    "detr": "softmax",
    "table-transformer": "softmax",
    "yolos": "softmax",
}
# YOLOS has no pixel mask, so its boxes are fractions of the padded batch, not of the image.
_BOXES_OF_PADDED_BATCH: Final = frozenset({"yolos"})
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class TransformersAdapter:
    """Predicts with ``AutoModelForObjectDetection``, ``...ImageClassification`` or ``...SemanticSegmentation`` models.

    Args:
        model: a folder that ``save_pretrained`` wrote (model and image processor), or a hub name.
        reader: reads the images.
        categories: the data set's category names by id, which are matched to the model's labels.
        device: such as ``cpu`` or ``cuda``.
        dtype: the number format to convert the model to, see :data:`acclimate.core.precision.DTYPES`; None keeps that
            of the weights. Images are converted to it.
        score_threshold: detections with a lower score are not written.
        batch_size: used by :meth:`predict`.
        trust_pickle: whether to allow weights that are not safetensors.

    Raises:
        ConfigError: there is no such model, it is neither a detector, a classifier nor a segmenter, or the image
            processor of a segmenter pads images.
        CheckpointError: the weights cannot be loaded, are incomplete, or are a pickle and ``trust_pickle`` is false.
    """

    info: ClassVar[AdapterInfo] = AdapterInfo(
        name="transformers",
        title="Object detectors, image classifiers and semantic segmentation of transformers",
        model="a folder or hub name",
        takes_dtype=True,
    )
    calls_model_itself = False

    def __init__(
        self,
        model: str,
        *,
        reader: ImageReader | None = None,
        categories: Mapping[int, str] | None = None,
        device: str = "cpu",
        dtype: str | None = None,
        score_threshold: float = 0.05,
        batch_size: int = 8,
        trust_pickle: bool = False,
    ) -> None:
        self.ttt_refusal: str | None = None
        self.source_spectrum: PowerSpectrum | None = None
        self.reader = ImageReader() if reader is None else reader
        self.score_threshold = score_threshold
        self.batch_size = batch_size
        self._device = parse_device(device)
        self._refuse_pickle(model, trust_pickle)
        try:
            config = AutoConfig.from_pretrained(model)
            self._processor: Any = AutoImageProcessor.from_pretrained(model, backend="pil")
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot load a model from {model!r}: {first_line(error)}") from error
        self._family: str = config.model_type
        auto = self._auto_class(config)
        try:
            loaded, info = auto.from_pretrained(
                model, use_safetensors=None if trust_pickle else True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"cannot load weights from {model!r}: {first_line(error)}") from error
        absent = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
        if absent:
            # transformers would initialise them with random numbers.
            raise CheckpointError(
                f"in {model!r}, weights are missing or have another shape for {len(absent)} tensors (first: "
                f"{absent[0]}); give a folder with the weights of the whole model"
            )
        self._model: nn.Module = loaded.to(self._device, None if dtype is None else parse_dtype(dtype)).eval()
        self._dtype = dtype_of(self._model)
        model_labels = {int(index): str(name) for index, name in (config.id2label or {}).items()}
        self.labels = LabelMap.by_name(model_labels, categories or {})
        self.warnings: tuple[str, ...] = self.labels.warnings
        if self.kind == "segmenter":
            self.warnings += self._keep_whole_images()
        if unexpected := sorted(info["unexpected_keys"]):
            self.warnings += (f"{len(unexpected)} tensors of the checkpoint are not used (first: {unexpected[0]})",)
        self.task: Task = self._task()

    @classmethod
    def from_options(cls, options: AdapterOptions, *, reader: ImageReader, categories: Mapping[int, str]) -> Self:
        """Return the adapter for these options."""
        return cls(
            str(options.model),
            reader=reader,
            categories=categories,
            device=options.device,
            dtype=options.dtype,
            score_threshold=options.score_threshold,
            trust_pickle=options.trust_pickle,
        )

    def get_model(self) -> nn.Module:
        """Return the model."""
        return self._model

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        """Yield batches preprocessed by the model's own image processor."""
        for part in chunks(records, batch_size):
            usable, encoded = self._encoded(self.reader.read_many(part))
            if not usable:
                continue
            pixel_values: Tensor = sent(encoded["pixel_values"], self._device, self._dtype)
            inputs: dict[str, Tensor] = {"pixel_values": pixel_values}
            if "pixel_mask" in encoded and not bool(encoded["pixel_mask"].all()):
                inputs["pixel_mask"] = sent(encoded["pixel_mask"], self._device)
            sizes = self.reader.sizes(usable)
            yield ImageBatch(
                inputs if self.kind == "detector" else inputs["pixel_values"],
                tuple(record for record, _ in usable),
                sizes,
            )

    def _encoded(self, usable: list[tuple[Record, Uint8Image]]) -> tuple[list[tuple[Record, Uint8Image]], Any]:
        """Return the images that the image processor accepts, and what it makes of them; others are skipped."""
        if not usable:
            return [], None

        def encode(images: Sequence[Uint8Image]) -> Any:
            # Stated, because the processor takes an image of 1 or 3 rows for one with the channels first.
            return self._processor(images=list(images), input_data_format="channels_last", return_tensors="pt")

        try:
            return usable, encode([pixels for _, pixels in usable])
        except (ValueError, ZeroDivisionError, MemoryError) as error:
            logger.debug("the image processor fails on a batch; its images are tried one by one", exc_info=error)
        accepted = []
        for record, pixels in usable:
            try:
                encode([pixels])
            except (ValueError, ZeroDivisionError, MemoryError) as error:
                self.reader.skip(
                    record, f"{record.image}: the model's image processor fails on it: {first_line(error)}"
                )
            else:
                accepted.append((record, pixels))
        if len(accepted) == len(usable):
            raise DataError(
                f"the model's image processor accepts each of {len(usable)} images alone and not as a batch (the first "
                f"is {usable[0][0].image}); use a batch size of 1"
            )
        return accepted, encode([pixels for _, pixels in accepted]) if accepted else None

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        """Return the entries of one batch; a detector's are made by the image processor's post-processing."""
        if self.kind == "classifier":
            return classification_entries(logits_of(outputs), batch, labels=self.labels)
        if self.kind == "multilabel":
            return multilabel_entries(logits_of(outputs), batch, labels=self.labels)
        if self.kind == "segmenter":
            return segmentation_entries(logits_of(outputs), batch, labels=self.labels)
        found = self._processor.post_process_object_detection(
            SimpleNamespace(**{k: at_least_float32(outputs[k].detach()) for k in ("logits", "pred_boxes")}),
            threshold=self.score_threshold,
            target_sizes=[(1, 1)] * len(batch.records),
        )
        if self._family in _BOXES_OF_PADDED_BATCH:
            found = self._relative_to_image(found, batch)
        return detection_entries(found, batch, labels=self.labels)

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return one entry for each usable record."""
        return [entry for part in predict_in_batches(self, records, batch_size=self.batch_size) for entry in part]

    def _auto_class(self, config: Any) -> Any:
        architecture = (config.architectures or [""])[0]
        if architecture in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values():
            self.kind: Kind = "detector"
            return AutoModelForObjectDetection
        if architecture in _names(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES):
            self.kind = "segmenter"
            return AutoModelForSemanticSegmentation
        if architecture in _names(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES):
            problem = getattr(config, "problem_type", None)
            if problem == "regression" or (problem is None and config.num_labels == 1):
                raise ConfigError(
                    f"{architecture} with {config.num_labels} outputs and problem_type {problem!r} predicts numbers "
                    "(regression), and has no classes; if its output is the logit of a yes-or-no decision, set "
                    "problem_type to 'multi_label_classification' in its config.json"
                )
            self.kind = "multilabel" if problem == "multi_label_classification" else "classifier"
            return AutoModelForImageClassification
        raise ConfigError(
            f"{architecture or config.model_type} is neither an object detector nor an image classifier nor a model "
            "for semantic segmentation of transformers; give such a model, or use the adapter torch"
        )

    def _task(self) -> Task:
        pixel_range = self._pixel_range()
        if self.kind == "classifier":
            return Classification(pixel_range=pixel_range)
        if self.kind == "multilabel":
            return Multilabel(pixel_range=pixel_range)
        if self.kind == "segmenter":
            return Segmentation(pixel_range=pixel_range)
        if self._family not in _HEADS:
            self.ttt_refusal = (
                f"this model cannot be adapted, because the head type of the family {self._family!r} is unknown; "
                f"use one of {', '.join(_HEADS)}, or the adapter torch"
            )
        return Detection(head=_HEADS.get(self._family, "sigmoid"), pixel_range=pixel_range)

    def _keep_whole_images(self) -> tuple[str, ...]:
        """Turn off cropping, so that every pixel of an image is segmented; return what was changed.

        Raises:
            ConfigError: the image processor pads images, whose borders would be taken for parts of them.
        """
        if getattr(self._processor, "do_pad", False):
            raise ConfigError(
                "the image processor of this segmenter pads images (do_pad), so its masks do not fit them; set do_pad "
                "to false in preprocessor_config.json"
            )
        if not getattr(self._processor, "do_center_crop", False):
            return ()
        self._processor.do_center_crop = False
        return (
            "the centre crop of the image processor (do_center_crop) is left out, so that whole images are segmented",
        )

    def _pixel_range(self) -> PixelRange | None:
        """Return the pixel values that the image processor makes of black and white."""
        if not getattr(self._processor, "do_rescale", False):
            return None
        if not getattr(self._processor, "do_normalize", False):
            return (0.0, 1.0)
        return normalised_range(self._processor.image_mean, self._processor.image_std)

    def _relative_to_image(self, found: list[dict[str, Tensor]], batch: ImageBatch) -> list[dict[str, Tensor]]:
        mask = batch.inputs.get("pixel_mask")
        if mask is None:
            return found
        rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
        scales = torch.stack([mask.shape[2] / columns, mask.shape[1] / rows] * 2, dim=1).float()
        return [{**image, "boxes": image["boxes"] * scale} for image, scale in zip(found, scales, strict=True)]

    @staticmethod
    def _refuse_pickle(model: str, trust_pickle: bool) -> None:
        folder = Path(model)
        if trust_pickle or not folder.is_dir() or any(folder.glob("*.safetensors")):
            return
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise CheckpointError(
                f"{folder / pickles[0]} is not a safetensors file, and loading a pickle executes code from it; "
                "convert it, or pass --trust-pickle if you trust its source"
            )


def _names(mapping: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the classes in one of transformers' mappings of model families."""
    return frozenset(name for entry in mapping.values() for name in ([entry] if isinstance(entry, str) else entry))

"""The adapter for :class:`RTDETRPose`, which predicts boxes and poses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from acclimate.core.determinism import parse_device
from acclimate.core.placement import sent
from acclimate.core.spectrum import PowerSpectrum
from acclimate.core.task import Task
from acclimate.errors import CheckpointError, ConfigError, first_line
from acclimate.registry import AdapterInfo, Kind
from acclimate.vision.data import boxes as box_ops
from acclimate.vision.data.corruptions import Uint8Image
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.labels import LabelMap
from acclimate.vision.data.predictions import detection_entries
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Entry, ImageBatch, chunks, predict_in_batches
from acclimate.vision.models.detection import Detection
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.models.rtdetr_pose.configuration import RTDETRPoseConfig
from acclimate.vision.models.rtdetr_pose.model import RTDETRPose
from acclimate.vision.models.rtdetr_pose.pose import decode_pose

SHIPPED: Final = "pose_scenes"
"""The name of the model that is part of this package."""

POSE_OUTPUTS: Final = ("log_z", "rot6d", "offsets", "k_delta")


class RTDETRPoseAdapter:
    """Predicts with an RT-DETR that has pose heads.

    Args:
        model: a folder that ``save_pretrained`` wrote; ``pose_scenes`` is the model of this package.
        reader: reads the images.
        categories: the data set's category names by id, which are matched to the model's labels.
        device: such as ``cpu`` or ``cuda``.
        score_threshold: detections with a lower score are not written.
        batch_size: used by :meth:`predict`.

    Raises:
        ConfigError: there is no such folder, or its configuration is of another kind of model.
        CheckpointError: the weights cannot be loaded or do not fit the configuration.
    """

    info: ClassVar[AdapterInfo] = AdapterInfo(
        name="rtdetr_pose",
        title="RT-DETR with pose heads",
        model="a folder that save_pretrained wrote",
        default_model="pose_scenes",
    )
    calls_model_itself = False

    def __init__(
        self,
        model: str = SHIPPED,
        *,
        reader: ImageReader | None = None,
        categories: Mapping[int, str] | None = None,
        device: str = "cpu",
        score_threshold: float = 0.05,
        batch_size: int = 16,
    ) -> None:
        self.reader = ImageReader() if reader is None else reader
        self.score_threshold = score_threshold
        self.batch_size = batch_size
        self._device = parse_device(device)
        self._model = load_model(model).to(self._device)
        labels = {int(index): str(name) for index, name in self._model.config.id2label.items()}
        self.labels = LabelMap.by_name(labels, categories or {})
        self.warnings: tuple[str, ...] = self.labels.warnings
        # Mirroring would change the classes of digits, and poses.
        self.task: Task = Detection(head="sigmoid", pixel_range=(0.0, 1.0), flips=False, extra_outputs=POSE_OUTPUTS)
        self.kind: Kind = "detector"
        self.ttt_refusal: str | None = None
        self.source_spectrum = load_source_spectrum(model)
        self.image_side: int = self._model.config.image_side

    @classmethod
    def from_options(cls, options: AdapterOptions, *, reader: ImageReader, categories: Mapping[int, str]) -> Self:
        """Return the adapter for these options."""
        return cls(
            options.model or SHIPPED,
            reader=reader,
            categories=categories,
            device=options.device,
            score_threshold=options.score_threshold,
        )

    def get_model(self) -> nn.Module:
        """Return the model."""
        model: nn.Module = self._model
        return model

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        """Yield batches of ``pixel_values`` ``(B, 3, S, S)`` in [0, 1] and ``intrinsics`` ``(B, 4)`` as fractions."""
        for part in chunks(records, batch_size):
            usable = self.reader.read_many(part)
            if not usable:
                continue
            sizes = self.reader.sizes(usable)
            inputs = {
                "pixel_values": sent(torch.stack([self._tensor(pixels) for _, pixels in usable]), self._device),
                "intrinsics": sent(
                    torch.stack(
                        [self._intrinsics(record, size) for (record, _), size in zip(usable, sizes, strict=True)]
                    ),
                    self._device,
                ),
            }
            yield ImageBatch(inputs, tuple(record for record, _ in usable), sizes)

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        """Return the entries of one batch; each detection has its pose and the outputs of the pose heads."""
        scores, positions = outputs["logits"].detach().sigmoid().flatten(1).topk(outputs["logits"].shape[1])
        classes = outputs["logits"].shape[-1]
        rotations, translations = decode_pose(outputs, batch.inputs["intrinsics"])
        corners = box_ops.corners(outputs["pred_boxes"].detach())
        found = []
        for image, (score, position) in enumerate(zip(scores, positions, strict=True)):
            keep = score > self.score_threshold
            queries = position[keep] // classes
            found.append(
                {
                    "scores": score[keep],
                    "labels": position[keep] % classes,
                    "boxes": corners[image][queries],
                    "rotation": rotations[image][queries],
                    "translation": translations[image][queries],
                    "log_z": outputs["log_z"][image][queries, 0],
                    "rot6d": outputs["rot6d"][image][queries],
                    "offsets": outputs["offsets"][image][queries],
                    "k_delta": outputs["k_delta"][image].expand(len(queries), 4),
                }
            )
        entries = detection_entries(found, batch, labels=self.labels)
        for entry in entries:
            for detection in entry["detections"]:
                detection["pose"] = {key: detection.pop(key) for key in ("rotation", "translation")}
        return entries

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return one entry for each usable record."""
        return [entry for part in predict_in_batches(self, records, batch_size=self.batch_size) for entry in part]

    def _tensor(self, pixels: Uint8Image) -> Tensor:
        side = self.image_side
        if pixels.shape[:2] != (side, side):
            pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float().div_(255)

    def _intrinsics(self, record: Record, size: tuple[int, int]) -> Tensor:
        if record.intrinsics is None:
            return torch.tensor(self._model.config.default_intrinsics, dtype=torch.float32)
        return torch.tensor(record.intrinsics, dtype=torch.float32) / torch.tensor([*size, *size])


def load_source_spectrum(name: str) -> PowerSpectrum | None:
    """Return the spectrum of a model's training images from ``spectrum.safetensors`` in its folder; None without it.

    Raises:
        CheckpointError: the file cannot be read or contains something else.
    """
    path = _folder(name) / "spectrum.safetensors"
    if not path.is_file():
        return None
    try:
        return PowerSpectrum.from_tensors(load_file(str(path)))
    except (OSError, SafetensorError, ConfigError) as error:
        raise CheckpointError(f"cannot read {path}: {first_line(error)}") from error


def _folder(name: str) -> Path:
    return Path(__file__).parent / "weights" if name == SHIPPED else Path(name)


def load_model(name: str) -> RTDETRPose:
    """Return the model in a folder, or the one of this package, in float32 and eval mode.

    Raises:
        ConfigError: there is no such folder, or its configuration is of another kind of model.
        CheckpointError: the weights cannot be loaded or do not fit the configuration.
    """
    folder = _folder(name)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{name!r} is no folder with a config.json; give a folder that RTDETRPose.save_pretrained wrote, or "
            f"{SHIPPED!r}"
        )
    try:
        config = RTDETRPoseConfig.from_pretrained(folder, local_files_only=True)
        model = RTDETRPose(config)
        # Half-precision weights are copied into float32 tensors; missing or unexpected tensors are an error.
        model.load_state_dict(load_file(str(folder / "model.safetensors")))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        # torch lists the tensors that do not fit on the lines after the first one.
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"cannot load an RTDETRPose from {folder}: {reason}") from error
    loaded: RTDETRPose = model.eval()
    return loaded

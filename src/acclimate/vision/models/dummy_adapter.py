"""An adapter without a model, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import nn

from acclimate.core.spectrum import PowerSpectrum
from acclimate.core.task import Task
from acclimate.errors import TTTNotSupportedError
from acclimate.registry import AdapterInfo, Kind
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Entry, ImageBatch, no_model
from acclimate.vision.models.detection import Detection
from acclimate.vision.models.loading import AdapterOptions


class DummyAdapter:
    """Predicts no objects for any image, and cannot be adapted."""

    info: ClassVar[AdapterInfo] = AdapterInfo(name="dummy", title="Finds nothing in any image; has no model")
    calls_model_itself = True

    def __init__(self) -> None:
        self.kind: Kind = "detector"
        self.task: Task = Detection(head="sigmoid")
        self.reader = ImageReader()
        self.batch_size = 8
        self.source_spectrum: PowerSpectrum | None = None
        self.warnings: tuple[str, ...] = ()
        self.ttt_refusal: str | None = no_model("dummy")

    @classmethod
    def from_options(cls, options: AdapterOptions, *, reader: ImageReader, categories: Mapping[int, str]) -> Self:
        """Return the adapter; the options are not used."""
        return cls()

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return an entry without detections for each record."""
        return [{"image": record.image, "image_id": record.image_id, "detections": []} for record in records]

    def get_model(self) -> nn.Module:
        """Raise TTTNotSupportedError."""
        raise TTTNotSupportedError(no_model("dummy"))

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        """Raise TTTNotSupportedError."""
        raise TTTNotSupportedError(no_model("dummy"))

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        """Raise TTTNotSupportedError."""
        raise TTTNotSupportedError(no_model("dummy"))

"""An adapter for a linear classifier of 4 x 4 thumbnails, kept as a NumPy archive with an array ``weight``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import nn

from acclimate.core.task import Classification, logits_of
from acclimate.registry import AdapterInfo, Kind
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.labels import LabelMap
from acclimate.vision.data.predictions import classification_entries
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Entry, ImageBatch, chunks, predict_in_batches
from acclimate.vision.models.loading import AdapterOptions


class ThumbnailAdapter:
    """Predicts with a linear layer on the pixels of a thumbnail."""

    info: ClassVar[AdapterInfo] = AdapterInfo(
        name="thumbnail", title="A linear classifier of thumbnails", model="an .npz file"
    )
    calls_model_itself = False

    def __init__(self, path: str, *, reader: ImageReader, categories: Mapping[int, str]) -> None:
        weight = torch.from_numpy(np.load(path)["weight"]).float()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight)
        self._model = nn.Sequential(nn.Flatten(), nn.LayerNorm(weight.shape[1]), layer).eval()
        self.kind: Kind = "classifier"
        self.task = Classification()
        self.reader = reader
        self.batch_size = 16
        self.source_spectrum = None
        self.warnings: tuple[str, ...] = ("thumbnails are coarse",)
        self.ttt_refusal = None
        self.labels = LabelMap.by_name({}, categories)

    @classmethod
    def from_options(cls, options: AdapterOptions, *, reader: ImageReader, categories: Mapping[int, str]) -> Self:
        """Return the adapter of the model that ``options`` name."""
        return cls(str(options.model), reader=reader, categories=categories)

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return one entry for each usable record."""
        return [entry for part in predict_in_batches(self, records, batch_size=self.batch_size) for entry in part]

    def get_model(self) -> nn.Module:
        """Return the model."""
        return self._model

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        """Yield batches of thumbnails ``(B, 3, 4, 4)`` in [0, 1]."""
        for part in chunks(records, batch_size):
            if usable := self.reader.read_many(part):
                small = [np.asarray(Image.fromarray(pixels).resize((4, 4))) for _, pixels in usable]
                inputs = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
                sizes = tuple((pixels.shape[1], pixels.shape[0]) for _, pixels in usable)
                yield ImageBatch(inputs, tuple(record for record, _ in usable), sizes)

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        """Return the entry of each image."""
        return classification_entries(logits_of(outputs), batch, labels=self.labels)

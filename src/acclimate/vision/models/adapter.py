"""What acclimate asks of a model's adapter, and how predictions are made through one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from acclimate.core import layout
from acclimate.core.task import Task
from acclimate.errors import TTTNotSupportedError
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.records import Record

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """What a loader yields.

    Attributes:
        inputs: what the model takes: a tensor ``(B, C, H, W)`` or a mapping with ``pixel_values``.
        records: the ``B`` records, in order.
        sizes: ``(width, height)`` in pixels of the original images, in order.
    """

    inputs: Any
    records: tuple[Record, ...]
    sizes: tuple[tuple[int, int], ...]


class Adapter(Protocol):
    """The least an adapter must do: predict."""

    name: str

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return one entry for each usable record (see :mod:`acclimate.vision.data.predictions`)."""
        ...


@runtime_checkable
class AdaptableAdapter(Protocol):
    """An adapter that can be adapted: its prediction is taken apart into loader, forward pass and entries."""

    name: str
    task: Task
    reader: ImageReader

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return one entry for each usable record."""
        ...

    def get_model(self) -> nn.Module:
        """Return the model, loaded."""
        ...

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterable[ImageBatch]:
        """Return the usable records as batches of preprocessed tensors; images that cannot be used are left out."""
        ...

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        """Return the entry of each image in ``batch`` for the model's ``outputs``."""
        ...


def require_ttt(adapter: object) -> None:
    """Check that an adapter has the two optional functions.

    Raises:
        TTTNotSupportedError: naming the adapter and what is missing.
    """
    if (refusal := getattr(adapter, "ttt_refusal", None)) is not None:
        raise TTTNotSupportedError(f"this model cannot be adapted: {refusal}")
    missing = [name for name in ("get_model", "build_loader") if not callable(getattr(adapter, name, None))]
    if missing:
        name = getattr(adapter, "name", type(adapter).__name__)
        raise TTTNotSupportedError(
            f"adapter {name!r} does not support test-time training: it has no {' and no '.join(missing)}; "
            "use the adapter transformers or torch, or leave out --ttt"
        )


def predict_in_batches(
    adapter: AdaptableAdapter,
    records: Sequence[Record],
    *,
    batch_size: int,
    forward: Callable[[Any], Any] | None = None,
) -> Iterator[list[Entry]]:
    """Yield the entries of each batch.

    Args:
        adapter: where batches come from and outputs go to.
        records: what to predict.
        batch_size: images at a time.
        forward: returns the outputs for a batch's inputs; the plain model by default.
    """
    if forward is None:
        forward = plain_forward(adapter)
    for batch in adapter.build_loader(records, batch_size=batch_size):
        yield adapter.entries(forward(batch.inputs), batch)


def plain_forward(adapter: AdaptableAdapter) -> Callable[[Any], Any]:
    """Return a function that runs the adapter's model as it is, in eval mode and without gradient."""
    model = adapter.get_model()

    def forward(inputs: Any) -> Any:
        model.eval()
        with torch.no_grad():
            return adapter.task.forward(model, layout.for_prediction(inputs))

    return forward


def chunks(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    """Yield consecutive runs of at most ``size`` records."""
    for start in range(0, len(records), size):
        yield records[start : start + size]

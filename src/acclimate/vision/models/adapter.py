"""What acclimate asks of a model's adapter, and how predictions are made through one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from acclimate.core import layout
from acclimate.core.spectrum import PowerSpectrum
from acclimate.core.task import Classification, Task
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.registry import AdapterInfo, Kind
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


@runtime_checkable
class Adapter(Protocol):
    """Loads and runs one model; prediction is taken apart into loader, forward pass and entries, so that TTT can act.

    Attributes:
        kind: of the model: what it decides on.
        task: what the model's outputs mean to a method.
        reader: reads images, and keeps account of those that cannot be used.
        batch_size: of prediction without TTT.
        source_spectrum: mean power spectrum of the images that the model was trained on; None where it is not known.
        warnings: what a user should know about the model as it was loaded.
        ttt_refusal: why the model cannot be adapted, as a whole sentence with the remedy; None where it can.
        calls_model_itself: whether predictions are made by :meth:`predict` alone, because there is no :meth:`entries`.
    """

    kind: Kind
    task: Task
    reader: ImageReader
    batch_size: int
    source_spectrum: PowerSpectrum | None
    warnings: tuple[str, ...]
    ttt_refusal: str | None
    calls_model_itself: bool

    @property
    def info(self) -> AdapterInfo:
        """Name and needs."""
        ...

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return one entry for each usable record (see :mod:`acclimate.vision.data.predictions`)."""
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


@runtime_checkable
class _Predicts(Protocol):
    def predict(self, records: Sequence[Record]) -> list[Entry]: ...


@runtime_checkable
class _ExposesModel(Protocol):
    def get_model(self) -> nn.Module: ...

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterable[Any]: ...


class MinimalAdapter:
    """Completes an adapter that has only what the vision integration plan asks for.

    That is ``predict``, and for TTT ``get_model`` and ``build_loader``, whose batches are the model's inputs. The model
    is taken for a classifier of images with unknown pixel range, and predictions are made by ``predict`` alone.
    """

    calls_model_itself = True

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self.info = AdapterInfo(name=type(wrapped).__name__)
        self.kind: Kind = "classifier"
        self.task: Task = Classification(pixel_range=None)
        self.reader = ImageReader()
        self.batch_size = 8
        self.source_spectrum: PowerSpectrum | None = None
        self.warnings: tuple[str, ...] = ()
        self.ttt_refusal = None if isinstance(wrapped, _ExposesModel) else no_model(type(wrapped).__name__)

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return what the wrapped adapter predicts."""
        found: list[Entry] = self._wrapped.predict(records)
        return found

    def get_model(self) -> nn.Module:
        """Return the wrapped adapter's model."""
        model: nn.Module = self._wrapped.get_model()
        return model

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        """Yield the wrapped adapter's batches."""
        for batch in self._wrapped.build_loader(records, batch_size=batch_size):
            yield batch if isinstance(batch, ImageBatch) else ImageBatch(batch, (), ())

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        """Raise TTTNotSupportedError: what the model returned cannot be turned into entries from outside."""
        raise TTTNotSupportedError(f"{type(self._wrapped).__name__} has no entries(outputs, batch)")


def as_adapter(given: Any) -> Adapter:
    """Return ``given`` as an adapter; one of the vision integration plan is completed.

    Raises:
        ConfigError: it cannot predict.
    """
    if isinstance(given, Adapter):
        return given
    if not isinstance(given, _Predicts):
        raise ConfigError(f"a {type(given).__name__} is no adapter: it has no predict(records)")
    return MinimalAdapter(given)


def no_model(name: str) -> str:
    """Return the refusal of an adapter that shows no model."""
    return (
        f"adapter {name!r} does not support test-time training: it has no get_model and no build_loader; use the "
        "adapter transformers or torch, or leave out --ttt"
    )


def require_ttt(adapter: Adapter) -> None:
    """Check that an adapter's model can be adapted.

    Raises:
        TTTNotSupportedError: with the adapter's refusal.
    """
    if adapter.ttt_refusal is not None:
        raise TTTNotSupportedError(adapter.ttt_refusal)


def predict_in_batches(
    adapter: Adapter,
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


def plain_forward(adapter: Adapter) -> Callable[[Any], Any]:
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

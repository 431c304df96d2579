"""The adapter protocol, adapters of the vision integration plan, and prediction with an adapter."""

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
from acclimate.vision.models.preprocess import BoxMap

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """One batch of an adapter's loader.

    Attributes:
        inputs: the model's input: a tensor ``(B, C, H, W)`` or a mapping with ``pixel_values``.
        records: the ``B`` records, in order.
        sizes: ``(width, height)`` in pixels of the original images, in order.
        box_maps: how fractions of the input are mapped to fractions of the original images; empty where they are the
            same.
    """

    inputs: Any
    records: tuple[Record, ...]
    sizes: tuple[tuple[int, int], ...]
    box_maps: tuple[BoxMap, ...] = ()


@runtime_checkable
class Adapter(Protocol):
    """Loads and runs one model.

    Loader, forward pass and conversion to entries are separate functions, so that test-time training can act between
    them.

    Attributes:
        kind: whether the model is a classifier or a detector.
        task: interprets the model's outputs for methods.
        reader: reads images, and records those that cannot be used.
        batch_size: used for prediction without TTT.
        source_spectrum: mean power spectrum of the images that the model was trained on; None where it is unknown.
        warnings: problems that were found when the model was loaded.
        ttt_refusal: the error message for a model that cannot be adapted, with the remedy; None where it can.
        calls_model_itself: whether only :meth:`predict` can make predictions, because :meth:`entries` is missing.
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
        """The adapter's name and properties."""
        ...

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        """Return one entry for each usable record (see :mod:`acclimate.vision.data.predictions`)."""
        ...

    def get_model(self) -> nn.Module:
        """Return the loaded model."""
        ...

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterable[ImageBatch]:
        """Return the records as batches of preprocessed tensors, without images that cannot be used."""
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
    """Completes an adapter that has only the functions of the vision integration plan.

    These are ``predict``, and for TTT ``get_model`` and ``build_loader``, whose batches are the model's inputs. The
    model is taken for a classifier of images with an unknown pixel range; only ``predict`` can make predictions.
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
        """Return the wrapped adapter's predictions."""
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
        """Raise TTTNotSupportedError, because the wrapped adapter has no such function."""
        raise TTTNotSupportedError(
            f"the adapter {type(self._wrapped).__name__} has no entries(outputs, batch), which converts outputs to "
            "predictions; use its predict(records)"
        )


def as_adapter(given: Any) -> Adapter:
    """Return ``given`` as an adapter, completed by :class:`MinimalAdapter` where necessary.

    Raises:
        ConfigError: it has no function ``predict``.
    """
    if isinstance(given, Adapter):
        return given
    if not isinstance(given, _Predicts):
        raise ConfigError(
            f"an object of type {type(given).__name__} is no adapter, because it has no predict(records); "
            "give an acclimate.vision.models.adapter.Adapter"
        )
    return MinimalAdapter(given)


def no_model(name: str) -> str:
    """Return the error message for an adapter that does not provide its model."""
    return (
        f"adapter {name!r} does not support test-time training: it has no get_model and no build_loader; use the "
        "adapter transformers or torch, or leave out --ttt"
    )


def require_ttt(adapter: Adapter) -> None:
    """Check that an adapter's model can be adapted.

    Raises:
        TTTNotSupportedError: it cannot; the message is the adapter's ``ttt_refusal``.
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
        adapter: makes the batches, and converts the outputs to entries.
        records: the images to predict.
        batch_size: number of images in a batch.
        forward: returns the outputs for a batch's inputs; the base model by default.
    """
    if forward is None:
        forward = plain_forward(adapter)
    for batch in adapter.build_loader(records, batch_size=batch_size):
        yield adapter.entries(forward(batch.inputs), batch)


def plain_forward(adapter: Adapter) -> Callable[[Any], Any]:
    """Return a function that runs the adapter's base model in eval mode and without gradient."""
    model = adapter.get_model()

    def forward(inputs: Any) -> Any:
        model.eval()
        with torch.no_grad():
            return adapter.task.forward(model, layout.for_prediction(inputs))

    return forward


def chunks(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    """Yield consecutive slices of at most ``size`` records."""
    for start in range(0, len(records), size):
        yield records[start : start + size]

"""The options that choose an adapter and its model, and loading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acclimate.errors import ConfigError
from acclimate.registry import ADAPTERS

if TYPE_CHECKING:
    from acclimate.vision.data.images import ImageReader
    from acclimate.vision.models.adapter import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOptions:
    """The options of an adapter.

    Attributes:
        adapter: a name in :data:`acclimate.registry.ADAPTERS`.
        model: a local folder or hub name (transformers), ``package.module:factory`` (torch), or a local folder, by
            default the model of this package (rtdetr_pose).
        checkpoint: a file with weights for the torch adapter.
        trust_pickle: whether to load weights that execute code when they are loaded.
        device: such as ``cpu`` or ``cuda``.
        dtype: the number format to convert the model to (torch and transformers); None keeps its own.
        score_threshold: detections with a lower score are not written.
    """

    adapter: str = "transformers"
    model: str | None = None
    checkpoint: str | None = None
    trust_pickle: bool = False
    device: str = "cpu"
    dtype: str | None = None
    score_threshold: float = 0.05


def make_adapter(options: AdapterOptions, *, reader: ImageReader, categories: Mapping[int, str]) -> Adapter:
    """Return a loaded adapter, completed by :func:`acclimate.vision.models.adapter.as_adapter` where necessary.

    Raises:
        ConfigError: the adapter is unknown, needs a model and none is given, or takes no checkpoint and one is given.
    """
    info = ADAPTERS.info(options.adapter)
    if options.checkpoint and not info.takes_checkpoint:
        raise ConfigError(
            f"--checkpoint is for the adapter torch, and the adapter {options.adapter} loads its weights from --model; "
            "leave --checkpoint out"
        )
    if options.dtype and not info.takes_dtype:
        raise ConfigError(
            f"--dtype is for the adapters torch and transformers, and {options.adapter} has its own number format; "
            "leave it out"
        )
    if info.model is not None and not options.model and info.default_model is None:
        raise ConfigError(f"adapter {options.adapter!r} needs --model ({info.model})")
    made = ADAPTERS.load(options.adapter).from_options(options, reader=reader, categories=categories)
    # Imported here, so that the options above can be read without torch.
    from acclimate.vision.models.adapter import as_adapter

    return as_adapter(made)

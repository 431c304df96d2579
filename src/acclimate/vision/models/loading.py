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
        autocast: the number format of matrix products and convolutions in automatic mixed precision, ``bfloat16`` or
            ``float16``; None computes in the model's own.
        channels_last: whether convolutions compute with the channels last; see
            :func:`acclimate.core.placement.compute_in` for the effect of both on predictions.
        score_threshold: detections with a lower score are not written.
    """

    adapter: str = "transformers"
    model: str | None = None
    checkpoint: str | None = None
    trust_pickle: bool = False
    device: str = "cpu"
    dtype: str | None = None
    autocast: str | None = None
    channels_last: bool = False
    score_threshold: float = 0.05


def make_adapter(options: AdapterOptions, *, reader: ImageReader, categories: Mapping[int, str]) -> Adapter:
    """Return a loaded adapter, completed by :func:`acclimate.vision.models.adapter.as_adapter` where necessary.

    Raises:
        ConfigError: the adapter is unknown, needs a model and none is given, takes no checkpoint and one is given, or
            has no model that could compute in another number format or memory layout.
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

    adapter = as_adapter(made)
    if options.autocast or options.channels_last:
        _compute_in(adapter, options)
    return adapter


def _compute_in(adapter: Adapter, options: AdapterOptions) -> None:
    from acclimate.core.placement import compute_in
    from acclimate.core.precision import parse_dtype

    if adapter.ttt_refusal is not None:
        raise ConfigError(
            f"--autocast and --channels-last change how a torch model computes, and the adapter {adapter.info.name} "
            "provides none; leave them out"
        )
    autocast = None if options.autocast is None else parse_dtype(options.autocast)
    compute_in(adapter.get_model(), autocast=autocast, channels_last=options.channels_last)

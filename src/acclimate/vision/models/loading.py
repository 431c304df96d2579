"""The adapters that ship, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from acclimate.errors import ConfigError
from acclimate.vision.data.images import ImageReader
from acclimate.vision.models.adapter import Adapter
from acclimate.vision.models.dummy_adapter import DummyAdapter
from acclimate.vision.models.torch_adapter import TorchAdapter

ADAPTERS: Final = ("transformers", "torch", "rtdetr_pose", "dummy")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOptions:
    """How to make an adapter.

    Attributes:
        adapter: one of :data:`ADAPTERS`.
        model: a local folder or hub name (transformers), ``package.module:factory`` (torch), or a local folder, by
            default the model that comes with the package (rtdetr_pose).
        checkpoint: weights for the torch adapter.
        trust_pickle: allow a checkpoint that is not safetensors.
        device: such as ``cpu`` or ``cuda``.
        score_threshold: detections below this are not written.
    """

    adapter: str = "transformers"
    model: str | None = None
    checkpoint: str | None = None
    trust_pickle: bool = False
    device: str = "cpu"
    score_threshold: float = 0.05


def make_adapter(options: AdapterOptions, *, reader: ImageReader, categories: Mapping[int, str]) -> Adapter:
    """Return a loaded adapter.

    Raises:
        ConfigError: the adapter is unknown, or it needs a model and none is named.
    """
    if options.adapter == "dummy":
        return DummyAdapter()
    if options.adapter not in ADAPTERS:
        raise ConfigError(f"unknown adapter {options.adapter!r}; choose one of {', '.join(ADAPTERS)}")
    if options.adapter != "torch" and options.checkpoint:
        raise ConfigError(
            f"--checkpoint is for the adapter torch; the adapter {options.adapter} loads --model as a whole"
        )
    if options.adapter == "rtdetr_pose":
        from acclimate.vision.models.rtdetr_pose.adapter import SHIPPED, RTDETRPoseAdapter

        return RTDETRPoseAdapter(
            options.model or SHIPPED,
            reader=reader,
            categories=categories,
            device=options.device,
            score_threshold=options.score_threshold,
        )
    if not options.model:
        what = "a folder or hub name" if options.adapter == "transformers" else "package.module:factory"
        raise ConfigError(f"adapter {options.adapter!r} needs --model ({what})")
    if options.adapter == "transformers":
        # Imported here: it takes longer than all the rest of a command that does not need it.
        from acclimate.vision.models.transformers_adapter import TransformersAdapter

        return TransformersAdapter(
            options.model,
            reader=reader,
            categories=categories,
            device=options.device,
            score_threshold=options.score_threshold,
            trust_pickle=options.trust_pickle,
        )
    return TorchAdapter(
        options.model,
        checkpoint=options.checkpoint,
        trust_pickle=options.trust_pickle,
        reader=reader,
        categories=categories,
        device=options.device,
        score_threshold=options.score_threshold,
    )

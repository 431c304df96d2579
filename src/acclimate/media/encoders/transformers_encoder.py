"""Any vision or audio encoder of transformers, from a folder or by hub name."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from acclimate.core.determinism import parse_device
from acclimate.errors import CheckpointError, ConfigError, first_line
from acclimate.media.encoders.protocol import EncoderInfo, Vectors
from acclimate.media.items import SAMPLE_RATE_HZ, Kind, Values

_JOINT: Final = {"image": "get_image_features", "audio": "get_audio_features"}
"""What models of two kinds of input, such as CLIP and CLAP, have for one of them."""


class TransformersEncoder:
    """The last hidden state, averaged over places or time; what a model of two kinds of input has for one of them.

    Args:
        model: a folder that ``save_pretrained`` wrote (model, and image processor or feature extractor), or a hub name.
        kind: what is to be encoded.
        device: such as ``cpu`` or ``cuda``.
        batch_size: images in one pass; sounds are encoded one at a time, because they differ in length.

    Raises:
        ConfigError: there is no such model or device, it does not take this kind of input, or its sampling rate is not
            16 kHz.
        CheckpointError: the weights cannot be loaded, are incomplete, or are no safetensors.
    """

    def __init__(self, model: str, kind: Kind, *, device: str = "cpu", batch_size: int = 4) -> None:
        import transformers

        parse_device(device)
        self._kind, self._device, self.batch_size = kind, device, batch_size
        auto: Any = transformers.AutoImageProcessor if kind == "image" else transformers.AutoFeatureExtractor
        try:
            config = transformers.AutoConfig.from_pretrained(model)
            self._processor: Any = auto.from_pretrained(model, **({"backend": "pil"} if kind == "image" else {}))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot load an encoder of {kind} inputs from {model!r}: {first_line(error)}") from error
        rate = getattr(self._processor, "sampling_rate", None)
        if kind == "audio" and rate != SAMPLE_RATE_HZ:
            raise ConfigError(f"{model!r} hears sounds at {rate} Hz; give an encoder for {SAMPLE_RATE_HZ} Hz")
        self.network: Any = _loaded(model).eval().to(device)
        self.info = EncoderInfo(
            name=model,
            kind=kind,
            title=f"{config.model_type} of transformers",
            licence="its own",
            source="a folder" if Path(model).is_dir() else "the hub",
            # Unknown before it has run: 2 operations for a weight at each of about 200 places, at 20 GFLOP/s.
            cost_ms=sum(p.numel() for p in self.network.parameters()) * 2 * 200 / 20e9 * 1000,
        )
        self.identity = f"{model}:{kind}:{_fingerprint(self.network)}"

    def tensors(self, values: Sequence[Values]) -> Tensor:
        """Return images as the network takes them."""
        pixels: Tensor = self._processor(images=list(values), return_tensors="pt")["pixel_values"]
        return pixels.to(self._device)

    def vectors(self, inputs: Tensor) -> Tensor:
        """Return vectors of what :meth:`tensors` returned, through which gradients flow."""
        return self._of({"pixel_values": inputs})

    def copied(self, identity: str) -> Self:
        """Return an encoder with a copy of the network and another identity."""
        other = copy.copy(self)
        other.network, other.identity = copy.deepcopy(self.network), identity
        return other

    def encode(self, values: Sequence[Values]) -> Vectors:
        """Return vectors as long as the model's hidden state."""
        step = self.batch_size if self._kind == "image" else 1
        with torch.inference_mode():
            found = [self._features(values[start : start + step]) for start in range(0, len(values), step)]
        return torch.cat(found).float().cpu().numpy()

    def _features(self, batch: Sequence[Values]) -> Tensor:
        if self._kind == "image":
            inputs = self._processor(images=list(batch), return_tensors="pt")
        else:
            inputs = self._processor(list(batch), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        return self._of({name: value.to(self._device) for name, value in inputs.items() if isinstance(value, Tensor)})

    def _of(self, inputs: dict[str, Tensor]) -> Tensor:
        joint = getattr(self.network, _JOINT[self._kind], None)
        if joint is not None:
            return _pooled(joint(**inputs))
        encoder = self.network.get_encoder() if self.network.config.is_encoder_decoder else self.network
        return _pooled(encoder(**inputs))


def _loaded(model: str) -> Any:
    import transformers
    from safetensors import SafetensorError

    try:
        network, info = transformers.AutoModel.from_pretrained(model, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot load weights from {model!r}: {first_line(error)}") from error
    # A pooling layer on top is not used; many published files lack it.
    absent = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    absent += [str(key) for key in info["mismatched_keys"]]
    if absent:
        raise CheckpointError(
            f"in {model!r}, weights are missing or have another shape for {len(absent)} tensors (first: {absent[0]}); "
            "give a folder with the weights of the whole model"
        )
    return network


def _pooled(output: Any) -> Tensor:
    """Return ``(n, size)`` from a vector, a sequence or a feature map, or the output that holds one of them."""
    if not isinstance(output, Tensor):
        joint = getattr(output, "pooler_output", None) if not hasattr(output, "last_hidden_state") else None
        output = output.last_hidden_state if joint is None else joint
    hidden: Tensor = output
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    return hidden.mean(1) if hidden.ndim == 3 else hidden


def _fingerprint(network: Any) -> str:
    """Return a digest of the weights, so that vectors of one network are not taken for those of another."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    return digest.hexdigest()

"""The encoders that can be chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from acclimate.errors import ConfigError
from acclimate.media.encoders import efficientnet, speaker, speech
from acclimate.media.encoders.gradients import Gradients
from acclimate.media.encoders.log_mel import LogMel
from acclimate.media.encoders.protocol import Encoder, EncoderInfo
from acclimate.media.encoders.transformers_encoder import TransformersEncoder
from acclimate.media.items import Kind

Progress = Callable[[str], None]

#: The default encoders by kind; each is a candidate of every request that names none. The first is taken unless another
#: is better on held-out examples.
DEFAULTS: Final[Mapping[Kind, tuple[EncoderInfo, ...]]] = {
    "image": (efficientnet.INFO, Gradients.info),
    "audio": (speech.INFO, LogMel.info, speaker.INFO),
}


def load_encoder(name: str, kind: Kind, *, device: str = "cpu", progress: Progress | None = None) -> Encoder:
    """Return a loaded encoder.

    Args:
        name: one of :data:`DEFAULTS`, or a folder or hub name of a transformers model.
        kind: what is to be encoded.
        device: such as ``cpu`` or ``cuda``, for encoders that are torch networks.
        progress: called with lines of text while something is fetched.

    Raises:
        ConfigError: it encodes another kind of input, or there is no such encoder.
        CheckpointError: its weights cannot be loaded or fetched, or have another digest than expected.
    """
    other: Kind = "audio" if kind == "image" else "image"
    if name in {info.name for info in DEFAULTS[other]}:
        known = ", ".join(info.name for info in DEFAULTS[kind])
        raise ConfigError(
            f"encoder {name!r} is for {other} inputs, and these are of kind {kind}; choose one of {known}"
        )
    made: dict[str, Callable[[], Encoder]] = {
        Gradients.info.name: Gradients,
        efficientnet.INFO.name: lambda: efficientnet.EfficientNetLite0(device=device),
        LogMel.info.name: LogMel,
        speech.INFO.name: speech.SpeechEmbedding,
        speaker.INFO.name: lambda: speaker.SpeakerEncoder(progress),
    }
    return made[name]() if name in made else TransformersEncoder(name, kind, device=device)

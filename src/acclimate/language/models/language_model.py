"""Causal language models: spark from the package, smollm2 fetched once, or any other by folder or hub name."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from acclimate.errors import CheckpointError, ConfigError, TTTNotSupportedError, first_line
from acclimate.language.models import smollm2
from acclimate.language.models.deadlines import Pace
from acclimate.language.models.decoder import Decoder
from acclimate.language.models.learned_start import LearnedStart
from acclimate.language.models.locks import LOADING, NetworkLock, lock_of
from acclimate.language.prompts import Encoder, PromptFormat
from acclimate.language.training.recipes import Recipe, recipe_for

SPARK: Final = "spark"
SMOLLM2: Final = "smollm2"
_SPARK_FOLDER: Final = Path(__file__).parent / "spark"
#: Of models whose configuration sets no limit, such as recurrent ones.
_DEFAULT_MAX_TOKENS: Final = 2048
#: Largest difference of scores that other orders of summing explain, as a share of the largest score.
_ROUNDING: Final = 1e-4
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A causal language model that can be asked and adapted, from several threads: one request at a time runs it.

    Attributes:
        name: as the user gave it.
        network: a transformers causal LM in evaluation mode, no tensor of which requires a gradient. Code that uses it
            directly, beside requests, holds :attr:`lock`.
        encoder: turns examples into tokens for it.
        recipe: how adapters are trained for it.
        fingerprint: of its configuration and weights; adapters belong to one fingerprint.
        source: from where transformers loads it: a folder, or its name on the hub; None where it was built otherwise.
        learned_start: initial values of low-rank weights that were learned for it; None where it has none.
        pace: how long it took lately for a token.
    """

    name: str
    network: Any
    encoder: Encoder
    recipe: Recipe
    fingerprint: str = field(repr=False)
    source: str | None = None
    learned_start: LearnedStart | None = field(default=None, repr=False, compare=False)
    pace: Pace = field(default_factory=Pace, init=False, repr=False, compare=False)
    _decoders: dict[float, Decoder] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The network carries it from now on, not from its first use on.
        lock_of(self.network)

    @property
    def lock(self) -> NetworkLock:
        """The lock of the network, re-entrant; every model that is made from one network has the same."""
        return lock_of(self.network)

    def decoder(self, share_adapted: float) -> Decoder:
        """Return the network split where adapting ``share_adapted`` of its layers begins; built once."""
        # Building runs the network and replaces its attention for a moment.
        with self.lock:
            decoder = self._decoders.get(share_adapted)
            if decoder is None:
                decoder = self._decoders[share_adapted] = Decoder(self.network, share_adapted)
                if self.pace.generating_s is None:
                    self.pace.generated(1, decoder.short_pass_s)
        return decoder

    @property
    def pad(self) -> int:
        """The token that fills rows up; no position attends to it."""
        return self.tokenizer.pad_token_id or 0

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end any text."""
        wanted = getattr(getattr(self.network, "generation_config", None), "eos_token_id", None)
        configured = wanted if isinstance(wanted, list) else [wanted]
        return frozenset({self.tokenizer.eos_token_id, *configured} - {None})

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the encoder, for its settings; to encode text, use the encoder, which locks it."""
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
    # Of the weights as saved: the number format is measured, and may be another one next time.
    known_as = fingerprint(network)
    _refuse_unless_causal(network.eval(), name)
    network = network.to(device=device, dtype=dtype or fastest_dtype(device)).requires_grad_(False)
    shape = prompt_format or (PromptFormat.load(source) if is_local else None) or PromptFormat()
    return LanguageModel(
        name=name,
        network=network,
        encoder=Encoder(tokenizer, shape, _max_tokens(network.config)),
        recipe=recipe_for(name if name in (SPARK, SMOLLM2) else None),
        fingerprint=known_as,
        source=str(source.resolve()) if is_local else name,
        learned_start=LearnedStart.beside(source, network) if is_local else None,
    )


def _from_transformers(source: str, name: str, is_local: bool) -> tuple[Any, Any]:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source, local_files_only=is_local)
        if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
            raise TTTNotSupportedError(
                f"{name!r} is a {config.model_type} model, not a causal language model; give one such as 'smollm2'"
            )
        if config.is_encoder_decoder:
            raise TTTNotSupportedError(
                f"{name!r} is a {config.model_type} model, which has an encoder: it is not a causal language model; "
                f"give one such as 'smollm2'"
            )
        with LOADING:
            network = transformers.AutoModelForCausalLM.from_pretrained(
                source, local_files_only=is_local, dtype=torch.float32
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=is_local)
    except (TTTNotSupportedError, MemoryError):
        raise
    except Exception as error:  # Readers of damaged files raise whatever the first use of a wrong value raises.
        raise CheckpointError(
            f"cannot load the language model {name!r}: {first_line(error)}; give 'spark', 'smollm2', a folder that "
            f"transformers saved, or a name on the hub"
        ) from error
    return network, tokenizer


@torch.no_grad()
def _refuse_unless_causal(network: Any, name: str) -> None:
    """Refuse a model, in float32, whose scores depend on what follows.

    Raises:
        TTTNotSupportedError: they do.
    """
    # Read together, so that both rows are rounded alike.
    tokens = torch.arange(1, 9, device=next(network.parameters()).device).repeat(2, 1)
    tokens[1, -1] += 1
    first, second = network(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    if float((first - second).abs().max()) > _ROUNDING * float(first.abs().max()):
        raise TTTNotSupportedError(
            f"{name!r} looks ahead: it is a {network.config.model_type} model, not a causal language model; "
            f"give one such as 'smollm2'"
        )


def _max_tokens(config: Any) -> int:
    """Return how many tokens a model reads, as far as its configuration says."""
    names = ("max_position_embeddings", "max_seq_len", "context_length")
    return next((int(found) for name in names if (found := getattr(config, name, None) or 0) > 0), _DEFAULT_MAX_TOKENS)


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


_MEASURING: Final = threading.Lock()


def fastest_dtype(device: str) -> torch.dtype:
    """Return bfloat16 where a matrix product in it is at least a quarter faster than in float32, else float32.

    Processors with matrix units for bfloat16 (AMX) are several times as fast with it, others slower: so it is measured,
    once for each device.
    """
    # Two measurements at once would slow each other down, and models loaded in one process should agree.
    with _MEASURING:
        return _measured_dtype(device)


@functools.cache
def _measured_dtype(device: str) -> torch.dtype:
    # A property of the processor, not of a request: it cannot go stale, so that it may outlive the model.
    faster = device != "cpu" or _seconds(torch.bfloat16) < 0.75 * _seconds(torch.float32)
    return torch.bfloat16 if faster else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """Return the shortest of six times of one matrix product."""
    # Drawn from a generator of its own: the caller's random numbers go on as they were.
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=rng).to(dtype) for shape in ((256, 576), (1536, 576)))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - start)
    return best

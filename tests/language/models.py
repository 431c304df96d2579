"""Language models for tests: spark as it ships, and small random ones of several architectures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers

from acclimate.language import LanguageModel, PromptFormat, Recipe, load
from acclimate.language.models import language_model as models_module
from acclimate.language.prompts import Encoder

SPARK_FOLDER = Path(models_module.__file__).parent / "spark"
SMALL: dict[str, Any] = {"vocab_size": 160}


def spark() -> LanguageModel:
    """Return the model that ships; loaded once."""
    return _spark()


@functools.cache
def _spark() -> LanguageModel:
    torch.set_num_threads(1)
    return load("spark", dtype=torch.float32)


def network(kind: str) -> Any:
    """Return a small random causal LM."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(n_embd=32, n_layer=4, n_head=2, n_positions=256, **SMALL)
        return transformers.GPT2LMHeadModel(config)
    if kind == "gemma":
        config = transformers.GemmaConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
            head_dim=16, max_position_embeddings=256, **SMALL,
        )  # fmt: skip
        return transformers.GemmaForCausalLM(config)
    if kind == "neox":
        config = transformers.GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=256, **SMALL,
        )  # fmt: skip
        return transformers.GPTNeoXForCausalLM(config)
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64,
        max_position_embeddings=256, **SMALL,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def small(kind: str = "llama", **recipe: Any) -> LanguageModel:
    """Return a small random model with spark's tokenizer."""
    net = network(kind).eval().requires_grad_(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(SPARK_FOLDER)
    shape = PromptFormat(before_input="", before_answer="\t", answer_lead="", after_answer="\n", single_line=True)
    return LanguageModel(
        name=kind,
        network=net,
        encoder=Encoder(tokenizer, shape, 256),
        recipe=Recipe(**({"steps": 4, "rank": 4, "learning_rate": 1e-2, "share_adapted": 0.5} | recipe)),
        fingerprint=models_module.fingerprint(net),
    )


def digest(model: LanguageModel) -> str:
    """Return a digest of every bit of every tensor of the network."""
    import hashlib

    found = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()

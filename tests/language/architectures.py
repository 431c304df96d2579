"""Small random models of many architectures, built from configurations, with spark's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from tests.language.models import SPARK_FOLDER

_WORDS: Final[dict[str, Any]] = {"vocab_size": 160}
_SHORT: Final[dict[str, Any]] = {**_WORDS, "max_position_embeddings": 256}
_LAYERS: Final[dict[str, Any]] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_USUAL: Final[dict[str, Any]] = {**_LAYERS, **_SHORT, "num_key_value_heads": 2, "intermediate_size": 64}
_GPT: Final[dict[str, Any]] = {**_WORDS, "n_embd": 32, "n_layer": 2, "n_positions": 256}
_TWO_SIDES: Final[dict[str, Any]] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
Made = Callable[[], Any]


def _of(name: str, *given: Mapping[str, Any], **more: Any) -> Made:
    settings: dict[str, Any] = {}
    for part in given:
        settings |= part
    return lambda: getattr(transformers, f"{name}Config")(**settings, **more)


#: Those that are adapted. The scales of the last three change what a tiny random model says, as they do in real ones.
ADAPTED: Final[Mapping[str, Made]] = {
    "Llama": _of("Llama", _USUAL),
    "Mistral": _of("Mistral", _USUAL),
    "Mixtral": _of("Mixtral", _USUAL, num_local_experts=4),
    "Qwen2": _of("Qwen2", _USUAL),
    "Qwen3": _of("Qwen3", _USUAL, head_dim=16),
    "Gemma": _of("Gemma", _USUAL, head_dim=16),
    "Gemma 3": _of("Gemma3Text", _USUAL, head_dim=16, query_pre_attn_scalar=16),
    "Phi": _of("Phi", _USUAL),
    "Phi-3": _of("Phi3", _USUAL, pad_token_id=0),
    "GPT-2": _of("GPT2", _GPT, n_head=2),
    "GPT-J": _of("GPTJ", _GPT, n_head=2, rotary_dim=8),
    "GPT-NeoX": _of("GPTNeoX", _LAYERS, _SHORT, intermediate_size=64),
    "OPT": _of("OPT", _LAYERS, _SHORT, ffn_dim=64, word_embed_proj_dim=32),
    "BLOOM": _of("Bloom", _WORDS, hidden_size=32, n_layer=2, n_head=2),
    "MPT": _of("Mpt", _WORDS, d_model=32, n_heads=2, n_layers=2, max_seq_len=256),
    "Falcon": _of("Falcon", _LAYERS, _WORDS),
    "StableLM": _of("StableLm", _USUAL),
    "OLMo": _of("Olmo", _USUAL),
    "OLMo 2": _of("Olmo2", _USUAL),
    "Starcoder2": _of("Starcoder2", _USUAL),
    "GPT-OSS": _of("GptOss", _USUAL, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
    "DeepSeek-V3": _of(
        "DeepseekV3", _USUAL, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1,
        topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=16, qk_nope_head_dim=8,
        first_k_dense_replace=1,
    ),
    "Mamba": _of("Mamba", _WORDS, hidden_size=32, num_hidden_layers=2, state_size=8),
    "Mamba 2": _of(
        "Mamba2", _WORDS, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1,
        chunk_size=8,
    ),
    "RWKV": _of("Rwkv", _WORDS, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=256),
    "RecurrentGemma": _of(
        "RecurrentGemma", _WORDS, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96,
        lru_width=32, attention_window_size=64,
    ),
    "Jamba": _of(
        "Jamba", _USUAL, num_experts=2, mamba_d_state=8, attn_layer_period=2, attn_layer_offset=1,
        use_mamba_kernels=False,
    ),
    "Gemma 2": _of(
        "Gemma2", _USUAL, head_dim=16, query_pre_attn_scalar=16, final_logit_softcapping=0.1, attn_logit_softcapping=0.1
    ),
    "Cohere": _of("Cohere", _USUAL, logit_scale=0.0625),
    "Granite": _of("Granite", _USUAL, logits_scaling=3.0),
}  # fmt: skip
#: Those that are refused when they are loaded, with a part of what is said.
REFUSED: Final[Mapping[str, tuple[Made, str]]] = {
    "BART": (_of("Bart", _TWO_SIDES, _SHORT), "has an encoder"),
    "T5": (_of("T5", _WORDS, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2), "not a causal language model"),
    "Whisper": (
        _of(
            "Whisper", _TWO_SIDES, _WORDS, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            max_target_positions=256,
        ),
        "has an encoder",
    ),
    "BERT": (_of("Bert", _USUAL), "looks ahead"),
    "XLNet": (_of("XLNet", _WORDS, d_model=32, n_layer=2, n_head=2, d_inner=64), "looks ahead"),
    "ViT": (_of("ViT", _LAYERS, intermediate_size=64), "not a causal language model"),
}  # fmt: skip


def saved(name: str, folder: Path) -> str:
    """Write a small random model into ``folder`` and return its path."""
    made = ADAPTED[name] if name in ADAPTED else REFUSED[name][0]
    config = made()
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM
    causal = type(config) in auto._model_mapping and not config.is_encoder_decoder
    network = (auto if causal else transformers.AutoModel).from_config(config)
    network.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(SPARK_FOLDER).save_pretrained(folder)
    return str(folder)

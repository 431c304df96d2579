"""Plain products give what torch's fused attention gives, in values and in gradients, and only where they can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from acclimate.core import lora
from acclimate.errors import TTTNotSupportedError
from acclimate.language.models import attention
from acclimate.language.models.attention import attend, plain_products
from acclimate.language.models.decoder import Decoder
from tests.language.models import network

SHAPE: dict[str, Any] = {
    "vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def learned(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    decoder = Decoder(model)
    with lora.attached(model, decoder.targets, rank=2) as pairs:
        for pair in pairs.values():
            torch.nn.init.constant_(pair.lora_B, 0.01)
        model(input_ids=tokens).logits.square().sum().backward()
        return torch.cat([p.grad.flatten() for pair in pairs.values() for p in (pair.lora_A, pair.lora_B)])  # type: ignore[union-attr]


@pytest.mark.parametrize("longest", [512 * 512, 4])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma", "neox", "mistral"])
def test_logits_and_gradients_are_those_of_the_models_own_attention(
    kind: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_MAX_SCORES", longest)
    if kind == "mistral":
        # Tokens see four before them and two heads share a key.
        torch.manual_seed(0)
        model: Any = transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=4, **SHAPE))
    else:
        model = network(kind)
    model = model.eval().requires_grad_(False)
    assert model.config._attn_implementation == "sdpa"
    tokens = torch.randint(1, 150, (3, 17))
    expected, gradient = model(input_ids=tokens).logits, learned(model, tokens)
    with plain_products(model):
        assert torch.allclose(model(input_ids=tokens).logits, expected, atol=1e-5)
        assert torch.allclose(learned(model, tokens), gradient, rtol=1e-3, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"


def test_the_models_own_attention_comes_back_after_an_error() -> None:
    model = network("llama").eval()
    with pytest.raises(RuntimeError, match="stop"), plain_products(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"


def test_attention_with_capped_scores_stays_the_models_own() -> None:
    with pytest.raises(TTTNotSupportedError, match="asks for more"):
        attend(torch.nn.Identity(), *(torch.zeros(1, 1, 2, 4) for _ in range(3)), None, softcap=30.0)
    decoder = Decoder(transformers.Gemma2ForCausalLM(transformers.Gemma2Config(head_dim=8, **SHAPE)).eval())
    with decoder.quick_attention:
        assert decoder.network.config._attn_implementation == "eager"


def test_a_model_that_answers_otherwise_with_plain_products_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", lambda *given, **others: (attend(*given, **others)[0] + 1, None))
    decoder = Decoder(network("llama").eval())
    with decoder.quick_attention:
        assert decoder.network.config._attn_implementation == "sdpa"


def test_rounding_that_grows_from_layer_to_layer_is_no_reason_against_plain_products() -> None:
    torch.manual_seed(0)
    deep = transformers.LlamaConfig(initializer_range=0.6, **(SHAPE | {"num_hidden_layers": 24}))
    model = transformers.LlamaForCausalLM(deep).to(torch.bfloat16).eval()
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        own = model.base_model(input_ids=tokens)[0]
        with plain_products(model):
            other = model.base_model(input_ids=tokens)[0]
    assert float((own - other).abs().max() / own.abs().max()) > 0.05
    with Decoder(model).quick_attention:
        assert all(layer.self_attn.config._attn_implementation == attention.NAME for layer in model.model.layers)
        assert model.config._attn_implementation == "sdpa"


def attributes(model: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(name, {k: v for k, v in vars(m).items() if k != "_modules"}) for name, m in model.named_modules()]


def test_only_the_network_itself_changes_and_only_inside_the_block() -> None:
    config = network("llama").config
    one, other = (transformers.LlamaForCausalLM(config).eval() for _ in range(2))
    before, settings = attributes(one), config.to_dict()
    with plain_products(one):
        # Both have one configuration.
        assert config.to_dict() == settings
        assert config._attn_implementation == "sdpa"
        assert one.model.layers[0].self_attn.config is not config
        assert all(layer.self_attn.config is config for layer in other.model.layers)
        registered = dict(transformers.AttentionInterface._global_mapping)
    with plain_products(other):
        assert transformers.AttentionInterface._global_mapping == registered
    assert attributes(one) == before


def shifted(*given: Any, **others: Any) -> Any:
    return attend(*given, **others)[0] + 0.2, None


@torch.no_grad()
def test_the_check_of_a_model_sees_a_wrong_kernel_while_another_model_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    checked, trained = network("llama").eval(), network("gpt2").eval()
    monkeypatch.setattr(attention, "attend", shifted)
    tokens = torch.arange(1, 9)[None]

    def run() -> None:
        # As if another thread began to train another model right now.
        with plain_products(trained):
            checked.base_model(input_ids=tokens, use_cache=False)

    alone = attention.disagreement(checked, lambda: checked.base_model(input_ids=tokens, use_cache=False))
    assert alone > 0.1
    assert attention.disagreement(checked, run) == alone


def test_a_network_whose_attention_cannot_be_replaced_keeps_its_own() -> None:
    model = network("llama").eval()
    with pytest.raises(TTTNotSupportedError, match="looks its attention up"):
        attention.disagreement(model, lambda: None)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from acclimate.core import lora
from acclimate.core.packed_adapters import PackedAdapters
from acclimate.errors import CheckpointError, ConfigError


def small_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def randomise(pairs: dict[str, lora.LowRank]) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for pair in pairs.values():
            pair.lora_B.copy_(torch.randn(pair.lora_B.shape, generator=generator) * 0.1)


def test_the_fused_transformer_path_does_not_bypass_low_rank_weights() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    batch = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = layer(batch)
        with lora.attached(layer, ["linear1", "linear2"], rank=2) as pairs:
            torch.testing.assert_close(layer(batch), before)
            randomise(pairs)
            assert not torch.allclose(layer(batch), before)
        torch.testing.assert_close(layer(batch), before)


def test_the_output_projection_of_attention_is_not_a_target() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert lora.target_layers(layer, lambda name: True) == ["linear1", "linear2"]


def test_low_rank_weights_of_a_convolution() -> None:
    torch.manual_seed(0)
    convolution, batch = nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.randn(2, 3, 8, 8)
    model = nn.Sequential(convolution)
    before = model(batch)
    with lora.attached(model, ["0"], rank=2, alpha=4) as pairs:
        randomise(pairs)
        pair = pairs["0"]
        merged = convolution.weight + 2 * torch.einsum("or,rikl->oikl", pair.lora_B[:, :, 0, 0], pair.lora_A)
        expected = nn.functional.conv2d(batch, merged, convolution.bias, 2, 1)
        torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(batch), before)


def small_gpt2() -> nn.Module:
    """A small GPT-2, whose layers are transformers' Conv1D with transposed weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2)).eval()


@pytest.mark.parametrize(("make", "part"), [(small_llama, "_proj"), (small_gpt2, "c_")])
def test_a_saved_adapter_loads_in_peft_and_gives_the_same_logits(
    tmp_path: Path, make: Callable[[], nn.Module], part: str
) -> None:
    peft = pytest.importorskip("peft")
    model, tokens = make(), torch.arange(10)[None]
    targets = lora.target_layers(model, lambda name: part in name)
    with lora.attached(model, targets, rank=4, alpha=8) as pairs, torch.no_grad():
        randomise(pairs)
        ours = model(tokens).logits
        lora.save(tmp_path, pairs)
    with lora.loaded(model, tmp_path), torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, ours)
    theirs = peft.PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours, rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_initial_values() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with lora.attached(model, ["0"], rank=2, seed=3) as first:
        start = first["0"].lora_A.detach().clone()
    torch.manual_seed(99)
    with lora.attached(model, ["0"], rank=2, seed=3) as second:
        assert torch.equal(second["0"].lora_A, start)


def test_low_rank_and_adapter_names() -> None:
    assert lora.is_low_rank("layer.q_proj.lora_A.default.weight")
    assert lora.is_low_rank("layer.q_proj.low_rank.lora_B")
    # PEFT's wrapper names the base weight base_layer, which is no low-rank tensor.
    assert not lora.is_low_rank("layer.q_proj.base_layer.weight")
    assert lora.is_adapter("block.adapter_down.weight")
    assert not lora.is_adapter("block.linear.weight")


def test_bad_input_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="rank"), lora.attached(model, ["0"], rank=0):
        pass
    with pytest.raises(CheckpointError, match="missing"), lora.loaded(model, tmp_path):
        pass
    with pytest.raises(CheckpointError, match="no low-rank"):
        lora.save(tmp_path, {})
    with lora.attached(model, ["0"], rank=2) as pairs:
        lora.save(tmp_path, pairs)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    with pytest.raises(CheckpointError, match="does not have"), lora.loaded(nn.Linear(4, 4), tmp_path):
        pass


def test_one_layer_under_two_names_gets_one_pair() -> None:
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": layer, "b": layer})
    assert lora.target_layers(model, lambda _: True) == ["a"]
    with pytest.raises(ConfigError, match="a and b are one layer"), lora.attached(model, ["a", "b"], rank=2):
        pass
    assert not list(layer.children())


def test_copies_are_independent_and_share_one_forward_pass() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 5))
    batch = torch.randn(3, 2, 4, 6)
    with lora.attached(layer, ["0"], rank=2, copies=3) as pairs:
        pair = pairs["0"]
        assert pair.lora_A.shape == (3, 2, 6)
        assert torch.equal(pair.lora_A[0], pair.lora_A[2])
        randomise(pairs)
        together = layer(batch.reshape(6, 4, 6)).reshape(3, 2, 4, 5)
        weights = [(pair.lora_A[i].detach().clone(), pair.lora_B[i].detach().clone()) for i in range(3)]
    for index, (down, up) in enumerate(weights):
        with lora.attached(layer, ["0"], rank=2) as single:
            single["0"].lora_A.data, single["0"].lora_B.data = down, up
            torch.testing.assert_close(together[index], layer(batch[index]))


@pytest.mark.parametrize(("copies", "said"), [(0, "at least 1"), (2, "is a convolution")])
def test_unsupported_copies_are_refused(copies: int, said: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ConfigError, match=said), lora.attached(network, ["0"], rank=1, copies=copies):
        pass


@pytest.mark.parametrize("make", [small_llama, small_gpt2])
def test_the_fused_product_has_the_values_and_gradients_of_autograd(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make().requires_grad_(False)
    targets = lora.target_layers(model, lambda name: "head" not in name)
    tokens = torch.randint(3, 30, (2, 7))

    def written_out(self: lora.LowRank, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output + self.scale * (inputs @ self.lora_A.t()) @ self.lora_B.t()

    found = []
    for added in (lora.LowRank.added, written_out):
        monkeypatch.setattr(lora.LowRank, "added", added)
        with lora.attached(model, targets, rank=2, alpha=6) as pairs:
            randomise(pairs)
            logits = model(input_ids=tokens).logits
            logits.square().sum().backward()
            found.append((logits, [p.grad for pair in pairs.values() for p in (pair.lora_A, pair.lora_B)]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_adapters_learn_the_same_as_single_tensors(copies: int, dtype: torch.dtype) -> None:
    model = small_llama().requires_grad_(False).to(dtype)
    targets = lora.target_layers(model, lambda name: "q_proj" in name or "down_proj" in name)
    tokens = torch.randint(3, 30, (3, 7))
    results = []
    for in_block in (False, True):
        with lora.attached(model, targets, rank=2, copies=copies) as pairs:
            randomise(pairs)
            block = PackedAdapters(pairs, dtype) if in_block else None
            learned = [block.learned] if block else [p for x in pairs.values() for p in (x.lora_A, x.lora_B)]
            optimizer = torch.optim.SGD(learned, lr=0.1)
            for _ in range(3):
                model(input_ids=tokens).logits.float().square().mean().backward()
                if block is not None:
                    assert block.collect().shape == (copies, block.learned.shape[1])
                optimizer.step()
                if block is not None:
                    block.publish()
                else:
                    optimizer.zero_grad()
            results.append(block.weights() if block else {n: (x.lora_A.data, x.lora_B.data) for n, x in pairs.items()})
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(results[1], results[0], **close)


def test_an_unused_layer_has_a_zero_gradient_in_packed_adapters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with lora.attached(model, ["0", "1"], rank=1) as pairs:
        block = PackedAdapters(pairs, torch.float32)
        model[1](torch.ones(1, 3)).sum().backward()
        grads = block.collect()
    assert torch.equal(grads[0, :6], torch.zeros(6))
    assert grads[0, 6:].abs().sum() > 0

"""Reading a model in two parts gives what the model gives."""

from __future__ import annotations

import pytest
import torch

from acclimate.core import lora
from acclimate.errors import TTTNotSupportedError
from acclimate.language.models.decoder import Decoder
from tests.language.models import network

KINDS = ["llama", "gpt2", "gemma", "neox"]


@pytest.mark.parametrize("kind", KINDS)
def test_replaying_the_upper_layers_gives_the_models_logits(kind: str) -> None:
    model = network(kind).eval().requires_grad_(False)
    decoder = Decoder(model, 0.5)
    assert decoder.can_replay
    assert decoder.first_adapted == 2
    tokens = torch.randint(1, 150, (3, 17))
    recording = decoder.record(tokens)
    assert recording.hidden is not None
    assert torch.equal(recording.hidden, decoder.record_and_run(tokens)[0].hidden)
    assert not any("forward" in vars(layer) for layer in decoder.layers or ())
    assert recording.held_bytes == 3 * 17 * 32 * 4
    replayed = decoder.logits(decoder.hidden(recording))
    assert torch.allclose(replayed, model(input_ids=tokens).logits, atol=1e-5)


def test_an_override_of_a_layers_forward_survives_recording() -> None:
    model = network("llama").eval().requires_grad_(False)
    decoder = Decoder(model, 0.5)
    layer = model.model.layers[-1]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    override = layer.forward
    decoder.record(torch.randint(1, 150, (3, 17)))
    assert layer.forward is override
    assert "forward" not in vars(model.model.layers[-2])


def test_recording_does_not_run_the_layers_above() -> None:
    model = network("llama").eval().requires_grad_(False)
    decoder = Decoder(model, 0.5)
    ran = []
    for layer in decoder.layers or ():
        layer.mlp.register_forward_hook(lambda *_: ran.append(1))
    decoder.record(torch.randint(1, 150, (3, 17)))
    assert len(ran) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_targets_lie_in_the_adapted_layers_only(kind: str) -> None:
    model = network(kind).eval()
    decoder = Decoder(model, 0.25)
    assert decoder.targets
    assert all(".3." in name for name in decoder.targets)
    assert len(Decoder(model, 1.0).targets) == 4 * len(decoder.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_weights_learn_the_same_from_a_recording(kind: str) -> None:
    model = network(kind).eval().requires_grad_(False)
    decoder = Decoder(model, 0.5)
    tokens = torch.randint(1, 150, (2, 9))
    grads = []
    for recording in (decoder.record(tokens), type(decoder.record(tokens))(tokens)):
        with lora.attached(model, decoder.targets, rank=2) as pairs:
            for pair in pairs.values():
                torch.nn.init.constant_(pair.lora_B, 0.01)
            decoder.hidden(recording).square().sum().backward()
            grads.append(torch.cat([pair.lora_A.grad.flatten() for pair in pairs.values()]))  # type: ignore[union-attr]
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_a_body_that_cannot_be_replayed_runs_in_full() -> None:
    model = network("llama").eval().requires_grad_(False)
    # A model whose own forward does more than its layers do.
    model.model.norm.register_forward_hook(lambda *_: None)
    original = model.model.forward
    model.model.forward = lambda *a, **k: _shifted(original(*a, **k))
    decoder = Decoder(model, 0.5)
    assert not decoder.can_replay
    tokens = torch.randint(1, 150, (2, 9))
    recording = decoder.record(tokens)
    assert recording.hidden is None
    assert torch.allclose(decoder.hidden(recording), model.model(input_ids=tokens)[0])


def _shifted(output: object) -> object:
    output.last_hidden_state = output.last_hidden_state + 1  # type: ignore[attr-defined]
    return output


def test_logits_that_are_changed_after_the_head_are_refused() -> None:
    model = network("llama").eval()
    original = model.forward
    model.forward = lambda *a, **k: _scaled(original(*a, **k))
    with pytest.raises(TTTNotSupportedError, match="changes its logits after the head"):
        Decoder(model)


def _scaled(output: object) -> object:
    output.logits = output.logits * 0.1  # type: ignore[attr-defined]
    return output


def test_a_model_that_looks_ahead_is_refused() -> None:
    import transformers

    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=64
    )
    with pytest.raises(TTTNotSupportedError):
        Decoder(transformers.BertLMHeadModel(config).eval())


def test_a_model_without_layers_is_refused() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = torch.nn.Linear(2, 2)

        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(TTTNotSupportedError, match="Odd has no list of layers"):
        Decoder(Odd())

"""Mixed precision and memory layout of every call of a model, and transfers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acclimate.core import Session
from acclimate.core.placement import compute_in, sent
from acclimate.methods import Tent
from tests.networks import classifier, images, tensors_of


class Raises(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")


def test_every_call_computes_in_the_given_format_and_nothing_around_it_does() -> None:
    model, batch = classifier(), images()
    seen = []
    model[0].register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    expected = model(batch)
    compute_in(model, autocast=torch.bfloat16)
    with Session(model, Tent(lr=1e-3), seed=0) as session:
        outputs, report = session.adapt_and_predict(batch)
        assert not torch.is_autocast_enabled("cpu")
        assert outputs.dtype == torch.float32
        assert report.verdict == "kept"
        assert {parameter.dtype for parameter in session.selection.parameters.values()} == {torch.float32}
    assert seen[0] == torch.float32
    assert set(seen[1:]) == {torch.bfloat16}
    assert (model(batch).float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_call_that_fails_ends_mixed_precision_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Raises())
    compute_in(model, autocast=torch.bfloat16)
    with pytest.raises(ValueError, match="no"):
        model(torch.zeros(1, 2))
    assert not torch.is_autocast_enabled("cpu")


def test_channels_last_changes_the_layout_of_activations_and_hardly_a_value() -> None:
    model, batch = classifier(), images()
    before, expected = tensors_of(model), model(batch)
    layouts = []
    model[0].register_forward_hook(
        lambda _layer, _inputs, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    compute_in(model, channels_last=True)
    torch.testing.assert_close(model(batch), expected, rtol=1e-5, atol=1e-5)
    assert layouts == [True]
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_tensor_is_sent_as_it_is_or_in_another_format() -> None:
    batch = images()
    assert sent(batch, torch.device("cpu")) is batch
    assert sent(batch, torch.device("cpu"), torch.bfloat16).dtype == torch.bfloat16

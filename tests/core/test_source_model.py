from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acclimate.core.method import Selection
from acclimate.core.outputs import nbytes
from acclimate.core.snapshot import Snapshot
from acclimate.core.source_model import FunctionalModel
from tests.networks import assert_identical, assert_same_objects, images, objects_of, shared_module, tensors_of, tied


@pytest.mark.parametrize("alias", ["backbone.5.bias", "features.5.bias"])
def test_a_weight_of_a_module_with_two_names_is_replaced_and_comes_back(alias: str) -> None:
    model, batch = shared_module(), images()
    before, objects, expected = tensors_of(model), objects_of(model), model(batch)
    moved = FunctionalModel(model, {alias: model.features[5].bias.detach() + 1})(batch)
    torch.testing.assert_close(moved, expected + 1)
    assert not moved.requires_grad
    assert_identical(model, before)
    assert_same_objects(model, objects)
    assert torch.equal(model(batch), expected)


def test_a_tied_weight_is_replaced_wherever_it_is_used() -> None:
    model, other, batch = tied(), tied(), images()
    with torch.no_grad():
        other.norm1.bias.add_(1.0)
    found = FunctionalModel(model, {"norm1.bias": other.norm1.bias})(batch)
    assert torch.equal(found, other(batch))
    assert not torch.equal(found, model(batch))


def test_replaced_weights_reach_recurrent_layers() -> None:
    torch.manual_seed(0)
    model, other = nn.LSTM(4, 4), nn.LSTM(4, 4)
    inputs = torch.randn(3, 2, 4)
    found, _ = FunctionalModel(model, dict(other.named_parameters()))(inputs)
    torch.testing.assert_close(found, other(inputs)[0])
    assert not torch.allclose(found, model(inputs)[0], atol=1e-2)


def test_a_pass_that_fails_leaves_the_model_identical() -> None:
    model = shared_module()
    before, objects = tensors_of(model), objects_of(model)
    with pytest.raises(RuntimeError):
        FunctionalModel(model, {"backbone.5.bias": torch.ones(5)})(torch.zeros(1, 2, 16, 16))
    assert_identical(model, before)
    assert_same_objects(model, objects)


def test_the_replaced_pass_does_not_disturb_a_gradient_that_is_recorded_around_it() -> None:
    model, batch = tied(), images()
    model(batch).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    loss = model(batch).square().mean()
    FunctionalModel(model, {name: torch.zeros_like(value) for name, value in model.named_parameters()})(batch)
    loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_under_autocast_the_replaced_weights_are_used() -> None:
    model, batch = nn.Linear(8, 2), torch.ones(1, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(batch)
        found: Tensor = FunctionalModel(model, {"weight": torch.ones(2, 8), "bias": torch.zeros(2)})(batch)
        assert found.tolist() == [[8.0, 8.0]]
        assert model(batch).tolist() != [[8.0, 8.0]]


def test_a_parameter_with_two_names_is_held_once() -> None:
    model = tied()
    named = dict(model.named_parameters(remove_duplicate=False))
    selection = Selection({"norm1.bias": named["norm1.bias"], "norm2.bias": named["norm2.bias"]})
    assert list(selection.parameters) == ["norm1.bias"]
    snapshot = Snapshot(selection, None)
    assert snapshot.nbytes == 8 * 4
    with torch.no_grad():
        model.norm2.bias.add_(1)
    assert snapshot.distance() == pytest.approx(8**0.5)
    assert snapshot.changed_count() == 8
    snapshot.restore()
    assert model.norm1.bias.abs().sum() == 0
    copy = torch.zeros(3)
    assert nbytes({"teacher": copy, "source": copy}) == 12

"""Initialisation of low-rank weights in the directions of the first gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from acclimate.core import lora, lora_start
from acclimate.core.packed_adapters import PackedAdapters


@pytest.mark.parametrize("copies", [1, 2])
def test_directions_are_orthogonal_and_span_a_low_rank_gradient(copies: int) -> None:
    torch.manual_seed(0)
    rows, grad = torch.randn(copies, 3, 20), torch.randn(copies, 3, 12)
    found = lora_start.start(rows, grad, torch.randn(12, 4))
    whole = grad.transpose(1, 2) @ rows
    along = found.directions * math.sqrt(3)
    assert torch.allclose(along @ along.transpose(1, 2), torch.eye(4).expand(copies, 4, 4), atol=1e-5)
    assert torch.allclose(whole @ along.transpose(1, 2) @ along, whole, atol=1e-4)


def test_directions_capture_more_of_a_full_rank_gradient_than_random_ones() -> None:
    torch.manual_seed(0)
    # Singular values decrease, as those of gradients do.
    rows = torch.randn(1, 60, 40) * torch.logspace(0, -2, 40)
    grad = torch.randn(1, 60, 30)
    found = lora_start.start(rows, grad, torch.randn(30, 4)).directions[0] * math.sqrt(3)
    random = torch.linalg.qr(torch.randn(40, 4))[0].T
    whole = grad[0].T @ rows[0]
    best = torch.linalg.svdvals(whole)[:4].square().sum().sqrt()
    assert (whole @ found.T).norm() > 0.75 * best > 2 * (whole @ random.T).norm()


@pytest.mark.parametrize("copies", [1, 3])
def test_the_captured_gradient_equals_that_of_a_pass_with_the_directions(copies: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 6)).requires_grad_(False)
    inputs = torch.randn(6, 10)
    with lora.attached(model, ["0", "2"], rank=2, copies=copies) as pairs:
        with lora_start.capture_gradients(model, pairs, seed=3) as starts:
            model(inputs).square().sum().backward()
        assert set(starts) == {"0", "2"}
        block = PackedAdapters(pairs, torch.float32)
        block.begin(starts)
        given = {name: pair.lora_B.grad.clone() for name, pair in pairs.items()}  # type: ignore[union-attr]
        assert all(pair.lora_A.grad is None for pair in pairs.values())
        for name, pair in pairs.items():
            assert torch.equal(pair.lora_A.view_as(starts[name].directions), starts[name].directions)
            pair.lora_B.grad = None
        model(inputs).square().sum().backward()
        for name, pair in pairs.items():
            assert pair.lora_B.grad is not None
            assert torch.allclose(pair.lora_B.grad, given[name], atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_directions_beyond_the_number_of_inputs_are_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8)).requires_grad_(False)
    with lora.attached(model, ["0"], rank=5) as pairs:
        with lora_start.capture_gradients(model, pairs) as starts:
            model(torch.randn(6, 3)).square().sum().backward()
        block = PackedAdapters(pairs, torch.float32)
        block.begin(starts)
        assert torch.linalg.matrix_rank(pairs["0"].lora_A) == 3
        assert not pairs["0"].lora_A[3:].any()


def test_a_layer_without_gradient_keeps_its_random_initialisation() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)}).requires_grad_(False)
    with lora.attached(model, ["used", "idle"], rank=2) as pairs:
        with lora_start.capture_gradients(model, pairs) as starts:
            model["used"](torch.randn(2, 4)).sum().backward()
        block = PackedAdapters(pairs, torch.float32)
        before = {name: pair.lora_A.clone() for name, pair in pairs.items()}
        block.begin(starts)
        assert torch.equal(pairs["idle"].lora_A, before["idle"])
        assert not torch.equal(pairs["used"].lora_A, before["used"])

"""Statistics of normalisation layers: from a part of large inputs, and how far they are from the source's."""

from __future__ import annotations

import math

import pytest
import torch

from acclimate.core.norm import (
    fixed_statistics,
    measured_shifts,
    moments,
    output_moments,
    running_statistics,
    sampled_moments,
    shift,
)
from tests.networks import classifier, images


def smooth(*shape: int) -> torch.Tensor:
    """Return inputs whose neighbours are alike, with another mean and deviation in each channel."""
    rng = torch.Generator().manual_seed(0)
    values = torch.nn.functional.avg_pool2d(torch.randn(*shape, generator=rng), 3, stride=1, padding=1)
    channels = torch.arange(1, shape[1] + 1)[:, None, None]
    return (channels * (values + 2)).contiguous(memory_format=torch.channels_last)


def test_a_third_of_the_rows_of_large_inputs_has_nearly_their_statistics() -> None:
    inputs = smooth(64, 5, 32, 32)
    (mean, var), (exact_mean, exact_var) = sampled_moments(inputs), moments(inputs)
    assert not torch.equal(mean, exact_mean)
    assert torch.allclose(mean, exact_mean, atol=0, rtol=0.02)
    assert torch.allclose(var, exact_var, atol=0, rtol=0.05)


@pytest.mark.parametrize("shape", [(64, 5, 16, 16), (1, 3, 32, 32), (4096, 8, 4), (30000, 3), (50000, 2, 2, 3)])
def test_statistics_of_other_inputs_are_exact(shape: tuple[int, ...]) -> None:
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    for found, exact in zip(sampled_moments(inputs), moments(inputs), strict=True):
        assert torch.equal(found, exact)


def test_running_statistics_use_all_rows_unless_sampled() -> None:
    inputs, layer = smooth(64, 5, 32, 32), torch.nn.BatchNorm2d(5).eval()
    found = {}
    for sampled in (False, True):
        with running_statistics(layer, {}, memory_weight=1.0, rate=1.0, sampled=sampled) as updated:
            layer(inputs)
        found[sampled] = updated[""]
    assert torch.equal(found[False][0], moments(inputs)[0])
    assert torch.equal(found[True][0], sampled_moments(inputs)[0])


def test_a_shift_is_the_divergence_of_the_median_channel() -> None:
    source = torch.tensor([0.0, 1.0, 2.0, 0.0]), torch.tensor([1.0, 4.0, 9.0, 0.0])
    assert float(shift(source, source)) == 0
    # The last channel has no variance, whatever it has now.
    moved = source[0] + torch.tensor([0.2, 0.4, 30.0, 5.0]), source[1] * torch.tensor([1.0, 1.0, 7.0, 1.0])
    assert float(shift(moved, source)) == pytest.approx(0.04 / 2)
    wider = source[0], source[1] * 1.5
    assert float(shift(wider, source)) == pytest.approx(math.log(1.5) ** 2 / 4, rel=0.01)
    nothing = torch.zeros(2), torch.zeros(2)
    assert float(shift(nothing, nothing)) == 0


def test_shifts_are_measured_by_layer() -> None:
    model = classifier("bn")
    layer = model[1]
    with measured_shifts(model) as found, torch.no_grad():
        inputs = model[0](images(8))
        layer.running_mean, layer.running_var = moments(inputs)
        model(images(8))
        assert float(found["1"]) == pytest.approx(0, abs=1e-6)
        model(images(8) + 1)
    assert float(found["1"]) > 0.1
    before = found["1"]
    model(images(8) + 5)
    assert found["1"] is before  # nothing is measured behind the block


def outputs(model: torch.nn.Module, inputs: torch.Tensor, full_shift: float) -> torch.Tensor:
    with (
        torch.no_grad(),
        running_statistics(model, {}, memory_weight=0.5, rate=1.0, full_shift=full_shift) as updated,
    ):
        first = model(inputs)
        assert torch.equal(model(inputs), first), "the same model and images once more"
    assert set(updated) == {"0", "2"}
    return first


def test_statistics_that_are_nearly_the_source_s_hardly_count() -> None:
    rng = torch.Generator().manual_seed(0)
    layers = [torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.BatchNorm1d(6)]
    model = torch.nn.Sequential(*layers).eval()
    near = torch.randn(400, 6, generator=rng)
    near = (near - near.mean(0)) / near.std(0, correction=0)
    with torch.no_grad():
        layers[2].running_mean, layers[2].running_var = moments(layers[1](layers[0](near)))
    assert torch.allclose(outputs(model, 1.02 * near, 0.01), model(1.02 * near), atol=0.01)
    assert not torch.allclose(outputs(model, 1.02 * near, 0.0), model(1.02 * near), atol=0.01)
    far = 3 * near + 2
    assert torch.equal(outputs(model, far, 0.01), outputs(model, far, 0.0))
    between = 1.1 * near
    with torch.no_grad():
        source = model(between)
    distances = [float((outputs(model, between, limit) - source).abs().mean()) for limit in (0.0, 0.01, 0.1)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 1.5 * distances[2] > 0


def test_outputs_of_other_layers_are_realigned_in_full() -> None:
    rng = torch.Generator().manual_seed(0)
    layer = torch.nn.LayerNorm(6).eval()
    near = torch.randn(8, 5, 6, generator=rng)
    with torch.no_grad():
        model = torch.nn.Sequential(layer)
        source = {"0": moments(model(near).movedim(-1, 1))}
        found = []
        for full_shift in (0.0, 10.0):
            statistics = running_statistics(
                model, {}, memory_weight=0.5, rate=1.0, full_shift=full_shift, outputs_of=source
            )
            with statistics:
                found.append(model(near + torch.arange(6) / 20))
    assert torch.equal(*found)


@torch.no_grad()
def test_fixed_statistics_give_the_outputs_of_those_that_were_mixed_before() -> None:
    torch.manual_seed(0)
    norms = (torch.nn.BatchNorm2d(6), torch.nn.GroupNorm(2, 6))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), *norms, torch.nn.Conv2d(6, 2, 3)).train()
    inputs = smooth(8, 3, 12, 12)
    model.eval()

    def run() -> None:
        model(torch.rand(4, 3, 12, 12))

    source = output_moments(model, run)
    before = {name: value.clone() for name, value in model.named_buffers()}
    used: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with running_statistics(model, {}, memory_weight=0.5, rate=0.5, outputs_of=source, used=used):
        expected = model(inputs)
    assert set(used) == {"1", "2"}
    plain = model(inputs)
    model.train()
    with fixed_statistics(model, used, outputs_of=source):
        assert torch.equal(model(inputs), expected)
    assert not torch.allclose(plain, expected)
    assert model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())

"""Statistics of normalisation layers that are computed from a part of large inputs."""

from __future__ import annotations

import pytest
import torch

from acclimate.core.norm import moments, running_statistics, sampled_moments


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

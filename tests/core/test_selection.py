from __future__ import annotations

import pytest
import torch
from torch import nn

from acclimate.core import TensorFilter, norm
from acclimate.core.selection import matches, norm_affine_names, selected_names, selecting
from acclimate.errors import ConfigError, EmptySelectionError
from tests.networks import (
    FrozenBatchNorm,
    assert_identical,
    assert_same_objects,
    classifier,
    images,
    objects_of,
    shared_module,
    tensors_of,
    tied,
)


def frozen_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 3)).eval()


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("layer4.0.bn1.weight", "layer4", True),
        ("backbone.layer4.0.bn1.weight", "layer4", True),
        ("layer40.bn1.weight", "layer4", False),
        ("blocks.9.norm.weight", "blocks.9", True),
        ("norm.weight", "norm.*", True),
        ("blocks.0.norm.weight", "norm.*", False),
        ("a.bn1.weight", "*.bn?.weight", True),
    ],
)
def test_patterns(name: str, pattern: str, expected: bool) -> None:
    assert matches(name, pattern) is expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all", {"0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias"}),
        ("norm_only", {"1.weight", "1.bias"}),
    ],
)
def test_filters(kind: str, expected: set[str]) -> None:
    assert selected_names(classifier(), TensorFilter(kind=kind)) == expected


def test_include_and_exclude_narrow_the_filter() -> None:
    model = classifier()
    assert selected_names(model, TensorFilter(kind="all", include=("5",))) == {"5.weight", "5.bias"}
    assert selected_names(model, TensorFilter(kind="all", include=("5", "1"), exclude=("*.bias",))) == {
        "5.weight",
        "1.weight",
    }


@pytest.mark.parametrize("kind", ["adapter_only", "lora_only", "lora_norm_only"])
def test_the_error_for_an_empty_selection_names_layers_and_remedy(kind: str) -> None:
    with (
        pytest.raises(EmptySelectionError, match=r"1 Conv2d.*--lora-rank"),
        selecting(classifier(), TensorFilter(kind=kind), batch_statistics=True),
    ):
        pass


def test_a_network_without_norms_is_refused_with_a_remedy() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with (
        pytest.raises(EmptySelectionError, match="use the filter 'all'"),
        selecting(model, TensorFilter(), batch_statistics=True),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("lora_only", {"low_rank"}), ("adapter_only", {"low_rank"}), ("lora_norm_only", {"low_rank", "1"})],
)
def test_low_rank_weights_are_attached_selected_and_removed(kind: str, parts: set[str]) -> None:
    model, batch = classifier(), images()
    before, expected = tensors_of(model), model(batch)
    update = TensorFilter(kind=kind, lora_rank=2, lora_targets=("5",))
    with selecting(model, update, batch_statistics=False) as selection:
        assert torch.equal(model(batch), expected), "attaching must change nothing"
        assert all(set(name.split(".")) & parts for name in selection.parameters)
        assert any("low_rank" in name for name in selection.parameters)
        # The base weight below the low-rank pair must not be trainable.
        assert "5.weight" not in selection.parameters
    assert_identical(model, before)


def test_lora_targets_that_match_nothing_are_refused() -> None:
    update = TensorFilter(kind="lora_only", lora_rank=2, lora_targets=("nowhere",))
    with pytest.raises(EmptySelectionError, match="nowhere"), selecting(classifier(), update, batch_statistics=True):
        pass


def test_unknown_filter_and_rank_are_refused() -> None:
    with pytest.raises(ConfigError, match="norm_only"):
        TensorFilter(kind="everything")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got 0"):
        TensorFilter(lora_rank=0)


def test_frozen_batch_norm_is_trainable_inside_the_selection_only() -> None:
    model, batch = frozen_network(), images()
    buffers = dict(model.named_buffers())
    assert norm_affine_names(model) == set() or "1.weight" not in dict(model.named_parameters())
    with selecting(model, TensorFilter(), batch_statistics=True) as selection:
        assert set(selection.parameters) == {"1.weight", "1.bias"}
        assert "thawed" in selection.notes[0]
        model(batch).square().mean().backward()
        assert selection.parameters["1.weight"].grad is not None
        with torch.no_grad():
            selection.parameters["1.weight"].add_(1)
    assert set(dict(model.named_buffers())) == set(buffers)
    assert not dict(model.named_parameters()).keys() & {"1.weight", "1.bias"}
    torch.testing.assert_close(model[1].weight, torch.linspace(0.5, 1.5, 4) + 1)


def test_shared_frozen_layers_are_thawed_once_and_the_same_buffers_come_back() -> None:
    model, batch = tied(frozen=True), images()
    before, state = objects_of(model), list(model.state_dict())
    with selecting(model, TensorFilter(), batch_statistics=True) as selection:
        assert set(selection.parameters) == {"norm1.weight", "norm1.bias"}
        assert model.norm2.weight is model.norm1.weight is selection.parameters["norm1.weight"]
        model(batch).square().mean().backward()
        with torch.no_grad():
            selection.parameters["norm1.weight"].add_(1)
            # Whoever gives a parameter other contents must not lose them on exit.
            selection.parameters["norm1.bias"].data = torch.full((8,), 2.0)
    assert_same_objects(model, before)
    assert list(model.state_dict()) == state
    torch.testing.assert_close(model.norm2.weight, torch.linspace(0.5, 1.5, 8) + 1)
    torch.testing.assert_close(model.norm1.bias, torch.full((8,), 2.0))


def test_a_pattern_matches_a_parameter_by_any_of_its_names() -> None:
    shared, both = shared_module(), tied()
    names = selected_names(shared, TensorFilter(kind="all"))
    assert names == {f"backbone.{layer}.{part}" for layer in (0, 1, 5) for part in ("weight", "bias")}
    assert selected_names(shared, TensorFilter(include=("features",))) == {"backbone.1.weight", "backbone.1.bias"}
    assert selected_names(shared, TensorFilter(kind="all", exclude=("features.5", "features.1"))) == {
        "backbone.0.weight",
        "backbone.0.bias",
    }
    assert selected_names(both, TensorFilter(exclude=("norm2.bias",))) == {"norm1.weight"}
    update = TensorFilter(kind="lora_only", lora_rank=2, lora_targets=("features.5",))
    before = objects_of(shared)
    with selecting(shared, update, batch_statistics=False) as selection:
        assert set(selection.parameters) == {"backbone.5.low_rank.lora_A", "backbone.5.low_rank.lora_B"}
    assert_same_objects(shared, before)


def test_a_norm_that_shares_its_weight_with_another_layer_is_selected() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.norm = nn.LayerNorm(4)
            self.norm.weight = self.scale

    assert selected_names(Scaled(), TensorFilter()) == {"scale", "norm.bias"}


def test_batch_statistics_equal_training_mode_and_buffers_do_not_change() -> None:
    model, batch = classifier(), images()
    before = tensors_of(model)
    with norm.statistics(model):
        found = model(batch)
    assert_identical(model, before)
    model.train()
    torch.testing.assert_close(found, model(batch))


def test_frozen_layers_use_batch_statistics_too() -> None:
    model, batch = frozen_network(), images()
    features = model[0](batch)
    with norm.statistics(model):
        found = model[:2](batch)
    expected = nn.functional.batch_norm(features, None, None, model[1].weight, model[1].bias, training=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("strength", "weight"), [(10, 6 / 16), (None, 0.5), (1e9, 0.0)])
def test_mixed_statistics_follow_the_papers_formula(strength: float | None, weight: float) -> None:
    model, batch = classifier(), images(6)
    features, layer = model[0](batch).detach(), model[1]
    mean = weight * features.mean((0, 2, 3)) + (1 - weight) * layer.running_mean
    var = weight * features.var((0, 2, 3), correction=0) + (1 - weight) * layer.running_var
    with torch.no_grad():
        expected = nn.functional.batch_norm(features, mean, var, layer.weight, layer.bias, training=False)
    with norm.statistics(model, source_strength=strength), torch.no_grad():
        torch.testing.assert_close(model[:2](batch), expected)


def test_early_layers_may_take_more_of_the_batchs_statistics() -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(4, affine=False) for _ in range(3))).eval()
    batch = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + 2
    seen = batch
    with norm.statistics(model, batch_weight=0.5, early_weight=0.4), torch.no_grad():
        outputs = model(batch)
    for weight in (0.9, 0.5, 0.1):
        mean, var = weight * seen.mean(0), weight * seen.var(0, correction=0) + 1 - weight
        seen = nn.functional.batch_norm(seen, mean, var)
    torch.testing.assert_close(outputs, seen)


def test_one_value_per_channel_falls_back_to_the_source_statistics() -> None:
    layer = nn.BatchNorm1d(4).eval()
    with norm.statistics(layer):
        assert torch.isfinite(layer(torch.randn(1, 4))).all()
        assert not torch.equal(layer(torch.ones(2, 4) * 3), torch.ones(2, 4) * 3)


def test_mixing_needs_batch_norm() -> None:
    with pytest.raises(EmptySelectionError, match="BatchNorm"), norm.statistics(classifier("ln"), source_strength=1):
        pass

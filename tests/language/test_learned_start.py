"""Initial low-rank weights that were learned for a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from acclimate.core.budget import Budget
from acclimate.errors import CheckpointError, ConfigError
from acclimate.language import Adapter, LanguageModel, as_examples, load, train
from acclimate.language.models.learned_start import LearnedStart
from acclimate.language.training.parts import adapter_to
from acclimate.language.training.recipes import Parts
from acclimate.language.training.trainer import TrainingJob
from tests.language.models import digest, small

EXAMPLES = as_examples([("ab", "ba"), ("cd", "dc"), ("efg", "gfe"), ("hi", "ih"), ("jkl", "lkj"), ("mn", "nm")])


def learned(model: LanguageModel, rank: int = 4) -> dict[str, tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    shapes = {name: model.network.get_submodule(name).weight.shape for name in model.decoder(1.0).targets}
    return {
        name: (torch.randn(rank, inner, generator=rng) / 10, torch.randn(outer, rank, generator=rng) / 10)
        for name, (outer, inner) in shapes.items()
    }


def with_start(rank: int = 4, **recipe: Any) -> LanguageModel:
    model = small(initial_weights="learned", **({"share_adapted": 1.0} | recipe))
    return dataclasses.replace(model, learned_start=LearnedStart(learned(model, rank)))


def product(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[1] @ pair[0]


def unmoved(model: LanguageModel, **recipe: Any) -> Adapter:
    """Return what training with a learning rate near zero leaves of the initial weights."""
    wanted = dataclasses.replace(model.recipe, learning_rate=1e-12, steps=1, **recipe)
    return train(model, [EXAMPLES, EXAMPLES[:3]], wanted)


def test_every_copy_begins_with_the_learned_weights() -> None:
    model = with_start()
    assert model.learned_start is not None
    before = digest(model)
    found = unmoved(model)
    for name, (down, up) in model.learned_start.weights.items():
        for copy in range(2):
            torch.testing.assert_close(found.weights[name][0][copy], down, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.weights[name][1][copy], up, rtol=1e-4, atol=1e-6)
    assert digest(model) == before


def test_the_first_loss_is_that_of_the_model_with_the_learned_weights() -> None:
    model = with_start()
    assert model.learned_start is not None
    start = Adapter.of_weights(model.learned_start.weights, rank=4, fingerprint=model.fingerprint)
    random = dataclasses.replace(model.recipe, initial_weights="random")
    begun, anew = train(model, [EXAMPLES], model.recipe), train(model, [EXAMPLES], random)
    gone_on = train(model, [EXAMPLES], random, start=start)
    assert begun.losses == pytest.approx(gone_on.losses, rel=1e-4)
    assert abs(begun.losses[0] - anew.losses[0]) > 1e-3


@pytest.mark.parametrize("alpha", [None, 12.0])
@pytest.mark.parametrize("rank", [6, 4, 2])
def test_another_rank_keeps_what_it_can_of_the_product(rank: int, alpha: float | None) -> None:
    model = with_start()
    assert model.learned_start is not None
    found = unmoved(model, rank=rank, alpha=alpha)
    for name, pair in model.learned_start.weights.items():
        down, up = found.weights[name]
        added = found.alpha / found.rank * product((down[0], up[0]))
        values = torch.linalg.svdvals(product(pair))
        assert float((added - product(pair)).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-3, abs=1e-4)


def test_layers_that_are_not_adapted_need_no_weights_and_others_without_any_begin_anew() -> None:
    model = with_start(share_adapted=0.5)
    found = unmoved(model)
    assert 0 < len(found.weights) < len(model.learned_start.weights if model.learned_start else ())
    some = dict(list(learned(model).items())[-1:])
    part = unmoved(dataclasses.replace(model, learned_start=LearnedStart(some)))
    silent = [name for name, (_, up) in part.weights.items() if float(up.abs().max()) < 1e-6]
    assert set(silent) == set(part.weights) - set(some)


def test_a_model_without_learned_weights_says_so_before_it_trains() -> None:
    model = small(initial_weights="learned")
    with pytest.raises(
        ConfigError, match="'llama' has no learned initial weights; train with initial_weights='random'"
    ):
        train(model, [EXAMPLES], model.recipe)
    with pytest.raises(ConfigError, match="initial_weights must be one of random, first_gradient, learned, got 'zero'"):
        dataclasses.replace(model.recipe, initial_weights="zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="schedule must be one of cosine, constant, got 'step'"):
        dataclasses.replace(model.recipe, schedule="step")  # type: ignore[arg-type]


def test_steps_on_all_examples_begin_at_the_mean_of_the_factors() -> None:
    model = with_start(steps=4, parts=Parts(share=0.5, finishing_share=0.0))
    parts = train(model, [EXAMPLES[:3], EXAMPLES[3:]], model.recipe)
    mean = adapter_to(model, TrainingJob(sets=[EXAMPLES]), model.recipe, parts)
    for name, (down, up) in parts.weights.items():
        assert torch.equal(mean.weights[name][0], (down[0] + down[1]) / 2)
        assert torch.equal(mean.weights[name][1], (up[0] + up[1]) / 2)
    assert mean.mean_of_factors() is mean


def test_a_constant_rate_goes_as_far_in_its_last_step_as_in_its_first() -> None:
    model = small(learning_rate=1e-3, early_stop_loss=1e-9)

    def last_step(schedule: Any) -> float:
        def after(steps: int) -> Adapter:
            # Both are trained for six steps by the schedule, and stopped.
            return train(
                model,
                [EXAMPLES],
                dataclasses.replace(model.recipe, steps=6, schedule=schedule),
                budget=Budget(max_steps=steps),
            )

        one, two = after(5).weights, after(6).weights
        return max(float((one[name][1] - two[name][1]).abs().max()) for name in one)

    assert last_step("constant") > 3 * last_step("cosine")


def test_spark_comes_with_learned_weights_for_all_its_layers(tmp_path: Path) -> None:
    model = load("spark")
    assert model.learned_start is not None
    assert model.recipe.initial_weights == "learned"
    assert set(model.learned_start.weights) == set(model.decoder(1.0).targets)
    assert {len(down) for down, _ in model.learned_start.weights.values()} == {model.recipe.rank}
    model.network.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert load(str(tmp_path)).learned_start is None
    (tmp_path / "start").mkdir()
    assert load(str(tmp_path)).learned_start is None, "a folder of that name without weights is none of ours"
    (tmp_path / "start" / "adapter_config.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"the adapter in .*start cannot be read|adapter_model.safetensors is missing"
    ):
        load(str(tmp_path))

"""Training of low-rank weights: losses, budgets, copies, and that the model is left as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from acclimate.core.budget import Budget
from acclimate.errors import CheckpointError, DataError
from acclimate.language import Adapter, LanguageModel, as_examples, train
from acclimate.language.training.cross_entropy import CrossEntropy
from acclimate.language.training.recipes import InitialWeights
from acclimate.language.training.trainer import clip_copies, cosine
from tests.language.models import digest, small

EXAMPLES = as_examples([("ab", "ba"), ("cd", "dc"), ("efg", "gfe"), ("hi", "ih"), ("jkl", "lkj")])


def changed(model: LanguageModel, **recipe: Any) -> Any:
    return dataclasses.replace(model.recipe, **recipe)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma", "neox"])
@pytest.mark.parametrize("loss", ["all_answers", "last_answer", "direct"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_loss_comes_down_and_the_model_stays_bit_identical(kind: str, loss: str, quick: bool) -> None:
    model = small(kind)
    before = digest(model)
    recipe = changed(model, steps=8, loss=loss, learning_rate=2e-2)
    if quick:
        recipe = dataclasses.replace(recipe, share_adapted=1.0, context_share=0.5, initial_weights="first_gradient")
    adapter = train(model, [EXAMPLES], recipe)
    assert adapter.stop == "finished"
    assert len(adapter.losses) == 8
    assert adapter.losses[-1] < adapter.losses[0]
    assert adapter.convergence > 0
    assert digest(model) == before
    assert not any(module._forward_hooks for module in model.network.modules())
    assert not any(p.requires_grad for p in model.network.parameters())


def test_one_seed_gives_one_adapter_and_another_gives_another() -> None:
    model = small()
    one, same, other = (train(model, [EXAMPLES], changed(model, seed=seed)) for seed in (1, 1, 2))
    for name, (down, up) in one.weights.items():
        assert torch.equal(down, same.weights[name][0])
        assert torch.equal(up, same.weights[name][1])
    assert any(not torch.equal(one.weights[name][1], other.weights[name][1]) for name in one.weights)


@pytest.mark.parametrize(
    "settings", [{}, {"share_adapted": 1.0, "context_share": 0.5, "initial_weights": "first_gradient"}]
)
def test_copies_trained_side_by_side_are_those_trained_alone(settings: dict[str, Any]) -> None:
    model = small()
    recipe = changed(model, steps=3, **settings)
    halves = [EXAMPLES[:3], EXAMPLES[2:]]
    together = train(model, halves, recipe)
    for index, half in enumerate(halves):
        alone = train(model, [half], recipe)
        for name, (down, up) in alone.weights.items():
            assert torch.allclose(together.weights[name][0][index], down, atol=1e-4)
            assert torch.allclose(together.weights[name][1][index], up, atol=1e-4)


@pytest.mark.parametrize(
    ("budget", "stop", "steps"),
    [
        (Budget(max_seconds=0.0), "time_budget", 0),
        (Budget(max_steps=2), "step_budget", 2),
        (Budget(max_bytes=10), "memory_budget", 0),
        (Budget(max_seconds=60.0), "finished", 4),
    ],
)
def test_budgets_end_training_in_the_middle(budget: Budget, stop: str, steps: int) -> None:
    model = small()
    adapter = train(model, [EXAMPLES], model.recipe, budget=budget)
    assert (adapter.stop, len(adapter.losses)) == (stop, steps)


def test_cancelling_ends_training_and_leaves_nothing_behind() -> None:
    model = small()
    before, calls = digest(model), []
    adapter = train(model, [EXAMPLES], model.recipe, cancelled=lambda: len(calls) == 2 or calls.append(1) is not None)  # type: ignore[func-returns-value]
    assert adapter.stop == "cancelled"
    assert len(adapter.losses) == 2
    assert digest(model) == before


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = small()
    before = digest(model)

    def breaks() -> bool:
        raise RuntimeError("from outside")

    with pytest.raises(RuntimeError, match="from outside"):
        train(model, [EXAMPLES], model.recipe, cancelled=breaks)
    assert digest(model) == before
    assert not any(module._forward_hooks for module in model.network.modules())


@pytest.mark.parametrize("weights", ["random", "first_gradient"])
def test_numbers_that_run_away_are_noticed(weights: InitialWeights) -> None:
    model = small()
    recipe = changed(model, learning_rate=1e38, gradient_clip_norm=None, steps=6, initial_weights=weights)
    adapter = train(model, [EXAMPLES], recipe)
    assert adapter.stop == "non_finite"


def test_training_ends_early_when_there_is_nothing_left_to_learn() -> None:
    model = small()
    adapter = train(model, [EXAMPLES], changed(model, early_stop_loss=1e3))
    assert (adapter.stop, len(adapter.losses)) == ("early_stop", 1)
    assert all(not up.any() for _, up in adapter.weights.values())


def test_going_on_from_an_adapter() -> None:
    model = small()
    first = train(model, [EXAMPLES], changed(model, steps=12, learning_rate=2e-2))
    # Its directions are kept, whatever the recipe says about those of the first gradient.
    second = train(model, [EXAMPLES], changed(model, steps=1, initial_weights="first_gradient"), start=first)
    assert second.losses[0] < first.losses[0]
    with pytest.raises(DataError, match="rank 4"):
        train(model, [EXAMPLES], changed(model, rank=8), start=first)
    with pytest.raises(DataError, match="other layers"):
        train(model, [EXAMPLES], changed(model, share_adapted=1.0), start=first)


def test_too_few_examples_are_refused() -> None:
    model = small()
    with pytest.raises(DataError, match="give 1"):
        train(model, [[]], model.recipe)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_saved_adapter_loads_in_peft_with_the_same_logits(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = small(kind)
    adapter = train(model, [EXAMPLES], model.recipe)
    adapter.save(tmp_path, base_model="somewhere")
    tokens = torch.randint(3, 150, (2, 11))
    with torch.no_grad(), adapter.installed(model.network):
        ours = model.network(input_ids=tokens).logits
    again = Adapter.load(tmp_path, model)
    with torch.no_grad(), again.installed(model.network):
        assert torch.equal(model.network(input_ids=tokens).logits, ours)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "somewhere"
    wrapped = peft.PeftModel.from_pretrained(small(kind).network, str(tmp_path))
    with torch.no_grad():
        assert torch.allclose(wrapped(input_ids=tokens).logits, ours, atol=1e-5)


def test_adapters_side_by_side_cannot_be_saved_as_one(tmp_path: Path) -> None:
    model = small()
    with pytest.raises(DataError, match="2 adapters"):
        train(model, [EXAMPLES, EXAMPLES], model.recipe).save(tmp_path)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no adapter"):
        Adapter.load(tmp_path, small())


def test_the_schedule_rises_and_falls() -> None:
    factors = [cosine(step, 20) for step in range(20)]
    assert factors[0] < factors[1] < 1.01
    assert factors[1:] == sorted(factors[1:], reverse=True)
    assert factors[-1] < 0.02


def test_each_copy_is_clipped_by_its_own_norm() -> None:
    grads = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]])
    clip_copies(grads, 1.0)
    assert torch.allclose(grads.norm(dim=1), torch.tensor([1.0, 0.5]), atol=1e-4)
    single = torch.tensor([[30.0, 40.0]])
    clip_copies(single, 5.0)
    assert torch.allclose(single, torch.tensor([[3.0, 4.0]]), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradient_are_the_cross_entropys(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scores = (4 * torch.randn(5, 40)).to(dtype)
    wanted, weights = torch.tensor([3, 0, 39, 7, 7]), torch.tensor([0.1, 0.1, 0.1, 0.35, 0.35])
    ours, torchs = (scores.clone().requires_grad_() for _ in range(2))
    loss = CrossEntropy.apply(ours, wanted, weights)
    expected = nn.functional.cross_entropy(torchs.float(), wanted, reduction="none") * weights
    factors = torch.arange(1.0, 6.0)
    (factors * loss).sum().backward()
    (factors * expected).sum().backward()
    assert torch.allclose(loss, expected)
    assert torch.allclose(ours.grad, torchs.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)

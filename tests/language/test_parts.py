"""One adapter out of adapters of parts of the examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from acclimate.core.budget import Budget
from acclimate.errors import ConfigError
from acclimate.language import Adapter, LanguageModel, Recipe, as_examples, cross_fit, train
from acclimate.language.training.parts import adapter_to, parts_training, splits_of
from acclimate.language.training.recipes import Parts
from acclimate.language.training.trainer import Training, TrainingJob, trained
from tests.language.models import digest, small

EXAMPLES = as_examples([("ab", "ba"), ("cd", "dc"), ("efg", "gfe"), ("hi", "ih"), ("jkl", "lkj"), ("mn", "nm")])


PARTS = Parts(share=0.5, finishing_share=1 / 3, rate_factor=1.5, finishing_rate_factor=0.5)


def recipe_of(model: LanguageModel, **settings: Any) -> Recipe:
    return dataclasses.replace(model.recipe, **({"steps": 6, "rank": 4, "parts": PARTS} | settings))


def added(adapter: Adapter, name: str, copy: int | None = None) -> torch.Tensor:
    down, up = adapter.weights[name]
    if copy is not None:
        down, up = down[copy], up[copy]
    return adapter.alpha / adapter.rank * (up @ down)


def alike(one: Adapter, other: Adapter) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        torch.allclose(added(one, name), added(other, name), rtol=1e-3, atol=1e-6) for name in one.weights
    )


def test_the_mean_is_the_nearest_adapter_of_its_rank() -> None:
    model = small()
    recipe = recipe_of(model, rank=2, learning_rate=2e-2)
    job = TrainingJob(sets=[EXAMPLES])
    parts = train(model, parts_training(job, recipe).job.sets, recipe)
    mean = parts.mean()
    assert (mean.copies, mean.rank, mean.alpha, parts.copies) == (1, 2, parts.alpha, 2)
    for name in parts.weights:
        wanted = (added(parts, name, 0) + added(parts, name, 1)) / 2
        values = torch.linalg.svdvals(wanted)
        assert float(values[2:].norm()) > 0.01 * float(values.norm()), "ranks 2 and 2 add up"
        missed = float((added(mean, name) - wanted).norm())
        assert missed == pytest.approx(float(values[2:].norm()), rel=1e-3)


def test_the_mean_of_equal_adapters_is_that_adapter() -> None:
    model = small()
    one = train(model, [EXAMPLES], recipe_of(model, learning_rate=2e-2))
    assert one.mean() is one
    assert alike(one.repeated(3).mean(), one)


def test_an_adapter_begins_at_the_mean_of_those_that_the_evidence_is_from() -> None:
    model = small()
    before, recipe = digest(model), recipe_of(model, learning_rate=1e-2)
    _, parts = cross_fit(model, EXAMPLES, recipe)
    halves = [[EXAMPLES[i] for i in kept] for kept, _ in splits_of(EXAMPLES, recipe)]
    assert parts.losses == train(model, halves, dataclasses.replace(recipe, steps=3, learning_rate=1.5e-2)).losses
    adapter = adapter_to(model, TrainingJob(sets=[EXAMPLES]), recipe, parts)
    last = dataclasses.replace(recipe, steps=2, learning_rate=5e-3)
    expected = train(model, [EXAMPLES], last, start=parts.mean())
    assert alike(adapter, expected)
    assert adapter.losses == (*parts.losses, *expected.losses)
    assert adapter.trained_tokens == parts.trained_tokens + expected.trained_tokens
    assert (adapter.copies, adapter.stop) == (1, "finished")
    assert digest(model) == before


def test_an_adapter_to_one_half_goes_on_to_learn_from_all_examples() -> None:
    model = small()
    recipe = recipe_of(model, learning_rate=1e-2, parts=dataclasses.replace(PARTS, least_asked=3))
    evidence, part = cross_fit(model, EXAMPLES, recipe)
    ((kept, out),) = splits_of(EXAMPLES, recipe)
    assert (len(kept), evidence.asked) == (3, 3)
    assert sorted((*kept, *out)) == list(range(6))
    first = dataclasses.replace(recipe, steps=3, learning_rate=1.5e-2)
    assert alike(part, train(model, [[EXAMPLES[i] for i in kept]], first))
    last = dataclasses.replace(recipe, steps=2, learning_rate=5e-3)
    expected = train(model, [EXAMPLES], last, start=part)
    adapter = adapter_to(model, TrainingJob(sets=[EXAMPLES]), recipe, part)
    assert alike(adapter, expected)
    assert adapter.losses == (*part.losses, *expected.losses)


@pytest.mark.parametrize(("count", "adapters"), [(2, 2), (3, 3), (4, 2), (10, 2), (11, 1), (12, 1)])
def test_each_half_is_asked_unless_one_is_evidence_enough(count: int, adapters: int) -> None:
    splits = splits_of(as_examples([(str(i), str(i)) for i in range(count)]), Recipe(parts=Parts()))
    assert len(splits) == adapters
    for kept, out in splits:
        assert sorted((*kept, *out)) == list(range(count))
        assert adapters > 1 or len(out) == 6


def test_without_further_steps_the_mean_is_the_adapter() -> None:
    model = small()
    recipe = recipe_of(model, parts=dataclasses.replace(PARTS, finishing_share=0.0))
    _, parts = cross_fit(model, EXAMPLES, recipe)
    assert alike(adapter_to(model, TrainingJob(sets=[EXAMPLES]), recipe, parts), parts.mean())


@pytest.mark.parametrize(("count", "share"), [(6, None), (5, PARTS), (2, PARTS)])
def test_the_adapter_is_trained_anew_without_parts_and_where_they_would_be_small(
    count: int, share: Parts | None
) -> None:
    model = small()
    recipe = recipe_of(model, parts=share)
    few = EXAMPLES[:count]
    expected = train(model, [few], recipe)
    assert len(expected.losses) == 6
    evidence, parts = cross_fit(model, few, recipe)
    assert (evidence.count, len(parts.losses)) == (count, 6)
    assert alike(adapter_to(model, TrainingJob(sets=[few]), recipe, parts), expected)
    assert alike(adapter_to(model, TrainingJob(sets=[few]), recipe), expected)


def test_what_was_learned_before_the_budget_ended_is_kept() -> None:
    model = small()
    recipe = recipe_of(model)
    _, parts = cross_fit(model, EXAMPLES, recipe)
    job = TrainingJob(sets=[EXAMPLES], budget=Budget(max_steps=1))
    ended = adapter_to(model, job, recipe, parts)
    assert alike(ended, parts.mean())
    assert ended.stop == "finished"


def test_steps_are_counted_over_both_stages() -> None:
    model = small()
    told: list[tuple[int, int]] = []
    job = TrainingJob(sets=[EXAMPLES], on_step=lambda made, most, _loss: told.append((made, most)))
    recipe = recipe_of(model)
    step = parts_training(job, recipe)
    parts = trained(model, step.job, step.recipe)
    adapter_to(model, job, recipe, parts)
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_jobs_that_start_from_adapters_share_passes() -> None:
    model = small()
    recipe = recipe_of(model, initial_weights="first_gradient", learning_rate=1e-2)
    starts = [train(model, [EXAMPLES[:3]], recipe), train(model, [EXAMPLES[2:]], recipe)]
    jobs = [TrainingJob(sets=[EXAMPLES[k:]], start=start) for k, start in enumerate(starts)]
    assert jobs[0].fits(jobs[1])
    assert not jobs[0].fits(TrainingJob(sets=[EXAMPLES]))
    assert not jobs[0].fits(dataclasses.replace(jobs[1], budget=Budget(max_bytes=10**9)))
    with model.lock:
        training = Training(model, jobs, recipe)
        with training.attached():
            while not training.finished:
                training.step()
        together = [adapter for _, adapter in training.ended()]
    for job, start, adapter in zip(jobs, starts, together, strict=True):
        assert alike(adapter, train(model, job.sets, recipe, start=start))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"least_asked": 0}, "least_asked must be at least 1, got 0"),
        ({"share": 0.0}, "share must be above 0 and at most 1, got 0"),
        ({"finishing_share": -0.1}, "finishing_share must be between 0 and 1, got -0.1"),
        ({"rate_factor": 0.0}, "rate_factor must be above 0, got 0"),
        ({"finishing_rate_factor": -1.0}, "finishing_rate_factor must be above 0, got -1"),
    ],
)
def test_settings_out_of_range(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Parts(**setting)

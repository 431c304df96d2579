"""One adapter out of adapters to parts of the examples, which show on the way how adapting does on held-out examples.

An adapter is trained on one half of the examples, or one on each half in the same passes, and can be asked for the
other half. It then goes on to learn from all examples for a few steps; of two adapters it is their mean that does
(model soups, Wortsman et al. 2022, arXiv 2203.05482). That takes half of the steps that evidence and an adapter trained
anew on all examples would take, or fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from acclimate.language.examples import Example, folds
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.steps import Steps, Train, run_alone
from acclimate.language.training.adapter import Adapter, StopReason
from acclimate.language.training.recipes import Parts, Recipe
from acclimate.language.training.trainer import OnStep, TrainingJob

_LEAST_FOR_HALVES: Final = 4
#: Where training ends for want of these, what was learned before is an adapter too: that which was asked.
_OUT_OF_BUDGET: Final = (StopReason.TIME_BUDGET, StopReason.MEMORY_BUDGET, StopReason.STEP_BUDGET)


def splits_of(examples: Sequence[Example], recipe: Recipe) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return how the examples are divided: indices that an adapter is trained on, and those held out of it.

    One half is held out, or each of them once where one is too small to be evidence; with fewer than four examples,
    each example.
    """
    splits = folds(examples, 2 if len(examples) >= _LEAST_FOR_HALVES else len(examples), seed=recipe.seed)
    settings = _settings(examples, recipe)
    one_is_enough = settings is not None and len(splits[0][1]) >= settings.least_asked
    return splits[:1] if one_is_enough else splits


def parts_training(job: TrainingJob, recipe: Recipe) -> Train:
    """Return the training of an adapter for each part of the examples of ``job``, which has one set of them."""
    (examples,) = job.sets
    splits = splits_of(examples, recipe)
    start = job.start.repeated(len(splits)) if job.start is not None else None
    sets = [[examples[i] for i in kept] for kept, _ in splits]
    follow, settings = 0, _settings(examples, recipe)
    if settings is not None:
        follow = _steps(recipe, settings.finishing_share)
        steps = max(1, _steps(recipe, settings.share))
        recipe = replace(recipe, steps=steps, learning_rate=recipe.learning_rate * settings.rate_factor)
    return Train(job=replace(job, sets=sets, start=start, on_step=_counted(job.on_step, 0, follow)), recipe=recipe)


def adapter_steps(job: TrainingJob, recipe: Recipe, parts: Adapter | None = None) -> Steps[Adapter]:
    """Return an adapter to the examples of ``job``, step by step.

    Args:
        job: with one set of examples.
        recipe: with rank and steps decided.
        parts: adapters to the parts, as :func:`parts_training` trains them, if held-out examples became likelier with
            them. Without, or where the parts are small, the adapter is trained anew.
    """
    (examples,) = job.sets
    settings = _settings(examples, recipe)
    if settings is None or parts is None or not parts.weights:
        adapter: Adapter = yield Train(job=job, recipe=recipe)
        return adapter
    # Few steps from weights that were learned leave the factors near each other; no decomposition is needed.
    mean = parts.mean_of_factors() if recipe.initial_weights == "learned" else parts.mean()
    steps = _steps(recipe, settings.finishing_share)
    if not steps:
        return mean
    rate = recipe.learning_rate * settings.finishing_rate_factor
    finishing = replace(recipe, steps=steps, learning_rate=rate)
    last = replace(job, start=mean, on_step=_counted(job.on_step, len(parts.losses), 0))
    adapter = yield Train(job=last, recipe=finishing)
    if adapter.stop in _OUT_OF_BUDGET:
        return mean
    return replace(
        adapter,
        losses=(*parts.losses, *adapter.losses),
        seconds=parts.seconds + adapter.seconds,
        cpu_seconds=parts.cpu_seconds + adapter.cpu_seconds,
        trained_tokens=parts.trained_tokens + adapter.trained_tokens,
    )


def adapter_to(model: LanguageModel, job: TrainingJob, recipe: Recipe, parts: Adapter | None = None) -> Adapter:
    """Return what :func:`adapter_steps` trains, with nothing beside it."""
    return run_alone(model, adapter_steps(job, recipe, parts))


def _settings(examples: Sequence[Example], recipe: Recipe) -> Parts | None:
    """Return how parts of ``examples`` are trained; None where the mean of their adapters is no beginning."""
    parts = recipe.parts
    return parts if parts is not None and len(examples) >= parts.least_examples else None


def _counted(on_step: OnStep | None, before: int, after: int) -> OnStep | None:
    """Return a callback that counts the steps before these and after them too."""
    if on_step is None:
        return None
    return lambda made, most, loss: on_step(before + made, before + most + after, loss)


def _steps(recipe: Recipe, share: float) -> int:
    return round(recipe.steps_or_most * share)

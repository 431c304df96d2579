"""Choose a cached adapter to start training from, where it answers the examples better than the base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from acclimate.language.decision.evidence import held_out
from acclimate.language.examples import Example, folds
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Layout
from acclimate.language.training.adapter import Adapter
from acclimate.language.training.adapter_cache import AdapterManager
from acclimate.language.training.recipes import Recipe

_CANDIDATES: Final = 3


def warm_start(
    cache: AdapterManager,
    model: LanguageModel,
    examples: Sequence[Example],
    recipe: Recipe,
    layout: Layout | None = None,
) -> Adapter | None:
    """Return the cached adapter under which held-out examples are likeliest, or None where the base model does better.

    Args:
        cache: searched for adapters of the same model, layers and rank, the most similar tasks first.
        model: to ask.
        examples: of the request.
        recipe: of the training that would start from it.
        layout: that the examples are written in; None for the model's format.
    """
    with model.lock:
        return _likeliest(cache, model, examples, recipe, layout)


def _likeliest(
    cache: AdapterManager,
    model: LanguageModel,
    examples: Sequence[Example],
    recipe: Recipe,
    layout: Layout | None = None,
) -> Adapter | None:
    split = [folds(examples, 2, seed=recipe.seed)[0]]
    targets = set(model.decoder(recipe.share_adapted).targets)
    best, best_likelihood = None, held_out(model, examples, split, layout=layout).log_likelihood
    for adapter, seen in cache.nearest(model.fingerprint, examples, _CANDIDATES):
        fits = adapter.copies == 1 and adapter.rank == recipe.rank_or_default and set(adapter.weights) == targets
        # On examples that the adapter was trained on, its likelihood says nothing about new ones.
        if not fits or set(seen) & set(examples):
            continue
        likelihood = held_out(model, examples, split, adapter, layout=layout).log_likelihood
        if likelihood > best_likelihood:
            best, best_likelihood = adapter, likelihood
    return best

"""Training settings of adapters, and the rules that choose rank and steps from the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from acclimate.errors import ConfigError
from acclimate.language.examples import Example

Loss = Literal["all_answers", "last_answer", "direct"]
LOSSES: Final = ("all_answers", "last_answer", "direct")
Schedule = Literal["cosine", "constant"]
SCHEDULES: Final = ("cosine", "constant")
InitialWeights = Literal["random", "first_gradient", "learned"]
INITIAL_WEIGHTS: Final = ("random", "first_gradient", "learned")

RANK_RECOMMENDATIONS: Final[Mapping[str, int]] = {
    "simple_patterns": 8,
    "medium_patterns": 16,
    "complex_patterns": 32,
    "research_tasks": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Settings of adapters to parts of the examples, and of the steps on all examples that follow at their mean.

    See :mod:`acclimate.language.training.parts`.

    Attributes:
        least_examples: fewest examples for which the mean of the adapters to their parts is a good beginning: adapters
            to two examples learn little that holds for others.
        least_asked: fewest held-out examples that are evidence enough: where a half has as many, only the other half
            gets an adapter, and otherwise each of them.
        share: of the recipe's steps, for the adapters to the parts.
        rate_factor: of these steps, on the recipe's learning rate.
        finishing_share: of the recipe's steps, for those that follow.
        finishing_rate_factor: of those, on the recipe's learning rate.

    Raises:
        ConfigError: a value is out of range.
    """

    least_examples: int = 6
    least_asked: int = 6
    share: float = 0.625
    rate_factor: float = 1.0
    finishing_share: float = 0.25
    finishing_rate_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("least_examples", "least_asked"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, got {self.share}")
        if not 0 <= self.finishing_share <= 1:
            raise ConfigError(f"finishing_share must be between 0 and 1, got {self.finishing_share}")
        for name in ("rate_factor", "finishing_rate_factor"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of the training of one adapter.

    Attributes:
        rank: of the low-rank weights; None lets :func:`recommended_rank` choose by complexity.
        alpha: scale times rank; None means ``rank``.
        steps: optimizer steps; None lets :func:`optimize_training_steps` choose between floor and cap.
        steps_floor, steps_cap: bounds of that choice.
        learning_rate: of AdamW at its highest.
        schedule: of the learning rate: ``cosine`` (a linear rise, then half a cosine to zero) or ``constant``.
        betas, weight_decay: of AdamW.
        loss: ``all_answers`` (every answer after the first, one causal pass), ``last_answer`` (leave-one-out) or
            ``direct`` (each pair without the others).
        context_share: share of the examples at the beginning of each order whose answers carry no loss, at least the
            first: with ``all_answers``, the other answers are learned in contexts nearer to that of the query.
        orderings: shuffled orders that the steps alternate between, where the lower layers run once for each; a model
            that is adapted in all its layers gets a new order at every step.
        orderings_per_step: orders side by side in one step.
        share_adapted: share of the layers, from the last, that get low-rank weights.
        initial_weights: ``random`` (Kaiming-uniform down, zero up), ``first_gradient`` (in the directions of the first
            gradient; see :mod:`acclimate.core.lora_start`) or ``learned`` (those that came with the model; see
            :mod:`acclimate.language.models.learned_start`).
        gradient_clip_norm: None for no clipping.
        early_stop_loss: training ends where a step finds a loss below this, in nats per answer token; it changes
            nothing then.
        parts: how adapters to parts of the examples are trained, where their mean is a beginning of the adapter to all;
            None trains them by this recipe, and the adapter to all anew.
        seed: of initialisation and shuffling.

    Raises:
        ConfigError: a value is out of range.
    """

    rank: int | None = None
    alpha: float | None = None
    steps: int | None = None
    steps_floor: int = 2
    steps_cap: int = 8
    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    loss: Loss = "all_answers"
    context_share: float = 0.0
    orderings: int = 2
    orderings_per_step: int = 1
    share_adapted: float = 0.25
    initial_weights: InitialWeights = "random"
    gradient_clip_norm: float | None = 1.0
    early_stop_loss: float = 0.01
    parts: Parts | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "steps_floor", "orderings", "orderings_per_step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.steps_cap < self.steps_floor:
            raise ConfigError(f"steps_cap ({self.steps_cap}) must not be below steps_floor ({self.steps_floor})")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 < self.share_adapted <= 1:
            raise ConfigError(f"share_adapted must be above 0 and at most 1, got {self.share_adapted}")
        if not 0 <= self.context_share < 1:
            raise ConfigError(f"context_share must be at least 0 and below 1, got {self.context_share}")
        if self.loss not in LOSSES:
            raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.initial_weights not in INITIAL_WEIGHTS:
            raise ConfigError(
                f"initial_weights must be one of {', '.join(INITIAL_WEIGHTS)}, got {self.initial_weights!r}"
            )

    @property
    def steps_or_most(self) -> int:
        """The number of steps, or the most that are chosen."""
        return self.steps_cap if self.steps is None else self.steps

    @property
    def rank_or_default(self) -> int:
        """The rank, or that of simple patterns."""
        return RANK_RECOMMENDATIONS["simple_patterns"] if self.rank is None else self.rank


RECIPES: Final[Mapping[str, Recipe]] = {
    "spark": Recipe(
        rank=8,
        steps_floor=5,
        steps_cap=5,
        learning_rate=6e-3,
        schedule="constant",
        share_adapted=1.0,
        initial_weights="learned",
        parts=Parts(share=0.6, finishing_share=0.4, finishing_rate_factor=0.8),
    ),
    "smollm2": Recipe(
        rank=16,
        steps_floor=5,
        steps_cap=5,
        learning_rate=8e-4,
        schedule="constant",
        share_adapted=1.0,
        context_share=0.5,
        initial_weights="first_gradient",
        parts=Parts(share=0.6, finishing_share=0.4),
    ),
}


#: For models without a recipe of their own: more steps than for smollm2, at a rate that falls. Its rank is the highest
#: that other programs take unless they are told otherwise.
GENERAL: Final = Recipe(
    rank=16,
    steps_floor=8,
    steps_cap=8,
    learning_rate=1e-3,
    share_adapted=1.0,
    context_share=0.5,
    initial_weights="first_gradient",
    parts=Parts(share=1.0, rate_factor=1.6, finishing_share=0.375, finishing_rate_factor=1.6),
)


def recipe_for(name: str | None) -> Recipe:
    """Return the recipe that was tuned for the model called ``name``, or the general one."""
    return RECIPES.get(name or "", GENERAL)


def pattern_complexity(examples: Sequence[Example]) -> float:
    """Return how hard the task of the examples is, from 0 to 1.

    The mean of three shares: output characters that do not occur in the input, answers that differ from all others,
    and the length of outputs divided by forty characters.
    """
    if not examples:
        return 0.0
    new = sum(sum(c not in e.input for c in e.output) / max(1, len(e.output)) for e in examples) / len(examples)
    different = len({e.output for e in examples}) / len(examples)
    length = min(1.0, sum(len(e.output) for e in examples) / len(examples) / 40)
    return (new + different + length) / 3


def example_quality(examples: Sequence[Example]) -> float:
    """Return how informative the examples are, from 0 to 1.

    The mean of their number divided by ten, and of how much their inputs differ.
    """
    if not examples:
        return 0.0
    inputs = [set(e.input) for e in examples]
    pairs = [(a, b) for i, a in enumerate(inputs) for b in inputs[i + 1 :]]
    apart = sum(1 - len(a & b) / max(1, len(a | b)) for a, b in pairs) / len(pairs) if pairs else 0.0
    return (min(1.0, len(examples) / 10) + apart) / 2


def optimize_training_steps(pattern_complexity: float, example_quality: float, *, floor: int = 2, cap: int = 8) -> int:
    """Return the number of training steps: more for harder patterns, fewer for better examples.

    ``round(4 + 4 complexity - 2 quality)`` for the usual cap of eight, stretched with the cap, and at least ``floor``.

    Args:
        pattern_complexity: from 0 to 1.
        example_quality: from 0 to 1.
        floor: fewest steps.
        cap: most steps.

    Raises:
        ConfigError: a value is outside 0 to 1.
    """
    for name, value in (("pattern_complexity", pattern_complexity), ("example_quality", example_quality)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} must be between 0 and 1, got {value}")
    return min(cap, max(floor, round((4 + 4 * pattern_complexity - 2 * example_quality) * cap / 8)))


def recommended_rank(complexity: float) -> int:
    """Return the rank for a complexity from 0 to 1: one of :data:`RANK_RECOMMENDATIONS`, by quarters."""
    names = list(RANK_RECOMMENDATIONS)
    return RANK_RECOMMENDATIONS[names[min(len(names) - 1, int(complexity * len(names)))]]


def decided(recipe: Recipe, examples: Sequence[Example]) -> Recipe:
    """Return ``recipe`` with rank and number of steps chosen by the examples, where it has none."""
    complexity = pattern_complexity(examples)
    steps = recipe.steps or optimize_training_steps(
        complexity, example_quality(examples), floor=recipe.steps_floor, cap=recipe.steps_cap
    )
    return replace(recipe, steps=steps, rank=recipe.rank or recommended_rank(complexity))

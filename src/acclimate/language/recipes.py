"""How adapters are trained for a model: settings, and the rules that choose rank and steps from the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from acclimate.errors import ConfigError
from acclimate.language.examples import Example

Loss = Literal["all_answers", "last_answer", "direct"]
LOSSES: Final = ("all_answers", "last_answer", "direct")

RANK_RECOMMENDATIONS: Final[Mapping[str, int]] = {
    "simple_patterns": 8,
    "medium_patterns": 16,
    "complex_patterns": 32,
    "research_tasks": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of the training of one adapter.

    Attributes:
        rank: of the low-rank weights; None lets :func:`recommended_rank` choose by complexity.
        alpha: scale times rank; None means ``rank``.
        steps: optimizer steps; None lets :func:`optimize_training_steps` choose between floor and cap.
        steps_floor, steps_cap: bounds of that choice.
        learning_rate: of AdamW at its highest, in a cosine schedule.
        betas, weight_decay: of AdamW.
        loss: ``all_answers`` (every answer after the first, one causal pass), ``last_answer`` (leave-one-out) or
            ``direct`` (each pair without the others).
        orderings: shuffled orders that steps take turns with, where lower layers are read once for each; a model that
            is adapted in all its layers gets a new order at every step.
        orderings_per_step: orders side by side in one step.
        share_adapted: share of the layers, from the last, that get low-rank weights.
        gradient_clip_norm: None for no clipping.
        early_stop_loss: training ends below this loss, in nats per answer token.
        max_seconds, max_bytes: limits of one adaptation; None for none.
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
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    loss: Loss = "all_answers"
    orderings: int = 2
    orderings_per_step: int = 1
    share_adapted: float = 0.25
    gradient_clip_norm: float | None = 1.0
    early_stop_loss: float = 0.01
    max_seconds: float | None = 5.0
    max_bytes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("rank", 1), ("steps", 1), ("steps_floor", 1), ("orderings", 1), ("orderings_per_step", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be at least {low}, got {value}")
        if self.steps_cap < self.steps_floor:
            raise ConfigError(f"steps_cap ({self.steps_cap}) must not be below steps_floor ({self.steps_floor})")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 < self.share_adapted <= 1:
            raise ConfigError(f"share_adapted must be above 0 and at most 1, got {self.share_adapted}")
        if self.loss not in LOSSES:
            raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")

    @property
    def rank_or_default(self) -> int:
        """The rank, or that of simple patterns."""
        return RANK_RECOMMENDATIONS["simple_patterns"] if self.rank is None else self.rank


RECIPES: Final[Mapping[str, Recipe]] = {
    "spark": Recipe(rank=8, steps_floor=16, steps_cap=16, learning_rate=5e-3, share_adapted=1.0),
    "smollm2": Recipe(),
}


def recipe_for(name: str | None) -> Recipe:
    """Return the recipe that was tuned for the model called ``name``, or the general one."""
    return RECIPES.get(name or "", Recipe())

"""Rank and steps chosen from examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.errors import ConfigError
from acclimate.language import RANK_RECOMMENDATIONS, Recipe, as_examples, optimize_training_steps
from acclimate.language.training.recipes import (
    decided,
    example_quality,
    pattern_complexity,
    recipe_for,
    recommended_rank,
)

UNIT = st.floats(0, 1)


@given(UNIT, UNIT)
def test_steps_follow_the_formula_between_floor_and_cap(complexity: float, quality: float) -> None:
    steps = optimize_training_steps(complexity, quality)
    assert 2 <= steps <= 8
    assert steps == min(8, max(2, round(4 + 4 * complexity - 2 * quality)))
    assert optimize_training_steps(complexity, min(1.0, quality + 0.3)) <= steps
    assert optimize_training_steps(complexity, quality, cap=16) <= 16


def test_floor_and_cap_apply() -> None:
    assert optimize_training_steps(0.0, 1.0) == 2
    assert optimize_training_steps(1.0, 0.0) == 8
    assert optimize_training_steps(0.0, 1.0, floor=5) == 5
    assert optimize_training_steps(1.0, 0.0, cap=16) == 16


def test_values_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ConfigError, match="pattern_complexity must be between 0 and 1"):
        optimize_training_steps(1.5, 0.5)


def test_ranks_grow_with_complexity() -> None:
    assert [recommended_rank(c) for c in (0.0, 0.3, 0.6, 1.0)] == list(RANK_RECOMMENDATIONS.values())


def test_copying_is_simpler_than_writing_anew() -> None:
    copy = as_examples([("aa", "a"), ("bb", "b"), ("cc", "c")])
    anew = as_examples([("aa", "quite another thing"), ("bb", "xyz and so on and on"), ("cc", "pq pq pq pq pq")])
    assert pattern_complexity(copy) < pattern_complexity(anew) <= 1
    assert example_quality(copy[:2]) < example_quality(copy)
    assert pattern_complexity([]) == example_quality([]) == 0


def test_what_the_user_decided_stays() -> None:
    chosen = decided(Recipe(steps=3, rank=5), as_examples([("a", "b"), ("c", "d")]))
    assert (chosen.steps, chosen.rank) == (3, 5)
    assert decided(recipe_for("spark"), as_examples([("a", "b"), ("c", "d")])).steps == 5


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"steps_cap": 1}, "steps_cap"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"share_adapted": 0.0}, "share_adapted"),
        ({"context_share": 1.0}, "context_share must be at least 0 and below 1, got 1.0"),
        ({"context_share": -0.1}, "context_share"),
        ({"loss": "all"}, "loss must be one of"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Recipe(**setting)  # type: ignore[arg-type]

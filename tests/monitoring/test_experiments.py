"""Experiments: stable assignment, results valid at every look, effects that are found, and no false ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.errors import ConfigError, StoreError
from acclimate.monitoring import Arm, Experiment, Outcome, Store
from acclimate.monitoring.experiments import create, get, list_experiments, report, stop
from acclimate.monitoring.reports import experiment_lines
from acclimate.monitoring.sequential import (
    assignment_mismatch,
    confidence_sequence,
    fixed_horizon,
    sequential_p_value,
    weighted_differences,
)

ALPHA = 0.05


def false_positives(draw: Any, share: float, *, runs: int, requests: int) -> float:
    """The share of A/A experiments in which the test finds a difference at any look."""
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(runs):
        treated = rng.random(requests) < share
        differences = weighted_differences(draw(rng, requests), treated, share)  # type: ignore[arg-type]
        found += sequential_p_value(differences, bound=1 / min(share, 1 - share)) <= ALPHA
    return found / runs


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("rate", [0.5, 0.05, 0.95])
def test_aa_experiments_looked_at_after_every_request_are_wrong_in_at_most_one_of_twenty(
    rate: float, share: float
) -> None:
    def draw(rng: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
        return (rng.random(count) < rate).astype(float)

    assert false_positives(draw, share, runs=1000, requests=1500) <= ALPHA


@pytest.mark.slow
def test_a_t_test_looked_at_as_often_would_not_hold() -> None:
    """Why a sequential test is needed: a t test looked at every ten requests finds differences that are not there."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(100):
        values = rng.random((600, 2)) < 0.5
        wrong += any(
            fixed_horizon(values[:n, 0].astype(float), values[:n, 1].astype(float), paired=True).significant  # type: ignore[arg-type]
            for n in range(20, 600, 10)
        )
    assert wrong / 100 > 3 * ALPHA


def test_paired_aa_experiments_hold_too() -> None:
    rng = np.random.default_rng(5)
    wrong = [
        sequential_p_value((rng.random(800) < 0.6).astype(float) - (rng.random(800) < 0.6), bound=1) <= ALPHA
        for _ in range(1000)
    ]
    assert np.mean(wrong) <= ALPHA


def test_an_effect_is_found_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(2)
    found, covered = 0, 0
    for _ in range(100):
        treated = rng.random(1500) < 0.5
        values = (rng.random(1500) < 0.5 + 0.15 * treated).astype(float)
        result = confidence_sequence(weighted_differences(values, treated, 0.5), bound=2)  # type: ignore[arg-type]
        found += result.significant
        assert result.low is not None
        assert result.high is not None
        covered += result.low <= 0.15 <= result.high
        assert result.significant == (result.low > 0)
    assert found >= 95
    assert covered >= 95


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_the_interval_holds_the_mean_and_agrees_with_the_p_value(values: list[float]) -> None:
    found = confidence_sequence(values, bound=1)
    assert found.low is not None
    assert found.high is not None
    assert found.p_value is not None
    assert found.low <= found.effect <= found.high
    assert 0 < found.p_value <= 1


@given(st.text(min_size=1), st.floats(0.05, 0.95))
def test_assignment_is_stable(unit: str, share: float) -> None:
    experiment = Experiment(name="e", arms=(Arm("ICL", 1 - share), Arm("TTT", share)), created_at="2026")
    assert experiment.arm_for(unit) == experiment.arm_for(unit)


def test_assignment_follows_the_shares_and_differs_between_experiments() -> None:
    arms = (Arm("ICL", 0.7), Arm("TTT", 0.3))
    one, other = (Experiment(name=name, arms=arms, created_at="2026") for name in ("one", "other"))
    first = [one.arm_for(f"user {n}").name for n in range(4000)]
    second = [other.arm_for(f"user {n}").name for n in range(4000)]
    assert assignment_mismatch([first.count("ICL"), first.count("TTT")], [0.7, 0.3]) > 0.01
    both = np.mean([a == b == "TTT" for a, b in zip(first, second, strict=True)])
    assert both == pytest.approx(0.09, abs=0.02)


def record(store: Store, name: str, method: str, quality: float | None, **values: Any) -> None:
    store.put(Outcome(test_id=name, session_id="s", method=method, response_quality=quality, **values))


def test_an_experiment_from_beginning_to_end(store: Store) -> None:
    # The time of creation is part of the assignment: with the present time, one run in a thousand is uneven by chance.
    experiment = Experiment(name="e", created_at="2026-01-01T00:00:00+00:00")
    create(store, experiment)
    rng = np.random.default_rng(0)
    for number in range(900):
        arm = get(store, "e").arm_for(f"r{number}") if number < 3 else experiment.arm_for(f"r{number}")
        better = arm.name == "TTT"
        quality = float(rng.random() < (0.85 if better else 0.5))
        record(store, "e", arm.name, quality, request_id=f"r{number}", response_time=2.0 if better else 0.5)
    found = report(store, "e")
    assert (found.conclusion, found.verdict) == ("better", "TTT is better than ICL")
    assert found.effect.low is not None
    assert 0 < found.effect.low < 0.35 < (found.effect.high or 0)
    assert found.seconds.effect == pytest.approx(1.5)
    assert not found.paired
    assert [arm.judged for arm in found.arms] == [arm.outcomes for arm in found.arms]
    stop(store, "e")
    assert get(store, "e").stopped_at is not None
    with pytest.raises(ConfigError, match="was stopped at"):
        stop(store, "e")
    with pytest.raises(ConfigError, match="there is an experiment 'e' already"):
        create(store, Experiment(name="e"))
    with pytest.raises(StoreError, match="there is no experiment 'f'; there are: e"):
        get(store, "f")
    assert [e.name for e in list_experiments(store)] == ["e"]


def test_requests_answered_both_ways_are_compared_as_pairs(sqlite_store: Store) -> None:
    create(sqlite_store, Experiment(name="p"))
    for number in range(60):
        hard = number % 2
        for method in ("ICL", "TTT"):
            quality = 0.2 + 0.6 * (not hard) + (0.2 if method == "TTT" else 0)
            record(sqlite_store, "p", method, quality, request_id=f"r{number}")
    found = report(sqlite_store, "p")
    assert found.paired
    assert found.effect.count == 60
    assert found.effect.effect == pytest.approx(0.2)
    assert found.verdict == "TTT is better than ICL"


def test_a_fixed_design_has_no_result_before_its_horizon_and_then_uses_only_that(sqlite_store: Store) -> None:
    create(sqlite_store, Experiment(name="f", design="fixed", horizon=40))
    for number in range(39):
        record(sqlite_store, "f", ("ICL", "TTT")[number % 2], 0.4 + 0.1 * (number % 2) + 0.01 * (number % 5))
    early = report(sqlite_store, "f")
    assert early.effect.p_value is None
    assert early.effect.low is None
    assert (early.conclusion, early.verdict) == ("too_early", "too early: 39 of 40 judged requests")
    record(sqlite_store, "f", "TTT", 0.5)
    at = report(sqlite_store, "f")
    assert at.effect.significant
    for _ in range(30):
        record(sqlite_store, "f", "TTT", 0.0)
    assert report(sqlite_store, "f").effect == at.effect, "later requests are not looked at"


def test_users_count_once(sqlite_store: Store) -> None:
    create(sqlite_store, Experiment(name="u", assigned_by="user", design="fixed", horizon=8))
    for user in range(8):
        for _ in range(10 if user == 0 else 1):
            record(sqlite_store, "u", ("ICL", "TTT")[user % 2], 0.5 + 0.01 * user, unit=f"user {user}")
    found = report(sqlite_store, "u")
    assert found.effect.count == 8
    assert found.effect.effect == pytest.approx(0.01)
    assert found.arms[0].outcomes == 13


def test_ratings_stand_for_quality_where_none_was_recorded(sqlite_store: Store) -> None:
    create(sqlite_store, Experiment(name="r"))
    record(sqlite_store, "r", "TTT", None, request_id="a")
    record(sqlite_store, "r", "ICL", None, request_id="b")
    sqlite_store.add_feedback("a", 5)
    sqlite_store.add_feedback("b", 2)
    qualities = [arm.quality.value for arm in report(sqlite_store, "r").arms if arm.quality]
    assert qualities == [0.25, 1.0]


def test_arms_whose_sizes_cannot_be_chance_are_told_before_anything_else(sqlite_store: Store) -> None:
    create(sqlite_store, Experiment(name="m"))
    for number in range(200):
        record(sqlite_store, "m", "ICL" if number < 150 else "TTT", 0.5)
    found = report(sqlite_store, "m")
    assert found.conclusion == "mismatch"
    assert found.verdict.startswith("the arms' sizes cannot be chance")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a b"}, "letters, digits"),
        ({"name": "e", "arms": (Arm("A"), Arm("A"))}, "two arms of different names"),
        ({"name": "e", "arms": (Arm("A", 0.5), Arm("B", 0.6))}, "sum to 1"),
        ({"name": "e", "design": "fixed"}, "needs a horizon of at least 4, got None"),
        ({"name": "e", "horizon": 10}, "a sequential design has no horizon"),
        ({"name": "e", "assigned_by": "user"}, "give users a fixed design"),
    ],
)
def test_designs_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment(**values)


def test_arms_of_one_outcome_each_are_compared_without_an_interval() -> None:
    assert fixed_horizon([0.5], [0.7], paired=False).p_value is None
    assert np.isnan(fixed_horizon([], [], paired=False).effect)
    assert fixed_horizon([0.5, 0.5], [0.5, 0.5], paired=True).p_value == 1.0
    assert assignment_mismatch([0, 0], [0.5, 0.5]) == 1.0


def test_effects_and_intervals_of_few_requests_stay_where_qualities_can_lie(sqlite_store: Store) -> None:
    """Qualities lie between 0 and 1, so that no effect lies beyond 1, however outcomes are weighted."""
    create(sqlite_store, Experiment(name="few"))
    for number, (method, quality) in enumerate(
        [("TTT", 1.0), ("ICL", 0.0), ("ICL", 1.0), ("TTT", 0.0), ("TTT", 0.8), ("ICL", 1.0)]
    ):
        record(sqlite_store, "few", method, quality, request_id=f"r{number}", response_time=0.1 * number)
        found = report(sqlite_store, "few")
        if found.effect.low is not None:
            assert found.effect.high is not None
            assert -1 <= found.effect.low <= found.effect.effect <= found.effect.high <= 1
        for arm in found.arms:
            if arm.quality is not None:
                assert 0 <= arm.quality.low <= arm.quality.value <= arm.quality.high <= 1
            if arm.seconds is not None:
                assert arm.seconds.low >= 0
    assert found.difference == pytest.approx(1.8 / 3 - 2 / 3)
    text = "\n".join(experiment_lines(found))
    assert "the mean qualities differ by -0.067; the effect weights every outcome by the chance of its arm" in text


def test_a_fixed_design_stays_in_range_too(sqlite_store: Store) -> None:
    create(sqlite_store, Experiment(name="f", design="fixed", horizon=4))
    for method, quality in (("ICL", 0.0), ("TTT", 1.0), ("ICL", 0.4), ("TTT", 0.5)):
        record(sqlite_store, "f", method, quality)
    found = report(sqlite_store, "f")
    assert (found.effect.low, found.effect.high) == (pytest.approx(-0.9, abs=0.11), 1.0)
    assert found.effect.effect == pytest.approx(found.difference)
    assert "differ by" not in "\n".join(experiment_lines(found)), "the effect is the difference of the means"

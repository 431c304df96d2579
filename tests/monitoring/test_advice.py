"""Each symptom of the troubleshooting section is found in data that has it, with correct numbers, and not elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.monitoring import Outcome, Store, Window, suggest
from acclimate.monitoring.advice_rules import fallback_threshold
from acclimate.monitoring.attempts import Attempt
from tests.monitoring.databases import fill, request

WEEK = Window.last(days=7)


def changes(store: Store) -> list[str]:
    return [suggestion.change for suggestion in suggest(store, WEEK)]


def test_nothing_is_suggested_where_nothing_is_wrong_or_known(sqlite_store: Store) -> None:
    assert suggest(sqlite_store, WEEK) == []
    fill(sqlite_store, 80, "plain")
    fill(sqlite_store, 19)
    fill(sqlite_store, 1, "fallback")
    assert suggest(sqlite_store, WEEK) == []


def test_low_activation_names_what_was_seen_and_missed(sqlite_store: Store) -> None:
    fill(sqlite_store, 190, "plain")
    fill(sqlite_store, 3, "fallback", reason="detection_failed")
    fill(sqlite_store, 2, "declined", reason="insufficient_examples")
    (found,) = suggest(sqlite_store, WEEK)
    assert "2.6%" in found.symptom
    assert "--domain" in found.change
    assert (
        "of 195 requests 190 showed no pattern; in 3 a pattern was seen and could not be read, and 2" in found.evidence
    )


def test_the_threshold_that_brings_fallback_to_15_percent_is_computed_from_the_recorded_confidences(
    sqlite_store: Store,
) -> None:
    # 100 attempts: 40 declined below 0.75, at 0.35 to 0.74; 5 failures. 15 may fall back, so 10 of the 40.
    for number in range(40):
        sqlite_store.record(request("declined", reason="low_confidence", confidence=0.35 + number / 100))
    fill(sqlite_store, 55, confidence=0.9)
    fill(sqlite_store, 5, "fallback", reason="non_finite")
    found = next(s for s in suggest(sqlite_store, WEEK) if "threshold" in s.change)
    assert found.change == "lower the confidence threshold to 0.450"
    assert "fallback comes to 15.0%" in found.expected
    assert "30 of them had at least 0.450" in found.evidence
    # And it is true: with it, just these would fall back.
    assert any("learning rate" in change for change in changes(sqlite_store))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 10), st.floats(0.05, 0.5))
def test_with_the_threshold_at_most_the_wanted_share_falls_back(
    confidences: list[float], failures: int, wanted: float
) -> None:
    def attempt(status: str, confidence: float | None) -> Attempt:
        return Attempt(
            status=status, reason=None, confidence=confidence, rank=None, memory_bytes=None, seconds=None, steps=None,
            convergence=None,
        )  # fmt: skip

    attempts = [attempt("adapted", c) for c in confidences] + [attempt("fallback", None)] * failures
    threshold = fallback_threshold(attempts, wanted)
    # Confidences are floating-point numbers; one that is the threshold but for rounding is not below it.
    below = failures + sum(c < (threshold or 0) - 1e-8 for c in confidences)
    if threshold is None:
        assert failures > wanted * len(attempts) - 1e-6
    else:
        assert below <= wanted * len(attempts) + 1e-6


@pytest.mark.parametrize(
    ("reason", "words"),
    [("timeout", "time limit"), ("memory", "memory limit"), ("detection_failed", "pass examples directly")],
)
def test_failures_are_told_apart(sqlite_store: Store, reason: str, words: str) -> None:
    fill(sqlite_store, 30, "fallback", reason=reason)
    fill(sqlite_store, 30)
    found = next(s for s in suggest(sqlite_store, WEEK) if words in s.change)
    assert f"30 of 60 attempts failed for {reason}" in found.evidence
    assert "fallback would be 0.0%" in found.expected


def test_poor_convergence_asks_for_more_steps(sqlite_store: Store) -> None:
    same = {"reason": "low_confidence", "confidence": 0.2, "convergence_score": 0.2, "training_steps": 8}
    fill(sqlite_store, 40, "declined", **same)
    assert any("--steps 16" in change for change in changes(sqlite_store))


def test_slow_adaptation_names_the_lower_rank_with_what_it_was_measured_to_take(sqlite_store: Store) -> None:
    fill(sqlite_store, 60, adaptation_time=5.0, rank=32, training_steps=8)
    fill(sqlite_store, 10, adaptation_time=2.0, rank=16, training_steps=8)
    found = {s.change: s for s in suggest(sqlite_store, WEEK)}
    rank = found["lower the rank from 32 to 16 (--rank 16)"]
    assert rank.expected == "2.00 s instead of 5.00, as measured at both ranks"
    assert any("make at most 3 steps" in change for change in found)


def test_heavy_requests_name_the_lower_rank(sqlite_store: Store) -> None:
    fill(sqlite_store, 40, memory_bytes=200 * 2**20, rank=64)
    (found,) = suggest(sqlite_store, WEEK)
    assert found.change == "lower the rank from 64 to 32 (--rank 32)"
    assert "nothing was recorded at rank 32" in found.expected


def test_low_confidence_names_the_threshold_that_lifts_it(sqlite_store: Store) -> None:
    fill(sqlite_store, 40, confidence=0.4)
    fill(sqlite_store, 40, confidence=0.9)
    found = next(s for s in suggest(sqlite_store, WEEK) if "raise" in s.change)
    assert "raise the confidence threshold to 0.400" in found.change
    assert "mean confidence of 0.80" in found.expected


def test_no_gain_points_to_calibration(sqlite_store: Store) -> None:
    for number in range(40):
        for method in ("TTT", "ICL"):
            quality = 0.5 + 0.01 * (number % 3)
            sqlite_store.put(
                Outcome(test_id="t", session_id="s", method=method, response_quality=quality, request_id=f"r{number}")
            )
    assert any("acclimate calibrate" in change for change in changes(sqlite_store))

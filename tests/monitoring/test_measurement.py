"""Every standard indicator from rows whose value is known; its bounds, its sampling error, and its interval."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from acclimate import monitoring
from acclimate.errors import ConfigError
from acclimate.monitoring import (
    KPIS,
    Outcome,
    RequestRecord,
    Store,
    VisionRun,
    Window,
    measure,
    measure_vision,
)
from acclimate.monitoring.intervals import mean, proportion, relative_gain
from tests.monitoring.databases import fill, request

WEEK = 7


def test_the_words_of_every_kpi_are_its_numbers() -> None:
    assert len(KPIS) == len({kpi.name for kpi in KPIS}) == 8
    for kpi in KPIS:
        words = re.findall(r"([<>])\+?([\d.]+)", kpi.alert_threshold)
        scale = 100 if "%" in kpi.alert_threshold else 1
        found = {sign: float(number) / scale for sign, number in words}
        assert found == {s: v for s, v in (("<", kpi.alert_below), (">", kpi.alert_above)) if v is not None}
        targets = [float(number) / scale for number in re.findall(r"[\d.]+", kpi.target)]
        assert targets == [bound for bound in (kpi.target_low, kpi.target_high) if bound is not None]


def test_each_indicator_is_what_its_words_say(store: Store) -> None:
    fill(store, 60, "plain")
    fill(store, 10, confidence=0.9, adaptation_time=1.0)
    fill(store, 10, confidence=0.7, adaptation_time=2.0)
    fill(store, 15, "declined", confidence=0.3, adaptation_time=0.5)
    fill(store, 5, "fallback")
    for number in range(20):
        same = {"test_id": "t", "session_id": "s", "request_id": f"r{number}"}
        store.put(Outcome(method="ICL", response_quality=0.5, **same))  # type: ignore[arg-type]
        store.put(Outcome(method="TTT", response_quality=0.6 + 0.01 * (number % 2), **same))  # type: ignore[arg-type]
    names = fill(store, 20, "plain", pattern=None, days_ago=0.1)
    for name in names[:15]:
        store.label_pattern(name, None)
    for name in names[15:]:
        store.label_pattern(name, "io_pairs")
    found = measure(store, Window.last(days=WEEK))
    values = {name: m.estimate.value for name, m in found.items() if m.estimate}
    assert values == pytest.approx(
        {
            "ttt_activation_rate": 40 / 120,
            "adaptation_success_rate": 20 / 25,
            "mean_confidence_score": 0.8,
            "response_quality_improvement": 0.605 / 0.5 - 1,
            "mean_adaptation_time": (10 * 1.0 + 10 * 2.0 + 15 * 0.5) / 35,
            "fallback_rate": 5 / 40,
            "memory_utilization": 20.0,
            "pattern_detection_accuracy": 15 / 20,
        }
    )
    assert found["mean_adaptation_time"].extra["p95"] == pytest.approx(2.0)
    assert found["fallback_rate"].extra["declined_rate"] == pytest.approx(15 / 40)
    assert found["response_quality_improvement"].extra["points"] == pytest.approx(10.5)


def test_only_the_window_counts(sqlite_store: Store) -> None:
    fill(sqlite_store, 30, days_ago=2)
    fill(sqlite_store, 25, "plain")
    assert measure(sqlite_store, Window.last(days=1))["ttt_activation_rate"].estimate.value == 0  # type: ignore[union-attr]
    earlier = Window(since=datetime.now(UTC) - timedelta(days=3), until=datetime.now(UTC) - timedelta(days=1))
    assert measure(sqlite_store, earlier)["ttt_activation_rate"].estimate.value == 1  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"must be longer than 0 .* got 0 days"):
        Window.last(days=0)


def test_a_window_is_divided_at_midnight() -> None:
    window = Window(since=datetime(2026, 11, 1, 18, tzinfo=UTC), until=datetime(2026, 11, 3, 6, tzinfo=UTC))
    days = dict(window.by_day())
    assert list(days) == ["2026-11-01", "2026-11-02", "2026-11-03"]
    assert days["2026-11-01"].since == window.since
    assert days["2026-11-03"].until == window.until
    parts = list(days.values())
    assert [part.until for part in parts[:-1]] == [part.since for part in parts[1:]]
    assert parts[1].since == datetime(2026, 11, 2, tzinfo=UTC)
    assert list(Window.last(hours=1).by_day())[-1][1].until is None


def test_too_few_observations_say_so_and_do_not_alert(sqlite_store: Store) -> None:
    fill(sqlite_store, 19, "fallback")
    found = measure(sqlite_store, Window.last(days=1))
    assert {m.state for m in found.values()} == {"not enough data"}
    assert found["fallback_rate"].line == "fallback_rate: not enough data (19 of 20 observations)"
    fill(sqlite_store, 1, "fallback")
    assert measure(sqlite_store, Window.last(days=1))["fallback_rate"].state == "alert"


def test_thresholds_account_for_sampling_error() -> None:
    kpi = next(kpi for kpi in KPIS if kpi.name == "fallback_rate")
    # The rate is beyond the threshold both times; only the second time can it not be chance.
    assert kpi.judge(proportion(8, 30)) == "off target"
    assert kpi.judge(proportion(770, 3000)) == "off target"
    assert kpi.judge(proportion(850, 3000)) == "alert"
    # At the threshold itself chance crosses it for at most 2.5 in a hundred.
    rng = np.random.default_rng(0)
    alerts = [kpi.judge(proportion(int(rng.binomial(60, 0.25)), 60)) == "alert" for _ in range(2000)]
    assert np.mean(alerts) <= 0.035


def test_gain_counts_only_pairs(sqlite_store: Store) -> None:
    for number in range(30):
        sqlite_store.put(
            Outcome(test_id="t", session_id="s", method="TTT", response_quality=1.0, request_id=f"r{number}")
        )
    assert measure(sqlite_store, Window.last(days=1))["response_quality_improvement"].estimate is None
    sqlite_store.put(Outcome(test_id="t", session_id="s", method="icl", response_quality=0.5, request_id="r3"))
    found = measure(sqlite_store, Window.last(days=1))["response_quality_improvement"].estimate
    assert found is not None
    assert (found.value, found.count) == (1.0, 1)


def test_vision_has_its_own_indicators(store: Store) -> None:
    for gain, cost in ((0.2, 2.0), (0.1, 3.0), (None, None)):
        run = VisionRun(
            images=100, steps=10, kept=6, skipped=3, guard_rejections=1, resets=1, cost_ratio=cost, gain=gain
        )
        store.record(RequestRecord(pipeline="vision", status="adapted", session_id="v", vision=run))
    found = measure_vision(store, Window.last(days=1))
    assert (found.runs, found.images, found.kept, found.skipped, found.guard_rejections) == (3, 300, 18, 9, 3)
    assert found.gain is not None
    assert found.cost_ratio is not None
    assert (found.gain.value, found.cost_ratio.value) == pytest.approx((0.15, 2.5))
    # They do not count in the rates of the language pipeline.
    assert measure(store, Window.last(days=1))["ttt_activation_rate"].estimate is None


def test_intervals_cover() -> None:
    rng = np.random.default_rng(1)
    shares, means, gains = [], [], []
    for _ in range(400):
        hit = int(rng.binomial(40, 0.9))
        shares.append(proportion(hit, 40).low <= 0.9 <= proportion(hit, 40).high)
        found = mean(rng.normal(1.0, 2.0, 30))  # type: ignore[arg-type]
        means.append(found.low <= 1.0 <= found.high)
        before = rng.uniform(0.2, 0.8, 60)
        gain = relative_gain(before * 1.2 + rng.normal(0, 0.1, 60), before)  # type: ignore[arg-type]
        assert gain is not None
        gains.append(gain.low <= 0.2 <= gain.high)
    for covered in (shares, means, gains):
        assert 0.92 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 40), (40, 40), (1, 3), (770, 3000), (3, 10**6)])
def test_shares_have_the_wilson_interval_of_scipy(successes: int, count: int) -> None:
    from scipy import stats

    found, expected = proportion(successes, count), stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_means_have_the_interval_of_scipys_t_distribution() -> None:
    from scipy import stats

    values = [0.2, 0.9, 0.4, 0.5]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean(values).low, mean(values).high) == pytest.approx((low, high))


def test_intervals_end_where_values_end(sqlite_store: Store) -> None:
    fill(sqlite_store, 1, confidence=0.9, adaptation_time=1.0)
    fill(sqlite_store, 1, confidence=1.0, adaptation_time=9.0, memory_bytes=90 * 2**20)
    found = measure(sqlite_store, Window.last(days=1))
    for name, (low, high) in {
        "mean_confidence_score": (None, 1.0),
        "mean_adaptation_time": (0.0, None),
        "memory_utilization": (0.0, None),
        "adaptation_success_rate": (None, 1.0),
    }.items():
        estimate = found[name].estimate
        assert estimate is not None
        assert estimate.low <= estimate.value <= estimate.high
        assert low is None or estimate.low == low
        assert high is None or estimate.high == high
    fill(sqlite_store, 1, "plain")
    for _ in range(3):
        sqlite_store.label_pattern(fill(sqlite_store, 1, "plain")[0], None)
    for measured in measure(sqlite_store, Window.last(days=1)).values():
        if measured.estimate is not None:
            assert measured.kpi.unit.least <= measured.estimate.low <= measured.estimate.high
            assert measured.estimate.high <= measured.kpi.unit.most


def test_every_number_of_a_report_stays_in_its_range(sqlite_store: Store) -> None:
    """Two observations have a wide t interval; it ends where values can end, also in pairs and vision runs."""
    for number, (icl, ttt) in enumerate([(0.1, 0.9), (0.9, 0.95)]):
        same = {"test_id": "t", "session_id": "s", "request_id": f"r{number}"}
        sqlite_store.put(Outcome(method="ICL", response_quality=icl, **same))  # type: ignore[arg-type]
        sqlite_store.put(Outcome(method="TTT", response_quality=ttt, **same))  # type: ignore[arg-type]
    for gain, cost in ((0.9, 1.0), (-0.9, 9.0)):
        run = VisionRun(images=1, steps=1, kept=1, skipped=0, guard_rejections=0, resets=0, cost_ratio=cost, gain=gain)
        sqlite_store.record(RequestRecord(pipeline="vision", status="adapted", session_id="v", vision=run))
    extra = measure(sqlite_store, Window.last(days=1))["response_quality_improvement"].extra
    assert (extra["points_low"], extra["points_high"]) == (-100, 100)
    vision = measure_vision(sqlite_store, Window.last(days=1))
    assert vision.gain is not None
    assert vision.cost_ratio is not None
    assert (vision.gain.low, vision.gain.high, vision.cost_ratio.low) == (-1, 1, 0)


def test_the_public_names_are_there() -> None:
    assert all(getattr(monitoring, name) is not None for name in monitoring.__all__)


def test_a_request_refuses_a_status_that_is_none() -> None:
    from acclimate.errors import DataError

    with pytest.raises(DataError, match="status must be one of adapted, declined, fallback, plain, got 'done'"):
        request("done")

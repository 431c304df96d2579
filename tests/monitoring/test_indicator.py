"""An indicator is one value: made here, it appears in health, alerts, reports, trends, suggestions and tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.errors import ConfigError
from acclimate.monitoring import (
    KPIS,
    RELATIVE_GAIN,
    SCORE,
    SECONDS,
    SHARE,
    Estimate,
    Kpi,
    Measurement,
    Observed,
    Store,
    Suggestion,
    Unit,
    Window,
    as_html,
    as_text,
    check,
    kpis_table,
    make_report,
    mean,
    measure,
    suggest,
)
from acclimate.monitoring.attempts import Recorded
from acclimate.monitoring.schema import requests
from acclimate.monitoring.trends import indicators_by_day
from tests.monitoring.databases import fill

DAY = Window.last(days=1)
TENTHS = Unit(name="tenths", scale=10, suffix=" tenths", digits=1, least=0, most=2)


def seconds_of_requests(connection: Connection, window: Window) -> Observed:
    query = sa.select(requests.c.seconds).where(window.of(requests.c.timestamp), requests.c.seconds.is_not(None))
    values = connection.execute(query).scalars().all()
    return Observed(
        estimate=mean(values) if values else None, values=values, extra={"longest": max(values, default=None)}
    )


def fewer_examples(measured: Measurement, recorded: Recorded) -> Iterator[Suggestion]:
    if measured.state == "alert":
        yield Suggestion(
            code="fewer_examples", symptom="slow", change="show fewer examples", expected="less time",
            evidence=f"{recorded.counts.total} requests",
        )  # fmt: skip


MINE = Kpi(
    name="request_tenths",
    title="Mean request time",
    unit=TENTHS,
    direction="lower",
    measures="mean tenths of a second of a request, over requests with a time",
    query=seconds_of_requests,
    target_high=0.5,
    alert_above=1.25,
    advise=fewer_examples,
    histogram="Tenths of a second of a request",
)


def test_a_new_indicator_is_in_health_alerts_reports_trends_suggestions_and_the_table(store: Store) -> None:
    kpis = (*KPIS, MINE)
    fill(store, 30, seconds=1.9)
    fill(store, 2, seconds=1.8, days_ago=2)
    fill(store, 150, "plain")
    health = check(store, DAY, kpis=kpis)
    assert health.verdict == "alerts"
    assert health.alerting == ["request_tenths"]
    assert health.alerts == [
        "request_tenths: 19.0 tenths [19.0 tenths, 19.0 tenths] from 30 (target <5 tenths, alert >12.5 tenths)"
    ]
    found = health.to_dict()["kpis"]["request_tenths"]
    assert found["value"] == pytest.approx(1.9)
    assert (found["state"], found["unit"], found["longest"], found["observations"]) == ("alert", "tenths", 1.9, 30)
    assert list(health.to_dict()["kpis"]) == [kpi.name for kpi in kpis]
    assert check(store, DAY).verdict == "healthy", "what is not passed in is not checked"

    made = make_report(store, "weekly", kpis=kpis)
    text, page = as_text(made), as_html(made)
    assert "alert: request_tenths: 18.9 tenths" in text
    assert "show fewer examples" in text
    assert "evidence: 182 requests" in text
    for shown in ("Mean request time", "request_tenths", "&lt;5 tenths", "&gt;12.5 tenths", "show fewer examples"):
        assert shown in page
    assert page.count("<svg") == 1 + sum(kpi.histogram is not None for kpi in kpis) == 4
    # The limits in its chart are its bounds.
    for mark in ("Tenths of a second of a request", "target at most", "alert above"):
        assert mark in page

    assert [s.code for s in suggest(store, DAY, kpis=kpis)] == ["fewer_examples"]
    assert suggest(store, DAY) == []

    days = indicators_by_day(store, Window.last(days=7), kpis=kpis)["request_tenths"]
    assert [m.estimate and (round(m.estimate.value, 6), m.estimate.count) for m in days.values()] == [
        (1.8, 2),
        (1.9, 30),
    ]
    assert list(days) == sorted(days)

    row = "| Mean request time | `request_tenths` | <5 tenths | >12.5 tenths | mean tenths of a second of a request, "
    assert row in kpis_table(kpis)
    assert row not in kpis_table(KPIS)


def test_intervals_end_at_the_bounds_of_the_unit(sqlite_store: Store) -> None:
    fill(sqlite_store, 1, seconds=0.1)
    fill(sqlite_store, 1, seconds=1.9)
    estimate = measure(sqlite_store, DAY, kpis=[MINE])["request_tenths"].estimate
    assert estimate is not None
    assert (estimate.low, estimate.value, estimate.high) == (0, pytest.approx(1.0), 2)


def test_two_indicators_of_one_name_are_refused(sqlite_store: Store) -> None:
    with pytest.raises(ConfigError, match="several indicators are named request_tenths"):
        measure(sqlite_store, DAY, kpis=[MINE, MINE])


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"alert_above": None}, "has no alert bound"),
        ({"target_high": None}, "has no target"),
        ({"alert_below": 0.1}, "lower values are better, so alert_below must be None, got 0.1"),
        ({"direction": "higher"}, "higher values are better, so alert_above must be None, got 1.25"),
    ],
)
def test_bounds_that_contradict_are_refused(bounds: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(MINE, **bounds)  # type: ignore[arg-type]


def test_directions_say_what_misses_the_target() -> None:
    def states(kpi: Kpi) -> list[str]:
        return [kpi.judge(Estimate(value, value - 0.01, value + 0.01, 100)) for value in (0.05, 0.3, 0.6, 0.95)]

    same = {"name": "k", "title": "K", "unit": SHARE, "measures": "m", "query": seconds_of_requests}
    within = Kpi(direction="within", target_low=0.2, target_high=0.4, alert_below=0.1, alert_above=0.9, **same)  # type: ignore[arg-type]
    assert states(within) == ["alert", "ok", "off target", "alert"]
    higher = Kpi(direction="higher", target_low=0.5, target_high=0.7, alert_below=0.1, **same)  # type: ignore[arg-type]
    assert states(higher) == ["alert", "off target", "ok", "ok"], "better than the target is no miss"
    lower = Kpi(direction="lower", target_high=0.5, alert_above=0.9, **same)  # type: ignore[arg-type]
    assert states(lower) == ["ok", "ok", "off target", "alert"]


def test_bounds_are_written_in_the_unit_with_the_decimals_that_they_have() -> None:
    assert SHARE.bound(0.155) == "15.5%"
    assert (SHARE.bound(0.15), SHARE.shown(0.15)) == ("15%", "15.0%")
    assert (SCORE.bound(0.8), SCORE.bound(0.8125)) == ("0.80", "0.8125")
    assert (SECONDS.bound(2), SECONDS.shown(2)) == ("2.0s", "2.00s")
    assert (RELATIVE_GAIN.bound(0.2), RELATIVE_GAIN.bound(-0.055)) == ("+20%", "-5.5%")

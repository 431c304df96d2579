"""The gate: evidence, calibration, decisions."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.errors import CheckpointError, ConfigError, DataError
from acclimate.language import (
    DECLINED,
    REASONS,
    Calibration,
    Evidence,
    Gate,
    HeldOut,
    as_examples,
    cross_fit,
    held_out,
    shipped,
)
from acclimate.language.decision import calibration as calibration_module
from acclimate.language.decision.calibration import (
    FEATURES,
    area_under_roc,
    expected_calibration_error,
    feature_values,
    fit,
)
from acclimate.language.examples import folds
from acclimate.language.training.recipes import Parts, decided
from tests.language.models import digest, small, spark

REVERSED = as_examples([(w, w[::-1]) for w in ("stone", "lamp", "river", "cabin", "piano", "tiger")])
TAGGED = as_examples([(w, f"<q>{w}</q>") for w in ("stone", "lamp", "river", "cabin", "piano", "tiger")])


def known(**values: Any) -> Evidence:
    base = Evidence(
        count=6,
        before=HeldOut(0.2, -4.0, -9.0),
        after=HeldOut(0.8, -0.5, -2.0),
        fold_loss=0.1,
    )
    return replace(base, **values)


def made_up(count: int, seed: int = 0) -> tuple[list[Evidence], list[bool], list[bool]]:
    """Evidence in which the held-out examples tell the truth, with noise."""
    rng = np.random.default_rng(seed)
    evidence, adapted, icl = [], [], []
    for _ in range(count):
        skill, plain = rng.random(2)
        evidence.append(
            known(
                before=HeldOut(round(plain * 6) / 6, -5 * (1 - plain), -9.0),
                after=HeldOut(round(skill * 6) / 6, -5 * (1 - skill), -9.0),
                answer_log_likelihood=-3 * (1 - skill),
                icl_log_likelihood=-3 * (1 - plain),
                answers_agree=bool(rng.random() < 0.5),
                final_loss=0.1,
            )
        )
        adapted.append(bool(rng.random() < skill))
        icl.append(bool(rng.random() < plain))
    return evidence, adapted, icl


def test_left_out_examples_are_predicted_before_they_are_shown() -> None:
    model = spark()
    found = held_out(model, REVERSED, folds(REVERSED, 2))
    assert len(found.exact_by_example) == 6
    assert found.exact == sum(found.exact_by_example) / 6
    assert found.lowest_log_likelihood <= found.log_likelihood <= 0
    # What stands behind an example cannot change what was predicted for it.
    split = [((0, 1, 2), (3, 4))]
    one = held_out(model, REVERSED[:5], split)
    other = held_out(model, [*REVERSED[:4], replace(REVERSED[4], output="???")], split)
    assert one.exact_by_example[0] == other.exact_by_example[0]
    assert one.log_likelihood != other.log_likelihood


def test_cross_fitting_shows_a_gain_where_there_is_one() -> None:
    model = spark()
    before = digest(model)
    evidence, adapter = cross_fit(model, TAGGED, decided(model.recipe, TAGGED))
    assert (adapter.copies, evidence.asked) == (2, 6), "each half is asked"
    assert evidence.gains
    assert evidence.after.log_likelihood > evidence.before.log_likelihood
    assert digest(model) == before


def test_without_calibration_the_held_out_examples_are_counted() -> None:
    model = spark()
    recipe = decided(model.recipe, TAGGED)
    evidence, _ = cross_fit(model, TAGGED, replace(recipe, parts=Parts(least_asked=3)), even_if_perfect=True)
    assert (evidence.count, evidence.asked) == (6, 3)
    decision = Gate().decide(evidence)
    assert decision.confidence == pytest.approx((3 * evidence.after.exact + 0.5) / 4)
    assert decision.icl_confidence == pytest.approx((3 * evidence.before.exact + 0.5) / 4)


def test_nothing_is_trained_where_nothing_can_be_gained() -> None:
    model = spark()
    upper = as_examples([(w, w.upper()) for w in ("stone", "lamp", "river", "cabin", "piano", "tiger")])
    evidence, adapter = cross_fit(model, upper, decided(model.recipe, upper))
    assert evidence.before.exact == 1
    assert not evidence.tried
    assert not adapter.weights
    decision = Gate().decide(evidence)
    assert (decision.adapt, decision.reason, decision.confidence) == (False, "no_held_out_gain", None)


@pytest.mark.parametrize("count", [2, 3])
def test_few_examples_are_left_out_one_by_one(count: int) -> None:
    model = small()
    evidence, adapter = cross_fit(model, REVERSED[:count], model.recipe)
    assert adapter.copies == count
    assert len(evidence.after.exact_by_example) == count


def test_without_calibration_left_out_examples_decide() -> None:
    gate = Gate()
    assert gate.decide(known()).adapt
    same = known(after=HeldOut(0.2, -5.0, -9.0))
    assert gate.decide(same).reason == "no_held_out_gain"
    assert gate.decide(known(after=HeldOut(0.2, -1.0, -2.0))).adapt
    assert not gate.decide(known()).calibrated


def test_thresholds_by_environment() -> None:
    trained = known(answer_log_likelihood=-0.1, icl_log_likelihood=-1.0, answers_agree=False, final_loss=0.1)
    sure = Gate().decide(trained).confidence
    assert sure is not None
    assert Gate(threshold=sure + 0.01).decide(trained).reason == "low_confidence"
    assert Gate(threshold=sure - 0.01).decide(trained).adapt
    assert [Gate(environment=e).confidence_threshold for e in ("production", "research", "testing", "demo")] == [
        0.75, 0.65, 0.60, 0.70,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="environment must be one of production"):
        Gate(environment="staging")
    with pytest.raises(ConfigError, match="threshold must be between 0 and 1"):
        Gate(threshold=2.0)


def test_every_refusal_has_a_listed_reason() -> None:
    assert set(REASONS) >= DECLINED
    assert len(REASONS) == 9


def test_a_fit_tells_right_from_wrong_on_new_requests(tmp_path: Path) -> None:
    calibration = fit("m", *made_up(400), fitted_on="made up")
    evidence, adapted, icl = made_up(400, seed=1)
    sure = [calibration.probability(e, "adapted") for e in evidence]
    assert area_under_roc(sure, adapted) > 0.75
    assert expected_calibration_error(sure, adapted) < 0.1
    gated = [a if calibration.probability(e, "adapted") > calibration.probability(e, "icl") else i
             for e, a, i in zip(evidence, adapted, icl, strict=True)]  # fmt: skip
    assert np.mean(gated) > max(np.mean(adapted), np.mean(icl)) + 0.05
    path = tmp_path / "c.json"
    calibration.save(path)
    assert Calibration.load(path) == calibration


def test_fitting_needs_requests_of_both_outcomes() -> None:
    evidence, adapted, icl = made_up(30)
    with pytest.raises(DataError, match="too few"):
        fit("m", evidence[:5], adapted[:5], icl[:5], fitted_on="")
    with pytest.raises(DataError, match="one outcome for icl"):
        fit("m", evidence, adapted, [False] * 30, fitted_on="")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"model": "m"}', '{"model":"m","weights":{},"fitted_on":"","requests":1}']
)
def test_files_that_are_no_calibration_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="is not a calibration"):
        Calibration.load(path)


@given(st.floats(-1e6, 0), st.floats(0, 1), st.one_of(st.floats(0, 1e6), st.just(math.nan)))
def test_features_stay_finite(likelihood: float, exact: float, loss: float) -> None:
    evidence = known(after=HeldOut(exact, likelihood, likelihood), fold_loss=loss, answer_log_likelihood=likelihood)
    assert all(math.isfinite(value) for value in feature_values(evidence).values())


def test_calibration_error_and_ranking_by_hand() -> None:
    assert expected_calibration_error([0.05, 0.05, 0.95, 0.95], [False, False, True, True]) == pytest.approx(0.05)
    assert expected_calibration_error([0.95, 0.95], [False, False]) == pytest.approx(0.95)
    assert area_under_roc([0.1, 0.9], [False, True]) == 1
    assert area_under_roc([0.5, 0.5], [False, True]) == 0.5


def test_a_calibration_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration = fit("tests", *made_up(60), fitted_on="made up")
    weights = {stage: {side: dict(row) for side, row in rows.items()} for stage, rows in calibration.weights.items()}
    weights["after_training"]["icl"]["the_weather"] = 0.1
    replace(calibration, weights=weights).save(path)
    with pytest.raises(CheckpointError, match="weighs 'the_weather', which this version does not look at"):
        Calibration.load(path)


def test_the_features_are_those_that_are_named() -> None:
    assert tuple(feature_values(known(answer_log_likelihood=-1.0))) == FEATURES
    assert tuple(feature_values(known())) == FEATURES[:5]


def test_where_both_answers_are_one_left_out_examples_decide() -> None:
    gate = Gate(calibration=shipped("smollm2"))
    gains = known(before=HeldOut(0.2, -4.0, -9.0), after=HeldOut(1.0, -0.05, -0.1), fold_loss=0.01)
    loses = known(before=HeldOut(1.0, -0.05, -0.1), after=HeldOut(0.2, -4.0, -9.0), fold_loss=0.5)
    answered = {"answer_log_likelihood": -0.01, "icl_log_likelihood": -0.3, "answers_agree": True, "agreement": 1.0}
    for evidence, adapt in ((gains, True), (loses, False)):
        decision = gate.decide(replace(evidence, **answered))
        assert decision.adapt is adapt
        assert decision.confidence == decision.icl_confidence


@pytest.mark.parametrize("content", ["NaN", "Infinity", "true", '"1"', "null"])
def test_a_weight_that_is_no_finite_number_is_refused(content: str, tmp_path: Path) -> None:
    shipped_file = Path(calibration_module.__file__).parent / "calibrations" / "spark.json"
    path = tmp_path / "spark.json"
    path.write_text(re.sub(r'("bias": )[-0-9.e]+', rf"\g<1>{content}", shipped_file.read_text(), count=1))
    with pytest.raises(CheckpointError, match=r"'bias' is .*must be a finite number"):
        Calibration.load(path)


@pytest.mark.parametrize("content", ["3", "[" * 100_000, "{}", '{"weights": 3}'])
def test_a_file_that_is_no_calibration_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a calibration"):
        Calibration.load(tmp_path / "c.json")

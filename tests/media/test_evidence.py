"""Held-out predictions, heads, calibration, typicality and the choice: the numbers that an answer rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from acclimate.errors import ConfigError
from acclimate.media.calibration import calibrated, held_out_log_likelihoods, temperature
from acclimate.media.heads.catalogue import HEAD_NAMES, head_named
from acclimate.media.heads.lda import ShrinkageLda, ledoit_wolf
from acclimate.media.heads.logistic import Logistic
from acclimate.media.heads.protocol import Labels, Matrix
from acclimate.media.held_out import HeldOut, held_out, parts_of
from acclimate.media.selection import clearly_best, scores
from acclimate.media.span import Span
from acclimate.media.typicality import FEWEST, Typicality

LABELS = np.repeat(np.arange(4), 6)


def clusters(labels: Labels, size: int = 50, distance: float = 1.0, seed: int = 0) -> Matrix:
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(7).normal(size=(labels.max() + 1, size)) * distance
    return np.asarray(means[labels] + rng.normal(size=(len(labels), size)))


@pytest.mark.parametrize("name", HEAD_NAMES)
@pytest.mark.parametrize("classes", [2, 4])
def test_every_head_separates_clusters(name: str, classes: int) -> None:
    labels = np.repeat(np.arange(classes), 6)
    fitted = head_named(name).fit(clusters(labels), labels, classes)
    found = fitted.log_probabilities(clusters(labels, seed=1))
    np.testing.assert_allclose(np.exp(found).sum(1), 1)
    assert (found.argmax(1) == labels).mean() > 0.9


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of logistic"):
        head_named("svm")


@pytest.mark.parametrize("size", [5, 200])
def test_shrinkage_and_discriminants_are_those_of_scikit_learn(size: int) -> None:
    vectors, queries = clusters(LABELS, size), clusters(LABELS, size, seed=1)
    within = vectors - np.stack([vectors[c == LABELS].mean(0) for c in range(4)])[LABELS]
    shrinkage, spread = ledoit_wolf(within @ within.T / len(within), size)
    assert shrinkage == pytest.approx(ledoit_wolf_shrinkage(within, assume_centered=True))
    assert spread == pytest.approx(np.trace(within.T @ within) / len(within) / size)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[0.25] * 4).fit(vectors, LABELS)
    ours = ShrinkageLda().fit(vectors, LABELS, 4).log_probabilities(queries)
    np.testing.assert_allclose(ours, theirs.predict_log_proba(queries), atol=1e-8)


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_a_head_says_the_same_in_the_span_of_the_examples(name: str) -> None:
    vectors, queries = clusters(LABELS, 300), clusters(LABELS, 300, seed=1)
    vectors, queries = vectors - vectors.mean(0), queries - vectors.mean(0)
    span = Span.of(vectors)
    assert span.axes.shape[0] < len(vectors)
    heads = (Logistic(tolerance=1e-8), Logistic(tolerance=1e-8)) if name == "logistic" else ()
    one, other = heads or (head_named(name), head_named(name, size=300))
    whole = one.fit(vectors, LABELS, 4).log_probabilities(queries)
    rotated = other.fit(span.rotated(vectors), LABELS, 4).log_probabilities(span.rotated(queries))
    # Cosines differ: what lies outside of the span does not count there.
    if name == "class_means":
        assert (whole.argmax(1) == rotated.argmax(1)).mean() > 0.9
    else:
        np.testing.assert_allclose(rotated, whole, atol=1e-4)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5))
def test_parts_hold_out_every_example_and_never_a_whole_class(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = parts_of(labels)
    held = sorted({int(index) for part in parts for index in part})
    assert held == [i for i, label in enumerate(labels) if counts[label] > 1]
    for part in parts:
        assert len(set(part.tolist())) == len(part)
        left = np.bincount(np.delete(labels, part), minlength=len(counts))
        assert (left > 0).all()


@dataclass(frozen=True)
class Remembers:
    """A head that knows the vectors that it has seen, and says class 0 for all others."""

    name = title = "remembers"

    def fit(self, vectors: Matrix, labels: Labels, classes: int, weights: Matrix | None = None) -> Remembered:
        return Remembered(vectors, labels, classes)


@dataclass(frozen=True)
class Remembered:
    vectors: Matrix
    labels: Labels
    classes: int

    def log_probabilities(self, vectors: Matrix) -> Matrix:
        found = np.full((len(vectors), self.classes), -5.0)
        for row, vector in zip(found, vectors, strict=True):
            known = np.flatnonzero((self.vectors == vector).all(1))
            row[self.labels[known[0]] if len(known) else 0] = 0
        return found


def test_all_copies_of_an_example_are_held_out_together() -> None:
    vectors = np.repeat(clusters(LABELS)[:, None], 3, axis=1)  # three equal copies of each
    found = held_out(Remembers(), vectors, LABELS, parts_of(LABELS))
    # A copy that had stayed would be recognised.
    assert (found.log_probabilities.argmax(2) == 0).all()
    assert found.count == len(LABELS)
    assert found.accuracy == 0.25


def made(log_probabilities: np.ndarray, labels: Labels) -> HeldOut:
    return HeldOut(log_probabilities[:, None], labels, np.arange(len(labels)))


def test_the_temperature_makes_probabilities_right() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    scores_ = rng.normal(size=(400, 4))
    scores_[np.arange(400), labels] += 1.5
    # 20 times too certain.
    found = temperature("logistic", made(20 * scores_, labels))
    probabilities = calibrated(20 * scores_, found)
    right = probabilities.argmax(1) == labels
    assert abs(probabilities.max(1).mean() - right.mean()) < 0.05


def test_a_few_right_answers_do_not_make_certain() -> None:
    labels = np.array([0, 1, 0, 1])
    scores_ = np.where(np.eye(2)[labels] > 0, 0.5, -0.5)
    (first, *_) = calibrated(scores_, temperature("logistic", made(scores_, labels)))
    assert 0.7 < first.max() < 0.99
    nothing = HeldOut(np.empty((0, 1, 2)), np.empty(0, int), np.empty(0, int))
    assert temperature("lda", nothing) == pytest.approx(np.exp(3.5), rel=0.1)


def test_likelihoods_are_of_examples_not_of_rows() -> None:
    rows = np.array([[0.0, -1.0], [0.0, -1.0], [-2.0, 0.0]])
    found = HeldOut(rows[:, None], np.array([0, 0, 1]), np.array([5, 5, 9]))
    assert held_out_log_likelihoods("logistic", found).shape == (2,)


def test_p_values_of_examples_like_the_others_are_uniform_at_least() -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(150):
        vectors = clusters(np.append(LABELS, rng.integers(4)), seed=seed)
        found.append(Typicality.of(vectors[:-1], LABELS).p_value(vectors[-1:]) or 0.0)
    for level in (0.1, 0.3):
        assert np.mean(np.array(found) <= level) < level + 0.06
    apart = clusters(LABELS, distance=3.0)
    far = Typicality.of(apart, LABELS).p_value(rng.normal(size=(1, 50)))
    assert far == pytest.approx(1 / (1 + len(LABELS)))


def test_too_few_examples_have_no_p_value() -> None:
    labels = np.repeat([0, 1], 4)
    assert len(labels) < FEWEST
    assert Typicality.of(clusters(labels), labels).p_value(clusters(labels)[:1]) is None


def test_another_option_must_be_clearly_better() -> None:
    even = np.array([1.0, 0, 1, 0, 1, 0, 1, 0])
    values = {"first": even, "lucky": np.array([1.0, 0, 1, 0, 1, 0, 0, 1]) + 0.01, "better": np.maximum(even, 0.9)}
    assert clearly_best(["first", "lucky"], values.__getitem__, 1.5) == "first"
    assert clearly_best(["first", "lucky", "better"], values.__getitem__, 1.5) == "better"
    assert clearly_best(["first", "first"], values.__getitem__, 0.0) == "first"


def test_damaged_copies_count_half() -> None:
    right, wrong = [0.0, -9.0], [-9.0, 0.0]
    found = HeldOut(np.array([[right, wrong, wrong], [wrong, right, right]]), np.array([0, 0]), np.array([0, 1]))
    assert scores(found).tolist() == [0.5, 0.5]
    assert found.accuracy == 0.5

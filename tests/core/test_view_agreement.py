"""The test that finds the model that recognises images, by their mirror images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acclimate.core.view_agreement import AgreementTest, ClassMixTest, ThreeDecisions, ViewDecisions
from acclimate.errors import ConfigError


def decisions(classes: list[int], *, wrong: int = 0) -> ViewDecisions:
    """Return decisions whose views differ in the first ``wrong`` images."""
    first = torch.tensor(classes)
    second = first.clone()
    second[:wrong] += 1
    return ViewDecisions(first, second)


EVEN = [number % 8 for number in range(128)]


def test_the_model_with_fewer_disagreements_is_favoured_and_the_other_is_not() -> None:
    test = AgreementTest()
    good, bad = decisions(EVEN, wrong=8), decisions(EVEN, wrong=32)
    assert test.favours(good, bad)
    assert not test.favours(bad, good)
    assert not test.favours(good, good)
    assert not test.favours(decisions(EVEN, wrong=28), bad), "not by disagreement_ratio"


def test_a_model_that_gives_one_class_to_everything_is_not_favoured() -> None:
    collapsed = decisions([3] * 128)
    assert not AgreementTest().favours(collapsed, decisions(EVEN, wrong=64))
    assert not AgreementTest().is_open(collapsed, decisions(EVEN, wrong=64))


def test_a_model_is_credible_beside_one_that_gives_fewer_classes_only_if_it_is_consistent_by_itself() -> None:
    test = AgreementTest()
    collapsed = decisions([3] * 128)
    assert test.is_credible(decisions(EVEN, wrong=24), collapsed)
    assert not test.is_credible(decisions(EVEN, wrong=40), collapsed)
    assert not test.is_credible(collapsed, decisions(EVEN))
    # With about as many classes, by comparison.
    assert test.is_credible(decisions(EVEN, wrong=24), decisions(EVEN, wrong=24))
    assert not test.is_credible(decisions(EVEN, wrong=25), decisions(EVEN, wrong=24))
    assert not test.is_credible(decisions(EVEN[:32]), collapsed.newest(32))


def test_few_images_say_nothing() -> None:
    few = EVEN[:32]
    assert not AgreementTest().favours(decisions(few), decisions(few, wrong=32))
    assert AgreementTest().is_open(decisions(few, wrong=32), decisions(few))
    assert AgreementTest(least_images=32).favours(decisions(few), decisions(few, wrong=32))


def test_a_difference_within_chance_is_no_evidence() -> None:
    assert not AgreementTest().favours(decisions(EVEN, wrong=0), decisions(EVEN, wrong=1))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=64),
    st.randoms(use_true_random=False),
)
def test_at_most_one_model_is_favoured_and_the_order_of_images_does_not_matter(
    rows: list[tuple[int, int, int, int]], draw: object
) -> None:
    test = AgreementTest(standard_errors=0.5, disagreement_ratio=1.0, class_ratio=0.1)

    def both(found: list[tuple[int, int, int, int]]) -> tuple[ViewDecisions, ViewDecisions]:
        columns = torch.tensor(found).T
        return ViewDecisions(columns[0], columns[1]), ViewDecisions(columns[2], columns[3])

    one, other = both(rows)
    assert not (test.favours(one, other) and test.favours(other, one))
    draw.shuffle(rows)  # type: ignore[attr-defined]
    shuffled = both(rows)
    assert test.favours(one, other) == test.favours(*shuffled)
    assert one.effective_classes == pytest.approx(shuffled[0].effective_classes)


def test_effective_classes_and_concatenation() -> None:
    assert decisions(EVEN).effective_classes == pytest.approx(8)
    assert decisions([5] * 9).effective_classes == pytest.approx(1)
    assert ViewDecisions.none().effective_classes == 0
    together = ViewDecisions.none().plus(decisions([1, 2])).plus(decisions([3], wrong=1))
    assert together.first.tolist() == [1, 2, 3]
    assert together.agreements.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("field", "value"),
    [("least_images", 0), ("standard_errors", -1.0), ("disagreement_ratio", 0.0), ("class_ratio", 1.5)],
)
def test_bad_fields_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        AgreementTest(**{field: value})  # type: ignore[arg-type]


def test_a_model_between_two_tells_damage_from_few_classes() -> None:
    test = ClassMixTest()
    many, one = torch.tensor(EVEN), torch.zeros(128, dtype=torch.int64)
    consistent, inconsistent = decisions(EVEN, wrong=32), decisions(EVEN, wrong=64)
    assert test.is_due(many, one)
    assert not test.is_due(many, many)
    sides_with_adapted = ThreeDecisions(adapted=many, unadapted=one, between=many)
    sides_with_unadapted = ThreeDecisions(adapted=many, unadapted=one, between=one)
    assert test.is_damage(sides_with_adapted, inconsistent) is True
    assert test.is_damage(sides_with_unadapted, consistent) is False
    # On no side, and with 5.4 classes of eight: the views decide.
    between = torch.where(torch.arange(128) % 16 < 8, many, one)
    on_no_side = ThreeDecisions(adapted=many, unadapted=one, between=between)
    assert test.is_damage(on_no_side, consistent) is True
    assert test.is_damage(on_no_side, inconsistent) is False
    few = sides_with_adapted.newest(32)
    assert test.is_damage(few, consistent) is None
    assert test.is_damage(few.plus(few), consistent) is True


@pytest.mark.parametrize("field", [{"least_images": 0}, {"more_classes": 0.5}])
def test_impossible_settings_of_the_class_mix_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(field))):
        ClassMixTest(**field)  # type: ignore[arg-type]

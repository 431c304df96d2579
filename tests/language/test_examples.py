"""Worked examples: what is accepted, cleaned, left out, split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.errors import DataError
from acclimate.language.examples import Example, as_examples, folds, leave_one_out, orderings, validated

TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


def test_accepts_pairs_mappings_and_examples() -> None:
    expected = (Example("a", "b"), Example("c", "2"), Example("e", "f"))
    assert as_examples([("a", "b"), {"input": "c", "output": 2}, Example("e", "f")]) == expected


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"in": "a", "out": "b"}, "it needs 'input' and 'output'"),
        (("a",), "give an input and an output"),
        ("ab", "give an input and an output"),
        (("a", None), "must be text"),
        (("a", True), "must be text"),
    ],
)
def test_refuses_what_is_no_example(item: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_examples([item])  # type: ignore[list-item]


def test_duplicates_go_and_contradictions_are_reported() -> None:
    found = validated(as_examples([("a", "1"), ("a", "1"), ("b", "2"), ("c", "3"), ("c", "4")]))
    assert found.examples == (Example("a", "1"), Example("b", "2"))
    assert found.duplicates == (Example("a", "1"),)
    assert found.contradictions == ("c",)
    assert "'c' was given with two different outputs" in found.warnings[0]


def test_control_characters_and_unicode_forms_are_brought_in_order() -> None:
    found = validated([Example("caf\u0065\u0301\x00\x1b", " ok\r\nthere ")]).examples[0]
    assert found == Example("café", "ok\nthere")


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("a", " ")], "empty output"),
        ([("", "b")], "empty input"),
        ([("a", "b" * 50)], "at most 40"),
        ([("a", "b")] * 9, "at most 8"),
    ],
)  # fmt: skip
def test_limits_are_named(pairs: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        validated(as_examples(pairs), max_count=8, max_characters=40)


def test_augmentation_adds_only_new_inputs() -> None:
    def upper(example: Example) -> list[Example]:
        return [Example(example.input.upper(), example.output.upper()), Example("b", "not used"), Example(" ", "x")]

    found = validated(as_examples([("a", "1x"), ("b", "2x")]), augment=upper)
    assert Example("A", "1X") in found.examples
    assert Example("b", "2x") in found.examples
    assert not found.contradictions


@given(st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=12), st.integers(2, 4))
def test_every_example_is_left_out_once(pairs: list[tuple[str, str]], count: int) -> None:
    examples = as_examples(pairs)
    splits = folds(examples, min(count, len(examples)))
    assert sorted(i for _, out in splits for i in out) == list(range(len(examples)))
    assert all(not set(kept) & set(out) for kept, out in splits)
    assert [out for _, out in leave_one_out(examples)] == list(examples)


@given(st.integers(1, 9), st.integers(1, 6))
def test_orderings_are_permutations_and_the_first_is_as_given(count: int, how_many: int) -> None:
    found = orderings(count, how_many, seed=3)
    assert found[0] == tuple(range(count))
    assert all(sorted(order) == list(range(count)) for order in found)
    assert found == orderings(count, how_many, seed=3)

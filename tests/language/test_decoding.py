"""Choosing tokens: the likeliest or drawn, stop texts, pieces of text as they become certain."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import ConfigError
from acclimate.language.models.decoding import Continuation, Sampling, advance
from tests.language.models import spark


def continuation(**settings_: Any) -> Continuation:
    given_: dict[str, Any] = {"ends": frozenset({4}), "max_tokens": 50, "open_ended": True} | settings_
    return Continuation(spark().encoder, **given_)


def ids(text: str) -> list[int]:
    found: list[int] = spark().tokenizer(text, add_special_tokens=False).input_ids
    return found


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="abcxyz -.", min_size=1, max_size=24),
    stop=st.lists(st.text(alphabet="abcxyz", min_size=1, max_size=3), max_size=2),
)
def test_pieces_of_text_are_the_answer_and_nothing_of_a_stop_text(text: str, stop: list[str]) -> None:
    pieces: list[str] = []
    row = continuation(sampling=Sampling(stop=tuple(stop)), on_text=pieces.append)
    for token in [*ids(text), 4]:
        if row.done:
            break
        row.take(token, -0.5)
    answer = row.answer()
    cut = min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))
    assert answer.text.strip() == text[:cut].strip()
    assert "".join(pieces).strip() == answer.text.strip()
    assert answer.complete
    assert answer.log_likelihood == pytest.approx(-0.5 * answer.tokens)


def test_the_limit_ends_an_answer_that_is_not_complete() -> None:
    row = continuation(max_tokens=2)
    for token in ids("abc"):
        if not row.done:
            row.take(token, 0.0)
    assert row.done
    assert (row.answer().complete, row.answer().tokens, row.token_count) == (False, 2, 2)


def test_drawn_tokens_have_the_probabilities_of_the_model() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    row = continuation(max_tokens=4000, ends=frozenset(), sampling=Sampling(temperature=1.0, seed=1))
    counts = collections.Counter(row._drawn(logits, row._rng) for _ in range(4000))  # type: ignore[arg-type]
    assert [counts[token] / 4000 for token in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    narrow = continuation(sampling=Sampling(temperature=1.0, top_p=0.5))
    assert {narrow._drawn(logits, narrow._rng) for _ in range(50)} == {0}  # type: ignore[arg-type]
    cold = continuation(sampling=Sampling(temperature=1e-30))
    assert {cold._drawn(logits, cold._rng) for _ in range(50)} == {0}  # type: ignore[arg-type]


def test_rows_that_are_done_are_not_advanced_and_others_take_the_likeliest() -> None:
    rows = [continuation(), continuation(), continuation(sampling=Sampling(alternatives=2))]
    rows[0].done = True
    logits = torch.zeros(3, 156)
    logits[:, 40] = 9.0
    logits[:, 41] = 5.0
    assert advance(rows, logits) == [0, 40, 40]
    assert rows[0].token_count == 0
    (chosen,) = rows[2].answer().chosen
    assert [token for token, _ in chosen.alternatives] == [40, 41]
    assert chosen.log_probability == chosen.alternatives[0][1]


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"stop": ("",)}])
def test_sampling_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**bad)

"""What each training step reads and predicts: rows, and where their answers stand."""

from __future__ import annotations

import torch

from acclimate.language import as_examples
from acclimate.language.training.step_schedule import batch_of, training_rows
from tests.language.models import small

EXAMPLES = as_examples([("ab", "ba"), ("cd", "dc"), ("efg", "gfe"), ("hi", "ih"), ("jkl", "lkj")])


def test_rows_of_each_loss() -> None:
    encoder = small().encoder
    (row,) = training_rows(encoder, EXAMPLES, [2, 0, 1], "all_answers")
    assert {mark for mark in row.answer if mark >= 0} == {0, 1}
    rows = training_rows(encoder, EXAMPLES, [2, 0, 1], "last_answer")
    assert [{m for m in r.answer if m >= 0} for r in rows] == [{2}, {0}, {1}]
    assert all(r.tokens[-4:] == r.tokens[-4:] and r.answer[-1] >= 0 for r in rows)
    assert len(training_rows(encoder, EXAMPLES, [0, 1], "direct")) == 2
    for share, learned in ((0.0, {1, 2, 3, 4}), (0.5, {2, 3, 4}), (0.9, {4})):
        (part,) = training_rows(encoder, EXAMPLES, range(5), "all_answers", share)
        assert set(part.answer) - {-1} == learned
    (only,) = training_rows(encoder, EXAMPLES[:1], [0], "all_answers", 0.5)
    assert set(only.answer) - {-1} == {0}
    (single,) = training_rows(encoder, EXAMPLES[:1], [0], "all_answers")
    assert any(mark == 0 for mark in single.answer)


def test_targets_point_at_the_token_before_each_answer_token() -> None:
    model = small()
    rows = [training_rows(model.encoder, EXAMPLES, order, "all_answers") for order in ([0, 1], [1, 0, 2])]
    targets = batch_of(rows, pad=0, device=torch.device("cpu"))
    assert targets.tokens.shape[0] == 2
    for row, column, wanted in zip(targets.row, targets.column, targets.wanted, strict=True):
        assert targets.tokens[row, column + 1] == wanted
    assert set(targets.owner.tolist()) == {0, 1}

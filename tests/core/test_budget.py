"""Why a budget allows no further step: a code for programs, a reason in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acclimate.core import Session
from acclimate.core.budget import Budget
from acclimate.errors import ConfigError
from acclimate.methods.tent import Tent


@pytest.mark.parametrize(
    ("budget", "code", "words"),
    [
        (Budget(max_steps=3), "max_steps", "step budget: 3 of 3 steps made"),
        (Budget(max_seconds=2.0), "max_seconds", "time budget: 2 s spent"),
        (Budget(max_bytes=99), "max_bytes", "memory budget: 100 bytes held, 99 allowed"),
    ],
)
def test_a_spent_budget_says_which_limit(budget: Budget, code: str, words: str) -> None:
    stop = budget.exhausted(seconds=2.0, steps=3, held_bytes=100)
    assert stop is not None
    assert (stop.code, stop.reason) == (code, words)
    assert budget.exhausted(seconds=1.0, steps=2, held_bytes=99) is None


def test_a_session_reports_the_code_of_the_budget() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with Session(model, Tent(), budget=Budget(max_steps=0)) as session:
        report = session.adapt(torch.randn(8, 4))
    assert (report.verdict, report.code) == ("refused", "max_steps")
    assert report.reason == "step budget: 0 of 0 steps made"


def test_negative_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_bytes must not be negative, got -1"):
        Budget(max_bytes=-1)

from __future__ import annotations

import pytest

from acclimate.language import Engine, load
from acclimate.ui.ready_prompts import READY, ReadyPrompt, ready_prompt


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(load("spark"))


def test_there_are_ten_and_two_of_them_are_declined() -> None:
    assert len(READY) == 10
    assert sum(not ready.adapts for ready in READY) == 2
    assert ready_prompt("dates") in READY
    assert ready_prompt("nothing") is None


@pytest.mark.parametrize("ready", READY, ids=lambda ready: ready.name)
def test_every_one_does_what_its_title_promises(engine: Engine, ready: ReadyPrompt) -> None:
    report = engine.ask(ready.prompt)
    assert (report.status == "adapted") == ready.adapts
    if ready.adapts:
        # Adapting is worth it: the base model alone is wrong.
        assert report.icl_answer != ready.answer
    else:
        assert report.status == "declined"
    if ready.answer is not None:
        assert report.answer == ready.answer

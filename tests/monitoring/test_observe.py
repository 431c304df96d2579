"""The record of a vision run."""

from __future__ import annotations

from typing import Any

import pytest

from acclimate.monitoring import vision_request


def ttt(**counts: int) -> dict[str, Any]:
    return {"enabled": True, "method": "tent", "report": {"session": {"counts": counts}}}


@pytest.mark.parametrize(
    ("block", "status", "reason"),
    [
        (ttt(kept=3, paused=5), "adapted", None),
        (ttt(rolled_back=3), "fallback", "guard"),
        (ttt(skipped=3), "declined", "nothing_to_learn_from"),
        ({"enabled": False}, "plain", None),
        ({"enabled": False, "choice": {"method": "none"}}, "declined", "nothing_helps"),
    ],
)
def test_what_became_of_a_run(block: dict[str, Any], status: str, reason: str | None) -> None:
    record = vision_request(images=8, model="m", session_id="s", ttt=block)
    assert (record.status, record.reason) == (status, reason)
    assert record.vision is not None
    assert record.vision.images == 8


def test_batches_without_a_step_are_not_counted_as_steps() -> None:
    record = vision_request(images=8, model="m", session_id="s", ttt=ttt(kept=3, paused=5, refused=1))
    assert record.vision is not None
    assert record.vision.steps == 3

"""``acclimate ask --experiment``: which arm answers, and how it did."""

from __future__ import annotations

from typing import Any, Final

from acclimate.cli import store_options
from acclimate.errors import ConfigError
from acclimate.monitoring import Outcome, RequestRecord
from acclimate.monitoring.experiments import Arm, get

#: What an arm may set: options of the command, by name.
SETTINGS: Final = frozenset(
    {"policy", "environment", "votes", "steps", "rank", "learning_rate", "orderings", "share_adapted", "max_seconds"}
)


def assigned(given: dict[str, Any], request_id: str) -> Arm:
    """Return the arm of this request and put its settings into ``given``.

    Raises:
        ConfigError: the experiment was stopped, needs a user, or sets what the command does not have; or nothing is
            recorded.
        StoreError: there is no such experiment.
    """
    if not given["record"]:
        raise ConfigError("an experiment without records shows nothing; leave out --no-record")
    with store_options.opened(given) as store:
        experiment = get(store, given["experiment"])
    if experiment.stopped_at is not None:
        raise ConfigError(
            f"experiment {experiment.name!r} was stopped at {experiment.stopped_at}; leave out --experiment"
        )
    if experiment.assigned_by == "user" and not given["user"]:
        raise ConfigError(f"experiment {experiment.name!r} assigns users; name one by --user")
    arm = experiment.arm_for(given["user"] if experiment.assigned_by == "user" else request_id)
    if unknown := sorted(set(arm.settings) - SETTINGS):
        raise ConfigError(f"arm {arm.name!r} sets {unknown[0]!r}; an arm may set {', '.join(sorted(SETTINGS))}")
    given.update(arm.settings)
    return arm


def outcomes(given: dict[str, Any], arm: Arm, record: RequestRecord, values: dict[str, Any]) -> list[Outcome]:
    """Return how the arm did, and with ``--compare`` how both did, as a pair.

    Args:
        given: the command's options.
        arm: that answered.
        record: of the request.
        values: the report.
    """
    same: dict[str, Any] = {
        "test_id": given["experiment"],
        "session_id": record.session_id,
        "task_type": record.pattern,
        "examples_count": record.examples_count,
        "request_id": record.request_id,
        "unit": given["user"] or record.request_id,
    }
    if given["compare"] and values["ttt_answer"] is not None and values["icl_answer"] is not None:
        seconds = values["seconds"]
        adapting = sum(seconds.get(part, 0.0) for part in ("gate", "training", "comparison", "answer"))
        answers = (("ICL", values["icl_answer"], seconds.get("icl")), ("TTT", values["ttt_answer"], adapting))
        return [
            Outcome(method=method, response_quality=_quality(given, answer), response_time=took, **same)
            for method, answer, took in answers
        ]
    quality = _quality(given, values["answer"])
    return [Outcome(method=arm.name, response_quality=quality, response_time=record.seconds, **same)]


def _quality(given: dict[str, Any], answer: str) -> float | None:
    return None if given["expected"] is None else float(answer.strip() == given["expected"].strip())

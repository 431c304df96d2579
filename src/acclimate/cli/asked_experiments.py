"""``acclimate ask --experiment``: assigns the request to an arm, and records the outcome of the arm."""

from __future__ import annotations

from typing import Any, Final

from acclimate.cli import store_options
from acclimate.errors import ConfigError
from acclimate.monitoring import Outcome, RequestRecord
from acclimate.monitoring.experiments import Arm, get

#: Options of the command that an arm may set, by name.
SETTINGS: Final = frozenset(
    {"policy", "environment", "votes", "steps", "rank", "learning_rate", "orderings", "share_adapted", "max_seconds"}
)

_CHOICES: Final = {
    "policy": ("gate", "always", "never"),
    "environment": ("production", "research", "testing", "demo"),
}
_WHOLE: Final = frozenset({"votes", "steps", "rank", "orderings"})


def check_settings(arm: Arm) -> None:
    """Refuse settings that are no options of the command, and values that its options would refuse.

    Raises:
        ConfigError: there is one.
    """
    for name, value in arm.settings.items():
        if name not in SETTINGS:
            raise ConfigError(f"arm {arm.name!r} sets {name!r}; an arm may set {', '.join(sorted(SETTINGS))}")
        if name in _CHOICES:
            if value not in _CHOICES[name]:
                raise ConfigError(f"arm {arm.name!r}: {name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"arm {arm.name!r}: {name} must be a number above 0, got {value!r}")
        elif name in _WHOLE and not isinstance(value, int):
            raise ConfigError(f"arm {arm.name!r}: {name} must be a whole number, got {value!r}")


def assigned(given: dict[str, Any], request_id: str) -> Arm:
    """Return the arm of this request, and overwrite the options in ``given`` with its settings.

    Raises:
        ConfigError: the experiment was stopped, needs a user, or sets an unknown option; or recording is off.
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
    if given["compare"] and [a.name for a in experiment.arms] != ["ICL", "TTT"]:
        raise ConfigError(
            f"--compare answers as ICL and as TTT; experiment {experiment.name!r} has the arms "
            f"{' and '.join(a.name for a in experiment.arms)}; leave out --compare"
        )
    arm = experiment.arm_for(given["user"] if experiment.assigned_by == "user" else request_id)
    check_settings(arm)
    given.update(arm.settings)
    if given["compare"]:
        # Both arms answer, so that the request is a pair whichever arm it was assigned to.
        given["policy"] = "gate"
    return arm


def outcomes(given: dict[str, Any], arm: Arm, record: RequestRecord, values: dict[str, Any]) -> list[Outcome]:
    """Return the outcome of the arm, or with ``--compare`` those of both arms as a pair.

    Args:
        given: the command's options.
        arm: that answered.
        record: of the request.
        values: plain values of the report.
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

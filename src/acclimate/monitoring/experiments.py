"""Experiments: two arms, an assignment of requests or users to them, and the comparison of their outcomes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.errors import ConfigError, StoreError, first_line
from acclimate.json_values import from_json
from acclimate.monitoring.insert import insert_once
from acclimate.monitoring.intervals import Estimate, mean
from acclimate.monitoring.schema import experiments, timestamp_of, ttt_ab_tests
from acclimate.monitoring.sequential import (
    Comparison,
    assignment_mismatch,
    confidence_sequence,
    fixed_horizon,
    weighted_differences,
)
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import Window

Design = Literal["sequential", "fixed"]
AssignedBy = Literal["request", "user"]
Conclusion = Literal["mismatch", "too_early", "no_difference", "no_difference_yet", "better", "worse"]
#: Below this p value the counts of the arms are taken for a broken assignment.
MISMATCH_LEVEL: Final = 0.001
_NAME: Final = re.compile(r"[\w.-]{1,80}")


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of an experiment: a way of answering.

    Attributes:
        name: the ``method`` of its outcomes, such as ``ICL``.
        weight: probability that a request or a user is assigned to it.
        settings: that the arm answers with, such as ``{"policy": "never"}``.
    """

    name: str
    weight: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The design of an experiment, fixed before the first request.

    Attributes:
        name: of the experiment, the ``test_id`` of its outcomes.
        arms: the control and the treatment.
        assigned_by: ``request`` assigns every request by itself, ``user`` all requests of a user together.
        design: ``sequential`` has a valid result at any time; ``fixed`` has one at its horizon.
        horizon: judged requests (users) of a fixed design.
        created_at, stopped_at: times, as the store writes them.

    Raises:
        ConfigError: the name, the arms, or the design with its horizon cannot be used.
    """

    name: str
    arms: tuple[Arm, Arm] = (Arm("ICL", settings={"policy": "never"}), Arm("TTT", settings={"policy": "gate"}))
    assigned_by: AssignedBy = "request"
    design: Design = "sequential"
    horizon: int | None = None
    created_at: str = field(default_factory=timestamp_of)
    stopped_at: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"a name has letters, digits, dots and dashes, at most 80, got {self.name!r}")
        if len(self.arms) != 2 or self.arms[0].name == self.arms[1].name:
            raise ConfigError(f"give two arms of different names, got {[arm.name for arm in self.arms]}")
        weights = [arm.weight for arm in self.arms]
        if min(weights) <= 0 or abs(sum(weights) - 1) > 1e-9:
            raise ConfigError(f"the arms' weights must be above 0 and sum to 1, got {weights}")
        if self.design == "fixed" and (self.horizon is None or self.horizon < 4):
            raise ConfigError(f"a fixed design needs a horizon of at least 4, got {self.horizon}")
        if self.design == "sequential" and self.horizon is not None:
            raise ConfigError("a sequential design has no horizon; leave it out, or choose the fixed design")
        if self.design == "sequential" and self.assigned_by == "user":
            raise ConfigError(
                "a user's mean changes with every request, which a sequential test cannot take; give users a fixed "
                "design with a horizon, or assign by request"
            )

    def arm_for(self, unit: str) -> Arm:
        """Return the arm of a request or user: always the same one, and independent of other experiments."""
        digest = hashlib.sha256(f"{self.name}\0{self.created_at}\0{unit}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return self.arms[0] if share < self.arms[0].weight else self.arms[1]


def create(store: Store, experiment: Experiment) -> None:
    """Store a new experiment.

    Raises:
        ConfigError: there is one of that name already.
    """
    values = {
        "name": experiment.name,
        "created_at": experiment.created_at,
        "design": json.dumps(asdict(experiment)),
    }
    with store.writing() as connection:
        if insert_once(connection, experiments, values):
            return
        stored = sa.select(experiments.c.design).where(experiments.c.name == experiment.name)
        # The same design with the same time of creation is this one: its commit was answered by an error.
        if connection.execute(stored).scalar() != values["design"]:
            raise ConfigError(f"there is an experiment {experiment.name!r} already; choose another name")


def stop(store: Store, name: str) -> Experiment:
    """Stop an experiment: no request is assigned to it any more; its outcomes are kept.

    Raises:
        StoreError: there is none of that name.
        ConfigError: it was stopped before.
    """
    found = get(store, name)
    if found.stopped_at is not None:
        raise ConfigError(f"experiment {name!r} was stopped at {found.stopped_at}")
    with store.writing() as connection:
        connection.execute(sa.update(experiments).where(experiments.c.name == name).values(stopped_at=timestamp_of()))
    return get(store, name)


def get(store: Store, name: str) -> Experiment:
    """Return an experiment.

    Raises:
        StoreError: there is none of that name.
    """
    with store.reading() as connection:
        row = connection.execute(sa.select(experiments).where(experiments.c.name == name)).mappings().first()
    if row is None:
        known = ", ".join(e.name for e in list_experiments(store)) or "none"
        raise StoreError(f"there is no experiment {name!r}; there are: {known}")
    return _from_row(row)


def list_experiments(store: Store) -> list[Experiment]:
    """Return all experiments, the newest first."""
    with store.reading() as connection:
        rows = connection.execute(sa.select(experiments).order_by(experiments.c.created_at.desc())).mappings().all()
    return [_from_row(row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """The outcomes of one arm.

    Attributes:
        name: of the arm.
        outcomes: how many; ``judged``: those whose quality is known.
        quality: their mean quality, 0 to 1.
        seconds: mean seconds of a request.
    """

    name: str
    outcomes: int
    judged: int
    quality: Estimate | None
    seconds: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentReport:
    """The result of an experiment so far.

    Attributes:
        experiment: its design.
        arms: the control and the treatment.
        paired: whether requests were answered by both arms.
        effect: quality of the treatment less that of the control, with interval and p value once the design has them.
            Qualities lie between 0 and 1, so effect and interval lie between -1 and 1.
        difference: of the arms' mean qualities; None where an arm has none. A sequential design weights every outcome
            by the chance of its arm, which its test needs, so that its effect differs from this while there are few.
        seconds: how much longer the treatment takes, with its 95 % interval.
        mismatch: p value of the arms' counts under their weights; None for pairs.
        conclusion: the code of the result: ``mismatch`` (the arms' sizes cannot be chance), ``too_early``,
            ``no_difference``, ``no_difference_yet``, or that the treatment is ``better`` or ``worse``.
        verdict: the same in words.
    """

    experiment: Experiment
    arms: tuple[ArmSummary, ArmSummary]
    paired: bool
    effect: Comparison
    difference: float | None
    seconds: Comparison
    mismatch: float | None
    conclusion: Conclusion
    verdict: str


def report(store: Store, name: str) -> ExperimentReport:
    """Return the result of an experiment so far.

    Quality is the recorded one; where there is none, a user's rating from 1 to 5 is taken for it, mapped to 0 to 1.

    Raises:
        StoreError: there is none of that name.
    """
    experiment = get(store, name)
    control, treatment = (arm.name for arm in experiment.arms)
    with store.reading() as connection:
        rows = [row for row in _outcomes(connection, name) if row.method in (control, treatment)]
    by_request: dict[str, dict[str, _Row]] = {}
    for row in rows:
        by_request.setdefault(row.request_id or f"row {row.number}", {})[row.method] = row
    pairs = [pair for pair in by_request.values() if len(pair) == 2]
    # A few requests that both arms answered do not make a paired experiment.
    paired = 2 * len(pairs) > len(by_request)
    if paired:
        before, after = ([pair[arm] for pair in pairs] for arm in (control, treatment))
        effect = _paired(experiment, before, after)
        seconds = _t_test(before, after, "seconds", paired=True)
        mismatch = None
    else:
        units = _by_unit(rows) if experiment.assigned_by == "user" else rows
        effect = _unpaired(experiment, units)
        before, after = ([row for row in rows if row.method == arm] for arm in (control, treatment))
        seconds = _t_test(before, after, "seconds", paired=False)
        counts = [sum(row.method == arm for row in units) for arm in (control, treatment)]
        mismatch = assignment_mismatch(counts, [arm.weight for arm in experiment.arms])
    arms = (_summary(control, rows), _summary(treatment, rows))
    effect = effect.within(1.0)
    conclusion = _conclusion(experiment, effect, mismatch)
    return ExperimentReport(
        experiment=experiment,
        arms=arms,
        paired=paired,
        effect=effect,
        difference=_difference(arms),
        seconds=seconds,
        mismatch=mismatch,
        conclusion=conclusion,
        verdict=_in_words(conclusion, experiment, effect),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomesReport:
    """The outcomes of a test of which no design is stored, such as one that another program ran.

    Attributes:
        name: of the test.
        arms: one for each method, by name; ``ICL`` first, as the control.
        paired: whether requests (sessions, where a program names no requests) were answered by both of two methods.
        effect: quality of the second method less that of the first, by a t test (paired: Student's; otherwise Welch's);
            None where there are not two methods.
        seconds: how much longer the second takes, likewise.
        verdict: what the effect is worth.
    """

    name: str
    arms: tuple[ArmSummary, ...]
    paired: bool
    effect: Comparison | None
    seconds: Comparison | None
    verdict: str = (
        "no design is stored for this test: its interval holds only if the number of requests was fixed beforehand, "
        "and arms were assigned by chance"
    )


def find_report(store: Store, name: str) -> ExperimentReport | OutcomesReport:
    """Return the result of an experiment, or of a test that has outcomes and no stored design.

    Raises:
        StoreError: there is neither of that name.
    """
    if any(experiment.name == name for experiment in list_experiments(store)):
        return report(store, name)
    with store.reading() as connection:
        rows = _outcomes(connection, name)
        # Programs that name no requests pair by session, provided that each method occurs once there.
        sessions = dict(
            connection.execute(
                sa.select(ttt_ab_tests.c.id, ttt_ab_tests.c.session_id).where(ttt_ab_tests.c.test_id == name)
            )
            .tuples()
            .all()
        )
    if not rows:
        get(store, name)
    methods = sorted({row.method for row in rows}, key=lambda method: (method.upper() != "ICL", method))
    arms = tuple(_summary(method, rows) for method in methods)
    if len(methods) != 2:
        return OutcomesReport(name=name, arms=arms, paired=False, effect=None, seconds=None)
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.request_id or f"session {sessions[row.number]}", []).append(row)
    paired = all(sorted(r.method for r in group) == sorted(methods) for group in groups.values())
    if paired:
        rows = [row for group in groups.values() for row in group]
    before, after = ([row for row in rows if row.method == method] for method in methods)
    return OutcomesReport(
        name=name,
        arms=arms,
        paired=paired,
        effect=_t_test(before, after, "quality", paired=paired).within(1.0),
        seconds=_t_test(before, after, "seconds", paired=paired),
    )


def _t_test(
    before: Sequence[_Row], after: Sequence[_Row], field: Literal["quality", "seconds"], *, paired: bool
) -> Comparison:
    """Compare one value of the rows, where it is known; of paired rows, where it is known for both."""
    if paired:
        pairs = zip((getattr(row, field) for row in before), (getattr(row, field) for row in after), strict=True)
        known = [(b, a) for b, a in pairs if b is not None and a is not None]
        return fixed_horizon([b for b, _ in known], [a for _, a in known], paired=True)
    one, other = ([v for row in rows if (v := getattr(row, field)) is not None] for rows in (before, after))
    return fixed_horizon(one, other, paired=False)


def means_by_method(connection: Connection, test_id: str) -> dict[str, dict[str, Any]]:
    """Return the count and the means of outcomes by method; a mean of which nothing is known is None."""
    columns = ttt_ab_tests.c
    rows = connection.execute(
        sa.select(
            columns.method,
            sa.func.count().label("count"),
            sa.func.avg(columns.response_quality).label("avg_quality"),
            sa.func.avg(columns.response_time).label("avg_response_time"),
            sa.func.avg(columns.user_satisfaction).label("avg_satisfaction"),
        )
        .where(columns.test_id == test_id)
        .group_by(columns.method)
    ).mappings()
    return {row["method"]: {key: value for key, value in row.items() if key != "method"} for row in rows}


def recent_tests(store: Store, window: Window) -> list[str]:
    """Return the names of tests with outcomes in ``window``, with or without a stored design."""
    columns = ttt_ab_tests.c
    with store.reading() as connection:
        query = sa.select(columns.test_id).where(window.of(columns.recorded_at)).distinct().order_by(columns.test_id)
        return list(connection.execute(query).scalars())


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    method: str
    quality: float | None
    seconds: float | None
    request_id: str | None
    unit: str | None


def _outcomes(connection: Connection, name: str) -> list[_Row]:
    columns = ttt_ab_tests.c
    quality = sa.func.coalesce(columns.response_quality, (columns.user_satisfaction - 1) / 4)
    query = (
        sa.select(columns.id, columns.method, quality, columns.response_time, columns.request_id, columns.unit)
        .where(columns.test_id == name)
        .order_by(columns.recorded_at, columns.id)
    )
    return [_Row(*row) for row in connection.execute(query).tuples()]


def _by_unit(rows: Sequence[_Row]) -> list[_Row]:
    """Return one row for each user with the mean over the user's requests, in the order of their first requests."""
    units: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        units.setdefault((row.method, row.unit or f"row {row.number}"), []).append(row)
    found = []
    for (method, unit), group in units.items():
        known = [row.quality for row in group if row.quality is not None]
        quality = sum(known) / len(known) if known else None
        found.append(_Row(group[0].number, method, quality, None, None, unit))
    return found


def _paired(experiment: Experiment, before: Sequence[_Row], after: Sequence[_Row]) -> Comparison:
    known = [
        (b.quality, a.quality)
        for b, a in zip(before, after, strict=True)
        if a.quality is not None and b.quality is not None
    ]
    if experiment.design == "sequential":
        return confidence_sequence([a - b for b, a in known], bound=1.0)
    if len(known) < (experiment.horizon or 0):
        return _not_yet([a - b for b, a in known], len(known))
    known = known[: experiment.horizon]
    return fixed_horizon([b for b, _ in known], [a for _, a in known], paired=True)


def _unpaired(experiment: Experiment, rows: Sequence[_Row]) -> Comparison:
    control, treatment = experiment.arms
    known = [(row.quality, row.method == treatment.name) for row in rows if row.quality is not None]
    if len({treated for _, treated in known}) < 2:
        return _not_yet([], len(known))
    if experiment.design == "sequential":
        values, treated = [q for q, _ in known], [t for _, t in known]
        differences = weighted_differences(values, treated, treatment.weight)
        return confidence_sequence(differences, bound=1 / min(control.weight, treatment.weight))
    complete = len(known) >= (experiment.horizon or 0)
    known = known[: experiment.horizon]
    found = fixed_horizon([q for q, t in known if not t], [q for q, t in known if t], paired=False)
    return found if complete else Comparison(found.effect, None, None, None, found.count)


def _not_yet(differences: Sequence[float], count: int) -> Comparison:
    effect = sum(differences) / len(differences) if differences else float("nan")
    return Comparison(effect, None, None, None, count)


def _summary(name: str, rows: Sequence[_Row]) -> ArmSummary:
    mine = [row for row in rows if row.method == name]
    qualities = [row.quality for row in mine if row.quality is not None]
    seconds = [row.seconds for row in mine if row.seconds is not None]
    return ArmSummary(
        name=name,
        outcomes=len(mine),
        judged=len(qualities),
        quality=mean(qualities).within(0.0, 1.0) if qualities else None,
        seconds=mean(seconds).within(0.0, math.inf) if seconds else None,
    )


def _difference(arms: tuple[ArmSummary, ArmSummary]) -> float | None:
    control, treatment = (arm.quality for arm in arms)
    return None if control is None or treatment is None else treatment.value - control.value


def _conclusion(experiment: Experiment, effect: Comparison, mismatch: float | None) -> Conclusion:
    if mismatch is not None and mismatch < MISMATCH_LEVEL:
        return "mismatch"
    if effect.p_value is None:
        return "too_early"
    if effect.significant:
        return "better" if effect.effect > 0 else "worse"
    return "no_difference" if experiment.design == "fixed" else "no_difference_yet"


def _in_words(conclusion: Conclusion, experiment: Experiment, effect: Comparison) -> str:
    control, treatment = (arm.name for arm in experiment.arms)
    needed = f" of {experiment.horizon}" if experiment.horizon else ""
    words: dict[Conclusion, str] = {
        "mismatch": "the arms' sizes cannot be chance: find out why before believing anything else",
        "too_early": f"too early: {effect.count}{needed} judged requests",
        "no_difference": f"no difference was shown between {control} and {treatment}",
        "no_difference_yet": f"no difference shown yet between {control} and {treatment}; it may go on",
        "better": f"{treatment} is better than {control}",
        "worse": f"{treatment} is worse than {control}",
    }
    return words[conclusion]


def _from_row(row: Mapping[Any, Any]) -> Experiment:
    try:
        design = dict(from_json(row["design"]))
        design["arms"] = tuple(Arm(**arm) for arm in design["arms"])
        return Experiment(**{**design, "stopped_at": row["stopped_at"]})
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"the stored design of experiment {row['name']!r} cannot be read: {first_line(error)}; delete its row in "
            "the table experiments"
        ) from error

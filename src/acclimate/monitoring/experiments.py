"""Experiments between two ways of answering: who gets which, and what came of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.errors import ConfigError, StoreError
from acclimate.monitoring.intervals import Estimate, mean
from acclimate.monitoring.measurement import Window
from acclimate.monitoring.schema import experiments, timestamp_of, ttt_ab_tests
from acclimate.monitoring.sequential import (
    Comparison,
    assignment_mismatch,
    confidence_sequence,
    fixed_horizon,
    weighted_differences,
)
from acclimate.monitoring.store import Store

Design = Literal["sequential", "fixed"]
AssignedBy = Literal["request", "user"]
#: Below this the counts of the arms cannot be chance.
MISMATCH_LEVEL: Final = 0.001
_NAME: Final = re.compile(r"[\w.-]{1,80}")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering.

    Attributes:
        name: as outcomes name it, such as ``ICL``.
        weight: share of requests.
        settings: that the arm answers with, such as ``{"policy": "never"}``.
    """

    name: str
    weight: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What was decided before the first request.

    Attributes:
        name: of the experiment, the ``test_id`` of its outcomes.
        arms: control first.
        assigned_by: every request by itself, or every user once.
        design: ``sequential`` may be looked at at any time; ``fixed`` says nothing before its horizon.
        horizon: requests (users) of a fixed design.
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
        """Return the arm of a request or user: always the same one, and independent between experiments."""
        digest = hashlib.sha256(f"{self.name}\0{self.created_at}\0{unit}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return self.arms[0] if share < self.arms[0].weight else self.arms[1]


def create(store: Store, experiment: Experiment) -> None:
    """Write an experiment down.

    Raises:
        ConfigError: there is one of that name.
    """
    design = asdict(experiment)
    with store.writing() as connection:
        if connection.execute(sa.select(experiments.c.name).where(experiments.c.name == experiment.name)).scalar():
            raise ConfigError(f"there is an experiment {experiment.name!r} already; choose another name")
        connection.execute(
            sa.insert(experiments).values(
                name=experiment.name, created_at=experiment.created_at, design=json.dumps(design)
            )
        )


def stop(store: Store, name: str) -> Experiment:
    """End an experiment: no request is assigned to it any more, and its outcomes are kept.

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
    """How one arm did.

    Attributes:
        name: of the arm.
        outcomes: requests with it; ``judged``: those whose quality is known.
        quality: mean, 0 to 1.
        seconds: mean of a request.
    """

    name: str
    outcomes: int
    judged: int
    quality: Estimate | None
    seconds: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentReport:
    """What an experiment shows so far.

    Attributes:
        experiment: its design.
        arms: control first.
        paired: whether requests were answered both ways.
        effect: quality of the second arm less that of the first, with interval and p value where the design says so.
        seconds: how much longer the second arm takes, with its 95 % interval.
        mismatch: p value of the arms' counts; None with pairs.
        verdict: in words.
    """

    experiment: Experiment
    arms: tuple[ArmSummary, ArmSummary]
    paired: bool
    effect: Comparison
    seconds: Comparison
    mismatch: float | None
    verdict: str


def report(store: Store, name: str) -> ExperimentReport:
    """Return what an experiment shows so far.

    Quality is what was recorded; where it was not, a user's rating from 1 to 5 stands for it, as 0 to 1.

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
    # Some requests answered both ways among many that were not are no paired experiment.
    paired = 2 * len(pairs) > len(by_request)
    if paired:
        before, after = ([pair[arm] for pair in pairs] for arm in (control, treatment))
        effect = _paired(experiment, before, after)
        seconds = _seconds(before, after, paired=True)
        mismatch = None
    else:
        units = _by_unit(rows) if experiment.assigned_by == "user" else rows
        effect = _unpaired(experiment, units)
        before, after = ([row for row in rows if row.method == arm] for arm in (control, treatment))
        seconds = _seconds(before, after, paired=False)
        counts = [sum(row.method == arm for row in units) for arm in (control, treatment)]
        mismatch = assignment_mismatch(counts, [arm.weight for arm in experiment.arms])
    arms = (_summary(control, rows), _summary(treatment, rows))
    return ExperimentReport(
        experiment=experiment,
        arms=arms,
        paired=paired,
        effect=effect,
        seconds=seconds,
        mismatch=mismatch,
        verdict=_verdict(experiment, effect, mismatch),
    )


def two_methods(connection: Connection, test_id: str) -> dict[str, Any]:
    """Return counts and means by method, and TTT against ICL under ``comparison``; None where nothing is known."""
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
    found: dict[str, Any] = {row["method"]: {k: v for k, v in row.items() if k != "method"} for row in rows}
    if {"TTT", "ICL"} <= found.keys():
        ttt, icl = found["TTT"], found["ICL"]
        quality = _difference(ttt["avg_quality"], icl["avg_quality"])
        found["comparison"] = {
            "quality_improvement_percent": 100 * quality / icl["avg_quality"]
            if quality is not None and icl["avg_quality"]
            else None,
            "time_overhead": _difference(ttt["avg_response_time"], icl["avg_response_time"]),
            "satisfaction_delta": _difference(ttt["avg_satisfaction"], icl["avg_satisfaction"]),
        }
    return found


def recent_tests(store: Store, window: Window) -> list[str]:
    """Return the names of tests with outcomes in ``window``, whether a design was written down for them or not."""
    columns = ttt_ab_tests.c
    with store.reading() as connection:
        query = sa.select(columns.test_id).where(window.of(columns.timestamp)).distinct().order_by(columns.test_id)
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
        .order_by(columns.timestamp, columns.id)
    )
    return [_Row(*row) for row in connection.execute(query).tuples()]


def _by_unit(rows: Sequence[_Row]) -> list[_Row]:
    """Return one row for each user, with the mean over the user's requests, in the order they first came."""
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


def _seconds(before: Sequence[_Row], after: Sequence[_Row], *, paired: bool) -> Comparison:
    if paired:
        known = [
            (b.seconds, a.seconds)
            for b, a in zip(before, after, strict=True)
            if a.seconds is not None and b.seconds is not None
        ]
        return fixed_horizon([b for b, _ in known], [a for _, a in known], paired=True)
    one, other = ([r.seconds for r in rows if r.seconds is not None] for rows in (before, after))
    return fixed_horizon(one, other, paired=False)


def _summary(name: str, rows: Sequence[_Row]) -> ArmSummary:
    mine = [row for row in rows if row.method == name]
    qualities = [row.quality for row in mine if row.quality is not None]
    seconds = [row.seconds for row in mine if row.seconds is not None]
    return ArmSummary(
        name=name,
        outcomes=len(mine),
        judged=len(qualities),
        quality=mean(qualities) if qualities else None,
        seconds=mean(seconds) if seconds else None,
    )


def _verdict(experiment: Experiment, effect: Comparison, mismatch: float | None) -> str:
    control, treatment = (arm.name for arm in experiment.arms)
    if mismatch is not None and mismatch < MISMATCH_LEVEL:
        return "the arms' sizes cannot be chance: find out why before believing anything else"
    if effect.p_value is None:
        needed = f" of {experiment.horizon}" if experiment.horizon else ""
        return f"too early: {effect.count}{needed} judged requests"
    if not effect.significant:
        if experiment.design == "fixed":
            return f"no difference was shown between {control} and {treatment}"
        return f"no difference shown yet between {control} and {treatment}; it may go on"
    return f"{treatment} is {'better' if effect.effect > 0 else 'worse'} than {control}"


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _from_row(row: Mapping[Any, Any]) -> Experiment:
    design = json.loads(row["design"])
    design["arms"] = tuple(Arm(**arm) for arm in design["arms"])
    return Experiment(**{**design, "stopped_at": row["stopped_at"]})

"""What an indicator (key performance indicator, KPI) is: words, unit, bounds, the query that measures it, its advice.

Everything that shows or judges indicators (health, reports, trends, suggestions, tables) reads these attributes and
treats all indicators alike; adding one is making one :class:`Kpi` and passing it on, such as
``check(store, window, kpis=(*KPIS, mine))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sqlalchemy import Connection

from acclimate.errors import ConfigError
from acclimate.monitoring.attempts import Recorded
from acclimate.monitoring.intervals import Estimate
from acclimate.monitoring.window import Window

State = Literal["ok", "off target", "alert", "not enough data"]
Direction = Literal["higher", "lower", "within"]
#: An indicator with fewer observations than this is not judged.
LEAST_OBSERVATIONS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """How the values of an indicator are written, and between which bounds they can lie.

    Attributes:
        name: of the unit.
        scale: factor from the stored value to the shown one, such as 100 for per cent.
        suffix: after the number.
        digits: decimals of a value.
        bound_digits: least decimals of a target or an alert bound.
        signed: write a plus before positive values.
        least, most: between which values are possible; intervals end there.
    """

    name: str
    scale: float = 1.0
    suffix: str = ""
    digits: int = 2
    bound_digits: int = 0
    signed: bool = False
    least: float = -math.inf
    most: float = math.inf

    def shown(self, value: float) -> str:
        """Return a value in this unit."""
        return f"{self._number(value, self.digits)}{self.suffix}"

    def bound(self, value: float, *, suffix: bool = True) -> str:
        """Return a target or alert bound in this unit, with as many decimals as it has."""
        text = self._number(value, self.bound_digits)
        if not math.isclose(float(text), self.scale * value, abs_tol=1e-9):
            text = f"{round(self.scale * value, 9):{'+' if self.signed else ''}g}"
        return f"{text}{self.suffix if suffix else ''}"

    def _number(self, value: float, digits: int) -> str:
        return f"{self.scale * value:{'+' if self.signed else ''}.{digits}f}"


SHARE: Final = Unit(name="share", scale=100, suffix="%", digits=1, least=0, most=1)
SCORE: Final = Unit(name="score", bound_digits=2, least=0, most=1)
RELATIVE_GAIN: Final = Unit(name="relative gain", scale=100, suffix="%", digits=1, signed=True, least=-1)
SECONDS: Final = Unit(name="s", suffix="s", bound_digits=1, least=0)
#: Of 2**20 bytes.
MEGABYTES: Final = Unit(name="MB", suffix="MB", digits=1, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the query of an indicator found.

    Attributes:
        estimate: the value with its interval; None where nothing was observed.
        values: the single observations, where the value is their mean; reports draw their histogram.
        extra: further numbers by name, such as the 95th percentile.
    """

    estimate: Estimate | None
    values: Sequence[float] = ()
    extra: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """One change to make, with its reasons.

    Attributes:
        code: names the kind of change, for programs.
        symptom: what is wrong.
        change: to make.
        evidence: the recorded numbers it was computed from.
        expected: what the change should bring, and what it costs.
    """

    code: str
    symptom: str
    change: str
    evidence: str
    expected: str


def _no_advice(_measured: Measurement, _recorded: Recorded) -> Iterable[Suggestion]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kpi:
    """One indicator.

    Attributes:
        name: its key in JSON and in messages.
        title: its heading in reports.
        unit: of the value and the bounds, which are stored unscaled: a share of 0.15 is shown as 15 %.
        direction: whether ``higher`` or ``lower`` values are better, or values should lie ``within`` bounds.
        measures: what is counted over what, in words.
        query: measures it over a window, in an open transaction.
        target_low, target_high: between which it should be; None where that side is open. The upper end of the target
            of a ``higher`` indicator only describes it: to exceed it is no miss (likewise the lower end of ``lower``).
        alert_below, alert_above: beyond which it alerts; None where that side does not alert.
        advise: yields what to change, from the measurement and the recorded attempts.
        required: a health check needs it for the verdict ``healthy``; False for an indicator of rows that not every
            operator has, such as labels or outcomes of experiments.
        histogram: title of the histogram of single observations in reports; None draws none.

    Raises:
        ConfigError: there is no bound, or one that contradicts the direction.
    """

    name: str
    title: str
    unit: Unit
    direction: Direction
    measures: str
    query: Callable[[Connection, Window], Observed]
    target_low: float | None = None
    target_high: float | None = None
    alert_below: float | None = None
    alert_above: float | None = None
    advise: Callable[[Measurement, Recorded], Iterable[Suggestion]] = _no_advice
    required: bool = True
    histogram: str | None = None

    def __post_init__(self) -> None:
        if self.alert_below is None and self.alert_above is None:
            raise ConfigError(f"indicator {self.name!r} has no alert bound; give alert_below, alert_above or both")
        if self.target_low is None and self.target_high is None:
            raise ConfigError(f"indicator {self.name!r} has no target; give target_low, target_high or both")
        for direction, bound in (("higher", "alert_above"), ("lower", "alert_below")):
            if self.direction == direction and getattr(self, bound) is not None:
                raise ConfigError(
                    f"indicator {self.name!r}: {direction} values are better, so {bound} must be None, "
                    f"got {getattr(self, bound)}"
                )

    @property
    def target(self) -> str:
        """The target in words, such as ``>85%`` or ``15-25%``."""
        low, high = self.target_low, self.target_high
        if low is not None and high is not None:
            # In a range the sign and the unit are written once.
            upper = self.unit.bound(high)
            return f"{self.unit.bound(low, suffix=False)}-{upper.removeprefix('+')}"
        return f">{self.unit.bound(low)}" if low is not None else f"<{self.unit.bound(high or 0.0)}"

    @property
    def alert_threshold(self) -> str:
        """The alert bounds in words, such as ``<10% or >40%``."""
        below = [] if self.alert_below is None else [f"<{self.unit.bound(self.alert_below)}"]
        above = [] if self.alert_above is None else [f">{self.unit.bound(self.alert_above)}"]
        return " or ".join(below + above)

    @property
    def marks(self) -> dict[str, float]:
        """The bounds by their name, for charts."""
        bounds = {
            "target at least": self.target_low if self.direction != "lower" else None,
            "target at most": self.target_high if self.direction != "higher" else None,
            "alert below": self.alert_below,
            "alert above": self.alert_above,
        }
        return {name: bound for name, bound in bounds.items() if bound is not None}

    def measure(self, connection: Connection, window: Window) -> Measurement:
        """Return the indicator over ``window``; the interval ends where values of the unit end."""
        observed = self.query(connection, window)
        estimate = observed.estimate and observed.estimate.within(self.unit.least, self.unit.most)
        return Measurement(
            kpi=self, estimate=estimate, state=self.judge(estimate), values=observed.values, extra=observed.extra
        )

    def judge(self, estimate: Estimate | None) -> State:
        """Return the state that an estimate puts the indicator in; ``alert`` takes its sampling error into account."""
        if estimate is None or estimate.count < LEAST_OBSERVATIONS:
            return "not enough data"
        if self.alert_below is not None and estimate.high < self.alert_below:
            return "alert"
        if self.alert_above is not None and estimate.low > self.alert_above:
            return "alert"
        too_low = self.direction != "lower" and self.target_low is not None and estimate.value < self.target_low
        too_high = self.direction != "higher" and self.target_high is not None and estimate.value > self.target_high
        return "off target" if too_low or too_high else "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One indicator over one window.

    Attributes:
        kpi: the indicator.
        estimate: its value with a 95 % interval; None where nothing was observed.
        state: ``alert`` only where the whole interval lies beyond the alert bound.
        values: the single observations, where the value is their mean.
        extra: further numbers by name, such as the 95th percentile.
    """

    kpi: Kpi
    estimate: Estimate | None
    state: State
    values: Sequence[float] = ()
    extra: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The measurement in one line."""
        count = 0 if self.estimate is None else self.estimate.count
        if self.estimate is None or self.state == "not enough data":
            return f"{self.kpi.name}: not enough data ({count} of {LEAST_OBSERVATIONS} observations)"
        shown = self.kpi.unit.shown
        low, high = shown(self.estimate.low), shown(self.estimate.high)
        return (
            f"{self.kpi.name}: {shown(self.estimate.value)} [{low}, {high}] from {count} "
            f"(target {self.kpi.target}, alert {self.kpi.alert_threshold})"
        )

    @property
    def line_with_state(self) -> str:
        """The measurement in one line that begins with its state."""
        return self.line if self.state == "not enough data" else f"{self.state}: {self.line}"


def kpis_table(kpis: Iterable[Kpi]) -> str:
    """Return a Markdown table of indicators: name, title, target, alert bound, and what is measured."""
    lines = ["| indicator | name | target | alert | what is measured |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {k.title} | `{k.name}` | {k.target} | {k.alert_threshold} | {k.measures} |" for k in kpis]
    return "\n".join(lines)

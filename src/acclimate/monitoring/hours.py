"""Sums over the requests of each hour: what trends over days and months are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection
from sqlalchemy.dialects import postgresql, sqlite

from acclimate.monitoring.intervals import Estimate, mean_of_sums
from acclimate.monitoring.records import Pipeline, RequestRecord
from acclimate.monitoring.schema import MEASURED, request_hours, timestamp_of
from acclimate.monitoring.window import Window

#: Of an ISO time, up to the hour.
HOUR_CHARACTERS: Final = len("2026-01-01T00")
DAY_CHARACTERS: Final = len("2026-01-01")
#: In place of a writer, in rows that are the sums of several.
_MERGED: Final = ""
_MB: Final = 2**20
_PARTS: Final = ("count", "sum", "squares")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which requests are summed; None takes all.

    Attributes:
        pipeline: ``language`` or ``vision``.
        model: its name.
        actor: who asked.
    """

    pipeline: Pipeline | None = None
    model: str | None = None
    actor: str | None = None

    def of(self, columns: sa.ColumnCollection[str, Any]) -> list[ColumnElement[bool]]:
        """Return the conditions on the columns of a table that has all three."""
        wanted = {"pipeline": self.pipeline, "model": self.model, "actor": self.actor}
        return [columns[name] == value for name, value in wanted.items() if value is not None]


#: Leaves nothing out.
EVERYTHING: Final = Filters()


@dataclass(frozen=True, slots=True)
class Sums:
    """Number, sum and sum of squares of one measured quantity."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> Estimate | None:
        """The mean with its 95 % interval; None where nothing was measured."""
        return mean_of_sums(self.count, self.total, self.squares) if self.count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The requests of one stretch of time that ended in one way.

    Attributes:
        start: of the stretch: an ISO date, or a date with the hour, in UTC.
        status: how they ended; ``reason``: why; empty where there is none.
        count: how many; ``adaptable``: of them, those with something to adapt to.
        measured: sums by the names in :data:`acclimate.monitoring.schema.MEASURED`.
    """

    start: str
    status: str
    reason: str
    count: int
    adaptable: int
    measured: Mapping[str, Sums]


def count_in_hour(connection: Connection, record: RequestRecord, moment: str, writer_id: str) -> None:
    """Add a request to the sums of its hour, in the transaction that writes the request."""
    measured = {
        "confidence": record.confidence,
        "icl_confidence": record.icl_confidence,
        "seconds": record.seconds,
        # No time was needed where neither the gate nor training ran.
        "adaptation_time": record.adaptation_time or None,
        "memory_mb": None if record.memory_bytes is None else record.memory_bytes / _MB,
    }
    values: dict[str, Any] = {
        "hour": moment[:HOUR_CHARACTERS],
        "writer_id": writer_id,
        "pipeline": record.pipeline,
        "model": record.model or "",
        "actor": record.actor,
        "status": record.status,
        "reason": record.reason or "",
        "count": 1,
        "adaptable": int(bool(record.had_something_to_adapt_to)),
    }
    for name, value in measured.items():
        values[f"{name}_count"] = int(value is not None)
        values[f"{name}_sum"] = value or 0.0
        values[f"{name}_squares"] = (value or 0.0) ** 2
    connection.execute(_addition(connection.dialect.name), values)


def merge_writers(connection: Connection, hour: str) -> int:
    """Make one row of the sums of all writers in an hour that is over, and return how many rows there are fewer.

    A request of that hour that is written later makes a row of its writer again: readers add up all of them.

    Args:
        connection: to write, in a transaction.
        hour: as the table has it.
    """
    columns = request_hours.c
    keys = [column.name for column in request_hours.primary_key.columns if column.name != "writer_id"]
    one_by_one = sa.delete(request_hours).where(columns.hour == hour, columns.writer_id != _MERGED)
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    count = 0
    for row in connection.execute(one_by_one.returning(*columns)).mappings():
        count += 1
        kind = tuple(row[name] for name in keys)
        known = merged.get(kind)
        if known is None:
            merged[kind] = {**row, "writer_id": _MERGED}
            continue
        for column in request_hours.columns:
            if not column.primary_key:
                known[column.name] += row[column.name]
    if merged:
        connection.execute(_addition(connection.dialect.name), list(merged.values()))
    return count - len(merged)


def hours_of_writers(connection: Connection, before: str) -> list[str]:
    """Return the hours before ``before`` that have rows of single writers, the oldest first."""
    hour = request_hours.c.hour
    query = sa.select(hour).where(hour < before, request_hours.c.writer_id != _MERGED).distinct().order_by(hour)
    return list(connection.execute(query).scalars())


@cache
def _addition(dialect_name: str) -> sa.Executable:
    """Return the statement that adds to a row of sums; making it takes longer than running it."""
    dialect = postgresql if dialect_name == "postgresql" else sqlite
    statement = dialect.insert(request_hours)
    added = {
        column.name: column + statement.excluded[column.name]
        for column in request_hours.columns
        if not column.primary_key
    }
    keys = list(request_hours.primary_key.columns)
    found: sa.Executable = statement.on_conflict_do_update(index_elements=keys, set_=added)
    return found


def read_hours(
    connection: Connection, window: Window, *, filters: Filters = EVERYTHING, by_day: bool = False
) -> list[Bucket]:
    """Return the requests of ``window`` by hour or day, status and reason, the oldest first.

    The first hour is taken whole, even where the window begins within it.
    """
    columns = request_hours.c
    # The column itself where that is the hour: cutting text takes a sixth of the query.
    start = (sa.func.substr(columns.hour, 1, DAY_CHARACTERS) if by_day else columns.hour).label("start")
    names = ["count", "adaptable", *(f"{name}_{part}" for name in MEASURED for part in _PARTS)]
    inside = [columns.hour >= timestamp_of(window.since)[:HOUR_CHARACTERS]]
    if window.until is not None:
        inside.append(columns.hour < timestamp_of(window.until)[:HOUR_CHARACTERS])
    query = (
        sa.select(start, columns.status, columns.reason, *(sa.func.sum(columns[name]).label(name) for name in names))
        .where(*inside, *filters.of(columns))
        .group_by(start, columns.status, columns.reason)
        .order_by(start)
    )
    buckets = []
    for begin, status, reason, count, adaptable, *numbers in connection.execute(query).tuples():
        parts = (numbers[first : first + len(_PARTS)] for first in range(0, len(numbers), len(_PARTS)))
        measured = {
            name: Sums(int(observed), float(total), float(squares))
            for name, (observed, total, squares) in zip(MEASURED, parts, strict=True)
        }
        buckets.append(
            Bucket(
                start=begin,
                status=status,
                reason=reason,
                count=int(count),
                adaptable=int(adaptable),
                measured=measured,
            )
        )
    return buckets


def models_and_actors(connection: Connection, window: Window) -> tuple[list[str], list[str]]:
    """Return the models that answered in ``window``, and who asked, in alphabetical order."""
    found: list[Sequence[str]] = []
    for column in (request_hours.c.model, request_hours.c.actor):
        query = sa.select(column).where(request_hours.c.hour >= timestamp_of(window.since)[:HOUR_CHARACTERS])
        found.append(sorted(connection.execute(query.distinct().where(column != "")).scalars()))
    return list(found[0]), list(found[1])

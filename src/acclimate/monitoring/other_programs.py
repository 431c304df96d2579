"""Rows that another program for the deployment guidelines' schema wrote, such as the guidelines' own collector.

Such a program writes attempts without a row in ``requests``, and times without a zone, which are local times of its
machine. They are read as local times of the machine (of the variable ``TZ``) that reads them first, and converted to
UTC once: ``recorded_at`` holds the result, and what the other program wrote stays as it is. In the hour that clocks
repeat in autumn the later of the two times is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Engine, Table

from acclimate.monitoring.database import writing
from acclimate.monitoring.schema import timestamp_of, ttt_ab_tests, ttt_metrics
from acclimate.monitoring.window import Window

_TABLES: Final = (ttt_metrics, ttt_ab_tests)
_BATCH: Final = 10_000
#: ``recorded_at`` of a row whose time cannot be read: it is in no window, and never deleted.
UNREADABLE: Final = ""
#: The zones of the world differ by at most 26 hours. Rows whose time had no zone are kept so much longer, since they
#: may have been written in another zone than the one that they are read in.
ZONE_MARGIN: Final = timedelta(hours=26)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherRows:
    """Attempts of a window that another program recorded.

    Attributes:
        attempts: how many.
        converted: those whose times were converted to UTC.
        unreadable: attempts and outcomes of the whole store whose times cannot be read; they are in no window.
    """

    attempts: int
    converted: int
    unreadable: int

    @property
    def notes(self) -> list[str]:
        """What a reader must know about these rows, in sentences."""
        notes = []
        if self.attempts:
            notes.append(f"{self.attempts} attempts were recorded by another program; its other requests are not known")
        if self.converted:
            zone = datetime.now().astimezone().tzname()
            notes.append(f"{self.converted} of their times have no zone and are read as local time ({zone}; set TZ)")
        if self.unreadable:
            notes.append(f"{self.unreadable} rows of another program have times that cannot be read and do not count")
        return notes


def from_another_program() -> ColumnElement[bool]:
    """Return the condition that an attempt was recorded by another program: it has no request."""
    return ttt_metrics.c.request_id.is_(None)


def count_other_rows(connection: Connection, window: Window) -> OtherRows:
    """Return how many attempts of ``window`` another program recorded, and how their times were read."""
    columns = ttt_metrics.c
    converted = sa.case((columns.timestamp != columns.recorded_at, 1), else_=0)
    inside = window.of(columns.recorded_at) & from_another_program()
    attempts, changed = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(converted), 0)).where(inside)
    ).one()
    unreadable = sum(
        connection.execute(
            sa.select(sa.func.count()).select_from(table).where(table.c.recorded_at == UNREADABLE)
        ).scalar_one()
        for table in _TABLES
    )
    return OtherRows(attempts=attempts, converted=int(changed), unreadable=unreadable)


def older_than(table: Table, cutoff: datetime) -> ColumnElement[bool]:
    """Return the condition that a row of ``table`` may be deleted because it is older than ``cutoff``, in any zone."""
    recorded, exact = table.c.recorded_at, table.c.timestamp == table.c.recorded_at
    # The later limit by itself, so that an index of the column bounds what is looked at.
    old = (recorded < timestamp_of(cutoff)) & (recorded != UNREADABLE)
    return old & (exact | (recorded < timestamp_of(cutoff - ZONE_MARGIN)))


def convert_times(engine: Engine) -> int:
    """Give every row that has none its time in UTC, and return how many there were."""
    converted = 0
    for table in _TABLES:
        columns = table.c
        missing = sa.select(columns.id, columns.timestamp).where(columns.recorded_at.is_(None)).limit(_BATCH)
        update = (
            sa.update(table)
            .where(columns.id == sa.bindparam("row"), columns.recorded_at.is_(None))
            .values(recorded_at=sa.bindparam("moment"))
        )
        while True:
            with engine.connect() as connection:
                rows = connection.execute(missing).all()
            if not rows:
                break
            with writing(engine) as connection:
                connection.execute(update, [{"row": number, "moment": in_utc(time)} for number, time in rows])
            converted += len(rows)
    return converted


def in_utc(written: Any) -> str:
    """Return a time that another program wrote as the store writes times; :data:`UNREADABLE` where it is none."""
    try:
        moment = datetime.fromisoformat(written)
        return timestamp_of(moment if moment.tzinfo is not None else moment.replace(fold=1))
    except (TypeError, ValueError, OverflowError, OSError):
        return UNREADABLE

"""The stretch of time over which something is measured."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement

from acclimate.errors import ConfigError
from acclimate.monitoring.schema import timestamp_of

#: A century. A longer window is a typing error, and would begin before the first date that Python can represent.
LONGEST_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of time.

    Attributes:
        since: its beginning, included.
        until: its end, excluded; None for no end.
    """

    since: datetime
    until: datetime | None = None

    @classmethod
    def last(cls, *, days: float = 0.0, hours: float = 0.0) -> Window:
        """Return the window of this length that ends now.

        Raises:
            ConfigError: the length is not above 0, or above :data:`LONGEST_DAYS`.
        """
        total = days + hours / 24
        if not 0 < total <= LONGEST_DAYS:
            raise ConfigError(
                f"a window must be longer than 0 and at most {LONGEST_DAYS} days, got {total:g} days; give such as 7"
            )
        return cls(since=datetime.now(UTC) - timedelta(days=total))

    def of(self, column: ColumnElement[str]) -> ColumnElement[bool]:
        """Return the condition that the time in ``column`` lies in the window."""
        inside = column >= timestamp_of(self.since)
        return inside if self.until is None else inside & (column < timestamp_of(self.until))

    def by_day(self) -> list[tuple[str, Window]]:
        """Return the part of the window in each day (UTC), with the day's ISO date, in order."""
        since = self.since.astimezone(UTC)
        end = (self.until or datetime.now(UTC)).astimezone(UTC)
        parts = []
        while since < end:
            midnight = datetime(since.year, since.month, since.day, tzinfo=UTC) + timedelta(days=1)
            # The last part of a window without an end has none either.
            until = midnight if midnight < end else self.until
            parts.append((since.date().isoformat(), Window(since=since, until=until)))
            since = midnight
        return parts

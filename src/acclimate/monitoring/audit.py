"""The audit log, append-only: who adapted what, when, with which settings, and with which outcome; never content.

Each entry holds the hash of the entry before it, so that a changed or removed entry is detected. The database refuses
updates and deletions. Only retention removes entries, the oldest first, and appends an entry that records it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.monitoring.schema import audit_log, audit_retention, timestamp_of

#: The ``previous_hash`` of the first entry.
FIRST: Final = "0" * 64
#: The action of the entry that retention appends.
RETENTION: Final = "audit retention"
_HASHED: Final = ("timestamp", "actor", "action", "subject", "settings", "outcome", "previous_hash")
#: Key of the PostgreSQL advisory lock under which one entry is appended at a time.
_LOCK: Final = 7_411_280

FaultCode = Literal["changed", "missing_before", "broken_chain"]
_FAULTS: Final[Mapping[FaultCode, str]] = {
    "changed": "was changed after it was written",
    "missing_before": "entries before it are missing, and no retention entry accounts for them",
    "broken_chain": "does not follow the entry before it",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in the log.

    Attributes:
        entry: the number of the entry.
        code: ``changed``: the entry does not match its own hash; ``missing_before``: the first entry refers to an
            earlier one that no retention removed; ``broken_chain``: it does not refer to the entry before it.
    """

    entry: int
    code: FaultCode

    @property
    def what(self) -> str:
        """The fault in words."""
        return _FAULTS[self.code]


def append(
    connection: Connection,
    *,
    actor: str,
    action: str,
    settings: Mapping[str, Any],
    outcome: str,
    subject: str | None = None,
    moment: str | None = None,
) -> None:
    """Append an entry, in the same transaction as the rows that it describes.

    Args:
        connection: in a transaction that writes.
        actor: who did it.
        action: what was done.
        settings: plain values; never text of requests.
        outcome: its result.
        subject: the request it belongs to.
        moment: when, as the store writes times; None for now.
    """
    _lock_log(connection)
    last = sa.select(audit_log.c.entry_hash).order_by(audit_log.c.id.desc()).limit(1)
    entry = {
        "timestamp": moment or timestamp_of(),
        "actor": actor,
        "action": action,
        "subject": subject,
        "settings": json.dumps(dict(settings), sort_keys=True, default=str),
        "outcome": outcome,
        "previous_hash": connection.execute(last).scalar() or FIRST,
    }
    connection.execute(sa.insert(audit_log).values(**entry, entry_hash=_digest(entry)))


def verify(connection: Connection) -> Iterator[Fault]:
    """Yield every fault: entries that were changed, and places where entries are missing."""
    expected: str | None = None
    for row in connection.execute(sa.select(audit_log).order_by(audit_log.c.id)).mappings():
        entry = {name: row[name] for name in _HASHED}
        if _digest(entry) != row["entry_hash"]:
            yield Fault(row["id"], "changed")
        if expected is None and row["previous_hash"] != FIRST and not _was_retained(connection, row["previous_hash"]):
            yield Fault(row["id"], "missing_before")
        if expected is not None and row["previous_hash"] != expected:
            yield Fault(row["id"], "broken_chain")
        expected = row["entry_hash"]


def entries(connection: Connection, *, limit: int = 50) -> list[dict[str, Any]]:
    """Return the newest entries, the newest first."""
    rows = connection.execute(sa.select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)).mappings()
    return [dict(row) | {"settings": json.loads(row["settings"])} for row in rows]


def remove_before(connection: Connection, cutoff: str, *, actor: str) -> int:
    """Remove the entries older than ``cutoff``, append one that records it, and return how many were removed."""
    _lock_log(connection)
    oldest_kept = sa.select(sa.func.min(audit_log.c.id)).where(audit_log.c.timestamp >= cutoff)
    boundary = connection.execute(oldest_kept).scalar()
    # Only a run of entries from the beginning is removed: the rest must stay a chain.
    old = sa.true() if boundary is None else audit_log.c.id < boundary
    last = connection.execute(
        sa.select(audit_log.c.entry_hash).where(old).order_by(audit_log.c.id.desc()).limit(1)
    ).scalar()
    if last is None:
        return 0
    append(connection, actor=actor, action=RETENTION, settings={"before": cutoff, "last_hash": last}, outcome="removed")
    if boundary is None:
        boundary = connection.execute(sa.select(sa.func.max(audit_log.c.id))).scalar_one()
    connection.execute(sa.insert(audit_retention).values(allowed=1))
    removed = connection.execute(sa.delete(audit_log).where(audit_log.c.id < boundary)).rowcount
    connection.execute(sa.delete(audit_retention))
    return removed


def _lock_log(connection: Connection) -> None:
    # In SQLite there is only one transaction that writes at any time.
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def _was_retained(connection: Connection, last_hash: str) -> bool:
    rows = connection.execute(sa.select(audit_log.c.settings).where(audit_log.c.action == RETENTION)).scalars()
    return any(json.loads(settings).get("last_hash") == last_hash for settings in rows)


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([entry[name] for name in _HASHED]).encode()).hexdigest()

"""An append-only log of every adaptation: who, when, with which settings, what came of it. Never content.

Each entry holds the hash of the one before it, so that an entry that was changed or taken out shows. The database
refuses updates and deletions; retention alone removes the oldest entries, and says so in an entry of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.monitoring.schema import audit_log, audit_retention, timestamp_of

#: What the first entry says came before it.
FIRST: Final = "0" * 64
RETENTION: Final = "audit retention"
_HASHED: Final = ("timestamp", "actor", "action", "subject", "settings", "outcome", "previous_hash")
#: Key of PostgreSQL's advisory lock: one entry is appended at a time.
_LOCK: Final = 7_411_280


@dataclass(frozen=True, slots=True)
class Fault:
    """An entry that is not what was written.

    Attributes:
        entry: its number.
        what: is wrong.
    """

    entry: int
    what: str


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
    """Append an entry, inside the transaction of what it tells of.

    Args:
        connection: inside a transaction that writes.
        actor: who.
        action: what was done.
        settings: plain values; give no text of requests.
        outcome: what came of it.
        subject: the request it belongs to.
        moment: when, as the store writes times.
    """
    _take_turns(connection)
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
    """Yield every entry that was changed, and every place where entries are missing."""
    expected: str | None = None
    for row in connection.execute(sa.select(audit_log).order_by(audit_log.c.id)).mappings():
        entry = {name: row[name] for name in _HASHED}
        if _digest(entry) != row["entry_hash"]:
            yield Fault(row["id"], "was changed after it was written")
        if expected is None and row["previous_hash"] != FIRST and not _was_retained(connection, row["previous_hash"]):
            yield Fault(row["id"], "entries before it are missing, and no retention tells of them")
        if expected is not None and row["previous_hash"] != expected:
            yield Fault(row["id"], "does not follow the entry before it")
        expected = row["entry_hash"]


def entries(connection: Connection, *, limit: int = 50) -> list[dict[str, Any]]:
    """Return the newest entries, the newest first."""
    rows = connection.execute(sa.select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)).mappings()
    return [dict(row) | {"settings": json.loads(row["settings"])} for row in rows]


def remove_before(connection: Connection, cutoff: str, *, actor: str) -> int:
    """Remove the entries from before ``cutoff``, append one that says so, and return how many they were."""
    _take_turns(connection)
    oldest_kept = sa.select(sa.func.min(audit_log.c.id)).where(audit_log.c.timestamp >= cutoff)
    boundary = connection.execute(oldest_kept).scalar()
    # Only a run from the beginning may go: what is left must stay a chain.
    gone = sa.true() if boundary is None else audit_log.c.id < boundary
    last = connection.execute(
        sa.select(audit_log.c.entry_hash).where(gone).order_by(audit_log.c.id.desc()).limit(1)
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


def _take_turns(connection: Connection) -> None:
    # SQLite's transactions that write exclude each other anyway.
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def _was_retained(connection: Connection, last_hash: str) -> bool:
    rows = connection.execute(sa.select(audit_log.c.settings).where(audit_log.c.action == RETENTION)).scalars()
    return any(json.loads(settings).get("last_hash") == last_hash for settings in rows)


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([entry[name] for name in _HASHED]).encode()).hexdigest()

"""The audit log, append-only: who adapted what, when, with which settings, and with which outcome; never content.

Each entry holds the hash of the entry before it, so that a changed or removed entry is detected. The number of entries
and the hash of the newest are kept beside the log, in ``audit_anchor``, so that a log that was cut off or emptied is
detected too; and every recorded adaptation must have an entry. The database refuses updates and deletions. Only
retention removes entries, the oldest first, and appends an entry that records it.

Who can change the whole database can change log, anchor and requests together. Against that, keep what
:func:`newest` returns in another place, from time to time.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from acclimate.json_values import from_json
from acclimate.monitoring.schema import audit_anchor, audit_log, audit_retention, requests, timestamp_of

#: The ``previous_hash`` of the first entry.
FIRST: Final = "0" * 64
#: The action of the entry that retention appends.
RETENTION: Final = "audit retention"
_HASHED: Final = ("timestamp", "actor", "action", "subject", "settings", "outcome", "previous_hash")
#: Key of the PostgreSQL advisory lock under which one entry is appended at a time.
_LOCK: Final = 7_411_280

FaultCode = Literal["changed", "malformed", "missing_before", "broken_chain", "missing_after", "no_anchor", "no_entry"]
_FAULTS: Final[Mapping[FaultCode, str]] = {
    "changed": "was changed after it was written",
    "malformed": "cannot be read",
    "missing_before": "entries before it are missing, and no retention entry accounts for them",
    "broken_chain": "does not follow the entry before it",
    "missing_after": "entries are missing",
    "no_anchor": "the number of entries and the hash of the newest are missing from audit_anchor",
    "no_entry": "adaptations that were recorded have no entry",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in the log.

    Attributes:
        entry: the number of the entry; None for a fault of the log as a whole.
        code: ``changed``: the entry does not match its own hash; ``malformed``: a value of it is no text, or its
            settings are no JSON object; ``missing_before``: the first entry refers to an earlier one that no retention
            removed; ``broken_chain``: it does not refer to the entry before it; ``missing_after``: the log has another
            end or number of entries than its anchor; ``no_anchor``: the anchor is missing; ``no_entry``: adaptations
            were recorded that have no entry.
        detail: further words.
    """

    entry: int | None
    code: FaultCode
    detail: str = ""

    @property
    def what(self) -> str:
        """The fault in words."""
        return _FAULTS[self.code] + (f": {self.detail}" if self.detail else "")

    @property
    def line(self) -> str:
        """The entry and its fault in one line."""
        return self.what if self.entry is None else f"entry {self.entry} {self.what}"


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
    digest = _digest(entry)
    connection.execute(sa.insert(audit_log).values(**entry, entry_hash=digest))
    # A missing anchor is not made anew: it is a finding.
    connection.execute(sa.update(audit_anchor).values(entries=audit_anchor.c.entries + 1, head=digest))


def verify(connection: Connection) -> Iterator[Fault]:
    """Yield every fault: entries that were changed or cannot be read, and places where entries are missing.

    The end of the log and the recorded requests are compared where the entries themselves show no fault.
    """
    faults = 0
    for fault in _faults_of_entries(connection):
        faults += 1
        yield fault
    if not faults:
        yield from _faults_of_the_whole(connection)


def newest(connection: Connection) -> tuple[int, str]:
    """Return the number of entries and the hash of the newest one, as read from the log itself."""
    count = connection.execute(sa.select(sa.func.count()).select_from(audit_log)).scalar_one()
    head = sa.select(audit_log.c.entry_hash).order_by(audit_log.c.id.desc()).limit(1)
    return count, str(connection.execute(head).scalar() or FIRST)


def _faults_of_entries(connection: Connection) -> Iterator[Fault]:
    expected: str | None = None
    with _lenient(connection):
        for row in connection.execute(sa.select(audit_log).order_by(audit_log.c.id)).mappings():
            entry = {name: row[name] for name in _HASHED}
            if why := _malformed(row):
                yield Fault(row["id"], "malformed", why)
            elif _digest(entry) != row["entry_hash"]:
                yield Fault(row["id"], "changed")
            if expected is None and row["previous_hash"] != FIRST and not _was_retained(connection, row):
                yield Fault(row["id"], "missing_before")
            if expected is not None and row["previous_hash"] != expected:
                yield Fault(row["id"], "broken_chain")
            expected = row["entry_hash"]


def _faults_of_the_whole(connection: Connection) -> Iterator[Fault]:
    count, head = newest(connection)
    anchors = connection.execute(sa.select(audit_anchor.c.entries, audit_anchor.c.head)).all()
    if len(anchors) != 1:
        yield Fault(None, "no_anchor")
    elif (count, head) != tuple(anchors[0]):
        yield Fault(None, "missing_after", f"the log has {count} and should have {anchors[0].entries}")
    # Requests of before the last retention may have lost their entries to it.
    since = max((str(settings.get("before") or "") for settings in _retentions(connection)), default="")
    logged = sa.select(audit_log.c.subject).where(audit_log.c.subject.is_not(None))
    without = sa.select(requests.c.request_id).where(
        requests.c.status != "plain", requests.c.timestamp >= since, requests.c.request_id.not_in(logged)
    )
    missing = connection.execute(sa.select(sa.func.count()).select_from(without.subquery())).scalar_one()
    if missing:
        example = connection.execute(without.order_by(requests.c.timestamp).limit(1)).scalar_one()
        yield Fault(None, "no_entry", f"{missing}, the first is request {example}")


def entries(connection: Connection, *, limit: int = 50) -> list[dict[str, Any]]:
    """Return the newest entries, the newest first; settings that cannot be read stay text."""
    with _lenient(connection):
        rows = connection.execute(sa.select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)).mappings().all()
    found = []
    for row in rows:
        settings = _object(row["settings"])
        found.append(dict(row) | {"settings": row["settings"] if settings is None else settings})
    return found


def remove_before(connection: Connection, cutoff: str, *, actor: str) -> int:
    """Remove the entries older than ``cutoff``, append one that records it, and return how many were removed.

    In PostgreSQL others append to the log while entries are removed, and wait only for the last step.
    """
    oldest_kept = sa.select(sa.func.min(audit_log.c.id)).where(audit_log.c.timestamp >= cutoff)
    boundary = connection.execute(oldest_kept).scalar()
    # Only a run of entries from the beginning is removed: the rest must stay a chain.
    old = sa.true() if boundary is None else audit_log.c.id < boundary
    newest_old = sa.select(audit_log.c.id, audit_log.c.entry_hash).where(old).order_by(audit_log.c.id.desc()).limit(1)
    found = connection.execute(newest_old).first()
    if found is None:
        return 0
    connection.execute(sa.insert(audit_retention).values(allowed=1))
    removed = connection.execute(sa.delete(audit_log).where(audit_log.c.id < found.id)).rowcount
    _lock_log(connection)
    # The newest of the old entries goes last: the entry that records this follows the one that stands before it.
    if connection.execute(sa.select(audit_log.c.id).where(audit_log.c.id == found.id)).first() is not None:
        settings = {"before": cutoff, "last_hash": found.entry_hash}
        append(connection, actor=actor, action=RETENTION, settings=settings, outcome="removed")
        removed += connection.execute(sa.delete(audit_log).where(audit_log.c.id == found.id)).rowcount
        connection.execute(sa.update(audit_anchor).values(entries=audit_anchor.c.entries - removed))
    connection.execute(sa.delete(audit_retention))
    return removed


def _lock_log(connection: Connection) -> None:
    # In SQLite there is only one transaction that writes at any time.
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def _was_retained(connection: Connection, row: Mapping[Any, Any]) -> bool:
    return any(settings.get("last_hash") == row["previous_hash"] for settings in _retentions(connection))


def _retentions(connection: Connection) -> list[dict[str, Any]]:
    """Return the settings of the entries that retention appended."""
    rows = connection.execute(sa.select(audit_log.c.settings).where(audit_log.c.action == RETENTION)).scalars()
    return [settings for text in rows if (settings := _object(text)) is not None]


def _object(text: Any) -> dict[str, Any] | None:
    """Return a JSON object; None for everything else."""
    try:
        found = from_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _malformed(row: Mapping[Any, Any]) -> str | None:
    """Return why an entry cannot be read, or None."""
    for name in (*_HASHED, "entry_hash"):
        if not isinstance(row[name], str) and not (name == "subject" and row[name] is None):
            return f"{name} is no text"
    return None if _object(row["settings"]) is not None else "settings are no JSON object"


@contextmanager
def _lenient(connection: Connection) -> Iterator[None]:
    """Read text that is no UTF-8 with replacement characters, in SQLite, which may hold such text."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        yield
        return
    driver.text_factory = lambda content: content.decode("utf-8", "replace")
    try:
        yield
    finally:
        driver.text_factory = str


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([entry[name] for name in _HASHED]).encode()).hexdigest()

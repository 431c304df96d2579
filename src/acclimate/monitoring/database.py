"""The database of the store: SQLite by default, PostgreSQL by URL; connections, transactions and upgrades."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from acclimate.errors import ConfigError, StoreError, first_line
from acclimate.monitoring.schema import HEAD

_LOG = logging.getLogger(__name__)
DEFAULT_DATABASE: Final = Path("logs/ttt_metrics.db")
DATABASE_VARIABLE: Final = "ACCLIMATE_DB_URL"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: Key of the PostgreSQL advisory lock under which tables are made.
_MIGRATION_LOCK: Final = 7_411_279
#: Primary codes: BUSY, LOCKED, PROTOCOL (a race between processes that open a file in WAL mode).
_SQLITE_TRANSIENT: Final = frozenset({5, 6, 15})
#: Beginnings of SQLSTATE codes: connection lost, deadlock or serialization failure, too many connections, server
#: starting up or shutting down.
_POSTGRESQL_TRANSIENT: Final = ("08", "40", "53300", "57P01", "57P02", "57P03", "57P05")
#: Parts of libpq's messages about connections that no patience brings about.
_POSTGRESQL_PERMANENT: Final = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "could not translate host name",
    "failed to resolve host",
    "no pg_hba.conf entry",
    "invalid",
    "permission denied",
)
#: For how long SQLite waits for another connection's lock before it reports an error.
BUSY_TIMEOUT_S: Final = 5.0
#: For how long opening a store waits for other processes and for a server that starts up.
OPENING_PATIENCE_S: Final = 60.0
#: For how long it waits for a server that refuses connections.
REFUSED_PATIENCE_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


def database_url(given: str | Path | None = None) -> sa.URL:
    """Return the URL of the store.

    Args:
        given: a path, or a URL of SQLAlchemy; None takes ``ACCLIMATE_DB_URL``, or ``logs/ttt_metrics.db``.

    Raises:
        ConfigError: it is neither SQLite nor PostgreSQL, or not a URL, or empty, or a folder.
    """
    text = str(given if given is not None else os.environ.get(DATABASE_VARIABLE) or DEFAULT_DATABASE)
    # SQLite takes an empty name for a private database that is deleted when it is closed.
    if not text.strip():
        raise ConfigError(f"the name of the metrics store is empty: {text!r}; give a path or a postgresql:// URL")
    if "://" not in text:
        return sa.URL.create("sqlite", database=text)
    try:
        url = sa.make_url(text)
    except SQLAlchemyError as error:
        raise ConfigError(f"{text!r} is not a database URL: {first_line(error)}") from error
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite":
        if not url.database:
            raise ConfigError(f"{text!r} names no file; give sqlite:///PATH, or the path alone")
        return url
    raise ConfigError(f"{url.drivername!r} is not supported; give a path (SQLite) or a postgresql:// URL")


def make_engine(url: sa.URL) -> Engine:
    """Return an engine for ``url``; the folder of a SQLite file is made.

    Raises:
        StoreError: the folder cannot be made.
    """
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        try:
            if Path(url.database).is_dir():
                raise StoreError(f"cannot open the metrics store {url.database}: it is a folder; name a file in it")
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else first_line(error)
            raise StoreError(f"cannot make the folder of {url.database!r}: {why}") from error
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:
        # The listener below begins transactions: reads do not wait for a writer, and writes take their lock at once.
        connection.isolation_level = None
        _use_wal(connection)
        # A committed row survives a power failure, not only a crash of the process.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # Deleted rows are overwritten, so that they cannot be recovered from the file.
        connection.execute("PRAGMA secure_delete=ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to a write-ahead log. SQLite does not wait by itself where several processes do so at once."""
    deadline = time.monotonic() + OPENING_PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _SQLITE_TRANSIENT or time.monotonic() >= deadline:
                raise
        time.sleep(_FIRST_PAUSE_S)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes; it is committed at the end of the block, or rolled back on an exception."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def upgrade(engine: Engine, revision: str = HEAD, *, patience_s: float = OPENING_PATIENCE_S) -> None:
    """Upgrade the tables to ``revision``; a database that has only the deployment guidelines' tables is taken over.

    Args:
        engine: of the database.
        revision: to upgrade to.
        patience_s: for how long opening is tried again while another process upgrades the tables, or PostgreSQL starts
            up. A server that refuses connections may be about to start, or be another address: it is waited for at most
            :data:`REFUSED_PATIENCE_S`.

    Raises:
        StoreError: the database cannot be opened, or was written by a newer version.
    """
    began, pause = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            _upgrade_once(engine, revision)
            return
        except DBAPIError as error:
            limit = min(patience_s, REFUSED_PATIENCE_S) if _is_refused(error) else patience_s
            if not is_transient(error) or time.monotonic() - began + pause > limit:
                raise StoreError(
                    f"cannot open the metrics store {engine.url.render_as_string()}: {reason_of(error)}; give another "
                    f"by {DATABASE_VARIABLE}"
                ) from error
            _LOG.debug("the metrics store cannot be opened yet: %s", reason_of(error))
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE_S, 2 * pause)


def _upgrade_once(engine: Engine, revision: str) -> None:
    with engine.connect() as connection:
        if _revision(connection) == revision:
            return
    # Before the lock is taken: it takes 0.4 CPU seconds, for which every other process would wait. Most starts find the
    # tables up to date and do not need it.
    from alembic import command  # noqa: F401
    from alembic.config import Config  # noqa: F401

    # One transaction for everything: of two processes that start together, the second finds the tables upgraded.
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        found = _revision(connection)
        if found != revision:
            _migrate(connection, revision, found)


def _is_refused(error: DBAPIError) -> bool:
    # Nobody listens at the address, or there is no socket; libpq has no code for either.
    return any(words in str(error.orig) for words in ("Connection refused", "No such file or directory"))


def is_transient(error: BaseException) -> bool:
    """Return whether a database fault passes by itself, so that trying again may help.

    Transient are a lock that another process holds, a lost connection, a server that starts up or has no connection
    left, and a deadlock. A full disk, a read-only file or folder, a damaged file, a wrong password and a missing
    database are not.
    """
    if not isinstance(error, DBAPIError):
        return False
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # Extended codes have the primary one in their low byte. Errors of the module itself have no code.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_TRANSIENT
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_POSTGRESQL_TRANSIENT)
    if not isinstance(error, OperationalError):
        return error.connection_invalidated
    # While a connection is made libpq gives a message, and no code.
    return not any(words in str(cause) for words in _POSTGRESQL_PERMANENT)


def reason_of(error: SQLAlchemyError) -> str:
    """Return the first line of the database driver's message."""
    return first_line(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else first_line(error)


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _migrate(connection: Connection, revision: str, found: str | None) -> None:
    # Imported before the lock was taken; see _upgrade_once.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise StoreError(
            f"the metrics store has version {found!r}, which this acclimate does not know; upgrade acclimate"
        ) from error

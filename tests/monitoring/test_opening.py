"""Opening a store: many processes at once, faults that pass, and faults that do not and are told at once."""

from __future__ import annotations

import os
import pwd
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from acclimate.cli.main import main
from acclimate.errors import ConfigError, StoreError
from acclimate.monitoring import Store, schema
from acclimate.monitoring.database import is_transient
from tests import preloaded
from tests.monitoring.databases import fill, free_port, postgresql_binaries

#: Opens a store as soon as the file ``go`` is there, and records one request.
OPENER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from acclimate.monitoring import Store
from tests.monitoring.databases import fill
Path(sys.argv[2]).touch()
while not Path({go!r}).exists():
    time.sleep(0.001)
with Store(sys.argv[1]) as store:
    fill(store, 1)
"""


def test_eight_processes_open_a_new_store_at_once(database: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = OPENER.format(root=str(Path(__file__).parents[2]), go=str(go))
    ready = [tmp_path / f"ready{number}" for number in range(8)]
    told = (tmp_path / "errors").open("w+")
    processes = [preloaded.start(database, str(path), code=code, stderr=told) for path in ready]
    deadline = time.monotonic() + 240
    while not all(path.exists() for path in ready) and time.monotonic() < deadline:
        time.sleep(0.05)
    go.touch()
    codes = [process.wait(240) for process in processes]
    assert codes == [0] * 8, (tmp_path / "errors").read_text()
    told.close()
    with Store(database) as store, store.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.requests)).scalar_one() == 8


def test_the_lock_of_an_upgrade_is_not_held_while_modules_are_imported(tmp_path: Path) -> None:
    code = f"""
import sys
import sqlalchemy as sa
from acclimate.monitoring import database
engine = database.make_engine(database.database_url({str(tmp_path / "m.db")!r}))
@sa.event.listens_for(engine, "begin")
def begin(connection):
    if connection.get_execution_options().get("writes"):
        print("alembic.command" in sys.modules)
database.upgrade(engine)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_a_store_that_another_process_upgrades_for_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.monitoring.database.BUSY_TIMEOUT_S", 0.5)
    blocker = sqlite3.connect(tmp_path / "m.db", isolation_level=None, check_same_thread=False)
    blocker.execute("PRAGMA journal_mode=WAL")
    blocker.execute("BEGIN IMMEDIATE")
    # Longer than SQLite itself waits for a lock.
    timer = threading.Timer(1.5, lambda: blocker.execute("COMMIT"))
    timer.start()
    with Store(tmp_path / "m.db") as store:
        fill(store, 1)
    timer.join()
    blocker.close()
    assert store.losses.total == 0


def test_counters_of_a_crash_that_cannot_be_written_now_are_kept_for_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.monitoring.database.BUSY_TIMEOUT_S", 0.1)
    Store(tmp_path / "m.db").close()
    folder = tmp_path / "m.db.writers"
    folder.mkdir(exist_ok=True)
    left = folder / "dead.rows"
    left.write_bytes(struct.pack("<QQ", 7, 0))
    blocker = sqlite3.connect(tmp_path / "m.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with Store(tmp_path / "m.db") as store:
        assert store.lost_before == 0
    assert "could not be counted yet" in caplog.text
    assert left.exists()
    blocker.execute("ROLLBACK")
    blocker.close()
    with Store(tmp_path / "m.db") as store:
        assert store.lost_before == 7


@pytest.mark.parametrize("name", ["", "  ", "sqlite://", "sqlite:///"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is empty|names no file"):
        Store(name)
    for command in (["health"], ["experiment", "create", "e"], ["audit"], ["maintain"]):
        done = CliRunner().invoke(main, [*command, "--db", name])
        assert done.exit_code == 2
        assert "is empty" in done.stderr or "names no file" in done.stderr


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="it is a folder; name a file in it"):
        Store(tmp_path)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run as a user who may not write to root's folders; other users are none already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_store_is_known_at_once(caplog: pytest.LogCaptureFixture) -> None:
    # Below a folder that others may enter, unlike pytest's.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.db"
        with Store(path, retry_timeout_s=600.0) as store:
            fill(store, 1)
            store.flush()
            store.engine.dispose()
            path.chmod(0o444)
            Path(folder).chmod(0o555)
            began = time.monotonic()
            try:
                with as_nobody():
                    fill(store, 3)
                    store.flush()
                    assert store.losses.write_failed == 3
                    with pytest.raises(StoreError, match=r"cannot open the metrics store .*readonly database"):
                        Store(path)
                    with pytest.raises(StoreError, match=r"cannot open the metrics store .*unable to open"):
                        Store(Path(folder) / "new.db")
                assert time.monotonic() - began < 240, "it is not retried"
            finally:
                Path(folder).chmod(0o755)
                path.chmod(0o644)
    assert "the database cannot be written: attempt to write a readonly database" in caplog.text


def test_a_full_disk_is_known_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(tmp_path / "m.db", retry_timeout_s=600.0) as store:
        fill(store, 1)
        store.flush()
        with store.reading() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

        @sa.event.listens_for(store.engine, "checkout")
        def limit(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute(f"PRAGMA max_page_count={pages}")

        began = time.monotonic()
        fill(store, 800)
        store.flush()
        assert store.losses.write_failed > 0
        assert time.monotonic() - began < 240, "a batch that cannot be written is not retried"


def error_response(code: str, text: str) -> bytes:
    """PostgreSQL's answer to a client that it does not take yet."""
    body = b"SFATAL\0VFATAL\0C" + code.encode() + b"\0M" + text.encode() + b"\0\0"
    return b"E" + struct.pack("!I", 4 + len(body)) + body


def starting_up(port: int, seconds: float) -> None:
    """Answer on ``port`` as a server does that is starting up."""
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(0.1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            with client:
                client.settimeout(5)
                while client.recv(8)[4:8] in (struct.pack("!I", 80877103), struct.pack("!I", 80877104)):
                    client.sendall(b"N")
                client.sendall(error_response("57P03", "the database system is starting up"))


def test_a_postgresql_that_starts_up_is_waited_for(postgresql_server: str, tmp_path: Path) -> None:
    """A server that first refuses connections, then says that it starts up, and then takes them."""
    real = int(postgresql_server.rsplit(":", 1)[1].split("/")[0])
    port, seen = free_port(), []

    def serve() -> None:
        time.sleep(1.0)
        starting_up(port, 3.0)
        seen.append("started")
        with socket.create_server(("127.0.0.1", port)) as server:
            for _ in range(20):
                client, _address = server.accept()
                threading.Thread(target=relay, args=(client, real), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    name = f"t{os.urandom(8).hex()}"
    engine = sa.create_engine(
        postgresql_server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    with Store(f"postgresql://tester@127.0.0.1:{port}/{name}?gssencmode=disable") as store:
        assert seen == ["started"]
        fill(store, 1)
        store.flush()
        assert store.losses.total == 0


def relay(client: socket.socket, port: int) -> None:
    """Pass on what ``client`` and the server on ``port`` say to each other."""
    server = socket.create_connection(("127.0.0.1", port))

    def copy(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    threading.Thread(target=copy, args=(server, client), daemon=True).start()
    copy(client, server)


@pytest.mark.skipif(postgresql_binaries() is None, reason="PostgreSQL is not installed")
def test_what_no_patience_brings_about_is_known_at_once(
    postgresql_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.monitoring.database.REFUSED_PATIENCE_S", 0.5)
    server = postgresql_server.rsplit("/", 1)[0]
    for url, why in (
        (f"{server}/nothing", "does not exist"),
        (server.replace("tester@", "nobody@") + "/postgres", "does not exist"),
        ("postgresql://tester@host.invalid/x", "resolve host|translate host"),
    ):
        began = time.monotonic()
        with pytest.raises(StoreError, match=why):
            Store(url)
        assert time.monotonic() - began < 30, "it is not tried for a minute"
    began = time.monotonic()
    with pytest.raises(StoreError, match="Connection refused"):
        Store(f"postgresql://tester@127.0.0.1:{free_port()}/x")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("code", "transient"),
    [
        (sqlite3.SQLITE_BUSY, True),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, True),
        (sqlite3.SQLITE_LOCKED, True),
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_READONLY_DIRECTORY, False),
        (sqlite3.SQLITE_CANTOPEN, False),
        (sqlite3.SQLITE_IOERR_WRITE, False),
        (sqlite3.SQLITE_CORRUPT, False),
    ],
)
def test_faults_of_sqlite_that_pass(code: int, transient: bool) -> None:
    cause = sqlite3.OperationalError("x")
    cause.sqlite_errorcode = code
    assert is_transient(sa.exc.OperationalError("x", {}, cause)) == transient

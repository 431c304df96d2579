"""A real PostgreSQL for tests, started by them; and rows to fill a store with."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from acclimate.monitoring import RequestRecord, Store


def postgresql_binaries() -> Path | None:
    """Return the folder of initdb and pg_ctl, the newest version's, or None."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name.split(".")[0]))
    return folders[-1] if folders else None


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Start a server in ``folder`` and yield the URL of its database."""
    binaries = postgresql_binaries()
    assert binaries is not None
    data = folder / "data"
    as_user: list[str] = []
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        for parent in (folder, *folder.parents):
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        as_user = ["runuser", "-u", "postgres", "--"]
    run = {"capture_output": True, "cwd": "/", "text": True}
    made = subprocess.run([*as_user, str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "tester"], **run)  # type: ignore[call-overload]
    assert made.returncode == 0, made.stderr
    control, log = [*as_user, str(binaries / "pg_ctl"), "-D", str(data), "-w", "-t", "600"], data / "log"
    for _ in range(5):
        port = free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        # Another process may take the port before the server does; then another one is tried.
        started = subprocess.run([*control, "-o", options, "-l", str(log), "start"], **run)  # type: ignore[call-overload]
        if started.returncode == 0:
            break
    else:
        raise RuntimeError(f"PostgreSQL did not start: {started.stderr}\n{log.read_text()}")
    try:
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        # It is no error if the server has stopped already.
        stop = [*as_user, str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"]
        subprocess.run(stop, capture_output=True, cwd="/", check=False)


def restart(folder: Path) -> None:
    """Stop the server in ``folder`` without letting it finish anything, and start it again."""
    binaries = postgresql_binaries()
    assert binaries is not None
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    data = folder / "data"
    command = [*as_user, str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "-t", "600"]
    done = subprocess.run([*command, "-l", str(data / "log"), "restart"], capture_output=True, cwd="/", text=True)
    assert done.returncode == 0, done.stderr


def request(status: str = "adapted", *, days_ago: float = 0.0, **values: Any) -> RequestRecord:
    """A request to the language pipeline."""
    given: dict[str, Any] = {"session_id": "session", "method": "ttt" if status == "adapted" else "icl"}
    if status == "adapted":
        given |= {"confidence": 0.9, "adaptation_time": 1.0, "training_steps": 8, "convergence_score": 0.9, "rank": 16}
    if status != "plain":
        given |= {"pattern": "io_pairs", "examples_count": 6, "memory_bytes": 20 * 2**20}
    if status in ("declined", "fallback"):
        given["reason"] = "no_held_out_gain" if status == "declined" else "timeout"
    given["timestamp"] = datetime.now(UTC) - timedelta(days=days_ago)
    return RequestRecord(pipeline="language", status=status, **{**given, **values})  # type: ignore[arg-type]


def fill(store: Store, count: int, status: str = "adapted", **values: Any) -> list[str]:
    """Record ``count`` requests and return their names."""
    return [store.record(request(status, **values)) for _ in range(count)]

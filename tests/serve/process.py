"""A server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import preloaded

READY_S = 180.0


@dataclass(frozen=True)
class Server:
    """A server that takes requests.

    Attributes:
        url: without a path.
        process: that it is, a fork of one that has loaded the packages.
        log: what it has written to stderr so far.
    """

    url: str
    process: preloaded.Process
    log: Path

    def end(self, kind: int = signal.SIGTERM, *, timeout_s: float = READY_S) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(kind)
        return self.process.wait(timeout_s)


@contextmanager
def served(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None, before: str = ""
) -> Iterator[Server]:
    """Yield a server of spark, before which some code may run; it is killed in the end if it still runs."""
    log = folder / "serve.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACCLIMATE_SERVE_")}
    command = ["serve", "--model", "spark", "--port", "0", "--threads", "1"]
    with log.open("wb") as file:
        process = preloaded.start(
            *command,
            *("--db", str(folder / "metrics.db"), *arguments),
            code=f"{before}\n{preloaded.COMMAND}",
            stderr=file,
            cwd=folder,
            env=clean | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        )
        try:
            yield Server(_address(process, log), process, log)
        finally:
            process.kill()
            process.wait()


def _address(process: preloaded.Process, log: Path) -> str:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        found = re.search(r"serving .* at (http://\S+)/v1", log.read_text(errors="replace"))
        if found and _answers(found[1]):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def refused(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Return the one line with which a server refuses to start."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACCLIMATE_SERVE_")}
    done = preloaded.run(*arguments, cwd=folder, timeout_s=READY_S, env=clean | (environment or {}))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines: Sequence[str] = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == 1, done.stderr
    return lines[0]

"""Outputs that one process at a time writes."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from acclimate.errors import ConfigError, DataError
from acclimate.output_locks import only_writer

HOLD = """
import sys, time
from pathlib import Path
from acclimate.output_locks import only_writer
with only_writer(Path(sys.argv[1]), "the output"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that runs a script, from when it prints ``held``; it is killed in the end."""
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_a_killed_one_blocks_nobody(tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    with holder(HOLD, str(lock)) as process:
        with (
            pytest.raises(
                ConfigError, match=rf"^process {process.pid} on \S+ is writing my output; wait for it to end"
            ),
            only_writer(lock, "my output"),
        ):
            pass
        assert lock.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock.exists()
        with only_writer(lock, "my output"):
            assert f"process {os.getpid()} on" in lock.read_text()
    assert not lock.exists()


def test_a_second_thread_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    with only_writer(lock, "x"), pytest.raises(ConfigError), only_writer(lock, "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_come_and_go_one_at_a_time_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / ".out.lock"
    inside, most = 0, 0
    count = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        entered = 0
        # How often a thread is refused depends on when the system switches threads; each tries until it had its turns.
        while entered < 50:
            try:
                with only_writer(lock, "x"):
                    with count:
                        inside += 1
                        most = max(most, inside)
                    with count:
                        inside -= 1
                entered += 1
            except ConfigError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), only_writer(tmp_path / ".out.lock", "out.json"):
        pass
    assert "out.json is on a file system without locks (Operation not supported)" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot write .*No such file"), only_writer(tmp_path / "no" / "lock", "x"):
        pass

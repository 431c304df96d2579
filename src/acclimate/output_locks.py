"""One process at a time writes an output on this machine."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from acclimate.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_MOST_OWNER_BYTES: Final = 300


def this_process() -> str:
    """Return how messages name this process."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def only_writer(lock: Path, output: str) -> Iterator[None]:
    """Hold the lock of an output inside the block; its file is gone afterwards.

    The system releases the lock when its process ends, however it ends: the file that a killed one leaves behind
    blocks nobody. Where a file system has no locks, that is logged, and nothing is held.

    Args:
        lock: the file; its folder exists.
        output: what is written, for messages.

    Raises:
        ConfigError: another process, or another thread of this one, holds it.
        DataError: the file cannot be made.
    """
    handle = _locked(lock, output)
    try:
        yield
    finally:
        if handle is not None:
            # While it is held: whoever waits for the name finds that the file behind it is another one.
            with suppress(OSError):
                lock.unlink()
            os.close(handle)


def _locked(lock: Path, output: str) -> int | None:
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DataError(f"cannot write {lock}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, _MOST_OWNER_BYTES, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise ConfigError(f"{owner} is writing {output}; wait for it to end, or choose another output") from None
        except OSError as error:
            os.close(handle)
            lock.unlink(missing_ok=True)
            logger.warning(
                "%s is on a file system without locks (%s): nothing keeps a second export from writing it",
                output, error.strerror,
            )  # fmt: skip
            return None
        if _is_at(lock, handle):
            break
        # Its holder removed it between the two calls.
        os.close(handle)
    # A full disk takes the owner's name only.
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, this_process().encode(), 0)
    return handle


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False

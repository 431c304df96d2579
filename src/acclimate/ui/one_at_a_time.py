"""Work of visitors that is done one after the other, so that it leaves the server its memory and its threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from acclimate.errors import CancelledError
from acclimate.serve.worker import BusyError

#: Who waits holds a thread of the server; further ones are told to come back.
MOST_WAITING: Final = 8
_LOOK_S: Final = 0.2
_RETRY_AFTER_S: Final = 10.0


class OneAtATime:
    """Lets one piece of work run at a time; several threads may use it.

    Args:
        most_waiting: pieces that may wait; further ones are refused.
    """

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._most, self._waiting = most_waiting, 0

    @contextmanager
    def turn(self, cancelled: threading.Event | None = None) -> Iterator[None]:
        """Wait for the turn of this piece of work, which the block is.

        Args:
            cancelled: set by who does not want it any more.

        Raises:
            BusyError: too many wait.
            CancelledError: it was cancelled before its turn came.
        """
        with self._counting:
            if self._waiting >= self._most:
                raise BusyError("too many visitors wait for this; try again in a moment", _RETRY_AFTER_S)
            self._waiting += 1
        try:
            while not self._lock.acquire(timeout=_LOOK_S):
                if cancelled is not None and cancelled.is_set():
                    raise CancelledError("the run was ended before it began")
        finally:
            with self._counting:
                self._waiting -= 1
        try:
            yield
        finally:
            self._lock.release()

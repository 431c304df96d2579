"""How much the open pages of one visitor may hold together, so that no one fills the memory or the disk of all."""

from __future__ import annotations

import threading

from acclimate.errors import DataError


class Allowance:
    """Counts bytes by their owner; several threads may use it.

    Args:
        most_bytes: of one owner.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._lock = most_bytes, threading.Lock()
        self._held: dict[str, int] = {}

    def take(self, owner: str, size: int) -> None:
        """Count bytes that are held from now on.

        Raises:
            DataError: the owner would hold too many.
        """
        with self._lock:
            held = self._held.get(owner, 0)
            if held + size > self._most:
                raise DataError(
                    f"your open pages hold {held / 2**20:.0f} MiB of files, and {self._most / 2**20:.0f} MiB is the "
                    "most; remove some, or close pages"
                )
            self._held[owner] = held + size

    def give_back(self, owner: str, size: int) -> None:
        """Count bytes that are held no longer."""
        with self._lock:
            left = self._held.get(owner, 0) - size
            if left > 0:
                self._held[owner] = left
            else:
                self._held.pop(owner, None)

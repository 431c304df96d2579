"""Counters of queued rows that survive ``kill -9``.

Rows are queued in memory until they are written. Their number is kept in a small memory-mapped file: counting a row is
writing eight bytes, and the kernel keeps what was written to the mapping when the process dies. The next process that
opens the store compares the number with the rows in the database, and so knows how many were lost.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FORMAT: Final = struct.Struct("<QQ")
_SUFFIX: Final = ".rows"


@dataclass(frozen=True, slots=True)
class Leftover:
    """The counters of a process that did not stop cleanly.

    Attributes:
        writer_id: of that process.
        assigned: rows that it queued.
        dropped: of these, rows that it gave up and reported as lost.
        path: of its file.
    """

    writer_id: str
    assigned: int
    dropped: int
    path: Path


class SequenceFile:
    """The counters of one process; one thread at a time may change them.

    Args:
        folder: for the files of all processes of one store; it is created.
        writer_id: names this process.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path, writer_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{writer_id}{_SUFFIX}"
        beginning = self.path.with_suffix(".new")
        self._file = beginning.open("x+b")
        # The lock is held until the process ends, however it ends: another process that gets it knows that this one
        # is gone.
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.write(_FORMAT.pack(0, 0))
        self._file.flush()
        # Only a locked file gets the name that other processes look for.
        beginning.rename(self.path)
        self._map = mmap.mmap(self._file.fileno(), _FORMAT.size)
        self.assigned = self.dropped = 0

    def next(self) -> int:
        """Count a queued row and return its number, from 1."""
        self.assigned += 1
        _FORMAT.pack_into(self._map, 0, self.assigned, self.dropped)
        return self.assigned

    def give_up(self, rows: int = 1) -> None:
        """Count rows that will not be written and were reported as lost."""
        self.dropped += rows
        _FORMAT.pack_into(self._map, 0, self.assigned, self.dropped)

    def close(self) -> None:
        """Remove the file: every row was written or reported as lost."""
        self._map.close()
        self.path.unlink(missing_ok=True)
        self._file.close()


def leftovers(folder: Path) -> Iterator[Leftover]:
    """Yield the counters of processes that are gone; each is yielded to one caller only, and its file is then removed.

    Args:
        folder: of the files of all processes of one store.
    """
    for path in sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else ():
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            content = file.read(_FORMAT.size)
            if not path.exists() or os.fstat(file.fileno()).st_nlink == 0:
                continue
            if len(content) == _FORMAT.size:
                assigned, dropped = _FORMAT.unpack(content)
                yield Leftover(path.name.removesuffix(_SUFFIX), assigned, dropped, path)
            path.unlink(missing_ok=True)

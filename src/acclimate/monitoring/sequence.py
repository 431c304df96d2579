"""How many rows were handed over, kept where ``kill -9`` cannot take it.

Rows wait in memory until they are written. Their count lies in a small file that is mapped into memory: to count one is
to write eight bytes, and what was written to the mapping is in the kernel's hands when the process dies. The next start
compares it with what arrived in the database.
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
    """What a process that did not stop cleanly had counted.

    Attributes:
        writer_id: of that process.
        assigned: rows handed over.
        dropped: of these, rows that were given up and said so.
        path: of its file.
    """

    writer_id: str
    assigned: int
    dropped: int
    path: Path


class SequenceFile:
    """The counters of one process; one thread at a time may change them.

    Args:
        folder: for the files of all processes of one store; it is made.
        writer_id: names this process.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path, writer_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{writer_id}{_SUFFIX}"
        beginning = self.path.with_suffix(".new")
        self._file = beginning.open("x+b")
        # Held until the process ends, however it ends: who can take it knows that the process is gone.
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.write(_FORMAT.pack(0, 0))
        self._file.flush()
        # It gets the name that others look for when it is locked.
        beginning.rename(self.path)
        self._map = mmap.mmap(self._file.fileno(), _FORMAT.size)
        self.assigned = self.dropped = 0

    def next(self) -> int:
        """Count a row that is handed over and return its number, from 1."""
        self.assigned += 1
        _FORMAT.pack_into(self._map, 0, self.assigned, self.dropped)
        return self.assigned

    def give_up(self, rows: int = 1) -> None:
        """Count rows that will not be written and were reported."""
        self.dropped += rows
        _FORMAT.pack_into(self._map, 0, self.assigned, self.dropped)

    def close(self) -> None:
        """Remove the file: everything is accounted for."""
        self._map.close()
        self.path.unlink(missing_ok=True)
        self._file.close()


def leftovers(folder: Path) -> Iterator[Leftover]:
    """Yield what processes that are gone left behind; each is yielded to one caller only, and its file removed after.

    Args:
        folder: of the files.
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

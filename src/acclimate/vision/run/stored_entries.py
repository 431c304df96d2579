"""The entries of a run on disk: a sequence that takes the same memory however long it is."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

from acclimate.vision.models.adapter import Entry


class StoredEntries(Sequence[Entry]):
    """The entries of a run, one line of JSON for each batch; only where each line begins is held in memory.

    Entries can be read, also by another thread, while later ones are added, and as long as this object lives, even
    after its file was deleted.

    Args:
        handle: of a file that is open for reading and writing; it belongs to this object from now on.
        start: where its first line begins; what the file holds behind it is dropped.
    """

    def __init__(self, handle: int, *, start: int = 0) -> None:
        self._handle = handle
        self._close = weakref.finalize(self, os.close, handle)
        self._end = start
        self._line_starts = array("Q")
        self._first_entries = array("Q")
        self._count = 0
        os.ftruncate(handle, start)

    @classmethod
    def temporary(cls) -> Self:
        """Return an empty sequence in a file without a name."""
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @classmethod
    def at(cls, path: Path, head: Iterable[str]) -> Self:
        """Return an empty sequence in a new file at ``path`` that begins with the lines ``head``.

        Raises:
            OSError: the file cannot be written; then there is none.
        """
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        made = cls(handle)
        try:
            for line in head:
                made._write(f"{line}\n".encode())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return made

    @classmethod
    def found(cls, path: Path, start: int) -> Self:
        """Return the entries in a file from position ``start`` on, up to a line that was not written to its end."""
        handle = os.open(path, os.O_RDWR)
        complete: list[tuple[int, int]] = []
        with os.fdopen(os.dup(handle), "rb") as file:
            file.seek(start)
            end = start
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    complete.append((end, len(json.loads(line))))
                except ValueError:
                    break
                end += len(line)
        made = cls(handle, start=end)
        for where, count in complete:
            made._note(where, count)
        return made

    def append(self, batch: Sequence[Entry]) -> None:
        """Add the entries of one batch.

        Raises:
            OSError: the file cannot be written; then the sequence is as it was.
        """
        line = json.dumps(list(batch), allow_nan=False).encode() + b"\n"
        start = self._end
        self._write(line)
        self._note(start, len(batch))

    def _write(self, content: bytes) -> None:
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._handle, content[written:], self._end + written)
        except OSError:
            os.ftruncate(self._handle, self._end)
            raise
        self._end += len(content)

    def _note(self, start: int, count: int) -> None:
        self._line_starts.append(start)
        self._first_entries.append(self._count)
        self._count += count

    def _line(self, number: int) -> list[Entry]:
        start = self._line_starts[number]
        end = self._line_starts[number + 1] if number + 1 < len(self._line_starts) else self._end
        entries: list[Entry] = json.loads(os.pread(self._handle, end - start, start))
        return entries

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        for number in range(len(self._line_starts)):
            yield from self._line(number)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[position] for position in range(self._count)[index]]
        position = range(self._count)[index]
        # Batches without a usable image have empty lines, which begin at the same entry as the next one.
        number = bisect_right(self._first_entries, position) - 1
        return self._line(number)[position - self._first_entries[number]]

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

"""Records of many files in a few bytes each."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload

from acclimate.vision.data.record import Record


class NumberedRecords(Sequence[Record]):
    """Records of files, numbered from 1 in their order; each record is made when it is asked for.

    A record and its path take a quarter of a kibibyte as objects. Data sets of millions of images are kept as the bytes
    of their names instead.

    Args:
        root: the beginning that all paths share; may be empty.
        names: the rest of each path.
    """

    def __init__(self, root: str, names: Iterable[str]) -> None:
        self._root = root
        names_of_all = bytearray()
        self._ends = array("Q")
        for name in names:
            names_of_all += os.fsencode(name)
            self._ends.append(len(names_of_all))
        self._names = bytes(names_of_all)
        self._which = range(len(self._ends))

    def sorted_as_paths(self) -> NumberedRecords:
        """Return the records in the order of their paths, numbered anew, if names are sorted within each folder."""
        if os.fsencode(os.sep) not in self._names:
            return self
        names = [self[position].image.removeprefix(self._root) for position in range(len(self))]
        # Part by part: a folder's images stand before those of "folder-2".
        return NumberedRecords(self._root, sorted(names, key=lambda name: name.replace(os.sep, "\0")))

    def __len__(self) -> int:
        return len(self._which)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> NumberedRecords: ...

    def __getitem__(self, index: int | slice) -> Record | NumberedRecords:
        if isinstance(index, slice):
            part = object.__new__(NumberedRecords)
            part._root, part._ends, part._names = self._root, self._ends, self._names
            part._which = self._which[index]
            return part
        position = self._which[index]
        start = self._ends[position - 1] if position else 0
        return Record(self._root + os.fsdecode(self._names[start : self._ends[position]]), position + 1)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"NumberedRecords({self._root!r}, {len(self)} names)"

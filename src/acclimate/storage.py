"""Files in a folder that an fsspec path names: a local one, one in memory, or one of an object store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from acclimate.errors import DataError, first_line
from acclimate.output_files import write_output

#: What file systems raise: those of object stores have errors of their own libraries, below OSError or not.
_PROBLEMS = (OSError, ValueError, RuntimeError)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a folder.

    Attributes:
        name: below the folder.
        size: in bytes.
        modified: seconds since 1970; 0 where the file system does not say.
    """

    name: str
    size: int
    modified: float


class Folder:
    """A folder for results. Every file is written whole or not at all.

    Args:
        url: of the folder, such as ``/data/out``, ``memory://out`` or ``s3://bucket/out``.
        options: for the file system, such as an ``endpoint_url``.
        private: only the user may read the files, where the file system is a local one.

    Raises:
        DataError: there is no such kind of file system.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, *, private: bool = False) -> None:
        self.url, self._private = url, private
        self._fs, self._root = file_system(url, options)
        self._is_local = "file" in protocols(self._fs)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None where it is not there.

        Raises:
            DataError: it cannot be read.
        """
        try:
            content: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        except _PROBLEMS as error:
            raise DataError(f"{self.url}/{name} cannot be read: {first_line(error)}") from error
        return content

    def write(self, name: str, content: bytes) -> str:
        """Write a file in one step, and return the SHA-256 of its content.

        Raises:
            DataError: it cannot be written.
        """
        if self._is_local:
            write_output(Path(self._path(name)), content, private=self._private)
        else:
            try:
                # One request of an object store, which makes a file visible when all of it has arrived.
                self._fs.pipe_file(self._path(name), content)
            except _PROBLEMS as error:
                raise DataError(f"cannot write {self.url}/{name}: {first_line(error)}") from error
        return hashlib.sha256(content).hexdigest()

    def files(self, below: str) -> list[StoredFile]:
        """Return the files directly in a folder of this folder; none where it does not exist.

        Args:
            below: the folder.

        Raises:
            DataError: it cannot be read.
        """
        path = self._path(below)
        try:
            # What another process has written since is wanted, not what was listed before.
            self._fs.invalidate_cache(path)
            found = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        except _PROBLEMS as error:
            raise DataError(f"{self.url}/{below} cannot be read: {first_line(error)}") from error
        return [
            StoredFile(f"{below}/{str(entry['name']).rpartition('/')[2]}", int(entry["size"] or 0), _modified(entry))
            for entry in found
            if entry["type"] == "file"
        ]

    def remove(self, name: str) -> None:
        """Remove a file that nothing refers to; where that fails it stays."""
        try:
            self._fs.rm_file(self._path(name))
        except _PROBLEMS:
            return

    @property
    def is_shared(self) -> bool:
        """Whether other processes see the folder."""
        return "memory" not in protocols(self._fs)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _modified(entry: dict[str, Any]) -> float:
    """Return when a file was written; every file system has a name of its own for that."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = entry.get(name)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value).timestamp()
            except ValueError:
                continue
    return 0.0


def file_system(url: str, options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """Return the file system of an fsspec path, and the path in it.

    Raises:
        DataError: there is no such kind of file system, or its package is missing.
    """
    try:
        found, path = url_to_fs(url, **(options or {}))
    except (ValueError, ImportError) as error:
        raise DataError(f"{url} cannot be opened: {first_line(error)}") from error
    return found, str(path).rstrip("/")


def protocols(file_system: Any) -> tuple[str, ...]:
    """Return the names of a file system's kind."""
    given = file_system.protocol
    return (given,) if isinstance(given, str) else tuple(given)


def is_remote(path: str) -> bool:
    """Say whether a path names another file system than the local one."""
    return "://" in path and not path.startswith(("file://", "local://"))

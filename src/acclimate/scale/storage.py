"""Files in a folder that an fsspec path names: a local one, one in memory, or one of an object store."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from acclimate.errors import DataError, first_line
from acclimate.output_files import write_output

#: What file systems raise: those of object stores have errors of their own libraries, below OSError or not.
_PROBLEMS = (OSError, ValueError, RuntimeError)


class Folder:
    """A folder for results. Every file is written whole or not at all.

    Args:
        url: of the folder, such as ``/data/out``, ``memory://out`` or ``s3://bucket/out``.
        options: for the file system, such as an ``endpoint_url``.

    Raises:
        DataError: there is no such kind of file system.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.url = url
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
            write_output(Path(self._path(name)), content)
        else:
            try:
                # One request of an object store, which makes a file visible when all of it has arrived.
                self._fs.pipe_file(self._path(name), content)
            except _PROBLEMS as error:
                raise DataError(f"cannot write {self.url}/{name}: {first_line(error)}") from error
        return hashlib.sha256(content).hexdigest()

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

"""Files in a folder that an fsspec path names: a local one, one in memory, or one of an object store."""

from __future__ import annotations

import hashlib
import inspect
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fsspec.core import url_to_fs

from acclimate.errors import DataError, InputError, MissingExtraError, first_line
from acclimate.output_files import open_output, write_output

#: Where the credentials of object stores come from, and the variable for the address of a server of one's own.
_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_ADDRESSES: Final = {"s3": "AWS_ENDPOINT_URL"}
#: Parts of the names of error classes: object stores raise those of their own libraries.
_ABOUT_CREDENTIALS: Final = ("Credential", "Permission", "Auth", "Forbidden", "ProfileNotFound", "Token")
_ABOUT_CONNECTIONS: Final = ("Connect", "Timeout")


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

    A local file is written beside its place and moved there. In an object store one request makes a file visible when
    all of it has arrived: an object is replaced in one step, and there is no other way to do so. Files are read
    without looking at lists of names, of which file systems keep copies that may be old.

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
        with naming_problems(f"{self.url}/{name}", "cannot be read"):
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return content

    def write(self, name: str, content: bytes) -> str:
        """Write a file in one step, and return the SHA-256 of its content.

        Raises:
            DataError: it cannot be written.
        """
        if self._is_local:
            write_output(Path(self._path(name)), content, private=self._private)
        else:
            with naming_problems(f"{self.url}/{name}", "cannot be written"):
                self._fs.pipe_file(self._path(name), content)
        return hashlib.sha256(content).hexdigest()

    def put(self, name: str, source: Path) -> str:
        """Write the content of a local file in one step, however long it is, and return the SHA-256 of it.

        Raises:
            DataError: it cannot be written.
        """
        if self._is_local:
            with source.open("rb") as content, open_output(Path(self._path(name)), private=self._private) as file:
                shutil.copyfileobj(content, file)
        else:
            with naming_problems(f"{self.url}/{name}", "cannot be written"):
                self._fs.put_file(str(source), self._path(name))
        return digest_of(source)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path | None]:
        """Yield a local file with the content of a file, inside the block; None where it is not there.

        Raises:
            DataError: it cannot be read.
        """
        if self._is_local:
            path = Path(self._path(name))
            yield path if path.is_file() else None
            return
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "fetched"
            with naming_problems(f"{self.url}/{name}", "cannot be read"):
                try:
                    self._fs.get_file(self._path(name), str(path))
                except FileNotFoundError:
                    path.unlink(missing_ok=True)
            yield path if path.is_file() else None

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one, and return whether it was written.

        That is one step where the file system can do so, as S3 does: of two processes one succeeds. Where it cannot,
        the later one may replace the file.

        Raises:
            DataError: it cannot be written.
        """
        path = self._path(name)
        with naming_problems(f"{self.url}/{name}", "cannot be written"):
            if "mode" not in inspect.signature(self._fs.pipe_file).parameters:
                if self._fs.exists(path):
                    return False
                self._fs.pipe_file(path, content)
                return True
            try:
                self._fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except OSError:
                # Object stores have several words for it.
                if self.read(name) is None:
                    raise
                return False
        return True

    def files(self, below: str) -> list[StoredFile]:
        """Return the files directly in a folder of this folder; none where it does not exist.

        Args:
            below: the folder.

        Raises:
            DataError: it cannot be read.
        """
        path = self._path(below)
        with naming_problems(f"{self.url}/{below}", "cannot be read"):
            try:
                # What another process has written since is wanted, not what was listed before.
                self._fs.invalidate_cache(path)
                found = self._fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        return [
            StoredFile(f"{below}/{str(entry['name']).rpartition('/')[2]}", int(entry["size"] or 0), _modified(entry))
            for entry in found
            if entry["type"] == "file"
        ]

    def remove(self, name: str) -> None:
        """Remove a file that nothing refers to; where that fails it stays."""
        try:
            with naming_problems(f"{self.url}/{name}", "cannot be removed"):
                self._fs.rm_file(self._path(name))
        except DataError:
            return

    @property
    def local(self) -> Path | None:
        """The folder on this machine; None for one of another file system."""
        return Path(self._root) if self._is_local else None

    @property
    def is_shared(self) -> bool:
        """Whether other processes see the folder."""
        return "memory" not in protocols(self._fs)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Return the file system of an fsspec path, and the path in it; lists of names that it has kept are dropped.

    Raises:
        DataError: there is no such kind of file system, or its package is missing.
    """
    try:
        found, path = url_to_fs(url, **(options or {}))
    except ImportError as error:
        if _protocol(url) == "s3":
            raise MissingExtraError(purpose=url, distribution="s3fs", extra="s3") from error
        raise DataError(f"{url} cannot be opened: {first_line(error)}") from error
    except ValueError as error:
        raise DataError(f"{url} cannot be opened: {first_line(error)}") from error
    found.invalidate_cache()
    return found, str(path).rstrip("/")


@contextmanager
def naming_problems(url: str, what: str) -> Iterator[None]:
    """Turn what a file system raises inside the block into one line with a remedy.

    Args:
        url: the path that is worked on.
        what: the problem, as the predicate of the message, such as ``cannot be read``.

    Raises:
        DataError: the file system failed. Errors of programming pass unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # Object stores have errors of their own libraries, below OSError or not; Python's own others are mistakes.
        if type(error).__module__ == "builtins" and not isinstance(error, OSError | ValueError | RuntimeError):
            raise
        raise DataError(f"{url} {what}: {first_line(error).rstrip('.')}{_remedy(url, error)}") from error


def _remedy(url: str, error: Exception) -> str:
    kind, protocol = type(error).__name__, _protocol(url)
    if protocol == "file":
        return ""
    if any(part in kind for part in _ABOUT_CREDENTIALS):
        given = _CREDENTIALS.get(protocol, "the credentials of this file system")
        return f"; set {given} to those of somebody who may do this"
    if any(part in kind for part in _ABOUT_CONNECTIONS):
        address = _ADDRESSES.get(protocol)
        return "; check the network" + ("" if address is None else f", and the address in {address}")
    if isinstance(error, FileNotFoundError):
        bucket = url.partition("://")[2].partition("/")[0]
        return f"; make {bucket}, or correct the path" if "bucket" in str(error) else "; correct the path"
    return ""


def _protocol(url: str) -> str:
    before, mark, _ = url.partition("://")
    return before if mark else "file"


def protocols(file_system: Any) -> tuple[str, ...]:
    """Return the names of a file system's kind."""
    given = file_system.protocol
    return (given,) if isinstance(given, str) else tuple(given)


def is_remote(path: str) -> bool:
    """Say whether a path names another file system than the local one."""
    return "://" in path and not path.startswith(("file://", "local://"))

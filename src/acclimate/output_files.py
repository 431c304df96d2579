"""Writing result files: a file is written whole or not at all, and devices, FIFOs and sockets are never replaced."""

from __future__ import annotations

import io
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from acclimate.errors import DataError, InputError


@contextmanager
def open_output(path: Path, *, error: type[InputError] = DataError, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file whose content arrives at ``path`` when the block ends, and is dropped if the block raises.

    A regular file is replaced in one step, so that readers see the old or the new content. Where ``path`` is a symbolic
    link, the file that it points to is replaced, and the link stays. A device or a FIFO is opened and written to, and a
    socket is connected to and written to; they are never replaced.

    Args:
        path: of the file; missing folders are created.
        error: the class of the error to raise.
        private: only the user may read the file, whatever the umask allows.

    Raises:
        InputError: of the class ``error``: the file cannot be written, for example because the disk is full.
    """
    mode = _mode(path, error)
    if mode is not None and stat.S_ISDIR(mode):
        raise error(f"cannot write {path}: it is a folder; name a file")
    with _named(path, error):
        if mode is not None and not stat.S_ISREG(mode):
            # Collected first, so that nothing is sent if the block raises.
            content = io.BytesIO()
            yield content
            _send(path, mode, content.getvalue())
            return
        target = followed(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp creates files that only the user can read; a new file gets the permissions that the umask allows.
            if not private:
                temporary.chmod(0o666 & ~_umask() if mode is None else stat.S_IMODE(mode))
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def open_text_output(path: Path, *, error: type[InputError] = DataError) -> Iterator[IO[str]]:
    """Open a text file in UTF-8 as :func:`open_output` does; line ends are written as given."""
    with open_output(path, error=error) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline="")
        yield text
        text.flush()
        text.detach()


def write_output(
    path: Path, content: bytes | str, *, error: type[InputError] = DataError, private: bool = False
) -> None:
    """Write a file as :func:`open_output` does; text is written in UTF-8."""
    with open_output(path, error=error, private=private) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def check_writable(path: Path, *, error: type[InputError] = DataError) -> None:
    """Check that a file can be written to ``path``, so that a long run does not fail at its end.

    Raises:
        InputError: of the class ``error``: ``path`` is a folder, a part of it is a file, or its folder or the special
            file is not writable.
    """
    mode = _mode(path, error)
    if mode is not None and stat.S_ISDIR(mode):
        raise error(f"cannot write {path}: it is a folder; name a file")
    if mode is not None and not stat.S_ISREG(mode):
        if not os.access(path, os.W_OK):
            raise error(f"cannot write {path}: permission denied; choose another place")
        return
    with _named(path, error):
        existing = next(parent for parent in followed(path).absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise error(f"cannot write {path}: {existing} is not a writable folder; choose another place")


def check_folder_writable(folder: Path, *, error: type[InputError] = DataError) -> None:
    """Check that results can be written into ``folder``, which need not exist yet.

    Raises:
        InputError: of the class ``error``: the folder is a file or cannot be written to, or is the root of the file
            system.
    """
    mode = _mode(folder, error)
    if mode is not None and not stat.S_ISDIR(mode):
        raise error(f"cannot write to the folder {folder}: it is a file; name a folder")
    if is_root(folder):
        raise error(f"cannot write to {folder}: it is the root of the file system; name a folder of your own")
    check_writable(folder / "file", error=error)


def make_folder(folder: Path, *, error: type[InputError] = DataError) -> None:
    """Create a folder and those above it, where they do not exist.

    Raises:
        InputError: of the class ``error``: see :func:`check_folder_writable`.
    """
    check_folder_writable(folder, error=error)
    with _named(folder, error):
        folder.mkdir(parents=True, exist_ok=True)


def is_special(path: Path) -> bool:
    """Return whether ``path`` exists and is neither a regular file nor a folder: a device, FIFO or socket."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def is_regular(path: Path) -> bool:
    """Return whether a regular file is at ``path``; False also for names that the system refuses."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def followed(path: Path) -> Path:
    """Return the path that a symbolic link points to, also where nothing is there yet; other paths unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def is_root(folder: Path) -> bool:
    """Return whether a path is the root of the file system."""
    absolute = Path(os.path.realpath(folder))
    return absolute == absolute.parent


def _mode(path: Path, error: type[InputError]) -> int | None:
    """Return the mode of what is at ``path``, behind symbolic links; None where nothing is."""
    with _named(path, error):
        try:
            return path.stat().st_mode
        except FileNotFoundError:
            return None
        except ValueError as problem:
            raise error(f"cannot write {str(path)!r}: it is no path ({problem})") from problem


@contextmanager
def _named(path: Path, error: type[InputError]) -> Iterator[None]:
    """Turn an error of the operating system inside the block into one that names the path."""
    try:
        yield
    except OSError as problem:
        raise error(f"cannot write {path}: {problem.strerror or problem}") from problem


def _send(path: Path, mode: int, content: bytes) -> None:
    if stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            connection.sendall(content)
        return
    with path.open("wb") as file:
        file.write(content)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Writes reports and exports, so that a file is never left half-written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acclimate.errors import StoreError


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Yield the path to write to; it becomes ``path`` when the block ends without an error.

    The folder is made. Where ``path`` is a symbolic link, the file that it names is replaced and the link stays. What
    exists and is no regular file, such as a device or a named pipe, is written to and never replaced.

    Raises:
        StoreError: it cannot be written, such as on a full disk.
    """
    target = path.resolve() if path.is_symlink() else path
    if target.exists() and not target.is_file():
        partial = target
    else:
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if path.is_dir():
            raise StoreError(f"cannot write {path}: it is a folder; name a file in it")
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial != target:
            partial.replace(target)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if partial != target:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

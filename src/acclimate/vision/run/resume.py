"""The partial file of an interrupted export, from which the next one can continue."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from acclimate.errors import DataError, InputError
from acclimate.json_values import from_json
from acclimate.output_files import followed, is_special
from acclimate.output_locks import only_writer
from acclimate.vision.data.record import Record
from acclimate.vision.models.adapter import Entry
from acclimate.vision.run.stored_entries import StoredEntries

logger = logging.getLogger(__name__)

_STAMPS_PER_LINE: Final = 1000
_MISSING: Final = -1


class PartialResult:
    """Writes the entries of an unfinished run to disk batch by batch, so that ``--resume`` can continue.

    The file's first line says what the run was made from. Then follow the sizes and modification times of the images,
    and one line for each batch: a run continued inside a batch would divide its images into other batches.

    A lock beside the output keeps a second run from writing the same files. It is taken at the beginning where the
    output's folder exists, and else when that is made.

    Args:
        output: the run's predictions file; the partial file is in the same folder. For a device, a FIFO or a socket
            there is none.
        made_from: all inputs and settings that the entries depend on, apart from the records; a partial file of other
            ones is an error.
        records: the images to predict; a partial file of others, or of images whose sizes or modification times were
            changed since, is an error, unless the run restarts.
        others: images that the entries depend on too.
        resume: whether to read the partial file of an earlier run.
        restarts: whether to start at the first image nevertheless, after checking the partial file.

    Attributes:
        entries: of the finished batches; they can be read after the end of the run too.

    Raises:
        DataError: the partial file is of a run with other images or settings.
        ConfigError: another run is writing the output.
    """

    def __init__(
        self,
        output: Path,
        made_from: Mapping[str, Any],
        *,
        records: Sequence[Record],
        others: Sequence[Record] = (),
        resume: bool,
        restarts: bool,
    ) -> None:
        target = followed(output)
        self.path = target.with_name(f".{target.name}.partial.jsonl")
        self.finished = False
        self._output, self._lock = output, target.with_name(f".{target.name}.lock")
        self._held = ExitStack()
        self._is_held = False
        self._writes = not is_special(output)
        self._entries: StoredEntries | None = None
        self._resume, self._restarts = resume, restarts
        self._records, self._others = records, others
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
        # Before any image is read: one that is replaced during the run counts as changed.
        self._sizes, self._times = array("q"), array("q")
        for record in itertools.chain(records, others):
            digest.update(json.dumps([record.image, record.image_id]).encode())
            # Of the archive, where images are in one.
            file = record.image if record.archived is None else record.archived.archive
            size, changed_ns = _stamp(file) or (_MISSING, _MISSING)
            self._sizes.append(size)
            self._times.append(changed_ns)
        self._key = digest.hexdigest()

    @property
    def entries(self) -> Sequence[Entry]:
        """The entries of the finished batches."""
        return () if self._entries is None else self._entries

    def __enter__(self) -> PartialResult:
        try:
            if self._writes and self.path.parent.is_dir():
                self._hold()
            if self._resume and self.path.exists():
                self._load()
        except BaseException:
            self._held.close()
            raise
        return self

    def _hold(self) -> None:
        if not self._is_held:
            self._held.enter_context(only_writer(self._lock, str(self._output)))
            self._is_held = True

    def add(self, batch: Sequence[Entry]) -> None:
        """Write the entries of one batch.

        Raises:
            DataError: the partial file cannot be written.
        """
        try:
            if self._entries is None:
                # Opened late, so that a run that fails before its first batch creates neither a file nor a folder.
                self._entries = self._opened()
            self._entries.append(batch)
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}") from error

    def _opened(self) -> StoredEntries:
        if not self._writes:
            return StoredEntries.temporary()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._hold()
        return StoredEntries.at(self.path, self._head())

    def _head(self) -> Iterator[str]:
        yield json.dumps({"key": self._key, "images": len(self._sizes)})
        for first in range(0, len(self._sizes), _STAMPS_PER_LINE):
            part = slice(first, first + _STAMPS_PER_LINE)
            yield json.dumps(list(zip(self._sizes[part], self._times[part], strict=True)))

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        with self._held:
            # Kept after an interruption or a crash, for --resume; deleted after an error in the input.
            refused = kind is not None and issubclass(kind, InputError)
            if self._entries is not None and self._writes and (self.finished or refused):
                self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        try:
            with self.path.open("rb") as file:
                line = file.readline()
                if not line:
                    return
                count = self._checked_head(line)
                stamps = [file.readline() for _ in range(0, count, _STAMPS_PER_LINE)]
                start = file.tell()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error}); delete it, or leave out --resume") from error
        if self._restarts:
            return
        self._refuse_changed(stamps)
        self._entries = StoredEntries.found(self.path, start)
        logger.info("resuming after %d images", len(self._entries))

    def _checked_head(self, line: bytes) -> int:
        """Return the number of images that a partial file is about.

        Raises:
            DataError: it is of a run with other images or settings.
        """
        try:
            head = from_json(line.decode())
            key, count = head["key"], int(head["images"])
        except (KeyError, TypeError, ValueError):
            key, count = None, 0
        if key != self._key or count != len(self._sizes):
            raise DataError(
                f"{self.path} is from a run with other images or settings; delete it, or leave out --resume"
            )
        return count

    def _refuse_changed(self, lines: Sequence[bytes]) -> None:
        changed, first = 0, 0
        position = 0
        for line in lines:
            try:
                stamps = from_json(line.decode())
            except ValueError:
                # The run was interrupted while it wrote the beginning of the file.
                stamps = []
            for size, changed_ns in stamps:
                if (size, changed_ns) != (self._sizes[position], self._times[position]):
                    first = position if not changed else first
                    changed += 1
                position += 1
        if position < len(self._sizes):
            raise DataError(f"{self.path} is incomplete; delete it, or leave out --resume")
        if changed:
            every = itertools.chain(self._records, self._others)
            image = next(itertools.islice(every, first, None)).image
            raise DataError(
                f"{changed} of {len(self._sizes)} images were changed since {self.path} was written (the first: "
                f"{image}), so its predictions may be of other images; leave out --resume to predict all again"
            )


def _stamp(image: str) -> tuple[int, int] | None:
    """Return size in bytes and modification time in nanoseconds of a file; None where it cannot be found."""
    try:
        found = Path(image).stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def file_stamps(*paths: str | None) -> list[Any]:
    """Return size and modification time of files and of the files in folders, so that a change is detected."""
    files = []
    for path in (Path(name) for name in paths if name):
        files += sorted(file for file in path.glob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(file), _stamp(str(file))) for file in files if file.is_file()]

"""The partial file of an interrupted export, from which the next one can continue."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from acclimate.errors import DataError, InputError
from acclimate.json_values import from_json
from acclimate.output_files import followed, is_special
from acclimate.vision.models.adapter import Entry

logger = logging.getLogger(__name__)


class PartialResult:
    """Writes the entries of an unfinished run to disk batch by batch, so that ``--resume`` can continue.

    Args:
        output: the run's predictions file; the partial file is in the same folder. For a device, a FIFO or a socket
            there is none.
        made_from: all inputs and settings that the entries depend on; a partial file of other ones is an error.
        images: the files of the images, of which sizes and modification times are kept; a partial file of images that
            were changed since is an error, unless the run restarts.
        resume: whether to read the partial file of an earlier run.
        restarts: whether to start at the first image nevertheless, after checking the partial file.

    Raises:
        DataError: the partial file is of a run with other images or settings.
    """

    def __init__(
        self, output: Path, made_from: Mapping[str, Any], *, images: Iterable[str], resume: bool, restarts: bool
    ) -> None:
        target = followed(output)
        self.path = target.with_name(f".{target.name}.partial.jsonl")
        self.entries: list[Entry] = []
        self.finished = False
        self._writes = not is_special(output)
        self._file: IO[str] | None = None
        self._resume = resume
        self._key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        # Before any image is read: one that is replaced during the run counts as changed.
        self._stamps = {image: _stamp(image) for image in images}
        self._restarts = restarts

    def __enter__(self) -> PartialResult:
        if self._resume and self.path.exists():
            self._load()
        kept, self.entries = self.entries, []
        if kept and not self._restarts:
            self.add(kept)
        return self

    def add(self, batch: Sequence[Entry]) -> None:
        """Write the entries of one batch.

        Raises:
            DataError: the partial file cannot be written.
        """
        self.entries.extend(batch)
        if not self._writes:
            return
        try:
            # One line for each batch: a run continued inside a batch would divide its images into other batches.
            if self._file is None:
                # Opened late, so that a run that fails before its first batch creates neither a file nor a folder.
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8")
                self._file.write(json.dumps({"key": self._key, "images": self._stamps}) + "\n")
            self._file.write(json.dumps(list(batch), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}") from error

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            # Closing writes what is still in the buffer; the same fault has been raised by add already.
            logger.debug("%s cannot be closed: %s", self.path, error)
        # Kept after an interruption or a crash, for --resume; deleted after an error in the input.
        refused = kind is not None and issubclass(kind, InputError)
        if self.finished or refused:
            self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read ({error}); delete it, or leave out --resume") from error
        if not lines:
            return
        try:
            head = from_json(lines[0])
            key, stamps = head["key"], dict(head["images"])
        except (KeyError, TypeError, ValueError):
            key, stamps = None, {}
        if key != self._key:
            raise DataError(
                f"{self.path} is from a run with other images or settings; delete it, or leave out --resume"
            )
        if self._restarts:
            return
        if changed := [image for image, stamp in self._stamps.items() if stamps.get(image) != stamp]:
            raise DataError(
                f"{len(changed)} of {len(self._stamps)} images were changed since {self.path} was written (the first: "
                f"{changed[0]}), so its predictions may be of other images; leave out --resume to predict all again"
            )
        for line in lines[1:]:
            try:
                self.entries.extend(json.loads(line))
            except json.JSONDecodeError:
                # The run was interrupted while it wrote its last line.
                break
        logger.info("resuming after %d images", len(self.entries))


def _stamp(image: str) -> list[int] | None:
    """Return size in bytes and modification time in nanoseconds of a file; None where it cannot be found."""
    try:
        found = Path(image).stat()
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def file_stamps(*paths: str | None) -> list[Any]:
    """Return size and modification time of files and of the files in folders, so that a change is detected."""
    files = []
    for path in (Path(name) for name in paths if name):
        files += sorted(file for file in path.glob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(file), _stamp(str(file))) for file in files if file.is_file()]

"""The partial file of an interrupted export, from which the next one can continue."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from acclimate.errors import DataError, InputError
from acclimate.vision.models.adapter import Entry

logger = logging.getLogger(__name__)


class PartialResult:
    """Writes the entries of an unfinished run to disk batch by batch, so that ``--resume`` can continue.

    Args:
        output: the run's predictions file; the partial file is in the same folder.
        made_from: all inputs and settings that the entries depend on; a partial file of other ones is an error.
        resume: whether to read the partial file of an earlier run.
        restarts: whether to start at the first image nevertheless, after checking the partial file.

    Raises:
        DataError: the partial file is of a run with other images or settings.
    """

    def __init__(self, output: Path, made_from: Mapping[str, Any], *, resume: bool, restarts: bool) -> None:
        self.path = output.with_name(f".{output.name}.partial.jsonl")
        self.entries: list[Entry] = []
        self.finished = False
        self._file: IO[str] | None = None
        self._resume = resume
        self._key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
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
        # One line for each batch: a run continued inside a batch would divide its images into other batches.
        if self._file is None:
            # Opened late, so that a run that fails before its first batch creates neither a file nor a folder.
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8")
            except OSError as error:
                raise DataError(f"cannot write {self.path}: {error.strerror}") from error
            self._file.write(json.dumps({"key": self._key}) + "\n")
        self.entries.extend(batch)
        self._file.write(json.dumps(list(batch), allow_nan=False) + "\n")
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if self._file is not None:
            self._file.close()
        # Kept after an interruption or a crash, for --resume; deleted after an error in the input.
        refused = kind is not None and issubclass(kind, InputError) and self._file is not None
        if self.finished or refused:
            self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if not lines:
            return
        try:
            key = json.loads(lines[0])["key"]
        except (json.JSONDecodeError, KeyError, TypeError):
            key = None
        if key != self._key:
            raise DataError(
                f"{self.path} is from a run with other images or settings; delete it, or leave out --resume"
            )
        for line in lines[1:]:
            try:
                self.entries.extend(json.loads(line))
            except json.JSONDecodeError:
                # The run was interrupted while it wrote its last line.
                break
        logger.info("resuming after %d images", len(self.entries))


def file_stamps(*paths: str | None) -> list[Any]:
    """Return size and modification time of weight files, so that a change of the weights is detected."""
    files = []
    for path in (Path(name) for name in paths if name):
        files += sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

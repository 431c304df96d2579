"""A folder of adapters that were worth their training, for later requests with similar tasks.

Every entry is a folder of its own, in PEFT's format with numbers about the task beside it; there is no common index.
It appears and disappears by being renamed, so that several processes may use one library. Texts are kept only if asked
for; see :mod:`acclimate.language.training.task_features`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from acclimate.errors import CheckpointError, ConfigError, DataError, first_line
from acclimate.json_values import from_json, to_jsonable
from acclimate.language.examples import Example
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.training.adapter import Adapter
from acclimate.language.training.task_features import FEATURES_VERSION, distance, task_features
from acclimate.output_files import make_folder, write_output

#: Marks a folder as a library: nothing is written to, or deleted from, another folder that is not empty.
MARKER: Final = "adapter_library.json"
ENTRY_FILE: Final = "entry.json"
#: As ``acclimate prime`` names it; there only where texts are kept.
EXAMPLES_FILE: Final = "examples.jsonl"
#: One byte for every use, appended: its size is their number and its time the last one, also among processes.
_USES_FILE: Final = "uses"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{32}\.(part|removed)")
#: Temporary folders of processes that ended in the middle are deleted after so long.
_LEFT_OVER_S: Final = 3600.0
_DAY_S: Final = 86400.0
#: Of the numbers in an entry; as seconds since 1970 it is the year 8307.
_LARGEST: Final = 2e11


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What a library keeps; what was used longest ago goes first.

    Attributes:
        keep_days: after the last use; None for no limit.
        max_entries: most adapters.
        max_bytes: most bytes of files.

    Raises:
        ConfigError: a limit is negative.
    """

    keep_days: float | None = 30.0
    max_entries: int = 200
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        for name in ("keep_days", "max_entries", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} must not be negative, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutGain:
    """How examples were answered that the adapter was not trained on, without and with adapting.

    Attributes:
        before_exact, after_exact: shares answered exactly.
        before_log_likelihood, after_log_likelihood: nats per answer.
        fold_loss: last training loss of the adapters that answered them, nats per answer token.
    """

    before_exact: float
    after_exact: float
    before_log_likelihood: float
    after_log_likelihood: float
    fold_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryEntry:
    """An adapter in a library.

    Attributes:
        key: as :func:`acclimate.language.training.adapter_cache.adapter_key` returns it; the name of its folder.
        model, fingerprint: that it was trained for.
        examples: that it was trained on: how many.
        features: of its task.
        seen: digests of the examples, by which the same ones are recognised.
        gain: on held-out examples, for which it was kept.
        steps: of its training.
        created: seconds since 1970.
        last_used: seconds since 1970; ``created`` where it was never used.
        times_used: by requests that it answered or that were trained from it.
        held_bytes: of its files.
    """

    key: str
    model: str
    fingerprint: str
    examples: int
    features: tuple[float, ...]
    seen: tuple[str, ...]
    gain: HeldOutGain
    steps: int
    created: float
    last_used: float
    times_used: int
    held_bytes: int

    def distance(self, features: Sequence[float]) -> float:
        """Return how unlike the task with these features is."""
        return distance(self.features, features)

    def knows(self, examples: Iterable[Example]) -> bool:
        """Return whether it was trained on one of ``examples``."""
        return not set(self.seen).isdisjoint(map(digest_of, examples))


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in a library.

    Attributes:
        entries: those that can be read, the most recently used first.
        problems: a line about each of the others.
        damaged: their keys.
    """

    entries: tuple[LibraryEntry, ...]
    problems: tuple[str, ...]
    damaged: tuple[str, ...]


class AdapterLibrary:
    """A folder of adapters; several threads and processes may share one.

    Args:
        folder: created, readable by its owner alone, when the first adapter is kept.
        retention: what is kept; older entries are deleted whenever the library is read.
        keep_content: write the examples beside the adapters.
        clock: seconds since 1970; for tests.

    Raises:
        DataError: the folder is a file, or holds something else.
    """

    def __init__(
        self,
        folder: Path,
        *,
        retention: Retention | None = None,
        keep_content: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.retention, self.keep_content = folder, retention or Retention(), keep_content
        self._clock = clock
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; name a folder for the library of adapters")
        if folder.is_dir() and not self.exists and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise DataError(f"{folder} is not empty and no library of adapters; name another folder")

    @property
    def exists(self) -> bool:
        """Whether anything was ever kept."""
        return (self.folder / MARKER).is_file()

    def read(self) -> Listing:
        """Return what is there; nothing is deleted."""
        found, problems, damaged = [], [], []
        for folder in self._entry_folders():
            try:
                found.append(self._entry(folder))
            except FileNotFoundError as error:
                if folder.is_dir():
                    problems.append(
                        f"the adapter {folder.name[:12]} in {self.folder} lacks {Path(error.filename).name}"
                    )
                    damaged.append(folder.name)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                problems.append(f"the adapter {folder.name[:12]} in {self.folder} cannot be read: {error}")
                damaged.append(folder.name)
        found.sort(key=lambda entry: -entry.last_used)
        return Listing(tuple(found), tuple(problems), tuple(damaged))

    def nearest(
        self, listing: Listing, fingerprint: str, examples: Sequence[Example], limit: int
    ) -> list[LibraryEntry]:
        """Return entries for the same model that were trained on none of ``examples``, the most similar tasks first."""
        features = task_features(examples)
        fit = [e for e in listing.entries if e.fingerprint == fingerprint and not e.knows(examples)]
        return sorted(fit, key=lambda entry: entry.distance(features))[:limit]

    def load(self, entry: LibraryEntry, model: LanguageModel) -> Adapter:
        """Read the weights of an entry.

        Raises:
            CheckpointError: files are missing or damaged, or belong to another model.
        """
        name = f"the adapter {entry.key[:12]} in {self.folder}"
        try:
            adapter = Adapter.load(self.folder / entry.key, model)
        except (OSError, TypeError, ValueError, RuntimeError, MemoryError) as error:
            # The settings beside the weights are any JSON.
            raise CheckpointError(f"{name} cannot be read: {first_line(error)}") from error
        if not math.isfinite(adapter.alpha) or not all(
            bool(tensor.isfinite().all()) for pair in adapter.weights.values() for tensor in pair
        ):
            raise CheckpointError(f"{name} has weights that are not finite")
        return adapter

    def add(
        self, adapter: Adapter, *, key: str, examples: Sequence[Example], gain: HeldOutGain, model: LanguageModel
    ) -> bool:
        """Keep an adapter; return whether it was not there yet.

        Args:
            adapter: of ``model``.
            key: of the entry.
            examples: that it was trained on.
            gain: that it was kept for.
            model: its name and where it comes from are noted.

        Raises:
            DataError: the folder cannot be written to.
        """
        self._prepare()
        target = self.folder / key
        if target.exists():
            return False
        # Seen whole or not at all: the name that readers look for comes last.
        part = self.folder / f".{uuid4().hex}.part"
        try:
            adapter.save(part, base_model=model.source)
            noted = {
                "features_version": FEATURES_VERSION,
                "model": model.name,
                "fingerprint": model.fingerprint,
                "examples": len(examples),
                "features": task_features(examples),
                "seen": sorted(digest_of(example) for example in examples),
                "gain": asdict(gain),
                "steps": len(adapter.losses),
                "created": self._clock(),
            }
            write_output(part / ENTRY_FILE, json.dumps(to_jsonable(noted), indent=1) + "\n")
            if self.keep_content:
                lines = [json.dumps(asdict(example)) for example in examples]
                write_output(part / EXAMPLES_FILE, "\n".join(lines) + "\n")
            try:
                part.rename(target)
            except OSError as error:
                if target.exists():  # another process was faster
                    return False
                raise DataError(f"cannot write {target}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self.clean()
        return True

    def note_use(self, key: str) -> None:
        """Count a use of an entry; nothing happens where it was removed meanwhile.

        Raises:
            DataError: the folder cannot be written to.
        """
        try:
            with (self.folder / key / _USES_FILE).open("ab") as file:
                file.write(b".")
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"cannot write to {self.folder}: {error.strerror or error}") from error

    def remove(self, key: str) -> bool:
        """Delete an entry; return whether it was there.

        Raises:
            DataError: it cannot be deleted.
        """
        if not _KEY.fullmatch(key):
            return False
        # Readers see the whole entry or none.
        gone = self.folder / f".{uuid4().hex}.removed"
        try:
            (self.folder / key).rename(gone)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DataError(f"cannot delete {self.folder / key}: {error.strerror or error}") from error
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def clean(self) -> tuple[str, ...]:
        """Delete what the retention does not keep, and what other processes left unfinished; return the keys."""
        if not self.exists:
            return ()
        return self.cleaned(self.read())[1]

    def cleaned(self, listing: Listing) -> tuple[Listing, tuple[str, ...]]:
        """Do what :meth:`clean` does with what was read; return what is left, and the deleted keys."""
        now = self._clock()
        for path in self.folder.glob(".*"):
            if _TEMPORARY.fullmatch(path.name) and path.is_dir() and _changed(path) < now - _LEFT_OVER_S:
                shutil.rmtree(path, ignore_errors=True)
        days = self.retention.keep_days
        oldest = -math.inf if days is None else now - days * _DAY_S
        kept: list[LibraryEntry] = []
        held = 0
        for entry in listing.entries:
            held += entry.held_bytes
            fits = len(kept) < self.retention.max_entries and held <= self.retention.max_bytes
            if fits and entry.last_used >= oldest:
                kept.append(entry)
            else:
                held -= entry.held_bytes
        keys = {entry.key for entry in kept}
        dropped = [entry.key for entry in listing.entries if entry.key not in keys]
        return replace(listing, entries=tuple(kept)), tuple(key for key in dropped if self.remove(key))

    def _prepare(self) -> None:
        if self.exists:
            return
        is_new = not self.folder.exists()
        make_folder(self.folder)
        if is_new:
            # Weights can tell something about the examples that they were trained on.
            self.folder.chmod(0o700)
        write_output(self.folder / MARKER, json.dumps({"format": 1}) + "\n")

    def _entry_folders(self) -> list[Path]:
        if not self.exists:
            return []
        return [p for p in self.folder.iterdir() if _KEY.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]

    def _entry(self, folder: Path) -> LibraryEntry:
        noted = from_json((folder / ENTRY_FILE).read_text(encoding="utf-8"))
        if not isinstance(noted, Mapping) or noted.get("features_version") != FEATURES_VERSION:
            raise ValueError(f"{ENTRY_FILE} was written by another version")
        features = tuple(_number(value) for value in noted["features"])
        if len(features) != len(task_features((Example("a", "b"),))):
            raise ValueError(f"{ENTRY_FILE} has {len(features)} features")
        held = sum(path.stat().st_size for path in folder.iterdir())
        uses = folder / _USES_FILE
        used = uses.stat() if uses.exists() else None
        created = _number(noted["created"])
        return LibraryEntry(
            key=folder.name,
            model=str(noted["model"]),
            fingerprint=str(noted["fingerprint"]),
            examples=int(_number(noted["examples"])),
            features=features,
            seen=tuple(map(str, noted["seen"])),
            gain=HeldOutGain(**{name: _number(value) for name, value in noted["gain"].items()}),
            steps=int(_number(noted["steps"])),
            created=created,
            last_used=max(created, used.st_mtime) if used is not None else created,
            times_used=used.st_size if used is not None else 0,
            held_bytes=held,
        )


def digest_of(example: Example) -> str:
    """Return by what an example is recognised without its text."""
    return hashlib.sha256(json.dumps([example.input, example.output]).encode()).hexdigest()[:32]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise ValueError(f"{ENTRY_FILE} has {value!r} where a number belongs")
    return float(value)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf

"""A folder of trained adapters that servers share: what one has trained, another fetches.

An entry is one file, so that it is there whole or not at all: a line of JSON with the SHA-256 of the rest, and the
rest, safetensors with the numbers about the training beside the weights. Its name is the key that the server's cache
has for the adapter: a digest of the base model, the examples, the recipe of the training and the layout of the prompt.
Texts are not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import safetensors
import safetensors.torch

from acclimate.errors import AcclimateError, CheckpointError, first_line
from acclimate.json_values import from_json
from acclimate.language import Adapter, Example
from acclimate.language.decision.evidence import Evidence, HeldOut
from acclimate.language.training.adapter import StopReason
from acclimate.language.training.adapter_cache import AdapterManager
from acclimate.storage import Folder, StoredFile

_LOG = logging.getLogger(__name__)
#: Of the files; entries of another format are not read.
FORMAT: Final = 1
_SUFFIX: Final = ".adapter"
#: A file that is written again whenever the entry is used: its time is that of the last use.
_USED_SUFFIX: Final = ".used"
_KEY: Final = re.compile(r"[0-9a-f]{64}\Z")
#: Uses of one entry are noted this far apart.
_USE_INTERVAL_S: Final = 60.0
#: After this many entries were written, it is looked whether the store has grown too large.
_WRITES_BETWEEN_CHECKS: Final = 32
_METADATA: Final = "adapter"


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What a server has done with a store since it started.

    Attributes:
        hits: adapters that were found in it.
        misses: that were looked for and are not in it.
        unreadable: entries that are damaged or do not fit.
        written: entries.
        failed: entries that could not be written.
    """

    hits: int = 0
    misses: int = 0
    unreadable: int = 0
    written: int = 0
    failed: int = 0


class AdapterStore:
    """Trained adapters in a folder; any number of servers may use it, and threads of one.

    Entries are written by a thread of its own, so that no request waits for the folder.

    Args:
        url: of the folder: a local one, or any that fsspec knows.
        max_bytes: of all entries together; what was used longest ago is removed.
        clock: seconds that only grow; for tests.

    Raises:
        DataError: there is no such kind of file system.
    """

    def __init__(self, url: str, *, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.url, self._max_bytes, self._clock = url, max_bytes, clock
        self._folder = Folder(url, private=True)
        self._condition = threading.Condition()
        self._to_write: OrderedDict[tuple[str, str], tuple[Adapter, Evidence | None] | None] = OrderedDict()
        self._noted: dict[tuple[str, str], float] = {}
        self._counts = {"hits": 0, "misses": 0, "unreadable": 0, "written": 0, "failed": 0}
        self._is_writing = self._closing = False
        self._writes = 0
        self._thread = threading.Thread(target=self._write_all, name="acclimate-adapter-store", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> StoreCounts:
        """What was done so far."""
        with self._condition:
            return StoreCounts(**self._counts)

    def fetch(self, fingerprint: str, key: str) -> tuple[Adapter, Evidence | None] | None:
        """Return an adapter and what held-out examples said about it, or None where it was never kept.

        Args:
            fingerprint: of the model.
            key: as :func:`acclimate.language.training.adapter_cache.adapter_key` returns it.

        Raises:
            CheckpointError: the entry is damaged, or belongs to another model.
        """
        name = f"the adapter {key[:12]} in {self.url}"
        with self._condition:
            waiting = self._to_write.get((fingerprint, key))
        if waiting is not None:
            return waiting
        try:
            content = self._folder.read(_path(fingerprint, key, _SUFFIX))
            if content is None:
                self._count("misses")
                return None
            found = unpacked(content, fingerprint, key)
        except (AcclimateError, ValueError, TypeError, KeyError, AttributeError, safetensors.SafetensorError) as error:
            self._count("unreadable")
            raise CheckpointError(f"{name} cannot be read: {first_line(error)}") from error
        self._count("hits")
        self.note_use(fingerprint, key)
        return found

    def discard(self, fingerprint: str, key: str) -> None:
        """Say that an entry that was fetched cannot be used, so that it counts as unreadable."""
        _LOG.warning("the adapter %s in %s does not fit the model", key[:12], self.url)
        with self._condition:
            self._counts["hits"] -= 1
            self._counts["unreadable"] += 1
            self._noted.pop((fingerprint, key), None)

    def put(self, fingerprint: str, key: str, adapter: Adapter, evidence: Evidence | None) -> None:
        """Keep an adapter, soon; a later one under the same key replaces it."""
        with self._condition:
            self._to_write[fingerprint, key] = adapter, evidence
            self._condition.notify_all()

    def note_use(self, fingerprint: str, key: str) -> None:
        """Note that an entry is used now."""
        now = self._clock()
        with self._condition:
            last = self._noted.get((fingerprint, key), -math.inf)
            if now - last < _USE_INTERVAL_S:
                return
            self._noted[fingerprint, key] = now
            self._to_write.setdefault((fingerprint, key), None)
            self._condition.notify_all()

    def recent(self, fingerprint: str, count: int) -> list[str]:
        """Return the keys of a model's entries that were used last, the last one first.

        Args:
            fingerprint: of the model.
            count: most keys.

        Raises:
            DataError: the folder cannot be read.
        """
        entries = _entries(self._folder.files(_folder_of(fingerprint)))
        ordered = sorted(entries, key=lambda key: -entries[key][0])
        return ordered[:count]

    def flush(self, *, timeout_s: float | None = None) -> bool:
        """Wait until everything is written; return whether it is."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._to_write and not self._is_writing, timeout_s)

    def close(self, *, timeout_s: float = 30.0) -> bool:
        """Write what is not written yet, and end; return whether all of it was written in time."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _count(self, what: str) -> None:
        with self._condition:
            self._counts[what] += 1

    def _write_all(self) -> None:
        while True:
            with self._condition:
                self._is_writing = False
                self._condition.notify_all()
                while not self._to_write:
                    if self._closing:
                        return
                    self._condition.wait()
                # It stays findable until it is written.
                (fingerprint, key), entry = next(iter(self._to_write.items()))
                self._is_writing = True
            try:
                self._write(fingerprint, key, entry)
            except Exception as error:  # noqa: BLE001 - whatever a file system raises, requests go on without the store
                _LOG.warning("the adapter %s was not kept in %s: %s", key[:12], self.url, first_line(error))
                if entry is not None:
                    self._count("failed")
            with self._condition:
                if self._to_write.get((fingerprint, key)) is entry:
                    del self._to_write[fingerprint, key]

    def _write(self, fingerprint: str, key: str, entry: tuple[Adapter, Evidence | None] | None) -> None:
        if entry is None:
            self._folder.write(_path(fingerprint, key, _USED_SUFFIX), b"1")
            return
        if self._writes % _WRITES_BETWEEN_CHECKS == 0:
            self._remove_oldest(fingerprint)
        self._folder.write(_path(fingerprint, key, _SUFFIX), packed(entry[0], entry[1], key))
        self._writes += 1
        self._count("written")

    def _remove_oldest(self, fingerprint: str) -> None:
        entries = _entries(self._folder.files(_folder_of(fingerprint)))
        held = sum(size for _, size in entries.values())
        for key in sorted(entries, key=lambda key: entries[key][0]):
            if held <= self._max_bytes:
                return
            held -= entries[key][1]
            for suffix in (_SUFFIX, _USED_SUFFIX):
                self._folder.remove(_path(fingerprint, key, suffix))


class StoredAdapterManager(AdapterManager):
    """The adapters in the memory of one server, of which each is kept in a store as well.

    Args:
        store: shared with other servers.
        fingerprint: of the model.
        max_cache_size, max_bytes: of those in memory.
    """

    def __init__(self, store: AdapterStore, fingerprint: str, max_cache_size: int, *, max_bytes: int) -> None:
        super().__init__(max_cache_size, max_bytes=max_bytes)
        self.store, self.fingerprint = store, fingerprint

    def put(
        self, adapter: Adapter, *, key: str | None = None, examples: Sequence[Example] = (), extra: Any = None
    ) -> str:
        """Keep an adapter in memory and in the store; see :meth:`AdapterManager.put`."""
        key = super().put(adapter, key=key, examples=examples, extra=extra)
        self.store.put(self.fingerprint, key, adapter, extra)
        return key

    def remember(self, key: str, adapter: Adapter, evidence: Evidence | None, examples: Sequence[Example] = ()) -> None:
        """Keep in memory what was fetched from the store."""
        super().put(adapter, key=key, examples=examples, extra=evidence)


def packed(adapter: Adapter, evidence: Evidence | None, key: str) -> bytes:
    """Return the content of an entry."""
    numbers = {
        name: getattr(adapter, name)
        for name in ("rank", "alpha", "copies", "fingerprint", "losses", "seconds", "cpu_seconds", "peak_bytes")
    }
    numbers |= {
        "stop": adapter.stop.value,
        "trained_tokens": adapter.trained_tokens,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "evidence": None if evidence is None else asdict(evidence),
    }
    tensors = {}
    for layer, (down, up) in adapter.weights.items():
        tensors[f"{layer}.lora_A"], tensors[f"{layer}.lora_B"] = down.detach().cpu(), up.detach().cpu()
    content: bytes = safetensors.torch.save(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {_METADATA: json.dumps(numbers)}
    )
    header = {"format": FORMAT, "key": key, "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(header).encode() + b"\n" + content


def unpacked(content: bytes, fingerprint: str, key: str) -> tuple[Adapter, Evidence | None]:
    """Return what an entry holds.

    Raises:
        CheckpointError: it is damaged, of another format, or belongs to another model or key.
        ValueError, TypeError, KeyError, SafetensorError: what is in it is not what it should be.
    """
    first, _, rest = content.partition(b"\n")
    header = from_json(first.decode("utf-8"))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"it is not in format {FORMAT}")
    if header.get("sha256") != hashlib.sha256(rest).hexdigest():
        raise CheckpointError("its content is not what was written: the SHA-256 differs")
    if header.get("key") != key:
        raise CheckpointError("it was written under another key")
    length = int.from_bytes(rest[:8], "little")
    metadata = from_json(rest[8 : 8 + length].decode("utf-8")).get("__metadata__", {})
    numbers = from_json(metadata[_METADATA])
    if numbers["fingerprint"] != fingerprint:
        raise CheckpointError("it was trained for another model")
    tensors = safetensors.torch.load(rest)
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    given: dict[str, Any] = {name: numbers[name] for name in numbers if name not in ("evidence", "stop", "losses")}
    adapter = Adapter(
        weights={layer: (tensors[f"{layer}.lora_A"], tensors[f"{layer}.lora_B"]) for layer in layers},
        losses=tuple(float(loss) for loss in numbers["losses"]),
        stop=StopReason(numbers["stop"]),
        **given,
    )
    return adapter, None if numbers["evidence"] is None else _evidence(numbers["evidence"])


def _evidence(values: Mapping[str, Any]) -> Evidence:
    def held_out(part: Mapping[str, Any]) -> HeldOut:
        return HeldOut(**{**part, "exact_by_example": tuple(bool(one) for one in part["exact_by_example"])})

    return Evidence(**{**values, "before": held_out(values["before"]), "after": held_out(values["after"])})


def _folder_of(fingerprint: str) -> str:
    # Short enough for every file system; which model an entry belongs to is checked when it is read.
    return f"v{FORMAT}-{fingerprint[:24]}"


def _path(fingerprint: str, key: str, suffix: str) -> str:
    if not _KEY.match(key):
        raise CheckpointError(f"{key[:80]!r} is no key of an adapter")
    return f"{_folder_of(fingerprint)}/{key}{suffix}"


def _entries(files: Sequence[StoredFile]) -> dict[str, tuple[float, int]]:
    """Return when each entry was used last, and its size, by key."""
    found: dict[str, tuple[float, int]] = {}
    used: dict[str, float] = {}
    for file in files:
        name = file.name.rpartition("/")[2]
        key = name[:64]
        if not _KEY.match(key):
            continue
        if name == key + _SUFFIX:
            found[key] = file.modified, file.size
        elif name == key + _USED_SUFFIX:
            used[key] = file.modified
    return {key: (max(at, used.get(key, 0.0)), size) for key, (at, size) in found.items()}

"""A cache of trained adapters, for prompts with the same examples."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from acclimate.errors import ConfigError
from acclimate.language.examples import Example
from acclimate.language.prompts import Layout
from acclimate.language.training.adapter import Adapter
from acclimate.language.training.recipes import Recipe


@dataclass(slots=True)
class _Entry:
    adapter: Adapter
    examples: tuple[Example, ...]
    extra: Any
    used_at: float
    usage_count: int = 0
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """An adapter in a cache.

    Attributes:
        key: that it is kept under.
        examples: that it was trained on: how many.
        rank: of its weights; 0 where adapting was declined and only that is kept.
        held_bytes: of its weights.
        usage_count: how often it was taken from the cache.
        unused_s: seconds since it was used last.
        is_pinned: whether it is kept whatever the limits are.
    """

    key: str
    examples: int
    rank: int
    held_bytes: int
    usage_count: int
    unused_s: float
    is_pinned: bool


def adapter_key(fingerprint: str, examples: Sequence[Example], recipe: Recipe, layout: Layout | None = None) -> str:
    """Return the digest of everything that training an adapter depends on."""
    text = repr((fingerprint, [(e.input, e.output) for e in examples], sorted(asdict(recipe).items())))
    if layout is not None:
        text += layout.key
    return hashlib.sha256(text.encode()).hexdigest()


class AdapterManager:
    """The most recently used adapters; several threads and engines may share one.

    Args:
        max_cache_size: most adapters kept.
        max_bytes: most bytes of weights kept.
        time_to_live_s: seconds after its last use that an adapter is kept; None for no limit.
        clock: seconds that only grow; for tests.

    Raises:
        ConfigError: a limit is negative.
    """

    def __init__(
        self,
        max_cache_size: int = 5,
        *,
        max_bytes: int = 256 * 2**20,
        time_to_live_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (
            ("max_cache_size", max_cache_size),
            ("max_bytes", max_bytes),
            ("time_to_live_s", time_to_live_s),
        ):
            if value is not None and value < 0:
                raise ConfigError(f"{name} must not be negative, got {value}")
        self.max_cache_size, self.max_bytes, self.time_to_live_s = max_cache_size, max_bytes, time_to_live_s
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            self._drop()
            return len(self._entries)

    @property
    def held_bytes(self) -> int:
        """Bytes of all weights kept."""
        with self._lock:
            return sum(entry.adapter.held_bytes for entry in self._entries.values())

    def put(
        self, adapter: Adapter, *, key: str | None = None, examples: Sequence[Example] = (), extra: Any = None
    ) -> str:
        """Keep an adapter and return its key; the least recently used ones are dropped where a limit is exceeded.

        An adapter that is larger than ``max_bytes`` is not kept.

        Args:
            adapter: to keep.
            key: as :func:`adapter_key` returns it; None takes a digest of the weights.
            examples: that it was trained on.
            extra: kept and returned with it.
        """
        key = key or _digest(adapter)
        if adapter.held_bytes > self.max_bytes:
            # It would drop everything else and then itself.
            return key
        with self._lock:
            self._entries[key] = _Entry(adapter, tuple(examples), extra, self._clock())
            self._entries.move_to_end(key)
            self._drop()
        return key

    def __contains__(self, key: str) -> bool:
        with self._lock:
            self._drop()
            return key in self._entries

    def is_trained(self, key: str) -> bool:
        """Return whether an adapter with weights is kept under ``key``; where adapting was declined there is none."""
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and bool(entry.adapter.weights)

    def get(self, key: str) -> tuple[Adapter, Any] | None:
        """Return the adapter kept under ``key`` with its extra, or None."""
        with self._lock:
            self._drop()
            entry = self._entries.get(key)
            if entry is None:
                return None
            entry.used_at, entry.usage_count = self._clock(), entry.usage_count + 1
            self._entries.move_to_end(key)
            return entry.adapter, entry.extra

    def nearest(
        self, fingerprint: str, examples: Sequence[Example], limit: int = 3
    ) -> list[tuple[Adapter, tuple[Example, ...]]]:
        """Return adapters of the same model, those with the most similar examples first."""
        wanted = _features(examples)
        with self._lock:
            self._drop()
            same = [
                entry for entry in self._entries.values() if entry.adapter.fingerprint == fingerprint and entry.examples
            ]
        same.sort(key=lambda entry: -_overlap(wanted, _features(entry.examples)))
        return [(entry.adapter, entry.examples) for entry in same[:limit]]

    def kept(self) -> list[KeptAdapter]:
        """Return what is kept, the most recently used first."""
        with self._lock:
            self._drop()
            now = self._clock()
            return [
                KeptAdapter(
                    key=key,
                    examples=len(entry.examples),
                    rank=entry.adapter.rank if entry.adapter.weights else 0,
                    held_bytes=entry.adapter.held_bytes,
                    usage_count=entry.usage_count,
                    unused_s=now - entry.used_at,
                    is_pinned=entry.is_pinned,
                )
                for key, entry in reversed(self._entries.items())
            ]

    def pin(self, key: str, is_pinned: bool = True) -> bool:
        """Keep an adapter whatever the limits are, or no longer so; return whether it is there."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return False
            entry.is_pinned = is_pinned
            return True

    def remove(self, key: str) -> None:
        """Drop the adapter kept under ``key``; nothing happens where there is none."""
        with self._lock:
            self._entries.pop(key, None)

    def clear(self) -> None:
        """Drop all adapters."""
        with self._lock:
            self._entries.clear()

    def _drop(self) -> None:
        if self.time_to_live_s is not None:
            oldest = self._clock() - self.time_to_live_s
            for key in [key for key, entry in self._entries.items() if entry.used_at < oldest and not entry.is_pinned]:
                del self._entries[key]
        held = sum(entry.adapter.held_bytes for entry in self._entries.values())
        for key in [key for key, entry in self._entries.items() if not entry.is_pinned]:
            if len(self._entries) <= self.max_cache_size and held <= self.max_bytes:
                break
            held -= self._entries.pop(key).adapter.held_bytes


def _digest(adapter: Adapter) -> str:
    digest = hashlib.sha256(adapter.fingerprint.encode())
    for name, pair in sorted(adapter.weights.items()):
        digest.update(name.encode())
        for tensor in pair:
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _features(examples: Sequence[Example]) -> set[str]:
    """Return features that tell tasks apart: bigrams of outputs, characters that inputs lack, and length changes."""
    return {feature for e in examples for feature in _features_of(e)}


def _features_of(example: Example) -> Iterator[str]:
    for at in range(len(example.output) - 1):
        yield example.output[at : at + 2]
    yield from (f"new {c}" for c in example.output if c not in example.input)
    yield f"length {len(example.output) - len(example.input)}"


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(1, len(one | other))

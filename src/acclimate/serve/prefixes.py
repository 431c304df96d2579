"""Key-value caches of the beginnings of prompts, kept for requests with the same examples."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from acclimate.serve.key_values import Stored


class PrefixCache:
    """The most recently used beginnings of prompts of one model.

    A beginning belongs to the adapter that it was computed with, by the adapter's identity: another adapter, a later
    version under the same name included, never finds it.

    Args:
        max_bytes: most bytes kept; 0 keeps nothing.

    Attributes:
        hits, misses: look-ups so far that found a beginning, and that did not.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, tuple[int, ...]], Stored] = OrderedDict()
        self._lengths: dict[str, dict[int, int]] = {}
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, identity: str, tokens: Sequence[int]) -> Stored | None:
        """Return the longest beginning of ``tokens`` that is kept, shorter than all of them.

        Args:
            identity: of the adapter; the empty text for the base model.
            tokens: of the prompt.
        """
        for length in sorted(self._lengths.get(identity, ()), reverse=True):
            key = (identity, tuple(tokens[:length]))
            if length < len(tokens) and key in self._entries:
                self._entries.move_to_end(key)
                self.hits += 1
                return self._entries[key]
        self.misses += 1
        return None

    def has(self, identity: str, tokens: Sequence[int]) -> bool:
        """Return whether exactly this beginning is kept."""
        return (identity, tuple(tokens)) in self._entries

    def put(self, identity: str, tokens: Sequence[int], stored: Stored) -> None:
        """Keep a beginning; those that were not used for longest make room for it."""
        key = (identity, tuple(tokens))
        if stored.held_bytes > self._max_bytes:
            return
        self._remove(key)
        self._entries[key] = stored
        lengths = self._lengths.setdefault(identity, {})
        lengths[len(tokens)] = lengths.get(len(tokens), 0) + 1
        self.held_bytes += stored.held_bytes
        while self.held_bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))

    def drop(self, identity: str) -> None:
        """Forget every beginning that was computed with an adapter."""
        for key in [key for key in self._entries if key[0] == identity]:
            self._remove(key)

    def clear(self) -> None:
        """Forget everything."""
        for key in list(self._entries):
            self._remove(key)

    def _remove(self, key: tuple[str, tuple[int, ...]]) -> None:
        stored = self._entries.pop(key, None)
        if stored is None:
            return
        self.held_bytes -= stored.held_bytes
        lengths = self._lengths[key[0]]
        lengths[stored.token_count] -= 1
        if not lengths[stored.token_count]:
            del lengths[stored.token_count]
        if not lengths:
            del self._lengths[key[0]]

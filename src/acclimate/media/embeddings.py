"""Vectors of items and of their views, computed once for each content."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from acclimate.media.encoders.protocol import Encoder, Vectors
from acclimate.media.items import Item, Values
from acclimate.media.views.recipes import Views


class Embeddings:
    """Keeps vectors by encoder, content and view; may be used from several threads.

    Args:
        max_vectors: the vectors that were not used for longest are dropped beyond this number.

    Attributes:
        cpu_seconds: that encoders, and making the views that they encode, took so far.
        count: vectors that were computed so far.
    """

    def __init__(self, max_vectors: int = 20_000) -> None:
        self.max_vectors = max_vectors
        self.cpu_seconds = 0.0
        self.count = 0
        self._kept: OrderedDict[tuple[str, str, str, int], Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, encoder: Encoder, items: Sequence[Item], views: Views | None = None) -> Vectors:
        """Return the vectors of items, ``(n, size)``, or with ``views`` those of every copy, ``(n, copies, size)``.

        The first copy is the unchanged item. Vectors have length 1, which was a point better for every head.
        """
        keys = [_keys(encoder, item, views) for item in items]
        found = self._known([key for row in keys for key in row])
        began = time.process_time()
        missing: dict[tuple[str, str, str, int], Values] = {}
        for item, row in zip(items, keys, strict=True):
            if all(key in found for key in row):
                continue
            values = (item.values, *(views.of(item) if views is not None else ()))
            missing |= {key: value for key, value in zip(row, values, strict=True) if key not in found}
        if missing:
            vectors = encoder.encode(list(missing.values()))
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            new = dict(zip(missing, vectors, strict=True))
            self._keep(new, time.process_time() - began)
            found |= new
        stacked = np.stack([np.stack([found[key] for key in row]) for row in keys])
        return stacked[:, 0] if views is None else stacked

    def _known(self, keys: Sequence[tuple[str, str, str, int]]) -> dict[tuple[str, str, str, int], Vectors]:
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
            return {key: self._kept[key] for key in keys if key in self._kept}

    def _keep(self, new: dict[tuple[str, str, str, int], Vectors], cpu_seconds: float) -> None:
        with self._lock:
            self.cpu_seconds += cpu_seconds
            self.count += len(new)
            self._kept.update(new)
            while len(self._kept) > self.max_vectors:
                self._kept.popitem(last=False)


def _keys(encoder: Encoder, item: Item, views: Views | None) -> list[tuple[str, str, str, int]]:
    count = 1 if views is None else views.count
    # The unchanged item is the same in all recipes.
    return [(encoder.identity, item.digest, views.name if views is not None and k else "", k) for k in range(count)]

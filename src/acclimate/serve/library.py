"""Named adapters, which are asked as models."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from acclimate.errors import DataError
from acclimate.language import Adapter, Example


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedAdapter:
    """An adapter under a name.

    Attributes:
        name: unique for its base model and owner.
        base_model: name of the model that it belongs to.
        adapter: its weights.
        owner: id of the API key that made it; only this one and administrators see it.
        examples: that it was trained on, which stay in the prompt; none where it was loaded.
        source: how it came.
        created: Unix time.
    """

    name: str
    base_model: str
    adapter: Adapter = field(repr=False)
    owner: str
    examples: tuple[Example, ...] = field(default=(), repr=False)
    source: Literal["examples", "folder"] = "examples"
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_id(self) -> str:
        """The name to ask for."""
        return f"{self.base_model}:{self.name}"


class NameTakenError(DataError):
    """An adapter of this name exists."""


class AdapterLibrary:
    """The named adapters of all models; several threads may use it.

    Args:
        max_per_owner: most adapters that one owner may hold.
    """

    def __init__(self, max_per_owner: int) -> None:
        self._max_per_owner = max_per_owner
        self._lock = threading.Lock()
        self._adapters: dict[tuple[str, str, str], NamedAdapter] = {}
        self._reserved: set[tuple[str, str, str]] = set()

    def reserve(self, base_model: str, name: str, owner: str, *, replace: bool = False) -> None:
        """Take a name before its adapter is there, so that of two who want it at once one is told.

        Raises:
            NameTakenError: the name is taken, or is being taken.
            DataError: the owner has as many adapters as may be.
        """
        key = (base_model, name, owner)
        with self._lock:
            if key in self._reserved or (key in self._adapters and not replace):
                raise NameTakenError(
                    f"an adapter named {name!r} exists already; delete it first, or choose another name"
                )
            held = sum(1 for known in (*self._adapters, *self._reserved) if known[2] == owner)
            if held >= self._max_per_owner and key not in self._adapters:
                raise DataError(f"{held} adapters are held and no more may be; delete one first")
            self._reserved.add(key)

    def release(self, base_model: str, name: str, owner: str) -> None:
        """Give a name back whose adapter could not be made."""
        with self._lock:
            self._reserved.discard((base_model, name, owner))

    def put(self, named: NamedAdapter) -> NamedAdapter | None:
        """Serve an adapter under the name that was reserved for it; return the one that it replaces."""
        key = (named.base_model, named.name, named.owner)
        with self._lock:
            self._reserved.discard(key)
            before = self._adapters.get(key)
            self._adapters[key] = named
            return before

    def find(self, base_model: str, name: str, owner: str, *, sees_all: bool = False) -> NamedAdapter | None:
        """Return the adapter of this name that ``owner`` may see: its own first."""
        with self._lock:
            own = self._adapters.get((base_model, name, owner))
            if own is not None or not sees_all:
                return own
            return next((a for (b, n, _), a in self._adapters.items() if (b, n) == (base_model, name)), None)

    def of(self, owner: str, *, sees_all: bool = False) -> Sequence[NamedAdapter]:
        """Return the adapters that ``owner`` may see, the oldest first."""
        with self._lock:
            found = [named for named in self._adapters.values() if sees_all or named.owner == owner]
        return sorted(found, key=lambda named: (named.created, named.name))

    def rename(self, named: NamedAdapter, name: str) -> NamedAdapter:
        """Serve an adapter under another name of the same owner.

        Raises:
            NameTakenError: the name is taken.
        """
        with self._lock:
            wanted = (named.base_model, name, named.owner)
            if wanted in self._adapters or wanted in self._reserved:
                raise NameTakenError(f"an adapter named {name!r} exists already; choose another name")
            self._adapters.pop((named.base_model, named.name, named.owner), None)
            self._adapters[wanted] = renamed = replace(named, name=name)
            return renamed

    def remove(self, named: NamedAdapter) -> None:
        """Serve an adapter no longer; requests that are under way keep it until they end."""
        with self._lock:
            self._adapters.pop((named.base_model, named.name, named.owner), None)

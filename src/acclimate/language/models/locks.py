"""Locks of the language pipeline: one for each network, and one around loading."""

from __future__ import annotations

import threading
from typing import Any, Final, Self

_ATTRIBUTE: Final = "_acclimate_lock"

#: Held while transformers loads weights: it then replaces functions of ``torch.nn.init`` and torch's default number
#: format for the whole process, and two loads at once would restore each other's replacements.
LOADING: Final = threading.RLock()


class NetworkLock:
    """A re-entrant lock that belongs to one network; a copy of the network gets a lock of its own.

    It lies on the network and not in a table of this package, so that every object that uses the network finds the
    same lock, and it goes when the network goes.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[NetworkLock], tuple[()]]:
        # Copying and pickling a network must go on working; a lock itself can be neither copied nor pickled.
        return NetworkLock, ()


def lock_of(network: Any) -> NetworkLock:
    """Return the lock of ``network``, made when it is first asked for.

    Whoever changes a network for the time of a block (low-rank weights, hooks, attention), or runs it while somebody
    else may, holds it.
    """
    # One operation of the dictionary: of two threads that ask first at once, both get the same lock.
    lock: NetworkLock = vars(network).setdefault(_ATTRIBUTE, NetworkLock())
    return lock

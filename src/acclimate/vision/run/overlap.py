"""Work that goes on beside the model: decoding images ahead of it, and writing predictions behind it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

T = TypeVar("T")
_END: Final = object()
_QUEUED_OUTPUTS: Final = 2


def ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yield ``items`` in their order, of which another thread makes up to ``count`` before they are asked for.

    An error is raised where the item would have been. When the caller ends early, nothing more is made, and the thread
    has ended before this generator has.

    Args:
        items: made one after the other; nothing else may use what they are made with meanwhile.
        count: of items that may be ready; with 0 each is made when it is asked for.
    """
    if count < 1:
        yield from items
        return
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=count)
    stopped = threading.Event()

    def make() -> None:
        try:
            for item in items:
                ready.put((item, None))
                if stopped.is_set():
                    return
            ready.put((_END, None))
        except BaseException as error:  # noqa: BLE001 - raised again where the item is asked for
            ready.put((_END, error))

    thread = threading.Thread(target=make, name="acclimate-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        while thread.is_alive():
            # Room for the item that the thread may be waiting to hand over.
            with suppress(queue.Empty):
                ready.get(timeout=0.02)
        thread.join()


class Behind(Generic[T]):
    """Calls a function on items in their order, in another thread, while the caller goes on.

    As a context manager: at the end of the block everything that was handed over has been done. An error of the
    function is raised by the next call here, and what was handed over after it is dropped.

    Args:
        work: is called with each item.
        is_on: whether to use a thread; otherwise items are worked on at once.
    """

    def __init__(self, work: Callable[[T], None], *, is_on: bool = True) -> None:
        self._work, self._is_on = work, is_on
        self._items: queue.Queue[Any] = queue.Queue(maxsize=_QUEUED_OUTPUTS)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._is_on:
            self._thread = threading.Thread(target=self._run, name="acclimate-writer", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._items.put(_END)
            self._thread.join()
            self._thread = None
        if kind is None:
            self._raise()

    def put(self, item: T) -> None:
        """Hand over an item; waits while two are waiting."""
        if self._thread is None:
            self._work(item)
            return
        self._raise()
        self._items.put(item)

    def finish(self) -> None:
        """Wait until everything that was handed over is done."""
        if self._thread is not None:
            self._items.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        failed = False
        while True:
            item = self._items.get()
            try:
                if item is _END:
                    return
                if not failed:
                    self._work(item)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._error, failed = error, True
            finally:
                self._items.task_done()

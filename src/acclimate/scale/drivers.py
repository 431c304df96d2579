"""One driver at a time for an output folder: a lock on this machine, a lease where the file system has no locks.

Every driver of a folder elsewhere has a file of its own there, ``drivers/000001.json`` and so on, which is made only if
there is none yet: of two drivers that begin at the same moment one gets the number. It is written again every few
seconds. Whoever comes later reads the last one for a while, so that no clocks are compared: one that is written again
has a driver; one that is not belongs to a driver that was killed, and the next number is taken.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

from acclimate.errors import ConfigError, DataError
from acclimate.output_files import make_folder
from acclimate.output_locks import only_writer, this_process
from acclimate.storage import Folder

logger = logging.getLogger(__name__)

#: How often a lease is written again, in seconds.
RENEWAL_S: Final = 5.0
#: For how many seconds it has to stay unchanged before another driver takes over.
SILENCE_S: Final = 30.0
_LOCK: Final = "driver.lock"
_LOOKS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lease:
    """What the file of a driver says.

    Attributes:
        driver: the process; ``token``: random, so that two files of the same text differ.
        began, renewed: times by the clock of that machine, for people.
        renewals: how often it was written again.
        ended: whether the driver has ended by itself.
    """

    driver: str
    token: str
    began: str
    renewed: str
    renewals: int = 0
    ended: bool = False


class Driver:
    """The right to write an output folder."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._lost = threading.Event()

    def check(self) -> None:
        """Refuse to go on where another driver has taken over.

        Raises:
            ConfigError: it has, because this process was stopped, or cut off from the file system, for a while.
        """
        if self._lost.is_set():
            raise ConfigError(
                f"another driver has taken over {self._output}, because this one did not answer for a while; it "
                "finishes the export"
            )

    def lose(self) -> None:
        """Note that another driver has taken over."""
        self._lost.set()


@contextmanager
def sole_driver(folder: Folder, *, renewal_s: float = RENEWAL_S, silence_s: float = SILENCE_S) -> Iterator[Driver]:
    """Be the one driver of an output folder inside the block.

    Args:
        folder: the output.
        renewal_s: how often a lease is written again, in seconds.
        silence_s: for how many seconds a lease has to stay unchanged before it is taken over; the driver that
            holds it must write it more often.

    Raises:
        ConfigError: another driver is writing to it.
        DataError: it cannot be written.
    """
    driver = Driver(folder.url)
    if folder.local is not None:
        make_folder(folder.local)
        with only_writer(Path(folder.local) / _LOCK, folder.url):
            yield driver
        return
    number, lease = _taken(folder, silence_s)
    renewing = _Renewing(folder, number, lease, driver, renewal_s)
    renewing.start()
    try:
        yield driver
    finally:
        renewing.end()


def _taken(folder: Folder, silence_s: float) -> tuple[int, _Lease]:
    """Take the next number, if no driver holds the last one."""
    number = 0
    while (found := _read(folder, number + 1)) is not None:
        number, last = number + 1, found
    if number and not last.ended:
        _wait(folder, number, last, silence_s)
    now = _now()
    mine = _Lease(driver=this_process(), token=uuid4().hex, began=now, renewed=now)
    made = folder.create(_name(number + 1), _as_json(mine))
    # Read again: there are object stores that do not know how to make a file only if there is none.
    there = _read(folder, number + 1)
    if not made or there is None or there.token != mine.token:
        raise _refusal(folder, there)
    return number + 1, mine


def _wait(folder: Folder, number: int, last: _Lease, silence_s: float) -> None:
    """Return when a lease has not changed for ``silence_s``, or has ended.

    Raises:
        ConfigError: it was written again, or a later one was made.
    """
    logger.warning(
        "%s was writing %s and has not ended; waiting up to %.0f s to see whether it still does",
        last.driver, folder.url, silence_s,
    )  # fmt: skip
    until = time.monotonic() + silence_s
    while time.monotonic() < until:
        time.sleep(silence_s / _LOOKS)
        found = _read(folder, number)
        if found is not None and found.ended:
            return
        if found != last:
            raise _refusal(folder, found)
    later = _read(folder, number + 1)
    if later is not None:
        raise _refusal(folder, later)


def _refusal(folder: Folder, lease: _Lease | None) -> ConfigError:
    who = "another driver" if lease is None else f"{lease.driver}, which began at {lease.began},"
    return ConfigError(f"{who} is writing {folder.url}; wait for it to end, or choose another output folder")


class _Renewing(threading.Thread):
    """Writes a lease again until it is told to end."""

    def __init__(self, folder: Folder, number: int, lease: _Lease, driver: Driver, renewal_s: float) -> None:
        super().__init__(name="driver-lease", daemon=True)
        self._folder, self._number, self._lease = folder, number, lease
        self._driver, self._renewal_s = driver, renewal_s
        self._ends = threading.Event()

    def run(self) -> None:
        while not self._ends.wait(self._renewal_s):
            if not self._renewed(ended=False):
                return

    def end(self) -> None:
        """Say that the driver has ended."""
        self._ends.set()
        self.join()
        self._renewed(ended=True)

    def _renewed(self, *, ended: bool) -> bool:
        """Write the lease again; return whether it is still that of this driver."""
        try:
            there = _read(self._folder, self._number)
            if _read(self._folder, self._number + 1) is not None or there is None or there.token != self._lease.token:
                self._driver.lose()
                return False
            self._lease = replace(self._lease, renewed=_now(), renewals=self._lease.renewals + 1, ended=ended)
            self._folder.write(_name(self._number), _as_json(self._lease))
        except DataError as error:
            # Tried again; when that fails for long, another driver may take over, which is noticed above.
            logger.warning("%s", error)
        return True


def _read(folder: Folder, number: int) -> _Lease | None:
    content = folder.read(_name(number))
    if content is None:
        return None
    try:
        return _Lease(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder.url}/{_name(number)} is damaged ({error}); remove it") from error


def _name(number: int) -> str:
    return f"drivers/{number:06d}.json"


def _as_json(lease: _Lease) -> bytes:
    return json.dumps(asdict(lease), indent=1).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

from __future__ import annotations

import threading

import pytest

from acclimate.errors import CancelledError
from acclimate.serve.worker import BusyError
from acclimate.ui.one_at_a_time import OneAtATime


def test_work_does_not_overlap_and_too_much_of_it_is_refused() -> None:
    turns = OneAtATime(most_waiting=2)
    inside, most, release, began = [0], [0], threading.Event(), threading.Event()

    def work() -> None:
        with turns.turn():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            began.set()
            release.wait()
            inside[0] -= 1

    threads = [threading.Thread(target=work)]
    threads[0].start()
    began.wait()
    for _ in range(2):
        threads.append(threading.Thread(target=work))
        threads[-1].start()
    while turns._waiting < 2:
        pass
    with pytest.raises(BusyError, match="too many visitors wait"), turns.turn():
        pass
    release.set()
    for thread in threads:
        thread.join()
    assert most == [1]
    with turns.turn():
        pass


def test_who_gives_up_while_waiting_takes_no_turn_and_errors_free_it() -> None:
    turns, cancelled = OneAtATime(), threading.Event()
    cancelled.set()
    with turns.turn(), pytest.raises(CancelledError, match="ended before it began"), turns.turn(cancelled):
        pass
    with pytest.raises(ZeroDivisionError), turns.turn():
        1 / 0  # noqa: B018
    with turns.turn():
        pass

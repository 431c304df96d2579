"""Sixteen stores write to one PostgreSQL, which is restarted meanwhile: no row is lost, none is doubled."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from acclimate.monitoring import RequestRecord, Store, Window
from acclimate.monitoring.hours import read_hours
from acclimate.monitoring.schema import requests, ttt_metrics
from tests.monitoring.databases import postgresql, postgresql_binaries, restart

WRITERS, ROWS = 16, 60


def test_sixteen_writers_and_a_restart_lose_and_double_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if postgresql_binaries() is None:
        pytest.skip("PostgreSQL is not installed: initdb was not found")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "server"
    folder.mkdir()
    with postgresql(folder) as url:
        stores = [Store(url, retry_timeout_s=240.0) for _ in range(WRITERS)]
        began = threading.Barrier(WRITERS + 1)

        def write(number: int, store: Store) -> None:
            began.wait()
            for row in range(ROWS):
                store.record(
                    RequestRecord(
                        pipeline="language",
                        status="adapted",
                        session_id=f"writer {number}",
                        request_id=f"{number}-{row}",
                        confidence=0.9,
                        seconds=1.0,
                        adaptation_time=0.5,
                    )
                )
                time.sleep(0.005)

        threads = [threading.Thread(target=write, args=pair) for pair in enumerate(stores)]
        for thread in threads:
            thread.start()
        began.wait()
        time.sleep(0.2)
        restart(folder)
        for thread in threads:
            thread.join()
        for store in stores:
            assert store.flush(240.0)
            assert store.losses.total == 0
            store.close()
        with Store(url) as store, store.reading() as connection:
            expected = sorted(f"{number}-{row}" for number in range(WRITERS) for row in range(ROWS))
            assert sorted(connection.execute(sa.select(requests.c.request_id)).scalars()) == expected
            assert sorted(connection.execute(sa.select(ttt_metrics.c.request_id)).scalars()) == expected
            buckets = read_hours(connection, Window(since=datetime(2000, 1, 1, tzinfo=UTC)))
            # The sums too: a transaction that is made again after its commit was lost adds nothing.
            assert sum(bucket.count for bucket in buckets) == WRITERS * ROWS

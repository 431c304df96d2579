"""What recording costs a request: handing a row over, against writing it before going on.

    python benchmarks/monitoring/run.py --out benchmarks/monitoring/results/monitoring.json

Wall and CPU seconds of the thread that answers; both ways in the same run, with the same row and the same durability.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from acclimate.monitoring import RequestRecord, Store, Window, measure
from acclimate.monitoring.database import writing
from acclimate.monitoring.insert import insert


def record() -> RequestRecord:
    """Return a row as a request leaves it."""
    return RequestRecord(
        pipeline="language", status="adapted", session_id="s", model="spark", method="ttt", pattern="io_pairs",
        confidence=0.9, seconds=1.0, memory_bytes=2**20, rank=8, examples_count=6, training_steps=16,
        adaptation_time=0.5, convergence_score=0.9,
    )  # fmt: skip


def timed(work: Any, rows: int) -> dict[str, float]:
    """Return the seconds that one row takes of the thread that calls ``work``."""
    walls = []
    cpu = time.thread_time()
    for _ in range(rows):
        start = time.perf_counter()
        work()
        walls.append(time.perf_counter() - start)
    cpu = time.thread_time() - cpu
    return {
        "wall_us_median": 1e6 * statistics.median(walls),
        "wall_us_p99": 1e6 * statistics.quantiles(walls, n=100)[98],
        "cpu_us": 1e6 * cpu / rows,
    }


def main() -> None:
    """Measure both ways and how fast the writer and the indicators are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with Store(Path(folder) / "one.db") as store:
            count = iter(range(1, 10**9))

            def write_now() -> None:
                with writing(store.engine) as connection:
                    insert(connection, record(), writer_id="w", sequence=next(count), keep_content=False)

            write_now()
            now = timed(write_now, given.rows // 4)
        with Store(Path(folder) / "other.db", queue_size=given.rows + 10) as store:
            store.record(record())
            store.flush()
            handed = timed(lambda: store.record(record()), given.rows)
            start = time.perf_counter()
            store.flush()
            drained = time.perf_counter() - start
            threads = [threading.Thread(target=lambda: [store.record(record()) for _ in range(200)]) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            store.flush()
            lost = store.losses.total
            start = time.process_time()
            measure(store, Window.last(days=1))
            measured = time.process_time() - start
    result = {
        "rows": given.rows,
        "written before going on": now,
        "handed over": handed,
        "times less CPU for the request": now["cpu_us"] / handed["cpu_us"],
        "times less waiting": now["wall_us_median"] / handed["wall_us_median"],
        "rows a second, writer": given.rows / drained,
        "rows lost": lost,
        "CPU s for all indicators": measured,
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

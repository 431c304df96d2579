"""How long the page's queries take on many rows, in SQLite and PostgreSQL.

    python benchmarks/monitoring/page.py --rows 1000000 --out benchmarks/monitoring/results/page.json

A store of the version before is filled with requests of the last 30 days, upgraded (timed too), and read: the whole
month and the last day, with and without filters. Wall seconds, the median of five calls; the first call is given by
itself, because nothing is in the database's memory then.

    python benchmarks/monitoring/page.py --rows 10000000 --only postgresql --retention \
        --out benchmarks/monitoring/results/page_10_million.json

``--retention`` then writes to the full store and to an empty one on the same server, in turns, and at last deletes the
oldest day while another process writes a row at a time and measures how long each takes. The server runs without
``fsync``, as in the tests.

    python benchmarks/monitoring/page.py --sums --out benchmarks/monitoring/results/page_sums.json

``--sums`` fills only the sums by the hour, as sixteen processes write them in a month however many requests they have,
and reads indicators and trends before and after ``maintain`` has added up what the processes wrote of each hour.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import run
from tests.monitoring.databases import postgresql

from acclimate.monitoring import Filters, Store, Window, database, maintain, overview
from acclimate.monitoring.hours import models_and_actors
from acclimate.monitoring.schema import MEASURED, request_hours, timestamp_of

DAYS = 30
CHUNK = 20_000
BEFORE = "0004"


def rows(count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Yield requests, evenly over the month, each with its attempt if it is one."""
    rng = random.Random(0)
    end = datetime.now(UTC)
    for number in range(count):
        moment = timestamp_of(end - timedelta(days=DAYS) * (1 - number / count))
        status = rng.choices(("plain", "adapted", "declined", "fallback"), (70, 18, 9, 3))[0]
        reason = {"declined": "no_held_out_gain", "fallback": "timeout"}.get(status)
        confidence = rng.betavariate(8, 2) if status == "adapted" else None
        request = {
            "request_id": f"{number:032x}", "session_id": f"serve-{number // 5000}", "timestamp": moment,
            "pipeline": "language", "model": rng.choice(("smollm2", "spark")), "method": "ttt", "status": status,
            "reason": reason, "confidence": confidence, "icl_confidence": 0.4, "seconds": rng.expovariate(1.0),
            "memory_bytes": 2**24, "rank": 8, "writer_id": f"w{number % 16}", "sequence": number,
            "user_feedback": float(rng.randint(1, 5)) if rng.random() < 0.02 else None,
            "adaptable": status != "plain", "content": "x" * 300 if number % 3 == 0 else None,
        }  # fmt: skip
        attempt = None
        if status != "plain":
            attempt = {
                "session_id": request["session_id"], "timestamp": moment, "recorded_at": moment,
                "adaptation_time": rng.expovariate(0.8), "confidence_score": confidence,
                "success": status == "adapted", "fallback_reason": reason, "request_id": request["request_id"],
            }  # fmt: skip
        yield request, attempt


def fill(engine: sa.Engine, count: int) -> None:
    """Write the rows."""
    tables = sa.MetaData()
    tables.reflect(engine, only=["requests", "ttt_metrics"])
    pending: list[tuple[dict[str, Any], dict[str, Any] | None]] = []

    def write(connection: Connection) -> None:
        connection.execute(sa.insert(tables.tables["requests"]), [request for request, _ in pending])
        attempts = [attempt for _, attempt in pending if attempt is not None]
        connection.execute(sa.insert(tables.tables["ttt_metrics"]), attempts)
        pending.clear()

    with database.writing(engine) as connection:
        for pair in rows(count):
            pending.append(pair)
            if len(pending) == CHUNK:
                write(connection)
        if pending:
            write(connection)


#: The same rows as :func:`rows` makes, but made by PostgreSQL itself, which takes a tenth of the time; and for each
#: attempt an entry of the audit log, whose hashes are those of no chain.
FILL_POSTGRESQL = """
CREATE TEMPORARY TABLE made AS SELECT number, lpad(to_hex(number), 32, '0') AS request_id,
  'serve-' || number / 5000 AS session_id,
  to_char((now() - interval '{days} days' * (1 - number / {count}.0)) AT TIME ZONE 'UTC',
    'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS timestamp,
  CASE WHEN chance < 0.70 THEN 'plain' WHEN chance < 0.88 THEN 'adapted' WHEN chance < 0.97 THEN 'declined'
    ELSE 'fallback' END AS status,
  1 - 0.4 * random() ^ 2 AS confidence, -ln(1 - random()) AS seconds, random() AS rated, random() AS rating
FROM (SELECT number, random() AS chance FROM generate_series({first}, {last}) AS number) AS numbers;
INSERT INTO requests (request_id, session_id, timestamp, pipeline, model, method, status, reason, confidence,
  icl_confidence, seconds, memory_bytes, rank, writer_id, sequence, user_feedback, adaptable, content)
SELECT request_id, session_id, timestamp, 'language', CASE WHEN random() < 0.5 THEN 'smollm2' ELSE 'spark' END, 'ttt',
  status, CASE status WHEN 'declined' THEN 'no_held_out_gain' WHEN 'fallback' THEN 'timeout' END,
  CASE status WHEN 'adapted' THEN confidence END, 0.4, seconds, 16777216, 8, 'w' || mod(number, 16), number,
  CASE WHEN rated < 0.02 THEN 1 + floor(5 * rating) END, status <> 'plain',
  CASE WHEN mod(number, 3) = 0 THEN repeat('x', 300) END FROM made;
INSERT INTO ttt_metrics (session_id, timestamp, recorded_at, adaptation_time, confidence_score, success,
  fallback_reason, request_id)
SELECT session_id, timestamp, timestamp, seconds, CASE status WHEN 'adapted' THEN confidence END, status = 'adapted',
  CASE status WHEN 'declined' THEN 'no_held_out_gain' WHEN 'fallback' THEN 'timeout' END, request_id
FROM made WHERE status <> 'plain';
INSERT INTO audit_log (timestamp, actor, action, subject, settings, outcome, previous_hash, entry_hash)
SELECT timestamp, 'server', 'language adaptation', request_id, '{{"model": "spark", "method": "ttt"}}', status,
  lpad(request_id, 64, '0'), lpad(request_id, 64, '1') FROM made WHERE status <> 'plain';
DROP TABLE made;
"""
FILL_CHUNK = 1_000_000


def fill_postgresql(engine: sa.Engine, count: int) -> None:
    """Let PostgreSQL make the rows, and gather its statistics as its autovacuum does after a while."""
    for first in range(0, count, FILL_CHUNK):
        last = min(first + FILL_CHUNK, count) - 1
        with database.writing(engine) as connection:
            made = FILL_POSTGRESQL.format(days=DAYS, count=count, first=first, last=last)
            for statement in made.split(";\n")[:-1]:
                connection.exec_driver_sql(statement)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def queries() -> dict[str, Callable[[Connection, Window], Any]]:
    """Return what each view of the page asks."""
    spark = Filters(model="spark")
    return {
        "indicators and trends, by hour": lambda c, w: overview.read_overview(c, w),
        "indicators and trends, by day": lambda c, w: overview.read_overview(c, w, by_day=True),
        "indicators and trends of a model": lambda c, w: overview.read_overview(c, w, filters=spark),
        "latency": lambda c, w: overview.latency(c, w),
        "latency of a model": lambda c, w: overview.latency(c, w, filters=spark),
        "calibration": lambda c, w: overview.calibration_bins(c, w),
        "recent requests": lambda c, w: overview.recent_requests(c, w),
        "recent requests that failed": lambda c, w: overview.recent_requests(c, w, status="fallback"),
        "recent requests of nobody": lambda c, w: overview.recent_requests(c, w, filters=Filters(actor="nobody")),
        "one request": lambda c, w: overview.request_details(c, f"{4321:032x}"),
        "guard events": lambda c, w: overview.vision_totals(c, w),
        "models and keys": models_and_actors,
    }


def measured(url: str, count: int) -> dict[str, Any]:
    """Fill a store, upgrade it, and time the queries."""
    engine = database.make_engine(database.database_url(url))
    database.upgrade(engine, BEFORE)
    start = time.perf_counter()
    (fill_postgresql if engine.dialect.name == "postgresql" else fill)(engine, count)
    filled = time.perf_counter() - start
    engine.dispose()
    start = time.perf_counter()
    store = Store(url)
    found: dict[str, Any] = {"fill_s": filled, "upgrade_s": time.perf_counter() - start, "queries": {}}
    with store:
        for name, ask in queries().items():
            for stretch, days in (("month", DAYS), ("day", 1)):
                window = Window.last(days=days)
                times = []
                for _ in range(6):
                    start = time.perf_counter()
                    with store.reading() as connection:
                        ask(connection, window)
                    times.append(time.perf_counter() - start)
                found["queries"][f"{name}, {stretch}"] = {"first_s": times[0], "s": statistics.median(times[1:])}
                print(
                    f"{name}, {stretch}: first {times[0]:.3f} s, then {found['queries'][f'{name}, {stretch}']['s']:.3f}"
                )
    return found


def writer_rates(url: str, rounds: int = 5, count: int = 1_000) -> dict[str, Any]:
    """Return the rows a second that a store writes beside many rows, and into an empty database of the same server."""
    empty = url.rpartition("/")[0] + "/empty"
    engine = sa.create_engine(database.database_url(url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE empty")
    engine.dispose()
    rates: dict[str, list[float]] = {"full": [], "empty": []}
    with Store(url, queue_size=2 * count) as full, Store(empty, queue_size=2 * count) as other:
        for store in (full, other):
            store.record(run.record())
            store.flush()
        for _ in range(rounds):
            for name, store in (("full", full), ("empty", other)):
                start = time.perf_counter()
                for _ in range(count):
                    store.record(run.record())
                store.flush()
                rates[name].append(count / (time.perf_counter() - start))
    ratios = [full / empty for full, empty in zip(*rates.values(), strict=True)]
    return {
        "full_rows_per_s": statistics.median(rates["full"]),
        "empty_rows_per_s": statistics.median(rates["empty"]),
        "full_over_empty": statistics.median(ratios),
    }


def write_rows(url: str, stop: Any, waits: Any) -> None:
    """Write a row at a time until it is stopped, and hand over the seconds that each took."""
    found = []
    with Store(url) as store:
        store.record(run.record())
        store.flush()
        while not stop.is_set():
            start = time.perf_counter()
            store.record(run.record())
            store.flush()
            found.append(time.perf_counter() - start)
            time.sleep(0.005)
    waits.put(found)


def waits_during(url: str, work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return how long another process waits for its rows to be written while ``work`` runs, and what that returns."""
    context = multiprocessing.get_context("spawn")
    stop, waits = context.Event(), context.Queue()
    process = context.Process(target=write_rows, args=(url, stop, waits))
    process.start()
    time.sleep(5)
    start = time.perf_counter()
    result = work()
    taken = time.perf_counter() - start
    stop.set()
    found = waits.get()
    process.join()
    return {
        "s": taken,
        "rows": len(found),
        "wait_s_median": statistics.median(found),
        "wait_s_p99": statistics.quantiles(found, n=100)[98],
        "wait_s_longest": max(found),
    }, result


def retention(url: str) -> dict[str, Any]:
    """Return how long a writer waits with nothing else to do, and while the rows of the oldest day are deleted."""
    quiet, _ = waits_during(url, lambda: time.sleep(30))
    with Store(url) as store:
        during, done = waits_during(url, lambda: maintain(store, keep_days=DAYS - 1, keep_audit_days=DAYS - 1))
    return {"nothing else": quiet, "retention": during, "removed": dict(done.removed)}


def fill_sums(engine: sa.Engine, writers: int = 16) -> int:
    """Write the sums of a month and return their number."""
    rng = random.Random(0)
    end = datetime.now(UTC)
    made = []
    for hours_ago in range(24 * DAYS):
        for writer, model, (status, reason) in itertools.product(
            range(writers),
            ("spark", "smollm2"),
            (("plain", ""), ("adapted", ""), ("declined", "no_held_out_gain"), ("fallback", "timeout")),
        ):
            count = rng.randint(1, 200)
            row: dict[str, Any] = {
                "hour": timestamp_of(end - timedelta(hours=hours_ago))[:13], "writer_id": f"w{writer}",
                "pipeline": "language", "model": model, "actor": "", "status": status, "reason": reason,
                "count": count, "adaptable": count,
            }  # fmt: skip
            for name in MEASURED:
                row |= {f"{name}_count": count, f"{name}_sum": count * rng.random()}
                row[f"{name}_squares"] = row[f"{name}_sum"] ** 2
            made.append(row)
    with database.writing(engine) as connection:
        for first in range(0, len(made), CHUNK):
            connection.execute(sa.insert(request_hours), made[first : first + CHUNK])
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE request_hours")
    return len(made)


def processor_s(pid: int) -> float:
    """Return the processor seconds of a process of the database; 0 where there is none."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured_sums(url: str) -> dict[str, Any]:
    """Time indicators and trends of a month before and after maintenance."""
    window = Window.last(days=DAYS - 0.5)

    def times(store: Store) -> dict[str, float]:
        wall, here, there = [], [], []
        for _ in range(12):
            with store.reading() as connection:
                backend = 0
                if connection.dialect.name == "postgresql":
                    # Otherwise half of the work is that of a process which has ended when it could be asked.
                    connection.exec_driver_sql("SET max_parallel_workers_per_gather = 0")
                    backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
                start, used, before = time.perf_counter(), time.process_time(), processor_s(backend)
                overview.read_overview(connection, window)
                wall.append(time.perf_counter() - start)
                here.append(time.process_time() - used)
                there.append(processor_s(backend) - before)
        return {
            "first_s": wall[0],
            "s": statistics.median(wall[1:]),
            "cpu_s_of_this_process": statistics.mean(here[1:]),
            "cpu_s_of_the_server": statistics.mean(there[1:]),
        }

    with Store(url) as store:
        found: dict[str, Any] = {"rows": fill_sums(store.engine), "before": times(store)}
        start = time.perf_counter()
        merged = maintain(store, keep_days=DAYS + 1).merged
        found |= {"maintain_s": time.perf_counter() - start, "merged": merged, "after": times(store)}
    return found


def main() -> None:
    """Measure both databases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--retention", action="store_true", help="write and delete too, in PostgreSQL")
    parser.add_argument("--sums", action="store_true", help="only the sums by the hour, before and after maintenance")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.sums:
        with tempfile.TemporaryDirectory() as folder, postgresql(Path(folder)) as url:
            found = {"sqlite": measured_sums(str(Path(folder) / "metrics.db")), "postgresql": measured_sums(url)}
        print(json.dumps(found, indent=1))
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=1) + "\n")
        return
    results: dict[str, Any] = {"rows": given.rows}
    if given.only != "postgresql":
        with tempfile.TemporaryDirectory() as folder:
            results["sqlite"] = measured(str(Path(folder) / "metrics.db"), given.rows)
    if given.only != "sqlite":
        with tempfile.TemporaryDirectory() as folder, postgresql(Path(folder)) as url:
            results["postgresql"] = measured(url, given.rows)
            if given.retention:
                results["postgresql"] |= {"writer": writer_rates(url), "waits": retention(url)}
                print(json.dumps({name: results["postgresql"][name] for name in ("writer", "waits")}, indent=1))
    for kind in ("sqlite", "postgresql"):
        if kind in results:
            slowest = max(query["first_s"] for query in results[kind]["queries"].values())
            print(f"{kind}: upgrade {results[kind]['upgrade_s']:.1f} s, slowest query {slowest:.3f} s")
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

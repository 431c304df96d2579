"""Exports for other programs: JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from acclimate.errors import ConfigError, StoreError
from acclimate.monitoring.attempts import attempt_status
from acclimate.monitoring.other_programs import from_another_program
from acclimate.monitoring.schema import requests, ttt_ab_tests, ttt_metrics
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import Window
from acclimate.output_files import open_output, open_text_output, write_output

FORMATS: Final = (".json", ".csv", ".parquet")


def export_metrics(store: Store, path: Path, window: Window, *, days: float) -> int:
    """Write what was recorded in ``window`` and return the number of requests.

    CSV and Parquet hold one row for each request, adapted or not, with the columns of its attempt where there was one,
    and one for each attempt that another program recorded. JSON holds attempts (``metrics``), ``requests`` and
    ``ab_tests``. Stored content is in none of them.

    Args:
        store: to read.
        path: ends in ``.json``, ``.csv`` or ``.parquet``.
        window: of the rows.
        days: the length of the window, written into the JSON file.

    Raises:
        ConfigError: the ending is another.
        StoreError: the file cannot be written, or Parquet is not installed.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path} must end in {', '.join(FORMATS)}, got {path.suffix or 'no ending'!r}")
    shown = [column for column in requests.c if column.name != "content"]
    attempts_in_window = window.of(ttt_metrics.c.recorded_at)
    with store.reading() as connection:
        rows = _joined(connection, window)
        if path.suffix == ".json":
            newest = sa.select(ttt_metrics).where(attempts_in_window).order_by(ttt_metrics.c.recorded_at.desc())
            attempts = _rows(connection, newest)
            content = {
                "export_timestamp": datetime.now(UTC).isoformat(),
                "period_days": days,
                "total_records": len(attempts),
                "total_requests": len(rows),
                "metrics": attempts,
                "requests": _rows(connection, sa.select(*shown).where(window.of(requests.c.timestamp))),
                "ab_tests": _rows(connection, sa.select(ttt_ab_tests).where(window.of(ttt_ab_tests.c.recorded_at))),
            }
    names = [column.name for column in (*ttt_metrics.c, *_only_in_requests())]
    if path.suffix == ".json":
        write_output(path, json.dumps(content, indent=2) + "\n", error=StoreError)
    elif path.suffix == ".csv":
        with open_text_output(path, error=StoreError) as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            table.writerows(rows)
    else:
        _write_parquet(path, names, rows)
    return len(rows)


def _only_in_requests() -> list[sa.Column[Any]]:
    return [c for c in requests.c if c.name != "content" and c.name not in ttt_metrics.c]


def _joined(connection: sa.Connection, window: Window) -> list[dict[str, Any]]:
    """Return every request with its attempt, and the attempts of other programs, the newest first."""
    here = {"recorded_at": requests.c.timestamp} | {c.name: c for c in requests.c if c.name in ttt_metrics.c}
    either = [sa.func.coalesce(c, here[c.name]).label(c.name) if c.name in here else c for c in ttt_metrics.c]
    joined = requests.outerjoin(ttt_metrics, requests.c.request_id == ttt_metrics.c.request_id)
    ours = sa.select(*either, *_only_in_requests()).select_from(joined).where(window.of(requests.c.timestamp))
    theirs = sa.select(ttt_metrics).where(window.of(ttt_metrics.c.recorded_at), from_another_program())
    nothing = {column.name: None for column in _only_in_requests()}
    # What another program recorded has no status of its own; attempts tell it.
    others = [
        {**nothing, "pipeline": "language", **row}
        for row in _rows(connection, theirs.add_columns(attempt_status().label("status")))
    ]
    return sorted((*_rows(connection, ours), *others), key=lambda row: str(row["recorded_at"]), reverse=True)


def _rows(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query).mappings()]


def _write_parquet(path: Path, names: list[str], rows: list[dict[str, Any]]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise StoreError("Parquet needs pyarrow: pip install 'acclimate[parquet]'; or export .csv") from error
    types = {sa.Text: pa.string(), sa.Integer: pa.int64(), sa.BigInteger: pa.int64(), sa.Float: pa.float64()}
    types[sa.Boolean] = pa.bool_()
    columns = {c.name: types[type(c.type)] for table in (requests, ttt_metrics) for c in table.c}
    schema = pa.schema([(name, columns[name]) for name in names])
    with open_output(path, error=StoreError) as file:
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), file)

"""Exports for other programs: JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from acclimate.errors import ConfigError, StoreError
from acclimate.monitoring.schema import requests, ttt_ab_tests, ttt_metrics
from acclimate.monitoring.store import Store
from acclimate.monitoring.window import Window
from acclimate.output_files import open_output, open_text_output, write_output

FORMATS: Final = (".json", ".csv", ".parquet")


def export_metrics(store: Store, path: Path, window: Window, *, days: float) -> int:
    """Write what was recorded in ``window`` and return the number of attempts.

    JSON holds attempts (``metrics``), ``requests`` and ``ab_tests``, without stored content; CSV and Parquet hold the
    attempts, joined with their requests.

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
    more = [c for c in shown if c.name not in {m.name for m in ttt_metrics.c}]
    joined = ttt_metrics.outerjoin(requests, requests.c.request_id == ttt_metrics.c.request_id)
    with store.reading() as connection:
        attempts = _rows(
            connection,
            sa.select(ttt_metrics, *more)
            .select_from(joined)
            .where(window.of(ttt_metrics.c.timestamp))
            .order_by(ttt_metrics.c.timestamp.desc()),
        )
        content: dict[str, Any] = {"metrics": attempts}
        if path.suffix == ".json":
            content["requests"] = _rows(connection, sa.select(*shown).where(window.of(requests.c.timestamp)))
            content["ab_tests"] = _rows(connection, sa.select(ttt_ab_tests).where(window.of(ttt_ab_tests.c.timestamp)))
    names = [column.name for column in (*ttt_metrics.c, *more)]
    if path.suffix == ".json":
        head = {"export_timestamp": datetime.now(UTC).isoformat(), "period_days": days}
        text = json.dumps({**head, "total_records": len(attempts), **content}, indent=2) + "\n"
        write_output(path, text, error=StoreError)
    elif path.suffix == ".csv":
        with open_text_output(path, error=StoreError) as file:
            rows = csv.DictWriter(file, names)
            rows.writeheader()
            rows.writerows(attempts)
    else:
        _write_parquet(path, names, attempts)
    return len(attempts)


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

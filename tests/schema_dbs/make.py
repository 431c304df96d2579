"""Makes the databases beside this file. Each is kept as its version wrote it, so run this only for a new version.

PYTHONPATH=. python tests/schema_dbs/make.py 0004
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tests.monitoring.databases import fill

from acclimate.monitoring import RequestRecord, Store, VisionRun
from acclimate.monitoring.schema import HEAD

FOLDER = Path(__file__).parent
#: The tables as the guidelines' own collector makes them.
GUIDELINES = """
CREATE TABLE ttt_metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL, timestamp TEXT NOT NULL,
 task_type TEXT, examples_count INTEGER, training_steps INTEGER, adaptation_time REAL, confidence_score REAL,
 convergence_score REAL, success BOOLEAN, fallback_reason TEXT, user_feedback REAL, accuracy_improvement REAL,
 metadata TEXT);
CREATE TABLE ttt_ab_tests (id INTEGER PRIMARY KEY AUTOINCREMENT, test_id TEXT NOT NULL, session_id TEXT NOT NULL,
 timestamp TEXT NOT NULL, method TEXT NOT NULL, task_type TEXT, examples_count INTEGER, response_quality REAL,
 response_time REAL, user_satisfaction REAL, metadata TEXT);
CREATE INDEX idx_ttt_timestamp ON ttt_metrics(timestamp);
CREATE INDEX idx_ttt_session ON ttt_metrics(session_id);
CREATE INDEX idx_ab_test ON ttt_ab_tests(test_id, method);
"""
ROWS = """
INSERT INTO ttt_metrics (session_id, timestamp, task_type, examples_count, training_steps, adaptation_time,
 confidence_score, convergence_score, success, fallback_reason, metadata) VALUES
 ('old', '2026-11-01T10:00:00.000000', 'io_pairs', 5, 8, 1.5, 0.9, 0.95, 1, NULL, '{}'),
 ('old', '2026-11-01T11:00:00.000000', 'io_pairs', 3, 4, 1.1, 0.4, 0.50, 0, 'low_confidence', '{}');
INSERT INTO ttt_ab_tests (test_id, session_id, timestamp, method, response_quality) VALUES
 ('t', 'old', '2026-11-01T10:00:00.000000', 'TTT', 0.9), ('t', 'old', '2026-11-01T10:00:00.000000', 'ICL', 0.6);
"""


def make(version: str) -> None:
    """Write the database of one version."""
    path = FOLDER / f"{version}.db"
    if version not in (HEAD, "guidelines"):
        sys.exit(f"only a database of the present version, {HEAD}, can be made, got {version!r}")
    path.unlink(missing_ok=True)
    if version == "guidelines":
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(GUIDELINES + ROWS)
        return
    Store(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(ROWS)
    with Store(path) as store:
        fill(store, 2)
        fill(store, 1, "declined")
        run = VisionRun(images=9, steps=8, kept=5, skipped=2, guard_rejections=1, resets=0, cost_ratio=2.0, gain=0.1)
        store.record(RequestRecord(pipeline="vision", status="adapted", session_id="v", vision=run))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("VACUUM")
    shutil.rmtree(f"{path}.writers")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        make(name)

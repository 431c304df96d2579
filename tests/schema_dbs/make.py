"""How the databases beside this file were made; each is kept as it was written, so run this only for a new version.

python tests/schema_dbs/make.py 0002
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tests.monitoring.databases import fill

from acclimate.monitoring import Store
from acclimate.monitoring.database import database_url, make_engine, upgrade

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
    path.unlink(missing_ok=True)
    if version == "guidelines":
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(GUIDELINES + ROWS)
        return
    engine = make_engine(database_url(path))
    upgrade(engine, version)
    engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(ROWS)
    if version != "0001":
        with Store(path) as store:
            fill(store, 2)
            fill(store, 1, "declined")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("VACUUM")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        make(name)

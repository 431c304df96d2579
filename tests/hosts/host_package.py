"""A package ``sam`` of a host, with a base class, a UIF and a metrics collector of its own.

The collector has the columns of the deployment guidelines and writes local times without a zone.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "sam/__init__.py": "HOST = True\n",
    "sam/monitoring/__init__.py": "",
    "sam/orchestration/__init__.py": "",
    "sam/orchestration/skills/__init__.py": "",
    "sam/orchestration/skills/reasoning/__init__.py": "",
    "sam/orchestration/uif.py": '''
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any


class UIFStatus(str, Enum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILURE = "failure"


@dataclass(slots=True, kw_only=True)
class SAM_UIF:
    """Has a session of its own, and takes no attribute that it does not declare."""

    input_query: str
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: UIFStatus = UIFStatus.PENDING
    user_context: dict[str, Any] = field(default_factory=dict)
    session_id: str | None = None
    user_id: str | None = None
    intermediate_data: dict[str, Any] = field(default_factory=dict)
    final_response: str | None = None
    confidence_score: float | None = None
    log_trace: list[str] = field(default_factory=list)
    executed_skills: list[str] = field(default_factory=list)
    skill_timings: dict[str, float] = field(default_factory=dict)

    def add_log_entry(self, message: str, skill_name: str | None = None) -> None:
        self.log_trace.append(f"[{datetime.now().isoformat()}] {skill_name}: {message}")

    def mark_skill_complete(self, skill_name: str, seconds: float) -> None:
        if skill_name not in self.executed_skills:
            self.executed_skills.append(skill_name)
        self.skill_timings[skill_name] = seconds
''',
    "sam/orchestration/skills/base.py": """
import logging
import time
from abc import ABC, abstractmethod

from ..uif import SAM_UIF, UIFStatus


class BaseSkillModule(ABC):
    HOST = True
    skill_name = "BaseSkill"
    skill_version = "1.0.0"
    skill_description = ""
    skill_category = "core"
    required_inputs: list = []
    optional_inputs: list = []
    output_keys: list = []
    max_execution_time = None

    def __init__(self):
        self.logger = logging.getLogger(f"{__name__}.{self.skill_name}")
        if self.skill_name == "BaseSkill" or not self.skill_description:
            raise ValueError("a skill needs a name and a description")
        if set(self.required_inputs) & set(self.optional_inputs):
            raise ValueError("required and optional inputs overlap")

    @abstractmethod
    def execute(self, uif: SAM_UIF) -> SAM_UIF: ...

    def execute_with_monitoring(self, uif: SAM_UIF) -> SAM_UIF:
        start = time.time()
        uif.add_log_entry("starting", self.skill_name)
        uif.status = UIFStatus.RUNNING
        done = self.execute(uif)
        done.mark_skill_complete(self.skill_name, time.time() - start)
        missing = [key for key in self.output_keys if key not in done.intermediate_data]
        if missing:
            raise ValueError(f"outputs are missing: {missing}")
        return done
""",
    "sam/monitoring/ttt_metrics.py": '''
import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

COLUMNS = (
    "session_id, timestamp, task_type, examples_count, training_steps, adaptation_time, confidence_score, "
    "convergence_score, success, fallback_reason, user_feedback, accuracy_improvement, metadata"
)
AB_COLUMNS = (
    "test_id, session_id, timestamp, method, task_type, examples_count, response_quality, response_time, "
    "user_satisfaction, metadata"
)


@dataclass
class TTTPerformanceMetric:
    session_id: str
    timestamp: datetime
    task_type: str
    examples_count: int
    training_steps: int
    adaptation_time: float
    confidence_score: float
    convergence_score: float
    success: bool
    fallback_reason: str | None = None
    user_feedback: float | None = None
    accuracy_improvement: float | None = None


class TTTMetricsCollector:
    def __init__(self, db_path="logs/ttt_metrics.db"):
        self.db_path = Path(db_path)
        self.db_path.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(self.db_path) as connection:
            connection.execute("""CREATE TABLE IF NOT EXISTS ttt_metrics (id INTEGER PRIMARY KEY AUTOINCREMENT,
                session_id TEXT NOT NULL, timestamp TEXT NOT NULL, task_type TEXT, examples_count INTEGER,
                training_steps INTEGER, adaptation_time REAL, confidence_score REAL, convergence_score REAL,
                success BOOLEAN, fallback_reason TEXT, user_feedback REAL, accuracy_improvement REAL, metadata TEXT)""")
            connection.execute("""CREATE TABLE IF NOT EXISTS ttt_ab_tests (id INTEGER PRIMARY KEY AUTOINCREMENT,
                test_id TEXT NOT NULL, session_id TEXT NOT NULL, timestamp TEXT NOT NULL, method TEXT NOT NULL,
                task_type TEXT, examples_count INTEGER, response_quality REAL, response_time REAL,
                user_satisfaction REAL, metadata TEXT)""")
            connection.execute("CREATE INDEX IF NOT EXISTS idx_ttt_timestamp ON ttt_metrics(timestamp)")
            connection.execute("CREATE INDEX IF NOT EXISTS idx_ttt_session ON ttt_metrics(session_id)")
            connection.execute("CREATE INDEX IF NOT EXISTS idx_ab_test ON ttt_ab_tests(test_id, method)")

    def _insert(self, table, columns, values):
        with sqlite3.connect(self.db_path) as connection:
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)

    def record_ttt_attempt(self, metric, metadata=None):
        values = [metric.timestamp.isoformat() if k == "timestamp" else v for k, v in vars(metric).items()]
        self._insert("ttt_metrics", COLUMNS, (*values, json.dumps(metadata or {})))

    def record_ab_test_result(self, test_id, session_id, method, task_type, examples_count, quality, seconds):
        now = datetime.now().isoformat()
        values = (test_id, session_id, now, method, task_type, examples_count, quality, seconds, None, "{}")
        self._insert("ttt_ab_tests", AB_COLUMNS, values)

    def get_performance_trends(self, days=7):
        """Has no trend."""
        cutoff = (datetime.now() - timedelta(days=days)).isoformat()
        with sqlite3.connect(self.db_path) as connection:
            rows = connection.execute(
                "SELECT DATE(timestamp), COUNT(*), AVG(success) FROM ttt_metrics WHERE timestamp >= ? "
                "GROUP BY DATE(timestamp)", (cutoff,)
            ).fetchall()
        return {
            "daily_performance": [{"date": d, "total_attempts": n, "success_rate": s} for d, n, s in rows],
            "task_type_performance": [],
        }

    def export_metrics(self, output_path, days=30):
        Path(output_path).write_text("{}")


_collector = None


def get_ttt_metrics_collector():
    global _collector
    if _collector is None:
        _collector = TTTMetricsCollector()
    return _collector
''',
}


def write_host(folder: Path) -> None:
    """Write the package into ``folder``."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

"""What passes between skills."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4


class UIFStatus(StrEnum):
    """How far a task is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"


def _now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(kw_only=True)
class SAM_UIF:  # noqa: N801  the guidelines' name
    """A query and what skills made of it.

    Attributes:
        input_query: of the user.
        task_id, created_at, updated_at, status: of the task.
        user_context: of the session; ``session_id`` and ``user_id`` enter the metrics.
        intermediate_data: what skills leave for each other.
        final_response: to the user.
        confidence_score: of it.
        error_details: why it failed.
        executed_skills: names, in order.
        log_trace: what happened.
    """

    input_query: str
    task_id: str = field(default_factory=lambda: str(uuid4()))
    status: UIFStatus = UIFStatus.PENDING
    created_at: str = field(default_factory=_now)
    updated_at: str = field(default_factory=_now)
    user_context: dict[str, Any] = field(default_factory=dict)
    intermediate_data: dict[str, Any] = field(default_factory=dict)
    final_response: str | None = None
    confidence_score: float | None = None
    error_details: str | None = None
    executed_skills: list[str] = field(default_factory=list)
    log_trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.input_query.strip():
            raise ValueError("input_query is empty; give the user's query")

    def add_log_entry(self, message: str) -> None:
        """Append to the trace."""
        self.updated_at = _now()
        self.log_trace.append(f"{self.updated_at} {message}")

"""A file with one JSON object for each request, for finding faults: never weights, and text only if asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from acclimate.language.answers import AskReport
from acclimate.language.decision.evidence import Evidence
from acclimate.language.examples import Example

DEBUG_FILE: Final = Path("logs/ttt_debug.jsonl")


class DebugLog:
    """Appends to a file; several threads may share one.

    Args:
        path: of the file; folders are made.
        content: also write prompt, examples and answers.
        losses: write the loss of every training step.
        detection: write the confidence of the detection of the examples.
        evidence: write what the gate decided on.
    """

    def __init__(
        self,
        path: Path = DEBUG_FILE,
        *,
        content: bool = False,
        losses: bool = True,
        detection: bool = True,
        evidence: bool = True,
    ) -> None:
        self.path = path
        self.content, self.losses, self.detection, self.evidence = content, losses, detection, evidence
        self._lock = threading.Lock()

    def write(
        self,
        report: AskReport,
        *,
        query: str,
        examples: Sequence[Example],
        losses: Sequence[float],
        evidence: Evidence | None,
    ) -> None:
        """Append one request."""
        metadata = report.metadata
        row: dict[str, Any] = {
            "timestamp": datetime.now(UTC).isoformat(),
            "query_length": len(query),
            "examples_count": len(examples),
            "pattern_type": report.pattern,
            "confidence_score": metadata.confidence_score,
            "training_steps": metadata.training_steps,
            "convergence_score": metadata.convergence_score,
            "adaptation_time": metadata.adaptation_time,
            "fallback_reason": metadata.fallback_reason,
            "status": report.status,
            "model": report.model,
            "seconds": dict(report.seconds),
        }
        if self.losses:
            row["losses"] = [round(loss, 5) for loss in losses]
        if self.detection:
            row["pattern_confidence"] = report.pattern_confidence
        if self.evidence and evidence is not None:
            row["evidence"] = asdict(evidence)
        if self.content:
            row |= {"query": query, "examples": [asdict(e) for e in examples], "answer": report.answer}
            row |= {"icl_answer": report.icl_answer, "ttt_answer": report.ttt_answer}
        line = json.dumps(row) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

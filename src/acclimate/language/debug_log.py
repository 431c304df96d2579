"""What happened to each request, one JSON object a line, for finding faults: never weights, and text only if asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from acclimate.errors import ConfigError
from acclimate.language.answers import AdaptationMetadata, AskReport
from acclimate.language.decision.evidence import Evidence
from acclimate.language.examples import Example

DEBUG_FILE: Final = Path("logs/ttt_debug.jsonl")
TTT_DEBUG_CONFIG: Final[Mapping[str, bool]] = {
    "log_training_steps": True,
    "log_adapter_weights": False,
    "log_pattern_detection": True,
    "log_confidence_calculation": True,
    "save_debug_artifacts": False,
}


def collect_debug_info(
    query: str, metadata: AdaptationMetadata, *, examples_count: int = 0, pattern_type: str | None = None
) -> dict[str, Any]:
    """Return what is known about one adaptation, without any text of the request."""
    return {
        "timestamp": datetime.now(UTC).isoformat(),
        "query_length": len(query),
        "examples_count": examples_count,
        "pattern_type": pattern_type,
        "confidence_score": metadata.confidence_score,
        "training_steps": metadata.training_steps,
        "convergence_score": metadata.convergence_score,
        "adaptation_time": metadata.adaptation_time,
        "fallback_reason": metadata.fallback_reason,
    }


class DebugLog:
    """Appends to a file.

    Args:
        path: of the file; folders are made.
        config: switches as in :data:`TTT_DEBUG_CONFIG`; ``save_debug_artifacts`` adds prompt, examples and answers.

    Raises:
        ConfigError: a switch is not known, or weights are asked for: they are never logged.
    """

    def __init__(self, path: Path = DEBUG_FILE, config: Mapping[str, bool] = TTT_DEBUG_CONFIG) -> None:
        if unknown := sorted(set(config) - set(TTT_DEBUG_CONFIG)):
            raise ConfigError(f"unknown debug switch {unknown[0]!r}; known are {', '.join(TTT_DEBUG_CONFIG)}")
        if config.get("log_adapter_weights"):
            raise ConfigError("log_adapter_weights cannot be switched on: an adapter holds what its examples say")
        self.path, self.config = path, {**TTT_DEBUG_CONFIG, **config}
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
        row = collect_debug_info(query, report.metadata, examples_count=len(examples), pattern_type=report.pattern)
        row |= {"status": report.status, "model": report.model, "seconds": dict(report.seconds)}
        if self.config["log_training_steps"]:
            row["losses"] = [round(loss, 5) for loss in losses]
        if self.config["log_pattern_detection"]:
            row["pattern_confidence"] = report.pattern_confidence
        if self.config["log_confidence_calculation"] and evidence is not None:
            row["evidence"] = asdict(evidence)
        if self.config["save_debug_artifacts"]:
            row |= {"query": query, "examples": [asdict(e) for e in examples], "answer": report.answer}
            row |= {"icl_answer": report.icl_answer, "ttt_answer": report.ttt_answer}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

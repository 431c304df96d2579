"""Adapt the language model to the examples in a query. The level of this module's logger takes effect."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import uuid4

from sam.orchestration.skills.base import BaseSkillModule
from sam.orchestration.uif import SAM_UIF, UIFStatus

from acclimate.language import (
    CONFIDENCE_THRESHOLDS,
    DOMAIN_SENSITIVITY,
    RANK_RECOMMENDATIONS,
    AdaptationMetadata,
    Adapter,
    AskReport,
    DebugLog,
    Engine,
    Gate,
    LanguageModel,
    as_examples,
    load,
    optimize_training_steps,
    shipped,
)
from acclimate.language import AdapterManager as AdapterCache
from acclimate.monitoring import language_request

# A host may have a collector of its own under the guidelines' name; the skill records in acclimate's store anyway.
from acclimate_sam.collector import TTTMetricsCollector, get_ttt_metrics_collector, run_health_check
from acclimate_sam.debugging import DEBUG_FILE, TTT_DEBUG_CONFIG, debug_log
from acclimate_sam.kpis import PRIMARY_KPIS, SECONDARY_KPIS
from acclimate_sam.planning import LEAST_EXAMPLES, detected

logger = logging.getLogger(__name__)

__all__ = [
    "CONFIDENCE_THRESHOLDS",
    "DOMAIN_SENSITIVITY",
    "PRIMARY_KPIS",
    "RANK_RECOMMENDATIONS",
    "SECONDARY_KPIS",
    "TTT_DEBUG_CONFIG",
    "AdaptationMetadata",
    "AdapterManager",
    "TestTimeAdaptationSkill",
    "collect_debug_info",
    "debug_log",
    "optimize_training_steps",
    "run_health_check",
]


class AdapterManager(AdapterCache):
    """The cache of adapters under the method names of the guidelines (section 2.2)."""

    def load_adapter(self, adapter_weights: Adapter) -> str:
        """Keep an adapter and return its key; see :meth:`acclimate.language.AdapterManager.put`."""
        return self.put(adapter_weights)

    def cleanup_adapter(self, adapter_id: str) -> None:
        """Drop one adapter; see :meth:`acclimate.language.AdapterManager.remove`."""
        self.remove(adapter_id)


class TestTimeAdaptationSkill(BaseSkillModule):  # type: ignore[misc]
    """Trains an adapter on the examples of one query, and answers with it where that is likelier to be right.

    Args:
        lora_rank: of the adapters.
        max_training_steps: at the most.
        confidence_threshold: below it the base model answers.
        model: a name that acclimate knows, or a loaded model; None takes ``ACCLIMATE_LANGUAGE_MODEL``, or smollm2.
        collector: of the metrics; None takes the one of acclimate's default store.
        adapter_manager: keeps trained adapters; None makes one.
        debug: log that every query is appended to, for instance :func:`debug_log`'s.
    """

    __test__: ClassVar[bool] = False
    skill_name: ClassVar[str] = "TestTimeAdaptation"
    skill_version: ClassVar[str] = "1.0.0"
    skill_description: ClassVar[str] = "Adapts the language model to the worked examples in a query"
    skill_category: ClassVar[str] = "reasoning"
    required_inputs: ClassVar[list[str]] = []
    optional_inputs: ClassVar[list[str]] = ["few_shot_examples", "test_query"]
    output_keys: ClassVar[list[str]] = [
        "few_shot_examples", "test_query", "detected_pattern_type", "ttt_enabled", "adaptation_metadata",
        "temporary_lora_adapter", "ttt_status", "ttt_explanation", "ttt_answer", "ttt_request_id",
    ]  # fmt: skip

    def __init__(
        self,
        lora_rank: int = 16,
        max_training_steps: int = 8,
        confidence_threshold: float = 0.7,
        *,
        model: str | LanguageModel | None = None,
        collector: TTTMetricsCollector | None = None,
        adapter_manager: AdapterManager | None = None,
        debug: DebugLog | None = None,
    ) -> None:
        super().__init__()
        self.logger = logger
        self.lora_rank, self.max_training_steps = lora_rank, max_training_steps
        # A threshold that cannot be used is refused now, not at the first query.
        self.confidence_threshold = Gate(threshold=confidence_threshold).confidence_threshold
        self.adapter_manager = AdapterManager() if adapter_manager is None else adapter_manager
        self._debug = debug
        self._model = model or os.environ.get("ACCLIMATE_LANGUAGE_MODEL", "smollm2")
        self._collector = collector
        self._engine: Engine | None = None
        self._engine_lock = threading.Lock()

    @property
    def engine(self) -> Engine:
        """The engine; the model is loaded when it is first needed."""
        with self._engine_lock:
            if self._engine is None:
                self._engine = self._made()
            return self._engine

    def _made(self) -> Engine:
        model = load(self._model) if isinstance(self._model, str) else self._model
        floor = min(model.recipe.steps_floor, self.max_training_steps)
        recipe = replace(model.recipe, rank=self.lora_rank, steps_floor=floor, steps_cap=self.max_training_steps)
        # A calibration holds for the recipe that it was fitted with.
        fitted = shipped(model.name) if recipe == model.recipe else None
        gate = Gate(calibration=fitted, threshold=self.confidence_threshold)
        return Engine(model, recipe=recipe, gate=gate, cache=self.adapter_manager, debug=self._debug)

    @property
    def collector(self) -> TTTMetricsCollector:
        """Where attempts are recorded."""
        return self._collector or get_ttt_metrics_collector()

    def can_execute(self, uif: SAM_UIF) -> bool:
        """Say whether there are examples to adapt to, given or in the query."""
        given = uif.intermediate_data.get("few_shot_examples") or ()
        return len(given) >= LEAST_EXAMPLES or detected(uif) is not None

    def execute(self, uif: SAM_UIF) -> SAM_UIF:
        """Adapt, decide and answer; the results are in ``intermediate_data`` afterwards."""
        data = uif.intermediate_data
        given = data.get("few_shot_examples")
        if given:
            examples, query = as_examples(given), data.get("test_query") or uif.input_query
            report = self.engine.answer(examples, query)
        else:
            report = self.engine.ask(uif.input_query)
            if (found := detected(uif)) is not None:
                data["few_shot_examples"] = [{"input": e.input, "output": e.output} for e in found.examples]
                data["test_query"] = found.query
        self._leave(uif, report)
        data["ttt_request_id"] = self._record(uif, report)
        if self.skill_name not in uif.executed_skills:
            uif.executed_skills.append(self.skill_name)
        return uif

    def respond(self, uif: SAM_UIF) -> SAM_UIF:
        """Make the answer the response, with a line that says what was done; adapts first where that was not done."""
        if "ttt_answer" not in uif.intermediate_data:
            self.execute(uif)
        data = uif.intermediate_data
        uif.final_response = data["ttt_answer"] + (f"\n\n[{data['ttt_status']}]" if data["ttt_enabled"] else "")
        uif.confidence_score = data["adaptation_metadata"].confidence_score
        uif.status = UIFStatus.SUCCESS
        return uif

    def _leave(self, uif: SAM_UIF, report: AskReport) -> None:
        data = uif.intermediate_data
        data["ttt_enabled"] = report.status == "adapted"
        data["adaptation_metadata"] = report.metadata
        data["detected_pattern_type"] = report.pattern
        data["ttt_answer"], data["ttt_status"] = report.answer, report.status_line
        data["ttt_explanation"] = report.explanation
        # The weights stay in the engine's cache: what passes between skills may be logged.
        data["temporary_lora_adapter"] = {"rank": report.metadata.lora_rank, "cached": report.cached}
        uif.add_log_entry(report.status_line)
        logger.info("%s", report.status_line)
        meta = report.metadata
        logger.debug("pattern %s, confidence of detection %s", report.pattern, report.pattern_confidence)
        logger.debug("training: %d steps, rank %s, loss %s", meta.training_steps, meta.lora_rank, meta.final_loss)
        logger.debug("confidence %s with adapting, %s without", meta.confidence_score, report.icl_confidence)

    def _record(self, uif: SAM_UIF, report: AskReport) -> str:
        context = uif.user_context
        record = language_request(
            report.to_dict(),
            # A host's UIF may have the two as fields of its own.
            session_id=str(context.get("session_id") or getattr(uif, "session_id", None) or uuid4().hex),
            actor=str(context.get("user_id") or getattr(uif, "user_id", None) or "unknown"),
            settings={"threshold": self.confidence_threshold, "max_training_steps": self.max_training_steps},
        )
        self.collector.store.put(record)
        return record.request_id


def collect_debug_info(uif: SAM_UIF, adaptation_metadata: AdaptationMetadata) -> dict[str, Any]:
    """Append the numbers of one query to ``logs/ttt_debug.jsonl``, without its text, and return them."""
    debug_info = {
        "timestamp": datetime.now(UTC).isoformat(),
        "query_length": len(uif.input_query),
        "examples_count": len(uif.intermediate_data.get("few_shot_examples", [])),
        "pattern_type": uif.intermediate_data.get("detected_pattern_type"),
        "confidence_score": adaptation_metadata.confidence_score,
        "training_steps": adaptation_metadata.training_steps,
        "convergence_score": adaptation_metadata.convergence_score,
        "adaptation_time": adaptation_metadata.adaptation_time,
        "fallback_reason": adaptation_metadata.fallback_reason,
    }
    DEBUG_FILE.parent.mkdir(parents=True, exist_ok=True)
    with DEBUG_FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(debug_info) + "\n")
    return debug_info

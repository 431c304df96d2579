#!/usr/bin/env python3
"""Seven checks that test-time training works here, with a real model."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

QUERY = "\n".join(f"{word} -> <q>{word}</q>" for word in ("stone", "lamp", "river", "cabin", "piano")) + "\nmelon ->"
WANTED = "<q>melon</q>"
PLAIN = "Please remind me to buy milk, bread and 2.5 kg of apples."


def require(condition: object) -> None:
    """Raise where a condition does not hold; unlike assert, under ``python -O`` too."""
    if not condition:
        raise AssertionError("the condition does not hold")


class Checks:
    """The checks, in order; each raises where it fails."""

    __test__ = False

    def __init__(self, model: str, database: Path) -> None:
        self.model, self.database = model, database
        self.skill = self.collector = self.uif = None

    def skill_import(self) -> None:
        """The skill can be imported and made, with the settings of the deployment guidelines."""
        from sam.orchestration.skills.base import BaseSkillModule
        from sam.orchestration.skills.reasoning.test_time_adaptation import TestTimeAdaptationSkill

        skill = TestTimeAdaptationSkill()
        require(isinstance(skill, BaseSkillModule))
        require((skill.lora_rank, skill.max_training_steps, skill.confidence_threshold) == (16, 8, 0.7))

    def metrics(self) -> None:
        """An attempt that is recorded can be read back."""
        from datetime import UTC, datetime

        from acclimate_sam.collector import TTTMetricsCollector, TTTPerformanceMetric

        self.collector = TTTMetricsCollector(self.database)
        self.collector.record_ttt_attempt(
            TTTPerformanceMetric("check", datetime.now(UTC), "io_pairs", 4, 8, 0.5, 0.9, 0.95, True)
        )
        summary = self.collector.get_session_summary("check")
        require((summary.total_attempts, summary.successful_adaptations) == (1, 1))

    def planner_detection(self) -> None:
        """A query with examples is planned for adaptation, and one without is not."""
        from sam.orchestration.uif import SAM_UIF

        from acclimate_sam.planning import plan

        require(plan(SAM_UIF(input_query=QUERY)) == ["TestTimeAdaptation", "ResponseGeneration"])
        require(plan(SAM_UIF(input_query=PLAIN)) == ["ResponseGeneration"])

    def skill_execution(self) -> None:
        """The skill trains on the examples of a query, by real gradients."""
        from sam.orchestration.skills.reasoning.test_time_adaptation import TestTimeAdaptationSkill
        from sam.orchestration.uif import SAM_UIF

        self.skill = TestTimeAdaptationSkill(model=self.model, collector=self.collector)
        self.uif = self.skill.execute(SAM_UIF(input_query=QUERY))
        data = self.uif.intermediate_data
        require(len(data["few_shot_examples"]) == 5)
        require(data["adaptation_metadata"].examples_used == 5)
        require(data["ttt_enabled"] or data["adaptation_metadata"].fallback_reason)

    def response_generation(self) -> None:
        """The answer becomes the response."""
        uif = self.skill.respond(self.uif)
        require(uif.final_response.startswith(uif.intermediate_data["ttt_answer"]))
        require(uif.status == "success")

    def transparency_texts(self) -> None:
        """Status and explanation say what was done."""
        data = self.uif.intermediate_data
        require(data["ttt_status"].startswith("TTT "))
        require(len(data["ttt_explanation"]) > 20)

    def end_to_end(self) -> None:
        """From a query to a response, a row in the metrics, and feedback on it."""
        from sam.orchestration.uif import SAM_UIF

        uif = SAM_UIF(input_query=QUERY.replace("melon", "tiger"), user_context={"session_id": "end to end"})
        uif = self.skill.respond(uif)
        require(uif.final_response)
        if self.model == "spark":
            require(uif.intermediate_data["ttt_answer"] == "<q>tiger</q>")
        self.collector.store.add_feedback(uif.intermediate_data["ttt_request_id"], 5)
        require(self.collector.get_session_summary("end to end").total_attempts == 1)

    def in_order(self) -> list[Callable[[], None]]:
        """Return the checks in order."""
        return [
            self.skill_import, self.metrics, self.planner_detection, self.skill_execution, self.response_generation,
            self.transparency_texts, self.end_to_end,
        ]  # fmt: skip


def main() -> int:
    """Run the checks, print how each went, and return 0 where all passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="spark", help="spark, smollm2, a folder, or a name on the hub")
    given = parser.parse_args()
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(given.model, Path(folder) / "metrics.db")
        for number, check in enumerate(checks.in_order(), 1):
            name = check.__name__.replace("_", " ")
            try:
                check()
            except Exception as error:  # noqa: BLE001  whatever it is, it is a check that failed
                print(f"❌ {number}. {name}: {type(error).__name__}: {error}")
            else:
                passed += 1
                print(f"✅ {number}. {name}")
        if checks.collector is not None:
            checks.collector.close()
    print(f"Test Results: {passed}/{len(checks.in_order())} tests passed")
    return 0 if passed == len(checks.in_order()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The skill and the debug switches of the deployment guidelines, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from acclimate.errors import ConfigError
from acclimate.language import DebugLog, as_examples
from tests.language.models import spark

finder = pytest.importorskip("acclimate_sam.finder", reason="the bridge is not installed: pip install ./hosts/sam")

WORDS = ("stone", "lamp", "river", "cabin", "piano", "tiger")
TAGGED = [(w, f"<q>{w}</q>") for w in WORDS]
PROMPT = "\n".join(f"{a} -> {b}" for a, b in TAGGED) + "\nmelon ->"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import importlib

    finder.install()
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("sam.orchestration.skills.reasoning.test_time_adaptation")


def skill(module: ModuleType, tmp_path: Path, **settings: Any) -> Any:
    from sam.monitoring.ttt_metrics import TTTMetricsCollector

    collector = TTTMetricsCollector(tmp_path / "metrics.db")
    return module.TestTimeAdaptationSkill(model=spark(), collector=collector, **settings)


def query(text: str, **data: Any) -> Any:
    from sam.orchestration.uif import SAM_UIF

    return SAM_UIF(input_query=text, intermediate_data=data)


def test_the_skill_of_the_guidelines(module: ModuleType, tmp_path: Path) -> None:
    one = skill(module, tmp_path, confidence_threshold=module.CONFIDENCE_THRESHOLDS["research"])
    assert one.skill_name == "TestTimeAdaptation"
    assert (one.lora_rank, one.confidence_threshold) == (16, 0.65)
    examples = [{"input": a, "output": b} for a, b in TAGGED]
    assert one.execute(query("ignored", few_shot_examples=examples, test_query="melon")).intermediate_data["ttt_answer"]
    assert len(one.adapter_manager) == 1
    asked = one.execute(query(PROMPT)).intermediate_data
    assert asked["detected_pattern_type"] == "explicit_examples"
    assert asked["test_query"] == "melon"
    assert module.TestTimeAdaptationSkill().lora_rank == 16
    assert module.TestTimeAdaptationSkill(lora_rank=8).lora_rank == 8
    shared = module.AdapterManager(max_cache_size=3)
    assert skill(module, tmp_path, adapter_manager=shared).adapter_manager is shared
    with pytest.raises(ConfigError, match="threshold must be between 0 and 1"):
        module.TestTimeAdaptationSkill(confidence_threshold=2.0)


def test_the_cache_has_the_guidelines_methods(module: ModuleType) -> None:
    from acclimate.language import Engine

    manager = module.AdapterManager(max_cache_size=2)
    adapter = Engine(spark(), max_seconds=None).prime(as_examples(TAGGED))
    key = manager.load_adapter(adapter)
    assert manager.get(key) == (adapter, None)
    manager.cleanup_adapter(key)
    assert manager.get(key) is None


def test_debug_switches_are_checked(module: ModuleType) -> None:
    with pytest.raises(ConfigError, match="unknown debug switch 'log_all'"):
        module.debug_log({"log_all": True})
    with pytest.raises(ConfigError, match="log_adapter_weights cannot be switched on"):
        module.debug_log({"log_adapter_weights": True})


def test_the_debug_switches_choose_what_is_logged(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "debug.jsonl"
    assert module.debug_log({"save_debug_artifacts": False}) is None
    log = module.debug_log({"log_training_steps": False}, path)
    assert isinstance(log, DebugLog)
    skill(module, tmp_path, debug=log).execute(query(PROMPT))
    skill(module, tmp_path, debug=module.debug_log(module.TTT_DEBUG_CONFIG, path)).execute(query(PROMPT))
    without, everything = (json.loads(line) for line in path.read_text().splitlines())
    assert "losses" not in without
    assert everything["losses"]
    assert everything["evidence"]["count"] == 6
    assert not any(word in path.read_text() for word in ("stone", "melon"))

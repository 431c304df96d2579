"""Every command block of the deployment guidelines runs as it is written, and does what the text around it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from acclimate.monitoring import Store
from tests import preloaded
from tests.monitoring.databases import fill

ROOT = Path(__file__).parents[2]
GUIDELINES = ROOT / "tests" / "data" / "ttt_guidelines.md"
HOST = {
    "sam/__init__.py": "HOST = True\n",
    "sam/own.py": "VALUE = 7\n",
    "sam/orchestration/__init__.py": "",
    "sam/orchestration/skills/__init__.py": "",
    "sam/orchestration/skills/base.py": (
        "class BaseSkillModule:\n    host = True\n    def __init__(self):\n        pass\n"
    ),
}

pytest.importorskip("acclimate_sam", reason="the bridge is not installed: pip install ./hosts/sam")


def command_blocks() -> list[str]:
    text = GUIDELINES.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    # Unquoted, the shell takes ">" for itself; what is asked for is installed already, and no index is needed.
    line = "pip install torch>=1.12.0 transformers>=4.20.0 numpy>=1.21.0"
    assert sum(line in block for block in blocks) == 1
    quoted = "pip install --no-index 'torch>=1.12.0' 'transformers>=4.20.0' 'numpy>=1.21.0'"
    return [block.replace(line, quoted) for block in blocks]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as an operator has it, with the guidelines' scripts."""
    monkeypatch.delenv("ACCLIMATE_DB_URL", raising=False)
    monkeypatch.setenv("ACCLIMATE_LANGUAGE_MODEL", "spark")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "host"
    folder.mkdir()
    subprocess.run(["acclimate-sam", "scripts", str(folder)], check=True, capture_output=True)
    return folder


def shell(block: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-e", "-c", block], cwd=folder, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(code: str, folder: Path) -> str:
    done = preloaded.run(code=code, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(name: str, folder: Path, *arguments: str, returncode: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script of the guidelines as ``python NAME`` does."""
    done = preloaded.run(*arguments, code=(folder / name).read_text(encoding="utf-8"), cwd=folder)
    assert done.returncode == returncode, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_block_of_the_guidelines_runs_as_it_is_written(host: Path) -> None:
    install, database, configuration, daily, weekly = command_blocks()
    said = shell(install, host)
    assert "✅ SOF Ready" in said
    assert "Test Results: 7/7 tests passed" in said
    assert not (host / "logs").exists(), "the checks leave no rows in the operator's metrics"
    assert "logs/ttt_metrics.db" in shell(database, host)
    said = shell(configuration, host)
    assert "✅ TTT Skill: TestTimeAdaptation" in said
    assert "📊 Config: LoRA rank 16, threshold 0.7" in said
    with Store(host / "logs" / "ttt_metrics.db") as store:
        fill(store, 80, "plain")
        fill(store, 25)
    said = shell(daily, host)
    assert "ok: adaptation_success_rate: 100.0%" in said
    assert "Health check failed" not in said
    # The line counts days, as its code does; acclimate's daily report counts attempts.
    assert "📊 Yesterday: 1 TTT activations" in said
    assert "✅ Daily maintenance complete" in said
    said = shell(weekly, host)
    assert "Weekly report" in said
    assert "trend of success" in said
    assert "no results of experiments in the last seven days" in said
    assert "✅ Weekly maintenance complete" in said
    assert (host / "weekly_ttt_export.json").exists()
    assert "<svg" in (host / "logs" / "ttt_weekly_report.html").read_text()


def test_a_failed_health_check_shows_in_the_daily_maintenance(host: Path) -> None:
    with Store(host / "logs" / "ttt_metrics.db") as store:
        fill(store, 60, "fallback")
    *_, daily, _ = command_blocks()
    # Without -e, as a script runs: the failing command is followed by a look at its exit code.
    done = subprocess.run(["bash", "-c", daily], cwd=host, capture_output=True, text=True, check=False)
    assert "❌ Health check failed" in done.stdout
    assert "ALERT fallback_rate: 100.0%" in done.stderr
    said = script("analyze_ttt_performance.py", host, "--suggest-optimizations").stdout
    assert "60 of 60 attempts failed for timeout" in said


@pytest.mark.slow
def test_the_levels_of_the_guidelines_loggers_take_effect(host: Path) -> None:
    code = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
for name in {names!r}:
    logging.getLogger(name).setLevel(logging.DEBUG)
from sam.orchestration.skills.reasoning.test_time_adaptation import TestTimeAdaptationSkill, collect_debug_info
from sam.orchestration.uif import SAM_UIF
query = "\\n".join(f"{{w}} -> <q>{{w}}</q>" for w in ("stone", "lamp", "river", "cabin")) + "\\nmelon ->"
skill = TestTimeAdaptationSkill()
uif = skill.execute(SAM_UIF(input_query=query))
info = collect_debug_info(uif, uif.intermediate_data["adaptation_metadata"])
from sam.monitoring.ttt_metrics import get_ttt_metrics_collector, TTTPerformanceMetric
assert get_ttt_metrics_collector() is get_ttt_metrics_collector()
from datetime import datetime
collector = get_ttt_metrics_collector()
collector.record_ttt_attempt(TTTPerformanceMetric("s", datetime.now(), "io_pairs", 4, 8, 0.5, 0.9, 0.9, True))
print(collector.get_performance_trends(1)["daily_performance"][-1]["total_attempts"], "attempts")
"""
    names = ["sam.orchestration.skills.reasoning.test_time_adaptation", "sam.monitoring.ttt_metrics"]
    loud, quiet = python(code.format(names=names), host), python(code.format(names=[]), host)
    for name in names:
        assert f"DEBUG {name}" in loud
        assert name not in quiet
    assert "2 attempts" in loud
    assert "4 attempts" in quiet
    line = (host / "logs" / "ttt_debug.jsonl").read_text().splitlines()[0]
    assert '"examples_count": 4' in line
    assert "melon" not in line


def test_the_bridge_adds_to_a_package_of_the_host_and_replaces_nothing(host: Path) -> None:
    for name, content in HOST.items():
        path = host / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    code = """
import sam, sam.own
from sam.orchestration.skills.base import BaseSkillModule
from sam.orchestration.skills.reasoning.test_time_adaptation import TestTimeAdaptationSkill
from sam.monitoring.ttt_metrics import TTTMetricsCollector
assert sam.HOST and sam.own.VALUE == 7
assert BaseSkillModule.host
assert issubclass(TestTimeAdaptationSkill, BaseSkillModule)
print(sam.__file__, TestTimeAdaptationSkill().confidence_threshold)
"""
    assert str(host) in python(code, host)


def test_a_module_that_nobody_has_is_missing_as_ever(host: Path) -> None:
    code = "try:\n import sam.nothing\nexcept ModuleNotFoundError as error:\n print(error)"
    assert python(code, host) == "No module named 'sam.nothing'\n"
    assert "sam" not in python("import sys; print([m for m in sys.modules if m == 'sam'])", host)


def test_scripts_that_are_there_are_not_written_over(host: Path) -> None:
    (host / "ttt_health_check.py").write_text("mine")
    subprocess.run(["acclimate-sam", "scripts", str(host)], check=True, capture_output=True)
    assert (host / "ttt_health_check.py").read_text() == "mine"


def test_settings_reach_the_training_and_bad_ones_are_refused(host: Path) -> None:
    code = """
from acclimate.errors import ConfigError
from sam.orchestration.skills.reasoning.test_time_adaptation import TestTimeAdaptationSkill
from sam.orchestration.uif import SAM_UIF
skill = TestTimeAdaptationSkill(lora_rank=4, max_training_steps=3, confidence_threshold=0.0)
examples = [{"input": w, "output": w.upper()} for w in ("stone", "lamp", "river", "cabin")]
uif = SAM_UIF(input_query="ignored", intermediate_data={"few_shot_examples": examples, "test_query": "melon"})
assert skill.can_execute(uif) and not skill.can_execute(SAM_UIF(input_query="What time is it?"))
assert skill.engine.recipe.rank == 4 and skill.engine.recipe.steps_cap == 3
uif = skill.respond(uif)
print(uif.final_response)
for bad in (lambda: TestTimeAdaptationSkill(confidence_threshold=2), lambda: SAM_UIF(input_query=" ")):
    try:
        bad()
    except ValueError as error:
        print("refused:", error)
"""
    said = python(code, host)
    assert "MELON" in said
    assert "refused: threshold must be between 0 and 1, got 2" in said
    assert "refused: input_query is empty" in said


def test_the_health_check_cannot_tell_where_there_is_nothing(host: Path) -> None:
    done = script("ttt_health_check.py", host, returncode=2)
    assert done.stdout.startswith("cannot tell: too few observations of ttt_activation_rate, ")
    for left in (host / "logs").glob("ttt_metrics.db*"):
        left.unlink()
    (host / "logs" / "ttt_metrics.db").write_text("no database" * 500)
    done = script("ttt_health_check.py", host, returncode=2)
    assert "cannot tell: cannot open the metrics store" in done.stderr
    assert "Traceback" not in done.stderr

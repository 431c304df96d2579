"""The bridge inside a host that has a collector, a base class and a UIF of its own: all checks and scripts run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acclimate.monitoring import Store, Window, check
from tests.hosts.host_package import write_host
from tests.hosts.test_sam_bridge import command_blocks, python, script, shell

pytest.importorskip("acclimate_sam", reason="the bridge is not installed: pip install ./hosts/sam")

#: Sixty attempts of the host's own collector, two thirds of them failed, and a test of its own.
ATTEMPTS = """
from datetime import datetime
from sam.monitoring.ttt_metrics import TTTPerformanceMetric, get_ttt_metrics_collector
import sam
assert sam.HOST
collector = get_ttt_metrics_collector()
assert not hasattr(collector, "store")
for number in range(60):
    ok = number % 3 == 0
    collector.record_ttt_attempt(TTTPerformanceMetric(
        "host", datetime.now(), "io_pairs", 5, 8, 1.0, 0.9, 0.9, ok, None if ok else "timeout"))
for number in range(10):
    for method, quality in (("ICL", 0.5), ("TTT", 0.7 + 0.01 * (number % 2))):
        collector.record_ab_test_result("host test", f"s{number}", method, "io_pairs", 5, quality, 1.0)
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ACCLIMATE_DB_URL", raising=False)
    monkeypatch.setenv("ACCLIMATE_LANGUAGE_MODEL", "spark")
    monkeypatch.setenv("TZ", "America/New_York")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "host"
    folder.mkdir()
    write_host(folder)
    subprocess.run(["acclimate-sam", "scripts", str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.timeout(1800)
def test_all_seven_checks_pass(host: Path) -> None:
    said = script("test_ttt_integration.py", host).stdout
    assert "Test Results: 7/7 tests passed" in said
    assert not (host / "logs").exists(), "the checks leave no rows in the operator's metrics"


def test_the_skill_runs_on_the_hosts_base_class_and_records_in_the_store(host: Path) -> None:
    code = """
from sam.orchestration.skills.base import BaseSkillModule
from sam.orchestration.skills.reasoning.test_time_adaptation import TestTimeAdaptationSkill
from sam.orchestration.uif import SAM_UIF
query = "\\n".join(f"{w} -> <q>{w}</q>" for w in ("stone", "lamp", "river", "cabin", "piano")) + "\\nmelon ->"
skill = TestTimeAdaptationSkill()
assert isinstance(skill, BaseSkillModule) and BaseSkillModule.HOST
uif = skill.execute_with_monitoring(SAM_UIF(input_query=query, session_id="ours", user_id="ada"))
assert uif.executed_skills == ["TestTimeAdaptation"], uif.executed_skills
print(skill.respond(uif).final_response)
from acclimate.monitoring import audit
with skill.collector.store.reading() as connection:
    print(audit.entries(connection)[0]["actor"])
print(skill.collector.get_session_summary("ours").total_attempts)
"""
    said = python(code, host)
    assert "melon" in said
    assert said.splitlines()[-2:] == ["ada", "1"]


@pytest.mark.timeout(1800)
def test_every_script_reads_what_the_hosts_collector_recorded(host: Path) -> None:
    python(ATTEMPTS, host)
    done = script("ttt_health_check.py", host, returncode=1)
    assert "ALERT adaptation_success_rate: 33.3%" in done.stderr
    assert "ALERT fallback_rate: 66.7%" in done.stderr
    assert "60 attempts were recorded by another program" in done.stdout
    said = script("analyze_ttt_performance.py", host, "--suggest-optimizations").stdout
    assert "60 attempts, success 33.3%" in said
    assert "40 of 60 attempts failed for timeout" in said
    said = script("analyze_ab_test_results.py", host, "--week").stdout
    assert "test host test (pairs, no design is stored)" in said
    assert "effect +0.205" in said
    said = script("generate_weekly_ttt_report.py", host).stdout
    assert "fallback: 40 (timeout 40)" in said
    assert (host / "logs" / "ttt_weekly_report.html").exists()
    # The host goes on with the same file.
    python(ATTEMPTS, host)
    with Store(host / "logs" / "ttt_metrics.db") as store:
        assert check(store, Window.last(days=1)).other_rows.attempts == 120


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_blocks_of_the_guidelines_run_in_the_host(host: Path) -> None:
    install, database, configuration, daily, weekly = command_blocks()
    assert "Test Results: 7/7 tests passed" in shell(install, host)
    assert "logs/ttt_metrics.db" in shell(database, host)
    assert "✅ TTT Skill: TestTimeAdaptation" in shell(configuration, host)
    python(ATTEMPTS, host)
    done = subprocess.run(["bash", "-c", daily], cwd=host, capture_output=True, text=True, check=False)
    assert "❌ Health check failed" in done.stdout
    assert "1 TTT activations" in done.stdout
    said = shell(weekly, host)
    assert "✅ Weekly maintenance complete" in said
    assert "test host test" in said

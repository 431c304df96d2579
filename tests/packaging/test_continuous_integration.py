"""The workflow on GitHub runs the checks that a change has to pass."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def commands(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_it_runs_on_every_push_to_main_and_every_pull_request() -> None:
    # YAML 1.1 reads the key "on" as true.
    assert WORKFLOW[True] == {"push": {"branches": ["main"]}, "pull_request": None}
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_the_checks_are_those_of_ci_run_on_every_supported_python() -> None:
    assert commands("checks")[-1] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    versions = WORKFLOW["jobs"]["checks"]["strategy"]["matrix"]["python"]
    classifiers = {c.rpartition(" :: ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c}
    assert set(versions) == classifiers == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_every_job_checks_out_sets_up_python_and_has_a_time_limit() -> None:
    for name, job in WORKFLOW["jobs"].items():
        assert [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step] == [
            "actions/checkout",
            "actions/setup-python",
        ], name
        assert job["timeout-minutes"] > 0


def test_every_pinned_package_is_audited() -> None:
    (audit,) = [command for command in commands("audit") if "pip_audit" in command]
    assert "--requirement constraints.txt" in audit
    assert "continue-on-error" not in str(WORKFLOW["jobs"]["audit"])


def test_make_has_every_target_that_ci_calls() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    called = re.findall(r"^make (\w+)\b", "\n".join([script, *commands("wheel")]), re.MULTILINE)
    # The README's test command comes first.
    assert called[0] == "test"
    assert set(called) == {"test", "lint", "types", "docs", "wheel"}
    assert set(called) <= targets

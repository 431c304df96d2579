"""The documentation is true: its commands run, its snippets run, its generated parts are up to date."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from acclimate import __version__
from acclimate.registry import METHODS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "benchmarks").rglob("*.md"))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_command_docs", ROOT / "tools" / "write_command_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date() -> None:
    for path, content in writer().generated_pages().items():
        assert path.read_text(encoding="utf-8") == content, f"{path} is out of date: run make docs"


def test_the_commands_of_the_readme_and_the_guide_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    lines = [
        line
        for page in (ROOT / "README.md", ROOT / "docs" / "vision.md")
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("acclimate ")
    ]
    assert len(lines) >= 6
    accuracies = []
    for line in lines:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if line.startswith("acclimate evaluate"):
            accuracies.append(float(re.search(r"(?:accuracy|mAP) +([\d.]+)", done.stdout)[1]))  # type: ignore[index]
    before, after, detector = accuracies
    assert after > before, "what the README shows must be better with TTT"
    assert detector > 50, "without TTT it is below 15"


def test_the_shell_blocks_of_the_language_guide_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    answers = []
    for block in blocks(ROOT / "docs" / "language.md", "sh"):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        answers += done.stdout.splitlines()
    assert answers[0] == "<q>melon</q>"
    assert {"MELON!", "TIGER!"} <= set(answers)


def test_the_shell_blocks_of_the_monitoring_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCLIMATE_DB_URL")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    said = ""
    for block in blocks(ROOT / "docs" / "monitoring.md", "sh"):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        said += done.stdout
    assert said.startswith("<q>melon</q>\n")
    assert "adapted: 1" in said
    assert "the audit log is whole" in said


def test_the_units_and_crontab_call_commands_that_exist() -> None:
    for path in (ROOT / "examples" / "operations").iterdir():
        for words in re.findall(r"bin/acclimate (.+)", path.read_text(encoding="utf-8")):
            arguments = [word for word in words.split() if word.startswith("--") or not word.startswith(("/", "-"))]
            page = subprocess.run(
                [sys.executable, "-m", "acclimate", arguments[0], "--help"], capture_output=True, text=True, check=True
            ).stdout
            assert all(option in page for option in arguments if option.startswith("--")), words


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        line.split()[1]
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("make ")
    }
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_snippets_run(page: Path, tmp_path: Path) -> None:
    for number, code in enumerate(blocks(page, "python")):
        script = tmp_path / f"snippet_{number}.py"
        script.write_text(code)
        done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = (float(value) for value in re.findall(r"in the noise, .*: ([\d.]+) % right", done.stdout))
    assert after > before


def test_every_method_has_a_page_with_its_sections() -> None:
    for method in METHODS.shipped():
        text = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
        for section in ("## What it does", "## When to use it", "## Options", "## Fidelity", "arxiv.org"):
            assert section in text, f"{method}: {section}"


def test_the_changelog_tells_of_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_torch_is_pinned_in_one_place() -> None:
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text()
    assert "torch==" not in project
    assert "torchvision" not in project
    assert "timm" not in project

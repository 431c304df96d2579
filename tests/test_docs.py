"""The documentation is true: its commands and snippets run, its links lead somewhere, its generated parts are new."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest
from click.testing import CliRunner

from acclimate import __version__
from acclimate.cli.main import main
from acclimate.registry import METHODS
from acclimate.vision.demos import digits
from tests import preloaded
from tests.monitoring.databases import free_port

ROOT = Path(__file__).parent.parent
PROJECT_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
# Pages whose blocks are run in order, in one folder; README.md and some others have tests of their own below.
HOW_TO_PAGES = sorted((DOCS / "howto").glob("*.md"))
RUN_PAGES = [
    ROOT / "README.md",
    *sorted((DOCS / "tutorials").glob("*.md")),
    *HOW_TO_PAGES,
    DOCS / "monitoring.md",
    DOCS / "serving.md",
]

# Words that say something to those who wrote the project and nothing to others, with what to say in their place.
PRIVATE_WORDS = {
    r"doors?": "pipeline (vision, language)",
    r"house|rooms?": "package layout, package",
    r"distrust(?:ed|s)?|convinced|doubt(?:s|ed)?": "falling back, sticky fallback, degradation score",
    r"tripp?(?:s|ed)": "a guard fires, or rejects a step",
    r"rested|rests": "paused",
    r"left-out": "held-out",
    r"practis(?:e|es|ed|ing)": "fine-tune",
    r"(?:one|both) sides?": "without, or with, flip averaging",
    r"(?:what|which parameters|that) may move": "trainable parameters",
    r"the model as it is": "the base model, the unadapted model",
    r"w(?:o|i)ns? back": "recovers",
    r"surest|dearer": "most certain, costs more",
    r"the (?:plan|guidelines)(?:'s|')?": "name it: the integration plan, the deployment guidelines",
    r"(?:methods|models|tests) as they are": "name the state: unadapted, with presets",
}
MEANT_LITERALLY = {("docs/howto/detect_examples.md", "house"): "a word to translate in an example"}


@dataclass(frozen=True)
class Block:
    """A block of a page; ``file`` is the name that it is saved under, ``not_run`` why it is left out."""

    language: str
    code: str
    file: str | None
    not_run: str | None


def blocks(path: Path) -> list[Block]:
    found = re.findall(
        r"^(?:<!-- (file|not run): (.+?) -->\n)?```(sh|python)\n(.*?)^```$",
        path.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    return [
        Block(language, code, told if what == "file" else None, told if what == "not run" else None)
        for what, told, language, code in found
    ]


def commands(code: str) -> list[list[str]] | None:
    """Return the words of each command of a shell block; None if it needs a shell (pipes, redirections, variables)."""
    found: list[list[str]] = []
    waiting = ""
    for line in code.splitlines():
        waiting += line
        lexer = shlex.shlex(waiting, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on in the next line
            waiting += "\n"
            continue
        waiting = ""
        if not words:
            continue
        if words[0] not in ("acclimate", "export") or any(set(word) <= set("|&;<>()") for word in words if word):
            return None
        found.append(words)
    assert not waiting, f"an open quotation: {waiting}"
    return found


def run_page(
    page: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    already_run: str = "",
    instead: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run a page's blocks in ``folder``, but for the block ``already_run``; return what went to standard output.

    Args:
        page: to run.
        folder: it runs in.
        monkeypatch: changes folder, PATH and what the page exports.
        already_run: a block to leave out.
        instead: what is put in the place of parts of the blocks.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    said = ""
    for block in blocks(page):
        code = functools.reduce(lambda code, pair: code.replace(*pair), instead.items(), block.code)
        block = replace(block, code=code)
        if block.file is not None:
            (folder / block.file).write_text(block.code, encoding="utf-8")
        elif block.not_run is not None:
            print(f"{page.relative_to(ROOT)}: not run ({block.not_run}):\n{block.code}")
        elif block.code == already_run:
            continue
        elif block.language == "python":
            said += run_python(block.code, folder)
        else:
            said += run_shell(block.code, folder, monkeypatch)
    return said


def run_python(code: str, folder: Path) -> str:
    script = folder / "snippet.py"
    script.write_text(code, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(script), run_name="__main__")
    return said.getvalue()


def run_shell(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    said = ""
    if code.startswith("printf "):
        first, _, code = code.partition("\n")
        subprocess.run(["bash", "-euc", first], cwd=folder, check=True)
    simple = commands(code)
    if simple is None:
        done = subprocess.run(["bash", "-euc", code], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        return done.stdout
    for words in simple:
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, value)
            continue
        # In this process: a process of its own would spend seconds on loading torch for each command.
        result = CliRunner().invoke(main, words[1:])
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"
        said += result.stdout
    return said


def scores(said: str) -> list[float]:
    """Return what ``acclimate evaluate`` printed, in order."""
    return [float(score) for score in re.findall(r"^(?:accuracy|mAP) +([\d.]+) %$", said, flags=re.MULTILINE)]


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory, digits_checkpoint: Path) -> Path:
    """What ``acclimate demo vision`` leaves behind, but for the comparison; trained more shortly, with fewer images."""
    folder = tmp_path_factory.mktemp("demo") / "acclimate-demo"
    labels = json.loads(digits.write_test_images(folder).read_text())
    kept = dict(list(labels.items())[:256])
    (folder / "labels.json").write_text(json.dumps(kept))
    for name in labels.keys() - kept.keys():
        (folder / "images" / name).unlink()
    digits.write_source_images(folder)
    shutil.copyfile(digits_checkpoint, folder / "digits.safetensors")
    return folder


@pytest.fixture
def page_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of its own for a page; modules that the page defines are forgotten afterwards."""
    folder = tmp_path / "page"
    folder.mkdir()
    modules, paths = set(sys.modules), list(sys.path)
    yield folder
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


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


def test_the_readme_runs(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run_page(ROOT / "README.md", page_folder, monkeypatch, instead={"--images 64": "--images 24"})
    (adapted,) = scores(said)
    assert adapted > 50, "without TTT it is below 15"
    (none,) = (float(value) for value in re.findall(r"none +│ +([\d.]+) %", said))
    assert none < adapted - 30, "the comparison starts where nothing was adapted"
    assert said.endswith("<q>melon</q>\n")


def test_the_vision_tutorial_runs(page_folder: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (page_folder / "acclimate-demo").symlink_to(demo_folder, target_is_directory=True)
    # tests/cli runs the demo itself, which compares all methods.
    said = run_page(DOCS / "tutorials" / "vision.md", page_folder, monkeypatch, already_run="acclimate demo vision\n")
    before, after = scores(said)
    assert after > before, "what the tutorial shows must be better with TTT"


@pytest.mark.slow
def test_the_vision_tutorial_runs_with_its_demo(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = scores(run_page(DOCS / "tutorials" / "vision.md", page_folder, monkeypatch))
    assert after > before, "what the tutorial shows must be better with TTT"


@pytest.mark.slow
def test_the_tutorial_on_a_detector_of_ones_own_runs(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run_page(DOCS / "tutorials" / "your_own_detector.md", page_folder, monkeypatch)
    clean, adapted = scores(said)
    (none,) = (float(value) for value in re.findall(r"none +│ +([\d.]+) %", said))
    assert clean > 35, "the detector has learned something"
    assert adapted > none + 20, "what the tutorial shows must be better with TTT"


def test_the_language_tutorial_runs(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = run_page(DOCS / "tutorials" / "language.md", page_folder, monkeypatch).splitlines()
    assert answers[0] == "<q>melon</q>"
    assert {"MELON!", "TIGER!"} <= set(answers)
    assert "True" in answers, "the second question of the snippet uses the adapter of the first"


def test_the_operating_tutorial_runs(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run_page(DOCS / "tutorials" / "operating.md", page_folder, monkeypatch)
    assert said.startswith("<q>melon</q>\n")
    assert "exit code 2" in said
    assert "the audit log is whole" in said


def test_the_monitoring_guide_runs(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCLIMATE_DB_URL")
    said = run_page(DOCS / "monitoring.md", page_folder, monkeypatch)
    assert said.startswith("<q>melon</q>\n")
    assert "adapted: 1" in said
    assert "the audit log is whole" in said


def test_the_serving_page_runs(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        said = run_page(DOCS / "serving.md", page_folder, monkeypatch, instead={"8420": str(free_port())})
    finally:
        if (page_folder / "serve.pid").exists():
            subprocess.run(["kill", "-9", (page_folder / "serve.pid").read_text()], check=False, capture_output=True)
    assert '"content":"<q>melon</q>"' in said
    assert "<q>tiger</q> adapted" in said
    assert "max_rows = 32  # flag: " in said


# The language tutorial runs the same commands.
REPEATED = {"examples_from_files", "train_an_adapter_once"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in REPEATED else [])
        for page in HOW_TO_PAGES
        if blocks(page)
    ],
)
def test_how_to_pages_run(page: Path, page_folder: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (page_folder / "acclimate-demo").symlink_to(demo_folder, target_is_directory=True)
    said = run_page(page, page_folder, monkeypatch)
    if "evaluate" in page.read_text(encoding="utf-8"):
        assert scores(said)[-1] > 50


def test_all_blocks_that_could_run_are_on_a_page_that_is_run() -> None:
    assert sum(len(commands(block.code) or ()) for page in RUN_PAGES for block in blocks(page)) > 30
    for page in set(PAGES) - set(RUN_PAGES):
        assert not [block.code for block in blocks(page) if "acclimate" in block.code], page


def test_the_units_and_crontab_call_commands_that_exist() -> None:
    for path in (ROOT / "examples" / "operations").iterdir():
        for words in re.findall(r"bin/acclimate (.+)", path.read_text(encoding="utf-8")):
            arguments = [word for word in words.split() if word.startswith("--") or not word.startswith(("/", "-"))]
            page = CliRunner().invoke(main, [arguments[0], "--help"])
            assert page.exit_code == 0, page.output
            assert all(option in page.output for option in arguments if option.startswith("--")), words


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_server_s_unit(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "operations" / "acclimate-serve.service").read_text(encoding="utf-8")
    unit = tmp_path / "acclimate-serve.service"
    # Checked for what it says, not for whether the server is installed on this machine.
    unit.write_text(
        re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE), encoding="utf-8"
    )
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == [], done.stderr


def test_the_container_copies_what_is_there() -> None:
    text = (ROOT / "examples" / "operations" / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.+)$", text, flags=re.MULTILINE) for word in line.split()[:-1]
    ]
    assert {"pyproject.toml", "src"} <= set(copied)
    assert all((ROOT / word).exists() for word in copied)
    extras = set(re.search(r"'\.\[([\w,]+)\]'", text)[1].split(","))  # type: ignore[index]
    assert "serve" in extras <= set(PROJECT_EXTRAS)


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        line.split()[1]
        for page in PAGES
        for block in blocks(page)
        for line in block.code.splitlines()
        if line.startswith("make ")
    }
    assert {"demo", "test"} <= named <= targets


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as repository viewers and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```(?!\{).*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if target.startswith(("http:", "https:")):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor[1:] in headings(linked), f"{target}{anchor}: no such heading"


def test_the_readme_takes_a_minute_to_read() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (python,) = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert len([line for line in python.code.splitlines() if line.strip()]) <= 8
    (shell,) = [block for block in blocks(ROOT / "README.md") if block.code.startswith("acclimate ")]
    assert len(shell.code.splitlines()) <= 5
    table = text[text.index("<!-- table: results -->") : text.index("<!-- end -->")]
    assert 3 <= len(re.findall(r"^\| .*\[[+-].*\|$", table, flags=re.MULTILINE)) <= 8, "rows with an interval"
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (ROOT / picture).stat().st_size < 200_000, picture


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_words(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    name = str(page.relative_to(ROOT))
    for words, instead in PRIVATE_WORDS.items():
        for found in re.finditer(rf"\b(?:{words})(?!\w)", text, flags=re.IGNORECASE):
            if (name, found[0].lower()) not in MEANT_LITERALLY:
                near = text[max(0, found.start() - 40) : found.end() + 40]
                pytest.fail(f"{name}: {found[0]!r} in '... {near} ...'; say {instead}")


def test_words_that_are_meant_literally_occur() -> None:
    for name, word in MEANT_LITERALLY:
        assert re.search(rf"\b{word}\b", (ROOT / name).read_text(encoding="utf-8")), f"{name}: {word} is not there"


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    done = preloaded.run(code=script.read_text(encoding="utf-8"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (float(value) for value in re.findall(r"in the noise, .*: ([\d.]+) % right", done.stdout))
    assert after > before


def test_every_method_has_a_page_with_its_sections() -> None:
    overview = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    for method in METHODS.shipped():
        text = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
        for section in ("## What it does", "## When to use it", "## Options", "## Fidelity", "arxiv.org"):
            assert section in text, f"{method}: {section}"
        assert f"| [{method}]({method}.md) |" in overview, f"{method} is missing in the table of methods"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-b", "html", "-n", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "core.html").read_text(encoding="utf-8")
    assert "adapt_and_predict" in page, "the API reference is generated from the docstrings"


def test_the_changelog_tells_of_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_torch_is_pinned_in_one_place() -> None:
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text()
    assert "torch==" not in project
    assert "torchvision" not in project
    assert "timm" not in project

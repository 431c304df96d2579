"""The package layout: imports go one way, and libraries do not print."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "acclimate"
# Package -> the packages it may import from.
ALLOWED = {
    "errors": set(),
    "extras": {"errors"},
    "fetching": {"errors"},
    "json_values": set(),
    "output_files": {"errors"},
    "output_locks": {"errors"},
    "storage": {"errors", "output_files"},
    "registry": {"errors"},
    "core": {"errors", "extras", "json_values", "output_files", "registry", "core"},
    "methods": {"errors", "registry", "core", "methods"},
    "vision": {
        "errors",
        "extras",
        "json_values",
        "output_files",
        "output_locks",
        "registry",
        "core",
        "methods",
        "vision",
    },
    "language": {
        "errors",
        "extras",
        "fetching",
        "json_values",
        "output_files",
        "registry",
        "core",
        "methods",
        "language",
    },
    "media": {
        "errors",
        "extras",
        "fetching",
        "json_values",
        "output_files",
        "registry",
        "core",
        "methods",
        "vision",
        "language",
        "media",
    },
    "monitoring": {"errors", "extras", "json_values", "output_files", "monitoring"},
    "serve": {
        "errors",
        "extras",
        "json_values",
        "output_files",
        "storage",
        "core",
        "language",
        "media",
        "monitoring",
        "serve",
    },
    "ui": {
        "errors",
        "extras",
        "json_values",
        "output_files",
        "registry",
        "core",
        "methods",
        "vision",
        "language",
        "monitoring",
        "media",
        "serve",
        "ui",
    },
    "scale": {
        "errors",
        "extras",
        "json_values",
        "output_files",
        "output_locks",
        "storage",
        "registry",
        "core",
        "vision",
        "language",
        "serve",
        "scale",
    },
    "cli": {
        "errors",
        "json_values",
        "output_files",
        "registry",
        "core",
        "methods",
        "vision",
        "language",
        "media",
        "monitoring",
        "serve",
        "ui",
        "scale",
        "cli",
        "extras",
        "",
    },
}
FILES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if here in ("__init__", "__main__"):
        return
    for module in imported(path):
        if module.startswith("acclimate") and (package := package_of(module)):
            assert package in ALLOWED[here], f"{path} imports {module}"


def test_core_and_methods_know_only_torch() -> None:
    outside = {"numpy", "cv2", "PIL", "transformers", "click", "rich", "sklearn", "matplotlib", "pycocotools"}
    for path in (*(SOURCE / "core").rglob("*.py"), *(SOURCE / "methods").rglob("*.py")):
        assert not {module.split(".")[0] for module in imported(path)} & outside, path


def test_core_and_methods_do_not_mention_boxes() -> None:
    for path in (*(SOURCE / "core").rglob("*.py"), *(SOURCE / "methods").rglob("*.py")):
        assert "box" not in path.read_text().lower(), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_command_prints(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    printed = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not printed, f"{path}: print in line {printed}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_results_are_written_by_one_function(path: Path) -> None:
    if path.name in ("output_files.py", "resume.py"):
        # The function itself; and the partial file of a run, which grows batch by batch.
        return
    tree = ast.parse(path.read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        assert name not in {"write_text", "write_bytes", "save_file", "mkstemp"}, f"{path}:{call.lineno}"
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = {value.value for value in values if isinstance(value, ast.Constant)} if name == "open" else set()
        assert not modes & {"w", "wb", "x", "xb"}, f"{path}:{call.lineno}"


def test_no_module_without_a_subject() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "base", "common", "misc"}]

"""What is imported is declared: in the base dependencies, or in the extra of the part that imports it."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path

import pytest

from acclimate.extras import OPTIONAL_PACKAGES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "acclimate"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Part of the package -> the extras that may be installed where it runs. The rest runs with none.
PARTS = {
    "vision": {"vision", "heic"},
    "language": {"language"},
    "fetching.py": {"language", "media"},
    "media": {"media", "vision"},
    "monitoring": {"monitoring", "parquet", "postgresql"},
    "serve": {"serve", "language", "telemetry"},
    "storage.py": {"serve", "ray", "s3"},
    "scale": {"ray", "s3", "vision", "parquet", "serve", "language"},
    "ui": {"ui", "serve", "vision", "media", "monitoring"},
}
NOT_IMPORTED = {"gguf", "psycopg", "s3fs", "scipy"}
"""Needed by a package that we call: transformers imports gguf and scipy, SQLAlchemy imports psycopg, fsspec s3fs."""


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9_.\-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def names(requirements: list[str]) -> set[str]:
    return {name_of(requirement) for requirement in requirements}


@functools.cache
def third_party(path: Path) -> tuple[tuple[str, bool], ...]:
    """Return the root of every imported third-party module, and whether it is imported when the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    later = inside | {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        modules = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for module in modules:
            root = module.partition(".")[0]
            if root not in sys.stdlib_module_names and root != "acclimate":
                found.append((root, id(node) not in later))
    return tuple(found)


def distribution(module: str) -> str:
    return OPTIONAL_PACKAGES[module].distribution if module in OPTIONAL_PACKAGES else module.replace("_", "-")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_import_is_declared(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0]
    base = names(PROJECT["dependencies"])
    allowed = base | {name for extra in PARTS.get(part, ()) for name in names(EXTRAS[extra])}
    # A command may use every extra, but only once it runs.
    later = allowed | (names([r for extra in EXTRAS for r in EXTRAS[extra]]) if part == "cli" else set())
    for module, at_import in third_party(path):
        assert distribution(module) in (allowed if at_import and part not in PARTS else later), (
            f"{path} imports {module}, which pyproject.toml does not declare for {part}"
        )


def test_every_declared_package_is_imported() -> None:
    every = (
        "vision",
        "heic",
        "language",
        "media",
        "monitoring",
        "parquet",
        "postgresql",
        "ray",
        "s3",
        "serve",
        "telemetry",
        "ui",
    )
    for extra in every:
        parts = [part for part, extras in PARTS.items() if extra in extras]
        used = {
            distribution(module)
            for part in (*parts, "cli")
            for path in ([SOURCE / part] if part.endswith(".py") else (SOURCE / part).rglob("*.py"))
            for module, _ in third_party(path)
        }
        assert names(EXTRAS[extra]) - {"acclimate"} <= used | NOT_IMPORTED, extra
    used = {distribution(module) for path in SOURCE.rglob("*.py") for module, _ in third_party(path)}
    assert names(PROJECT["dependencies"]) <= used


def test_the_table_of_extras_says_what_pyproject_says() -> None:
    by_extra: dict[str, set[str]] = {}
    for package in OPTIONAL_PACKAGES.values():
        for extra in package.extras:
            by_extra.setdefault(extra, set()).add(package.distribution)
    declared = {extra: names(EXTRAS[extra]) - {"acclimate"} for extra in EXTRAS if extra not in ("all", "docs", "dev")}
    assert by_extra == declared


def test_all_brings_every_extra() -> None:
    assert set(re.findall(r"\w+", EXTRAS["all"][0])) - {"acclimate"} == EXTRAS.keys() - {"all", "docs", "dev"}
    assert EXTRAS["dev"][0] == "acclimate[all,docs]"


def test_the_same_package_has_one_range() -> None:
    ranges: dict[str, str] = {}
    for requirement in (r for group in [PROJECT["dependencies"], *EXTRAS.values()] for r in group):
        assert ranges.setdefault(name_of(requirement), requirement) == requirement or "acclimate" in requirement


def test_constraints_pin_every_declared_package() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if not line.startswith("#")]
    assert all(middle == "==" and version for _, middle, version in pins)
    declared = names([r for group in [PROJECT["dependencies"], *EXTRAS.values()] for r in group]) - {"acclimate"}
    assert declared <= {name_of(name) for name, _, _ in pins}

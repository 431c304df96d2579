"""``acclimate ask --library`` and ``acclimate library``, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from acclimate.cli.main import main
from acclimate.language.training.adapter_library import ENTRY_FILE


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def prompt(name: str, *words: str) -> str:
    return "\n".join(f"{w} -> <{name}>{w}</{name}>" for w in words) + "\nmelon ->"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCLIMATE_LANGUAGE_MODEL", "spark")
    return tmp_path


def test_an_adapter_is_kept_used_listed_and_deleted(folder: Path) -> None:
    first = run("ask", prompt("q", "stone", "lamp", "river", "cabin", "piano"), "--library", "kept", "--no-record")
    assert (first.exit_code, first.stdout) == (0, "<q>melon</q>\n"), first.output
    second = run("ask", prompt("z", "paper", "cloud", "garden", "rocket"), "--library", "kept", "--json", "--no-record")
    report = json.loads(second.stdout)
    assert (report["answer"], report["library"]["use"]) == ("<z>melon</z>", "answered")
    shown = run("library", "list", "kept")
    assert report["library"]["entry"][:12] in shown.stdout
    listed = json.loads(run("library", "list", "kept", "--json").stdout)
    (entry,) = listed["entries"]
    assert (entry["key"], entry["times_used"], entry["examples"]) == (report["library"]["entry"], 1, 5)
    assert not [p for p in (folder / "kept").rglob("*") if p.is_file() and b"stone" in p.read_bytes()]
    kept = run("library", "clean", "kept", "--keep-days", "1", "--max-entries", "1", "--max-mib", "100")
    assert kept.stdout == "0 deleted, 1 kept\n"
    removed = run("library", "remove", "kept", entry["key"][:8])
    assert (removed.exit_code, removed.stdout) == (0, f"deleted {entry['key'][:12]}\n")
    assert json.loads(run("library", "list", "kept", "--json").stdout)["entries"] == []


def test_what_is_too_many_or_damaged_is_deleted(folder: Path) -> None:
    asked = prompt("q", "stone", "lamp", "river", "cabin", "piano")
    assert run("ask", asked, "--library", "kept", "--library-content", "--no-record").exit_code == 0
    (entry,) = [p for p in (folder / "kept").iterdir() if p.is_dir()]
    assert "stone" in (entry / "examples.jsonl").read_text()
    (entry / ENTRY_FILE).write_text("{")
    listed = run("library", "list", "kept")
    assert listed.exit_code == 0
    assert len(listed.stderr.splitlines()) == 1
    assert run("library", "clean", "kept", "--damaged").stdout == "1 deleted, 0 kept\n"
    assert not entry.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask", "a", "--keep-days", "0"), "--keep-days needs --library"),
        (("ask", "a", "--library-content"), "--library-content needs --library"),
        (("ask", "a", "--library", "other"), "no library of adapters"),
        (("ask", "--query", "a", "--adapter", "b", "--library", "kept"), "no effect with --adapter"),
        (("library", "list", "none"), "is no library of adapters"),
        (("library", "remove", "none", "a"), "is no library of adapters"),
        (("library", "clean", "none"), "say what to delete"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "thesis.txt").write_text("x")
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stderr.strip().count("\n") == 0

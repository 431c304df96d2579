"""What all tests share: fixed random examples, and a metrics store for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# By default every run tries the same examples, and no example has a time limit of its own.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
# `make test-all` takes this one by --hypothesis-profile: other examples every time, and the way to repeat a failure.
settings.register_profile("random", derandomize=False, deadline=None, database=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def metrics_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a metrics store of its own: commands that a test runs record there."""
    path = tmp_path / "test_metrics.db"
    monkeypatch.setenv("ACCLIMATE_DB_URL", str(path))
    return path

"""Stores on every database that is supported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from acclimate.monitoring import Store
from tests.monitoring.databases import postgresql, postgresql_binaries


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    if postgresql_binaries() is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed, and CI must test it")
        pytest.skip("PostgreSQL is not installed: initdb was not found")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    # Not below pytest's folder, which every start of pytest closes to other users, such as the server's.
    with tempfile.TemporaryDirectory(prefix="acclimate-postgresql-") as folder, postgresql(Path(folder)) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database of either kind."""
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        return str(tmp_path / "metrics.db")
    server = request.getfixturevalue("postgresql_server")
    name = f"t{uuid4().hex}"
    engine = sa.create_engine(server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return str(server.rsplit("/", 1)[0] + f"/{name}")


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """A store on either kind of database."""
    with Store(database) as opened:
        yield opened


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """A store on SQLite."""
    with Store(tmp_path / "metrics.db") as opened:
        yield opened

"""A database of every version that was released, and of the guidelines' own collector, is brought up to date."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from acclimate.errors import StoreError
from acclimate.monitoring import Store, TTTMetricsCollector, schema
from acclimate.monitoring.database import database_url, make_engine, upgrade
from tests.monitoring.databases import fill

KEPT = Path(__file__).parent.parent / "schema_dbs"
MIGRATIONS = Path(schema.__file__).parent / "migrations"


def versions() -> list[str]:
    script = ScriptDirectory(str(MIGRATIONS))
    return [revision.revision for revision in script.walk_revisions()]


def test_every_version_has_a_database_here() -> None:
    assert {path.stem for path in KEPT.glob("*.db")} == {"guidelines", *versions()}


def test_the_newest_version_is_the_one_that_the_code_expects() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == schema.HEAD


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.db")), ids=lambda path: path.stem)
def test_an_old_database_is_upgraded_and_keeps_its_rows(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "metrics.db"
    shutil.copy(path, copy)
    with sqlite3.connect(copy) as connection:
        before = connection.execute("SELECT count(*) FROM ttt_metrics").fetchone()[0]
    with Store(copy) as store:
        with store.reading() as connection:
            differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
            # The guidelines' own tables say less about their columns; all columns and indices are there.
            assert [d for d in differences if not isinstance(d, list)] == []
            after = connection.execute(sa.select(sa.func.count()).select_from(schema.ttt_metrics)).scalar_one()
        assert after == before >= 2
        collector = TTTMetricsCollector(store=store)
        assert collector.get_session_summary("old").total_attempts == 2
        assert collector.get_ab_test_results("t")["comparison"]["quality_improvement_percent"] == pytest.approx(50)
        fill(store, 1)
        assert collector.get_session_summary("session").total_attempts >= 1


def test_a_reader_of_the_guidelines_schema_can_write_to_ours(sqlite_store: Store) -> None:
    with sqlite3.connect(str(sqlite_store.url.database)) as connection:
        connection.execute(
            "INSERT INTO ttt_metrics (session_id, timestamp, task_type, confidence_score, success, metadata)"
            " VALUES ('theirs', '2026-11-01T10:00:00', 'io_pairs', 0.9, 1, '{}')"
        )
    assert TTTMetricsCollector(store=sqlite_store).get_session_summary("theirs").successful_adaptations == 1


def test_an_old_postgresql_database_is_upgraded(database: str) -> None:
    engine = make_engine(database_url(database))
    upgrade(engine, "0001")
    engine.dispose()
    with Store(database) as store:
        fill(store, 3)
        with store.reading() as connection:
            assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == schema.HEAD


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db") as store:
        fill(store, 1)
    with sqlite3.connect(tmp_path / "m.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="has version '9999', which this acclimate does not know; upgrade"):
        Store(tmp_path / "m.db")


def test_the_second_version_can_be_undone_and_done_again(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    engine = make_engine(database_url(tmp_path / "m.db"))
    upgrade(engine)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    upgrade(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []

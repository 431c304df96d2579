"""A database of every released version, and of the deployment guidelines' own collector, is upgraded with all rows."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from acclimate.errors import StoreError
from acclimate.monitoring import Store, audit, schema, trends
from acclimate.monitoring.database import database_url, make_engine, upgrade, writing
from acclimate.monitoring.experiments import means_by_method
from tests.monitoring.databases import fill

KEPT = Path(__file__).parent.parent / "schema_dbs"
MIGRATIONS = Path(schema.__file__).parent / "migrations"


#: What a column of an earlier version is called now.
RENAMED = {"door": "pipeline", "guard_trips": "guard_rejections"}


def contents(path: Path) -> dict[str, list[dict[str, object]]]:
    """Every row of every table, in order, by the present names of the columns."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        names = {row["name"] for row in tables} - {"alembic_version"}
        return {
            name: [
                {RENAMED.get(key, key): row[key] for key in row.keys()}  # noqa: SIM118  a row iterates its values
                for row in connection.execute(f"SELECT * FROM {name} ORDER BY rowid")
            ]
            for name in names
        }


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
    before = contents(copy)
    with Store(copy) as store:
        with store.reading() as connection:
            differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
            # The guidelines' own tables differ in types of columns; all columns and indices are there.
            assert [d for d in differences if not isinstance(d, list)] == []
        after = contents(copy)
        assert len(before["ttt_metrics"]) >= 2
        for table, rows in before.items():
            assert len(after[table]) == len(rows)
            for old, new in zip(rows, after[table], strict=True):
                # A time in UTC is filled in when a row of another program is first read.
                kept = {name: value for name, value in old.items() if (name, value) != ("recorded_at", None)}
                assert kept.items() <= new.items()
        with store.reading() as connection:
            assert trends.session_summary(connection, "old").total_attempts == 2
            means = means_by_method(connection, "t")
        assert 100 * (means["TTT"]["avg_quality"] / means["ICL"]["avg_quality"] - 1) == pytest.approx(50)
        fill(store, 1)
        with store.reading() as connection:
            assert trends.session_summary(connection, "session").total_attempts >= 1
            assert list(audit.verify(connection)) == []


def test_another_program_for_the_guidelines_schema_can_write_to_the_store(sqlite_store: Store) -> None:
    with sqlite3.connect(str(sqlite_store.url.database)) as connection:
        connection.execute(
            "INSERT INTO ttt_metrics (session_id, timestamp, task_type, confidence_score, success, metadata)"
            " VALUES ('theirs', '2026-11-01T10:00:00', 'io_pairs', 0.9, 1, '{}')"
        )
    with sqlite_store.reading() as connection:
        assert trends.session_summary(connection, "theirs").successful_adaptations == 1


def test_the_columns_that_were_renamed_keep_their_values(database: str) -> None:
    engine = make_engine(database_url(database))
    upgrade(engine, "0002")
    with writing(engine) as connection:
        connection.execute(
            sa.text(
                "INSERT INTO requests (request_id, session_id, timestamp, door, status)"
                " VALUES ('a', 's', '2026-11-01', 'vision', 'adapted'), ('b', 's', '2026-11-01', 'language', 'plain')"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO vision_runs (request_id, images, steps, kept, skipped, guard_trips, resets)"
                " VALUES ('a', 9, 8, 7, 6, 5, 4)"
            )
        )
    engine.dispose()
    requests, runs = schema.requests.c, schema.vision_runs.c
    with Store(database) as store, store.reading() as connection:
        found = connection.execute(sa.select(requests.request_id, requests.pipeline)).all()
        assert dict(map(tuple, found)) == {"a": "vision", "b": "language"}
        row = connection.execute(sa.select(runs.skipped, runs.guard_rejections, runs.resets)).one()
        assert tuple(row) == (6, 5, 4)
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_rows_of_before_the_fourth_version_get_their_times_and_what_was_found(database: str) -> None:
    engine = make_engine(database_url(database))
    upgrade(engine, "0003")
    ours, theirs = "2026-11-01T10:00:00.000000+00:00", "2026-11-01T10:00:00"
    with writing(engine) as connection:
        for time in (ours, theirs):
            connection.execute(
                sa.text("INSERT INTO ttt_metrics (session_id, timestamp) VALUES ('s', :time)"), {"time": time}
            )
            connection.execute(
                sa.text(
                    "INSERT INTO ttt_ab_tests (test_id, session_id, timestamp, method) VALUES ('t', 's', :time, 'TTT')"
                ),
                {"time": time},
            )
        for name, pipeline, status, pattern in (
            ("adapted", "language", "adapted", "io_pairs"),
            ("control", "language", "plain", "io_pairs"),
            ("nothing", "language", "plain", None),
            ("vision", "vision", "adapted", None),
        ):
            connection.execute(
                sa.text(
                    "INSERT INTO requests (request_id, session_id, timestamp, pipeline, status, pattern)"
                    " VALUES (:name, 's', :time, :pipeline, :status, :pattern)"
                ),
                {"name": name, "time": ours, "pipeline": pipeline, "status": status, "pattern": pattern},
            )
    upgrade(engine)
    with engine.connect() as connection:
        for table in (schema.ttt_metrics, schema.ttt_ab_tests):
            found = connection.execute(sa.select(table.c.timestamp, table.c.recorded_at)).tuples().all()
            assert dict(found) == {ours: ours, theirs: None}
        found = connection.execute(sa.select(schema.requests.c.request_id, schema.requests.c.adaptable)).tuples().all()
        assert dict(found) == {"adapted": True, "control": True, "nothing": False, "vision": None}
        anchor = connection.execute(sa.select(schema.audit_anchor.c.entries, schema.audit_anchor.c.head)).one()
        assert tuple(anchor) == (0, audit.FIRST)
    engine.dispose()
    with Store(database) as store, store.reading() as connection:
        times = connection.execute(sa.select(schema.ttt_metrics.c.recorded_at)).scalars().all()
        assert all(time.endswith("+00:00") for time in times)


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


def test_versions_after_the_first_can_be_undone_and_done_again(tmp_path: Path) -> None:
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

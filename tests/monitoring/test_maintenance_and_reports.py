"""Retention deletes rows from the file; the audit log detects changes; reports show what is in the store."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError

from acclimate.cli.main import main
from acclimate.errors import ConfigError, StoreError
from acclimate.monitoring import (
    Experiment,
    Outcome,
    RequestRecord,
    Store,
    VisionRun,
    as_html,
    as_text,
    audit,
    maintain,
    maintenance,
    make_report,
    schema,
)
from acclimate.monitoring.experiments import create, list_experiments
from tests.monitoring.databases import fill


def counts(store: Store) -> dict[str, int]:
    tables = (schema.requests, schema.ttt_metrics, schema.ttt_ab_tests, schema.vision_runs, schema.audit_log)
    with store.reading() as connection:
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in tables
        }


def some(store: Store) -> None:
    fill(store, 5, days_ago=40)
    fill(store, 3, days_ago=10)
    run = VisionRun(images=1, steps=1, kept=1, skipped=0, guard_rejections=0, resets=0)
    old = fill(store, 1, days_ago=50)[0]
    with store.writing() as connection:
        connection.execute(sa.insert(schema.vision_runs).values(request_id=old, **{k: getattr(run, k) for k in
            ("images", "steps", "kept", "skipped", "guard_rejections", "resets")}))  # fmt: skip
    store.put(Outcome(test_id="t", session_id="s", method="TTT"))


def test_what_is_old_is_deleted_and_what_is_not_is_kept(store: Store) -> None:
    some(store)
    before = counts(store)
    planned = maintain(store, keep_days=30, dry_run=True)
    assert counts(store) == before
    assert planned.removed["requests"] == planned.removed["ttt_metrics"] == 6
    done = maintain(store, keep_days=30)
    assert done.removed == planned.removed
    assert counts(store) == {"requests": 3, "ttt_metrics": 3, "ttt_ab_tests": 1, "vision_runs": 0, "audit_log": 9}
    fill(store, 1)
    assert counts(store)["requests"] == 4, "a store that was maintained still records"


def test_rows_are_deleted_in_many_short_transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", 2)
    some(store)
    seen: list[str] = []

    @sa.event.listens_for(store.engine, "after_cursor_execute")
    def delete(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM requests"):
            seen.append("delete")

    @sa.event.listens_for(store.engine, "commit")
    def commit(_connection: Any) -> None:
        seen.append("commit")

    done = maintain(store, keep_days=30)
    assert done.removed["requests"] == done.removed["ttt_metrics"] == 6
    assert counts(store)["requests"] == 3
    deletes = [place for place, what in enumerate(seen) if what == "delete"]
    # Three batches, and one that finds nothing.
    assert len(deletes) == 4
    assert all(seen[place + 1] == "commit" for place in deletes)


def test_others_record_while_the_audit_log_is_shortened(database: str) -> None:
    with Store(database) as store, Store(database) as other:
        if store.url.get_backend_name() == "sqlite":
            pytest.skip("SQLite has one transaction that writes at a time")
        fill(store, 7, days_ago=400)
        fill(store, 3)
        store.flush()
        written: list[bool] = []

        @sa.event.listens_for(store.engine, "after_cursor_execute")
        def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("DELETE FROM audit_log") and not written:
                fill(other, 1)
                written.append(other.flush(20))

        done = maintain(store)
        assert written == [True]
        assert done.removed["audit_log"] == 7
        with store.reading() as connection:
            assert list(audit.verify(connection)) == []
        # The three that are kept, the one that was recorded meanwhile, and the entry of the retention.
        assert counts(store)["audit_log"] == 5


def test_what_was_deleted_is_gone_from_the_files(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db", keep_content=True) as store:
        fill(store, 50, days_ago=40, content={"prompt": "XYZZY-SECRET"})
        store.flush()
        files = [tmp_path / "m.db", tmp_path / "m.db-wal"]
        assert any(b"XYZZY-SECRET" in f.read_bytes() for f in files)
        done = maintain(store, keep_days=30)
        assert not any(b"XYZZY-SECRET" in f.read_bytes() for f in files if f.exists())
        assert done.bytes_after is not None
        assert done.bytes_before is not None
        assert done.bytes_after < done.bytes_before


def test_days_to_keep_must_be_above_zero(sqlite_store: Store) -> None:
    with pytest.raises(ConfigError, match=r"keep_days must be above 0 .*, got 0"):
        maintain(sqlite_store, keep_days=0)


def test_the_audit_log_cannot_be_changed_through_the_database(store: Store) -> None:
    fill(store, 3, days_ago=1)
    others = {
        "sqlite": "INSERT OR REPLACE INTO audit_log SELECT id, timestamp, 'mallory', action, subject, settings,"
        " outcome, previous_hash, 'x' FROM audit_log WHERE id = 1",
        "postgresql": "TRUNCATE audit_log",
    }
    other = others[store.url.get_backend_name()]
    for statement in ("UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log", other):
        with pytest.raises((DBAPIError, StoreError), match="append-only"), store.writing() as connection:
            connection.exec_driver_sql(statement)
    assert counts(store)["audit_log"] == 3


def test_the_audit_log_shows_what_was_changed_around_it(tmp_path: Path) -> None:
    def tampered(statement: str) -> list[str]:
        path = tmp_path / f"{abs(hash(statement))}.db"
        with Store(path) as store:
            fill(store, 5)
            store.flush()
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TRIGGER audit_no_update")
            connection.execute("DROP TRIGGER audit_no_delete")
            connection.execute("DROP TRIGGER audit_no_replace")
            connection.execute(statement)
        with Store(path) as store, store.reading() as connection:
            return [fault.what for fault in audit.verify(connection)]

    assert tampered("UPDATE audit_log SET outcome = 'declined' WHERE id = 3") == ["was changed after it was written"]
    assert tampered("DELETE FROM audit_log WHERE id = 3") == ["does not follow the entry before it"]
    assert tampered("DELETE FROM audit_log WHERE id <= 2") == [
        "entries before it are missing, and no retention entry accounts for them"
    ]
    assert tampered("UPDATE audit_log SET id = id") == []


def faults_after(path: Path, *statements: str, fill_again: int = 0) -> list[tuple[int | None, str]]:
    """Fill a store, change it around the database's checks, and return what verifying finds."""
    with Store(path) as store:
        fill(store, 5)
        fill(store, 2, "plain")
    with sqlite3.connect(path) as connection:
        for trigger in ("audit_no_update", "audit_no_delete", "audit_no_replace"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)
    with Store(path) as store:
        fill(store, fill_again)
        with store.reading() as connection:
            return [(fault.entry, fault.code) for fault in audit.verify(connection)]


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["DELETE FROM audit_log"], [(None, "missing_after"), (None, "no_entry")]),
        (["DELETE FROM audit_log WHERE id = 5"], [(None, "missing_after"), (None, "no_entry")]),
        (["DELETE FROM audit_log", "DELETE FROM requests"], [(None, "missing_after")]),
        # Who changes the anchor too is found by the requests.
        (
            ["DELETE FROM audit_log", f"UPDATE audit_anchor SET entries = 0, head = '{'0' * 64}'"],
            [(None, "no_entry")],
        ),
        (["DELETE FROM audit_anchor"], [(None, "no_anchor")]),
        (["UPDATE audit_anchor SET entries = 4"], [(None, "missing_after")]),
    ],
)
def test_a_log_that_was_cut_off_or_emptied_is_found(tmp_path: Path, statements: list[str], found: list[Any]) -> None:
    assert faults_after(tmp_path / "m.db", *statements) == found


def test_a_log_that_goes_on_after_it_was_emptied_is_found(tmp_path: Path) -> None:
    found = faults_after(tmp_path / "m.db", "DELETE FROM audit_log", fill_again=3)
    assert found == [(None, "missing_after"), (None, "no_entry")]
    assert faults_after(tmp_path / "n.db", fill_again=3) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET settings = '{' WHERE id = 3",
        "UPDATE audit_log SET settings = '5' WHERE id = 3",
        "UPDATE audit_log SET settings = '' WHERE id = 3",
        f"UPDATE audit_log SET settings = '{'[' * 100_000}' WHERE id = 3",
        "UPDATE audit_log SET settings = x'00ff' WHERE id = 3",
        "UPDATE audit_log SET actor = x'ff' WHERE id = 3",
        "UPDATE audit_log SET outcome = 7.5 WHERE id = 3",
        f"UPDATE audit_log SET action = '{audit.RETENTION}', settings = '[1]' WHERE id = 3",
    ],
)
def test_an_entry_that_cannot_be_read_is_a_finding(tmp_path: Path, statement: str) -> None:
    found = faults_after(tmp_path / "m.db", statement)
    assert found
    assert {entry for entry, _ in found} == {3}
    done = CliRunner().invoke(main, ["audit", "--verify", "--db", str(tmp_path / "m.db")])
    assert (done.exit_code, done.stdout) == (1, "the audit log is broken\n")
    assert "entry 3 " in done.stderr
    assert CliRunner().invoke(main, ["audit", "--db", str(tmp_path / "m.db")]).exit_code == 0


def test_text_that_is_no_utf_8_is_a_finding(tmp_path: Path) -> None:
    found = faults_after(tmp_path / "m.db", "UPDATE audit_log SET actor = CAST(x'6dff6e' AS TEXT) WHERE id = 3")
    assert found == [(3, "changed")]


def test_the_number_of_entries_and_the_newest_hash_are_shown_for_keeping(tmp_path: Path) -> None:
    with Store(tmp_path / "m.db") as store:
        fill(store, 2)
        with store.reading() as connection:
            assert audit.newest(connection)[0] == 2
            head = audit.entries(connection)[0]["entry_hash"]
    done = CliRunner().invoke(main, ["audit", "--verify", "--db", str(tmp_path / "m.db")])
    assert done.stderr == f"2 entries, the newest has the hash {head}\n"


def test_an_anchor_survives_retention_and_further_entries(store: Store) -> None:
    fill(store, 4, days_ago=400)
    fill(store, 3, days_ago=1)
    maintain(store, keep_days=500)
    fill(store, 2)
    with store.reading() as connection:
        assert list(audit.verify(connection)) == []
        assert audit.newest(connection)[0] == 3 + 1 + 2
    maintain(store, keep_days=500, keep_audit_days=1e-9)
    with store.reading() as connection:
        assert list(audit.verify(connection)) == []
        assert audit.newest(connection)[0] == 1


@pytest.mark.parametrize("design", ["5", "[" * 100_000, "{}", "", "null", '{"arms": 3}', '{"arms": [{"magic": 1}]}'])
def test_a_stored_design_that_cannot_be_read_is_one_line(sqlite_store: Store, design: str) -> None:
    create(sqlite_store, Experiment(name="e"))
    with sqlite_store.writing() as connection:
        connection.execute(sa.update(schema.experiments).values(design=design))
    with pytest.raises(StoreError, match="the stored design of experiment 'e' cannot be read"):
        list_experiments(sqlite_store)


def test_retention_of_the_audit_log_leaves_a_chain_and_an_entry(store: Store) -> None:
    fill(store, 4, days_ago=400)
    fill(store, 3, days_ago=1)
    assert maintain(store, keep_days=500, actor="the operator").removed["audit_log"] == 4
    with store.reading() as connection:
        assert list(audit.verify(connection)) == []
        newest = audit.entries(connection)[0]
    assert (newest["action"], newest["actor"]) == (audit.RETENTION, "the operator")
    assert counts(store)["audit_log"] == 4
    assert maintain(store, keep_days=500).removed["audit_log"] == 0


def test_an_audit_entry_has_actor_request_settings_and_outcome_and_no_content(store: Store) -> None:
    name = fill(store, 1, actor="ada", settings={"rank": 16}, model="spark", content={"prompt": "private"})[0]
    with store.reading() as connection:
        (entry,) = audit.entries(connection)
    assert entry["actor"] == "ada"
    assert entry["subject"] == name
    assert entry["settings"] == {"rank": 16, "model": "spark", "method": "ttt"}
    assert entry["outcome"] == "adapted"
    assert "private" not in json.dumps(entry)


@pytest.fixture
def busy(store: Store) -> Store:
    fill(store, 120, "plain")
    for days in range(6):
        fill(store, 6, days_ago=days, confidence=0.7 + 0.04 * days, adaptation_time=0.5 + days / 4)
    fill(store, 40, "declined", reason="low_confidence", confidence=0.3)
    fill(store, 4, "fallback")
    run = VisionRun(images=90, steps=10, kept=7, skipped=2, guard_rejections=1, resets=0, cost_ratio=2.5, gain=0.1)
    store.record(RequestRecord(pipeline="vision", status="adapted", session_id="v", vision=run))
    create(store, Experiment(name="<script>".strip("<>")))
    store.put(Outcome(test_id="script", session_id="s", method="TTT", response_quality=1.0))
    return store


def test_a_weekly_report_is_one_page_that_needs_nothing_else(busy: Store) -> None:
    page = as_html(make_report(busy, "weekly"))
    assert page.count("<svg") == 3
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith("#"), address
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    assert "ttt_activation_rate" in page
    assert "lower the confidence threshold" in page
    assert "Vision runs: 1" in page
    assert "experiment script" in page
    # Identifiers inside the charts must not meet: each chart would show the other's clip path.
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 20
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert set(used) <= set(ids)


def test_reports_as_text_count_attempts(busy: Store) -> None:
    text = as_text(make_report(busy, "daily"))
    # The rows of today: 120 plain, 6 adapted, 40 declined, 4 fallback; one day ago is at the window's edge.
    assert re.search(r"language requests: (170|176)\n", text)
    assert "plain: 120" in text
    assert "declined: 40 (low_confidence 40)" in text
    assert text.startswith("Daily report, ")


def test_an_empty_store_makes_a_report_that_says_so(sqlite_store: Store) -> None:
    made = make_report(sqlite_store, "weekly")
    assert "health: cannot tell" in as_text(made)
    assert "nothing recorded" in as_html(made)


def test_what_comes_from_users_is_escaped(sqlite_store: Store) -> None:
    fill(sqlite_store, 30, "fallback", reason="<img src=x onerror=alert(1)>")
    assert "<img" not in as_html(make_report(sqlite_store, "daily"))

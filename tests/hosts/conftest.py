"""The stores of the monitoring tests, for the collector of the bridge."""

from __future__ import annotations

from tests.monitoring.conftest import database, postgresql_server, sqlite_store, store

__all__ = ["database", "postgresql_server", "sqlite_store", "store"]

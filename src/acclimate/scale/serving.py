"""``acclimate serve --engine ray``: replicas on Ray Serve behind one address, from the settings of the server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from acclimate.errors import ConfigError
from acclimate.scale.cluster import cluster
from acclimate.scale.front import create_front
from acclimate.scale.replicas import ServeReplicas
from acclimate.serve.server import api_keys, listen, metrics_store, serve_until_told
from acclimate.serve.settings import ServerSettings
from acclimate.storage import Folder


def run(
    settings: ServerSettings, *, announce: Callable[[str], None], ready: Callable[[str], None] | None = None
) -> None:
    """Serve with replicas until the process is told to end (SIGTERM or SIGINT), and finish what was begun.

    Args:
        settings: of the server.
        announce: called with what is started, and with the address when requests are taken.
        ready: called with the address, in a thread of its own, as soon as requests are answered.

    Raises:
        ConfigError: the address cannot be listened on, a model cannot be loaded, or the cluster cannot be started.
        StoreError: the metrics store cannot be opened.
    """
    settings.check()
    keys = api_keys(settings)
    # Before anything is started, which takes a while.
    listening = listen(settings)
    try:
        # Its tables are made once, and not by every replica at the same time.
        store = metrics_store(settings)
        if store is not None:
            store.close()
        with (
            _with_store(settings) as shared,
            cluster(shared.replicas * (shared.threads or 1), shared.ray_address, shows_logs=True),
        ):
            announce(f"starting {shared.replicas} replicas")
            replicas, models = started(shared)
            app, drain = create_front(replicas, shared, models, keys=keys, end=replicas.close)
            serve_until_told(app, listening, shared, names=models, announce=announce, ready=ready, drain=drain)
    finally:
        listening.close()


def started(settings: ServerSettings) -> tuple[ServeReplicas, tuple[str, ...]]:
    """Return replicas that answer, and the names of their models.

    Args:
        settings: of the server, with a store of adapters.

    Raises:
        ConfigError: they cannot load the models.
    """
    replicas = ServeReplicas.started(settings)
    reports = asyncio.run(replicas.reports())
    problems = [report.problem for report in reports if report.problem is not None]
    if problems or not reports:
        replicas.close()
        raise ConfigError(problems[0] if problems else "the replicas did not start; Ray's log says why")
    return replicas, reports[0].models


@contextmanager
def _with_store(settings: ServerSettings) -> Iterator[ServerSettings]:
    """Yield the settings with a store of adapters that all replicas see: the given one, or one for this run alone.

    Raises:
        ConfigError: replicas on several machines have no store, or only one process would see it.
    """
    if settings.adapter_store is not None:
        if not Folder(settings.adapter_store).is_shared:
            raise ConfigError(f"{settings.adapter_store} is seen by one process alone; name a folder as adapter_store")
        yield settings
    elif settings.ray_address is not None:
        raise ConfigError("replicas of a cluster need adapter_store: a folder or address that all machines see")
    else:
        with tempfile.TemporaryDirectory(prefix="acclimate-adapters-", ignore_cleanup_errors=True) as folder:
            yield settings.model_copy(update={"adapter_store": folder})

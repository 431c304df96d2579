"""Running the server in a process: models, store and listening socket, from its settings."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from acclimate.errors import ConfigError
from acclimate.extras import is_installed, require
from acclimate.serve.app import DRAIN_MARGIN_S, Parts, create_app
from acclimate.serve.experiments import Assigner
from acclimate.serve.keys import KeyFile
from acclimate.serve.service import Service, load_models
from acclimate.serve.settings import ServerSettings
from acclimate.serve.telemetry import Telemetry

if TYPE_CHECKING:
    from acclimate.monitoring import Store

_LOG = logging.getLogger(__name__)
#: Connections that wait to be accepted by the system; further ones are refused by it.
_BACKLOG = 512


def run(
    settings: ServerSettings,
    *,
    announce: Callable[[str], None],
    extend: Callable[[FastAPI, Parts], None] | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until the process is told to end (SIGTERM or SIGINT), and finish what was begun.

    Args:
        settings: of the server.
        announce: called with what is loaded, and with the address when requests are taken.
        extend: see :func:`acclimate.serve.app.create_app`.
        ready: called with the address, in a thread of its own, as soon as requests are answered.

    Raises:
        ConfigError: the address cannot be listened on, or the settings contradict each other.
        CheckpointError: a model cannot be loaded.
        StoreError: the metrics store cannot be opened.
    """
    settings.check()
    keys = api_keys(settings)
    # Before models are loaded, which takes a while.
    listening = listen(settings)
    try:
        if settings.threads is not None:
            import torch

            torch.set_num_threads(settings.threads)
        store = metrics_store(settings)
        service = Service(settings, load_models(settings, announce))
        telemetry = Telemetry(service, store=store, traces=settings.telemetry)
        app = create_app(service, keys=keys, telemetry=telemetry, assigner=assigner_of(settings, store), extend=extend)
        serve_until_told(
            app,
            listening,
            settings,
            names=list(service.models),
            announce=announce,
            ready=ready,
            drain=lambda: threading.Thread(target=service.close, name="acclimate-drain", daemon=True).start(),
        )
    finally:
        listening.close()


def serve_until_told(
    app: FastAPI,
    listening: socket.socket,
    settings: ServerSettings,
    *,
    names: Sequence[str],
    announce: Callable[[str], None],
    ready: Callable[[str], None] | None,
    drain: Callable[[], None],
) -> None:
    """Serve an application until the process is told to end (SIGTERM or SIGINT).

    Args:
        app: to serve.
        listening: the socket.
        settings: of the server.
        names: of the models.
        announce: see :func:`run`.
        ready: see :func:`run`.
        drain: called as soon as the signal comes; connections that are open may not ask for more then.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=round(settings.drain_timeout_s + DRAIN_MARGIN_S),
        timeout_keep_alive=30,
    )
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}"
    announce(f"serving {', '.join(names)} at {address}/v1")
    # uvicorn ends its work at these signals and raises them once more when it is done; that is no error here.
    before = {kind: signal.signal(kind, lambda *_: None) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        _Server(config, drain, None if ready is None else partial(ready, address)).run(sockets=[listening])
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _Server(uvicorn.Server):
    """Begins to drain as soon as a signal comes: connections that are open may not ask for more."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._drain, self._ready = drain, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell who waits for it."""
        await super().startup(sockets)
        if self._ready is not None:
            threading.Thread(target=self._ready, name="acclimate-ready", daemon=True).start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal to end."""
        super().handle_exit(sig, frame)
        self._drain()


def api_keys(settings: ServerSettings) -> KeyFile | None:
    """Return the API keys of a server; None where it asks for none.

    Raises:
        ConfigError: the file holds no valid key, or cannot be read.
    """
    if settings.keys_file is None:
        return None
    keys = KeyFile(settings.keys_file)
    if not any(key.revoked is None for key in keys.all()):
        raise ConfigError(f"{settings.keys_file} holds no valid API key; acclimate keys create makes one")
    return keys


def assigner_of(settings: ServerSettings, store: Store | None) -> Assigner | None:
    """Return what assigns requests to the arms of the experiment that the settings name; None where there is none.

    Raises:
        StoreError: there is no such experiment.
        ConfigError: it was stopped, or an arm sets what the server cannot.
    """
    if settings.experiment is None:
        return None
    if store is None:
        require("monitoring", "experiment")
    assert store is not None  # noqa: S101 - for the type checker: without the extra the line above raises
    return Assigner.of(store, settings.experiment)


def listen(settings: ServerSettings) -> socket.socket:
    """Return a socket that listens where the settings say.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}; give another --port"
        ) from error
    return listening


def metrics_store(settings: ServerSettings) -> Store | None:
    """Return the metrics store; None where nothing is recorded.

    Raises:
        StoreError: it cannot be opened.
        MissingExtraError: it was asked for, and acclimate[monitoring] is not installed.
    """
    if not settings.record:
        return None
    if "record" in settings.model_fields_set or settings.db is not None:
        require("monitoring", "record")
    if not is_installed("monitoring"):
        return None
    from acclimate.monitoring import Store

    return Store(settings.db, keep_content=settings.store_content)

"""Replicas in this process, which end when a test wants it, behind a front that listens."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from acclimate.scale.front import create_front
from acclimate.scale.replica import AdapterRecord, Call, Made, Refused, Replica, ReplicaReport
from acclimate.scale.replicas import ReplicaLostError
from acclimate.serve.keys import KeyFile
from acclimate.serve.server import listen
from acclimate.serve.settings import ServerSettings

Message = dict[str, Any]


class LocalReplicas:
    """Replicas without Ray.

    Attributes:
        replicas: by number; None where one has ended.
        ends_before: called with each message of an answer; true ends the replica before it is handed on.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.started = [Replica(settings, number) for number in range(settings.replicas)]
        self.begin_again()

    def begin_again(self) -> None:
        """Let all replicas live."""
        self.replicas: list[Replica | None] = list(self.started)
        self.ends_before: Callable[[Message], bool] = lambda _message: False
        self.asked: list[int] = []

    def _chosen(self, key: str | None) -> tuple[int, Replica]:
        alive = [(number, one) for number, one in enumerate(self.replicas) if one is not None]
        if not alive:
            raise ReplicaLostError("no replica lives")
        number, replica = max(alive, key=lambda pair: hashlib.sha256(f"{key} {pair[0]}".encode()).digest())
        self.asked.append(number)
        return number, replica

    async def answer(self, call: Call, key: str | None) -> AsyncGenerator[Message]:
        number, replica = self._chosen(key)
        async with aclosing(replica.answer(call)) as messages:
            async for message in messages:
                if self.ends_before(message):
                    self.replicas[number] = None
                    raise ReplicaLostError(f"replica {number} ended")
                yield message

    async def make(self, record: AdapterRecord, key: str) -> Made | Refused:
        return await self._chosen(key)[1].make(record)

    async def forget(self, record: AdapterRecord) -> None:
        for replica in self.replicas:
            if replica is not None:
                replica.forget(record)

    async def reports(self) -> Sequence[ReplicaReport]:
        return await asyncio.gather(*[replica.report() for replica in self.replicas if replica is not None])


@contextmanager
def fronted(
    store: Path, *, keys: KeyFile | None = None, **settings: Any
) -> Iterator[tuple[httpx.Client, LocalReplicas]]:
    """Yield a client of a front with two replicas of spark, and the replicas."""
    given: dict[str, Any] = {"models": ("spark",), "engine": "ray", "replicas": 2, "record": False, "port": 0}
    read = ServerSettings(**given | {"adapter_store": str(store)} | settings)
    replicas = LocalReplicas(read)
    app, _ = create_front(replicas, read, ["spark"], keys=keys)
    listening = listen(read)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=120) as client:
            yield client, replicas
    finally:
        server.should_exit = True
        thread.join(240)
        listening.close()
        for replica in replicas.started:
            replica.__del__()

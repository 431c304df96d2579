"""One of several servers with the same models: what a replica of Ray Serve is, and what is said to it.

It runs the application of ``acclimate serve`` without listening anywhere: requests come as calls and leave as the
messages of ASGI, so that an answer of a replica is made by the same code as one of a single server. Who asks, and how
often, was checked before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from acclimate.errors import CancelledError, ConfigError, InputError, SessionError
from acclimate.language import Adapter, Example
from acclimate.serve.access import ApiError, Caller, api_error
from acclimate.serve.admission import error_body
from acclimate.serve.app import ANSWER, CALLER, create_app
from acclimate.serve.library import NamedAdapter
from acclimate.serve.schemas import TTTOptions
from acclimate.serve.server import assigner_of, metrics_store
from acclimate.serve.service import ServedModel, Service, load_models
from acclimate.serve.settings import ServerSettings
from acclimate.serve.telemetry import Telemetry
from acclimate.serve.worker import Ticket

_LOG = logging.getLogger(__name__)
#: The type of the first message of an answer, which is none of ASGI's: which replica answers.
ANSWERED_BY: Final = "acclimate.replica"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """An adapter with a name, without its weights: those are in the store.

    Attributes:
        name, base_model, owner: see :class:`~acclimate.serve.library.NamedAdapter`.
        examples: that it was trained on; none where it was loaded.
        rank, steps: that were asked for.
        folder: it was loaded from, below the configured one; None where it was trained.
        key: in the store; None before it was made.
        created: Unix time.
        identity: unlike that of every other adapter that ever had the name.
    """

    name: str
    base_model: str
    owner: str
    examples: tuple[Example, ...] = ()
    rank: int | None = None
    steps: int | None = None
    folder: str | None = None
    key: str | None = None
    created: int = 0
    identity: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """What it is found by: base model, name and owner."""
        return self.base_model, self.name, self.owner

    @property
    def options(self) -> TTTOptions:
        """How it is trained."""
        return TTTOptions(rank=self.rank, steps=self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request on its way to a replica.

    Attributes:
        path: of the route.
        body: as it was sent.
        caller: who sent it.
        request_id: of it.
        answer: id and time of the answer, which stay the same where another replica begins again.
        named: the adapter that it asks for; None for a base model.
    """

    path: str
    body: bytes
    caller: Caller
    request_id: str
    answer: tuple[str, int]
    named: AdapterRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An adapter that a replica has made and put into the store.

    Attributes:
        key: in the store.
        rank: of its weights.
        held_bytes: of them.
    """

    key: str
    rank: int
    held_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What a client is told instead; see :class:`acclimate.serve.access.ApiError`."""

    status: int
    message: str
    kind: str
    code: str | None
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """How a replica is.

    Attributes:
        number: of the replica, from 0; one that replaces another takes its number.
        pid: its process id.
        problem: why it cannot answer, if its models could not be loaded; None otherwise.
        models: names of those that it serves.
        is_alive: whether its workers run.
        metrics: Prometheus' text.
    """

    number: int
    pid: int
    problem: str | None
    models: tuple[str, ...]
    is_alive: bool
    metrics: bytes


class Replica:
    """Serves the models of one process.

    Args:
        settings: of the server.
        number: of the replica; None asks Ray Serve.
    """

    def __init__(self, settings: ServerSettings, number: int | None = None) -> None:
        # Replicas of a cluster have to be reached from its other machines; those of one machine do not.
        self._is_at_loopback = None if settings.ray_address is not None or number is not None else _keep_at_loopback()
        self._number = _number() if number is None else number
        self._problem: str | None = None
        # Those that are still to notice that their client left.
        self._tasks: set[asyncio.Task[None]] = set()
        # Which adapter each name stands for here.
        self._identities: dict[tuple[str, str, str], str] = {}
        self._closed = False
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
        logging.getLogger("acclimate").setLevel(settings.log_level.upper())
        # Names and their number were checked where all of them are known; here are those that were asked for lately.
        self._settings = settings.model_copy(update={"max_adapters_per_key": 2**31})
        try:
            self._start()
        except InputError as error:
            # Ray Serve would try again and again; who started the replicas asks for the problem instead.
            self._problem = str(error)

    def _start(self) -> None:
        if self._settings.threads is not None:
            import torch

            torch.set_num_threads(self._settings.threads)
        store = metrics_store(self._settings)
        self._service = Service(self._settings, load_models(self._settings))
        self._telemetry = Telemetry(self._service, store=store, traces=self._settings.telemetry)
        self._app = create_app(self._service, telemetry=self._telemetry, assigner=assigner_of(self._settings, store))
        self._service.start()

    async def answer(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """Yield which replica answers, and the messages of ASGI that the answer consists of.

        Args:
            call: the request.
        """
        yield {"type": ANSWERED_BY, "replica": self._number}
        if call.named is not None:
            try:
                await asyncio.to_thread(self._have, call.named)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is told as by a single server
                for message in self._refusal(api_error(error)):
                    yield message
                return
        messages: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
        has_left = asyncio.Event()
        given = False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": call.body, "more_body": False}
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(_scope(call), receive, messages.put)
            except CancelledError:
                # The client left, which nobody needs to be told.
                return
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            while (sent := await messages.get()) is not None:
                yield dict(sent)
        finally:
            has_left.set()

    async def make(self, record: AdapterRecord) -> Made | Refused:
        """Train, or load, an adapter that is to have a name, and put it into the store.

        Args:
            record: of the adapter; its key is not known yet.
        """
        try:
            served, _ = self._service.find(record.base_model, record.owner)
            key, adapter = await self._made(served, record)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told as by a single server
            told = api_error(error)
            return Refused(status=told.status, message=str(told), kind=told.kind, code=told.code, headers=told.headers)
        # Another replica may be asked for it right away.
        await asyncio.to_thread(self._store.flush, timeout_s=self._settings.request_timeout_s)
        return Made(key=key, rank=adapter.rank, held_bytes=adapter.held_bytes)

    def forget(self, record: AdapterRecord) -> None:
        """Let go of an adapter whose name was deleted.

        Args:
            record: of the adapter.
        """
        found = self._service.library.find(record.base_model, record.name, record.owner)
        if found is not None and self._identities.get(record.place) == record.identity:
            self._service.library.remove(found)
            self._identities.pop(record.place, None)

    async def report(self) -> ReplicaReport:
        """Return how the replica is."""
        if self._is_at_loopback is not None and not self._is_at_loopback():
            self._problem = (
                "this version of Ray Serve opens a port to other machines; install the version in constraints"
            )
        if self._problem is not None:
            return ReplicaReport(
                number=self._number, pid=os.getpid(), problem=self._problem, models=(), is_alive=False, metrics=b""
            )
        return ReplicaReport(
            number=self._number,
            pid=os.getpid(),
            problem=None,
            models=tuple(self._service.models),
            is_alive=self._service.is_alive,
            metrics=await asyncio.to_thread(self._telemetry.page),
        )

    def check_health(self) -> None:
        """Raise an error where the replica is to be replaced.

        Raises:
            SessionError: a worker has ended for good.
        """
        if self._problem is None and not self._service.is_alive:
            raise SessionError("a worker has ended for good")

    def __del__(self) -> None:
        """Finish what was begun, and write what is not written yet; Ray Serve calls it when a replica is to end."""
        if self._problem is None and hasattr(self, "_app") and not self._closed:
            self._closed = True
            self._service.close()
            self._telemetry.close()

    @property
    def _store(self) -> Any:
        if self._service.store is None:
            raise ConfigError("replicas need adapter_store: the folder that they share adapters by")
        return self._service.store

    def _refusal(self, error: ApiError) -> list[dict[str, Any]]:
        self._telemetry.refused(error.status)
        body = json.dumps(error_body(str(error), error.kind, code=error.code)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
        return [
            {"type": "http.response.start", "status": error.status, "headers": headers},
            {"type": "http.response.body", "body": body, "more_body": False},
        ]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a request failed", exc_info=error)

    async def _made(self, served: ServedModel, record: AdapterRecord) -> tuple[str, Adapter]:
        if record.folder is not None:
            adapter = await asyncio.to_thread(self._service.load, served, record.folder)
            return await asyncio.to_thread(lambda: served.cache.put(adapter)), adapter
        key = await asyncio.to_thread(self._service.key_of, served, record.examples, record.options)
        ticket = self._service.prime(served, record.examples, record.owner, record.options)
        try:
            return key, await asyncio.wrap_future(ticket.result)
        finally:
            ticket.give_up()

    def _have(self, record: AdapterRecord) -> None:
        """Have an adapter under its name: from memory, from the store, or made again.

        Raises:
            CheckpointError: it is lost and cannot be made again.
        """
        library = self._service.library
        known = library.find(record.base_model, record.name, record.owner)
        if known is not None and self._identities.get(record.place) == record.identity:
            return
        served = self._service.models[record.base_model]
        found = None
        if record.key is not None:
            self._service.fetch(served, record.key, record.examples)
            found = served.cache.get(record.key)
        adapter = found[0] if found is not None and found[0].weights else self._again(served, record)
        library.put(
            NamedAdapter(
                name=record.name,
                base_model=record.base_model,
                adapter=adapter,
                owner=record.owner,
                examples=record.examples,
                source="examples" if record.folder is None else "folder",
                created=record.created,
            )
        )
        self._identities[record.place] = record.identity

    def _again(self, served: ServedModel, record: AdapterRecord) -> Adapter:
        _LOG.warning("the adapter %r is not in the store; it is made again", record.name)
        if record.folder is not None:
            return self._service.load(served, record.folder)
        ticket: Ticket[Adapter] = self._service.prime(served, record.examples, record.owner, record.options)
        return ticket.result.result(timeout=self._settings.request_timeout_s)


def _scope(call: Call) -> dict[str, Any]:
    """Return the scope of ASGI for a request that was checked before."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"x-request-id", call.request_id.encode()),
        ],
        "client": None,
        "server": None,
        "state": {CALLER: call.caller, ANSWER: call.answer},
    }


def _keep_at_loopback() -> Callable[[], bool]:
    """Let Ray Serve open the port of this process at the loopback address; return what says whether it did.

    Serve 2.60 opens a port on every address of the machine in each replica, which takes pickled requests from anybody,
    and has no setting for that. Nothing here uses the port.
    """
    from ray.serve._private import replica

    opened: list[str] = []
    add = getattr(replica, "add_port_to_grpc_server", None)

    def add_at_loopback(server: Any, _address: str) -> int:
        opened.append("127.0.0.1:0")
        port: int = add(server, opened[-1])  # type: ignore[misc]
        return port

    if add is not None:
        replica.add_port_to_grpc_server = add_at_loopback
    return lambda: bool(opened)


def _number() -> int:
    from ray import serve

    rank = serve.get_replica_context().rank
    return int(rank.rank)

"""The one address of several replicas: it checks who asks, chooses the replica, and hands its answer on.

It loads no model. Keys, rates, host names and the names of adapters are looked at here, once for all replicas; what a
request means and how it is answered is the business of the replica.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, TypeVar
from uuid import uuid4

import prometheus_client
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.concurrency import run_in_threadpool

from acclimate.errors import CancelledError, InputError
from acclimate.language import Adapter, Example, as_examples, patterns
from acclimate.language.conversations import examples_in_turns, read_turns
from acclimate.scale.replica import ANSWERED_BY, AdapterRecord, Call, Made, Refused, ReplicaReport
from acclimate.scale.replicas import ReplicaLostError, Replicas
from acclimate.serve.access import Access, ApiError, Caller
from acclimate.serve.admission import error_body
from acclimate.serve.app import CHAT, Routes, Shape, assemble, or_conflict
from acclimate.serve.keys import KeyFile
from acclimate.serve.library import NamedAdapter
from acclimate.serve.schemas import (
    AdapterInfo,
    AdapterRequest,
    ChatRequest,
    CompletionRequest,
    LoadRequest,
)
from acclimate.serve.service import Catalogue
from acclimate.serve.settings import ServerSettings
from acclimate.serve.worker import BusyError

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
#: How often it is looked whether a client still waits for what has not begun.
_LOOK_S: Final = 0.2
#: In longer texts examples are not looked for here; their beginning decides which replica answers.
_MOST_CHARACTERS: Final = 50_000
_BEGINNING: Final = 4_096
#: Times that a request is handed to a replica.
_ATTEMPTS: Final = 2
_LOST: Final = "the replica that worked on the request ended"
#: The header that says which replica answered.
REPLICA_HEADER: Final = "x-acclimate-replica"


class FrontMetrics:
    """Counts what the front does, and puts the metrics of all replicas on one page.

    Args:
        wanted: replicas that there should be.
    """

    def __init__(self, wanted: int) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._wanted = wanted
        self._answered = prometheus_client.Counter(
            "acclimate_front_answers", "Answers handed on, by replica.", ["replica"], registry=self._registry
        )
        self._retried = prometheus_client.Counter(
            "acclimate_front_retries", "Requests that another replica began again.", registry=self._registry
        )
        self._lost = prometheus_client.Counter(
            "acclimate_front_lost", "Requests that were lost with a replica.", registry=self._registry
        )
        self._refused = prometheus_client.Counter(
            "acclimate_requests_refused", "By HTTP status.", ["status"], registry=self._registry
        )

    def answered(self, replica: int) -> None:
        """Count an answer that was handed on to its end."""
        self._answered.labels(str(replica)).inc()

    def retried(self) -> None:
        """Count a request that another replica begins again."""
        self._retried.inc()

    def lost(self) -> None:
        """Count a request that was lost with a replica."""
        self._lost.inc()

    def refused(self, status: int) -> None:
        """Count a request that got an error of the front."""
        self._refused.labels(str(status)).inc()

    def page(self, reports: Sequence[ReplicaReport]) -> bytes:
        """Return Prometheus' text, each sample with the number of its replica, or ``front``."""
        pages = [("front", prometheus_client.generate_latest(self._registry))]
        pages += [(str(report.number), report.metrics) for report in reports]
        families: dict[str, Metric] = {}
        for replica, page in pages:
            for family in text_string_to_metric_families(page.decode()):
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    # The front's own counter of answers has the label already.
                    labels = {"replica": replica} | sample.labels
                    known.add_sample(sample.name, labels, sample.value)
        for name, text, value in (
            ("acclimate_replicas_live", "Replicas that answer.", len(reports)),
            ("acclimate_replicas_wanted", "Replicas that there should be.", self._wanted),
        ):
            families[name] = GaugeMetricFamily(name, text, value=value)
        processes = GaugeMetricFamily("acclimate_replica_process", "Process ids.", labels=["replica", "pid"])
        for report in reports:
            processes.add_metric([str(report.number), str(report.pid)], 1.0)
        families[processes.name] = processes
        merged = prometheus_client.CollectorRegistry()
        merged.register(_Families(families.values()))
        return prometheus_client.generate_latest(merged)


class _Families:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._families


def create_front(
    replicas: Replicas,
    settings: ServerSettings,
    models: Sequence[str],
    *,
    keys: KeyFile | None = None,
    end: Callable[[], None] = lambda: None,
) -> tuple[FastAPI, Callable[[], None]]:
    """Return the application, and what lets it take no further requests.

    Args:
        replicas: that answer.
        settings: of the server.
        models: names of the models that they serve.
        keys: of the API; None lets everybody do everything.
        end: called when the application has ended.
    """
    access = Access(keys, requests_per_minute=settings.requests_per_minute)
    metrics = FrontMetrics(settings.replicas)
    routes = _FrontRoutes(replicas, Catalogue(settings, {name: name for name in models}), access, metrics)
    app = assemble(routes, settings=settings, on_refused=metrics.refused, begin=lambda: None, end=end)
    return app, routes.drain


class _FrontRoutes(Routes):
    """Hands requests to replicas, and knows which adapters have a name."""

    def __init__(self, replicas: Replicas, catalogue: Catalogue[str], access: Access, metrics: FrontMetrics) -> None:
        super().__init__(catalogue, access, serves_media=catalogue.settings.media)
        self._replicas, self._metrics = replicas, metrics
        self._records: dict[tuple[str, str, str], tuple[AdapterRecord, AdapterInfo]] = {}
        self._draining = False

    def drain(self) -> None:
        """Take no further requests."""
        self._draining = True

    async def generate(
        self, shape: Shape, body: ChatRequest | CompletionRequest, request: Request, caller: Caller
    ) -> Response:
        """Hand a request to the replica that is likely to have its adapter."""
        self._check_open()
        base, named = self._catalogue.find(body.model, caller.id, sees_all=caller.may("admin"))
        record = None if named is None else self._records[named.base_model, named.name, named.owner][0]
        key = await run_in_threadpool(routing_key, base, body, record)
        return await self._answered(shape.prefix, request, caller, key, record)

    async def answer_media(self, body: ChatRequest, request: Request, caller: Caller) -> Response:
        """Hand a request about an image or a sound to any replica."""
        self._check_open()
        return await self._answered(CHAT.prefix, request, caller, None, None)

    async def create_adapter(self, body: AdapterRequest, request: Request, caller: Caller) -> AdapterInfo:
        """Let a replica train an adapter."""
        base = body.model or next(iter(self._catalogue.models))
        name, named = self._catalogue.find(base, caller.id)
        if named is not None:
            raise ApiError(400, f"{base!r} is an adapter; give a base model", "invalid_request_error")
        examples = as_examples([(e.input, e.output) for e in body.examples])
        record = AdapterRecord(
            name=body.name,
            base_model=name,
            owner=caller.id,
            examples=examples,
            rank=body.rank,
            steps=body.steps,
            created=int(time.time()),
            identity=uuid4().hex,
        )
        await or_conflict(lambda: self._catalogue.library.reserve(*record.place))
        return await _while_connected(request, self._named(record, _digest(name, examples)))

    async def load(self, body: LoadRequest, caller: Caller) -> PlainTextResponse:
        """Let a replica load an adapter from below the configured folder."""
        base = body.base_model_name or next(iter(self._catalogue.models))
        name, _ = self._catalogue.find(base, caller.id)
        record = AdapterRecord(
            name=body.lora_name,
            base_model=name,
            owner=caller.id,
            folder=body.lora_path,
            created=int(time.time()),
            identity=uuid4().hex,
        )
        library = self._catalogue.library
        await or_conflict(lambda: library.reserve(*record.place, replace=body.load_inplace), status=400)
        await self._named(record, _key_of_name(record))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def health(self) -> Response:
        """Say how many replicas live: 200 while one does, or 503."""
        live = sum(report.is_alive for report in await self._replicas.reports())
        body = {"replicas": {"live": live, "wanted": self._settings.replicas}}
        return JSONResponse(body, status_code=200 if live and not self._draining else 503)

    async def metrics(self) -> bytes:
        """Return Prometheus' text, of the front and of all replicas."""
        reports = await self._replicas.reports()
        return await run_in_threadpool(self._metrics.page, reports)

    def info(self, named: NamedAdapter) -> AdapterInfo:
        """Return what is shown of an adapter."""
        return self._records[named.base_model, named.name, named.owner][1]

    async def remove(self, named: NamedAdapter) -> None:
        """Serve an adapter no longer."""
        await super().remove(named)
        record, _ = self._records.pop((named.base_model, named.name, named.owner))
        await self._replicas.forget(record)

    def _check_open(self) -> None:
        if self._draining:
            raise BusyError("the server is shutting down", 5.0)

    async def _named(self, record: AdapterRecord, key: str) -> AdapterInfo:
        """Let a replica make the adapter, and give it the name that was reserved."""
        library = self._catalogue.library
        try:
            self._check_open()
            made = await self._made(record, key)
        except BaseException:
            library.release(*record.place)
            raise
        # The weights are with the replicas; the library here is asked for names alone.
        adapter = Adapter.of_weights({}, rank=made.rank, fingerprint="")
        source: Any = "examples" if record.folder is None else "folder"
        named = NamedAdapter(
            name=record.name,
            base_model=record.base_model,
            adapter=adapter,
            owner=record.owner,
            source=source,
            created=record.created,
        )
        info = AdapterInfo(
            id=named.model_id,
            name=record.name,
            base_model=record.base_model,
            created=record.created,
            examples=len(record.examples),
            rank=made.rank,
            bytes=made.held_bytes,
            source=source,
        )
        before = self._records.get(record.place)
        self._records[record.place] = replace(record, key=made.key), info
        library.put(named)
        if before is not None:
            await self._replicas.forget(before[0])
        return info

    async def _made(self, record: AdapterRecord, key: str) -> Made:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                made = await self._replicas.make(record, key)
            except ReplicaLostError as error:
                _LOG.warning("%s", error)
                if attempt == _ATTEMPTS:
                    self._metrics.lost()
                    raise _lost() from error
                self._metrics.retried()
                continue
            if isinstance(made, Refused):
                raise ApiError(made.status, made.message, made.kind, code=made.code, headers=made.headers)
            return made
        raise AssertionError("unreachable")

    async def _answered(
        self, prefix: str, request: Request, caller: Caller, key: str | None, record: AdapterRecord | None
    ) -> Response:
        call = Call(
            path=request.url.path,
            body=await request.body(),
            caller=caller,
            request_id=request.state.request_id,
            answer=(f"{prefix}{uuid4().hex}", int(time.time())),
            named=record,
        )
        messages = _Relay(self._replicas, self._metrics, call, key).messages()
        # Before anything is handed on, an error has a status of its own.
        first = await _while_connected(request, anext(messages))
        return _Relayed(first, messages)


class _Relay:
    """One request, handed to a replica, and to another one if that ends before any text was handed on."""

    def __init__(self, replicas: Replicas, metrics: FrontMetrics, call: Call, key: str | None) -> None:
        self._replicas, self._metrics, self._call, self._key = replicas, metrics, call, key
        self._started = self._opened = self._has_text = False

    async def messages(self) -> AsyncGenerator[dict[str, Any]]:
        """Yield the messages of the answer.

        Raises:
            ApiError: replicas ended, and nothing was handed on.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with aclosing(self._attempt()) as messages:
                    async for message in messages:
                        yield message
                return
            except ReplicaLostError as error:
                _LOG.warning("request %s: %s", self._call.request_id, error)
                if attempt < _ATTEMPTS and not self._has_text:
                    self._metrics.retried()
                    continue
                self._metrics.lost()
                told = _lost()
                if not self._started:
                    raise told from error
                # The stream has begun: its end says what went wrong, as a single server's does.
                self._metrics.refused(told.status)
                text = json.dumps(error_body(str(told), told.kind, code=told.code))
                yield _body(f"data: {text}\n\n".encode(), more=True)
                yield _body(b"data: [DONE]\n\n", more=False)
                return

    async def _attempt(self) -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(self._replicas.answer(self._call, self._key)) as messages:
            async for message in self._passed(messages):
                yield message

    async def _passed(self, messages: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        replica, start, is_stream = 0, None, False
        async for message in messages:
            if message["type"] == ANSWERED_BY:
                replica = message["replica"]
            elif message["type"] == "http.response.start":
                # The front adds its own.
                headers = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                headers.append((REPLICA_HEADER.encode(), str(replica).encode()))
                start = {**message, "headers": headers}
                is_stream = any(
                    name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
                )
            elif message["type"] == "http.response.body":
                if is_stream and not self._passes(message["body"]):
                    continue
                if start is not None and not self._started:
                    # Not before there is something to hand on: until then another replica may answer.
                    self._started = True
                    yield start
                if not message.get("more_body", False):
                    # Counted before it is sent: the client may be gone as soon as it has all.
                    self._metrics.answered(replica)
                yield message

    def _passes(self, event: bytes) -> bool:
        """Say whether an event is to be handed on, and note what has been."""
        if self._has_text or event.startswith(b":") or not event.strip():
            return True
        if _is_opening(event):
            # Another replica begins again, with what was handed on before.
            passes, self._opened = not self._opened, True
            return passes
        self._has_text = True
        return True


class _Relayed(Response):
    """The messages of an answer, as they come; a client that leaves ends them."""

    def __init__(self, first: dict[str, Any], rest: AsyncGenerator[dict[str, Any]]) -> None:
        super().__init__()
        self._first, self._rest = first, rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def hand_on() -> None:
            await send(self._first)
            async for message in self._rest:
                await send(message)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        handing, watching = asyncio.create_task(hand_on()), asyncio.create_task(watch())
        try:
            await asyncio.wait({handing, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (handing, watching):
                task.cancel()
            await asyncio.gather(handing, watching, return_exceptions=True)
            await self._rest.aclose()
        if handing.done() and not handing.cancelled() and (error := handing.exception()) is not None:
            raise error


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return the result of ``work``, unless its client leaves before.

    Raises:
        CancelledError: the client left.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_S)
            if not task.done() and await request.is_disconnected():
                raise CancelledError("the client closed the connection")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def routing_key(base_model: str, body: ChatRequest | CompletionRequest, named: AdapterRecord | None) -> str | None:
    """Return a digest of the examples that a request is adapted to; None where any replica may answer.

    Args:
        base_model: that is asked, or that the adapter belongs to.
        body: of the request.
        named: the adapter that it asks for.
    """
    if named is not None:
        return _digest(base_model, named.examples) if named.examples else _key_of_name(named)
    if body.ttt is not None and body.ttt.mode == "off":
        return None
    if body.ttt is not None and body.ttt.examples:
        return _digest(base_model, as_examples([(e.input, e.output) for e in body.ttt.examples]))
    if isinstance(body, CompletionRequest):
        text = body.text
    else:
        try:
            turns = read_turns([{"role": turn.role, "content": turn.text} for turn in body.messages])
        except InputError:
            # The replica says what is wrong.
            return None
        examples = examples_in_turns(turns)
        if len(examples) > 1:
            return _digest(base_model, examples)
        text = turns[-1]["content"]
    if len(text) > _MOST_CHARACTERS:
        return hashlib.sha256(repr((base_model, text[:_BEGINNING])).encode()).hexdigest()
    found = patterns.detect(text)
    return _digest(base_model, found.examples) if found is not None and found.examples else None


def _digest(base_model: str, examples: Sequence[Example]) -> str:
    pairs = [(example.input, example.output) for example in examples]
    return hashlib.sha256(repr((base_model, pairs)).encode("utf-8", "replace")).hexdigest()


def _key_of_name(record: AdapterRecord) -> str:
    return hashlib.sha256(repr(record.place).encode()).hexdigest()


def _is_opening(event: bytes) -> bool:
    """Say whether an event is the first one of a conversation's stream, which has no text yet."""
    try:
        choices = json.loads(event.partition(b"data:")[2])["choices"]
        return bool(choices) and all(choice["delta"] == {"role": "assistant", "content": ""} for choice in choices)
    except (ValueError, KeyError, TypeError):
        return False


def _body(content: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def _lost() -> ApiError:
    return ApiError(503, f"{_LOST}; try again", "server_error", code="replica_lost", headers={"retry-after": "1"})

"""The HTTP routes: OpenAI's for asking, vLLM's for loading adapters, and those that say how the server is."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import anyio
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware

from acclimate import __version__
from acclimate.errors import AcclimateError, CancelledError
from acclimate.language import AskReport, as_examples
from acclimate.serve.access import Access, ApiError, Caller, api_error, require_scope
from acclimate.serve.admission import Admission, error_body
from acclimate.serve.experiments import ActiveExperiment, Assigner, Assignment
from acclimate.serve.keys import SCOPES, KeyFile, Scope
from acclimate.serve.library import NamedAdapter, NameTakenError
from acclimate.serve.schemas import (
    MEDIA_MODEL,
    AdapterInfo,
    AdapterRequest,
    ChatRequest,
    CompletionRequest,
    LoadRequest,
    TTTOptions,
    TTTReport,
    UnloadRequest,
    Usage,
)
from acclimate.serve.service import EVERYBODY, Catalogue, Prepared, Service
from acclimate.serve.settings import ServerSettings
from acclimate.serve.telemetry import Telemetry
from acclimate.serve.worker import Ticket

_LOG = logging.getLogger(__name__)
#: How often it is looked whether the client of an answer that is not streamed is still there.
_LOOK_S: Final = 0.2
#: Silence after which a stream carries a comment, so that nothing between here and the client gives it up.
_PING_S: Final = 10
#: Where the state of a request has who sent it, and id and time of its answer, if another process has looked already.
#: What a client sends never gets there.
CALLER: Final = "caller"
ANSWER: Final = "answer"
#: What the server waits in addition to ``drain_timeout_s``, so that those that were given up are told so.
DRAIN_MARGIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a server consists of, for what is served besides the API.

    Attributes:
        service: the models.
        telemetry: counts what is done; it has the metrics store.
        access: who may ask.
        experiment: that requests are assigned to.
    """

    service: Service
    telemetry: Telemetry
    access: Access
    experiment: ActiveExperiment


def create_app(
    service: Service,
    *,
    keys: KeyFile | None = None,
    telemetry: Telemetry | None = None,
    assigner: Assigner | None = None,
    extend: Callable[[FastAPI, Parts], None] | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        service: whose models are served; its workers are started and ended with the application.
        keys: of the API; None lets everybody do everything.
        telemetry: counts what is done; None counts for ``/metrics`` alone.
        assigner: of an experiment that runs.
        extend: adds what else the application serves, such as the web page.
    """
    settings = service.settings
    access = Access(keys, requests_per_minute=settings.requests_per_minute)
    telemetry = telemetry or Telemetry(service)

    def close() -> None:
        if not service.close():
            _LOG.warning("some requests were not finished in time")
        telemetry.close()

    experiment = ActiveExperiment(assigner)
    routes = _LocalRoutes(service, telemetry, access, experiment)
    parts = Parts(service, telemetry, access, experiment)
    return assemble(
        routes,
        settings=settings,
        on_refused=telemetry.refused,
        begin=service.start,
        end=close,
        extend=None if extend is None else lambda app: extend(app, parts),
    )


def assemble(
    routes: Routes,
    *,
    settings: ServerSettings,
    on_refused: Callable[[int], None],
    begin: Callable[[], None],
    end: Callable[[], None],
    extend: Callable[[FastAPI], None] | None = None,
) -> FastAPI:
    """Return an application with these routes, behind the checks that every request passes.

    Args:
        routes: who answers.
        settings: of the server.
        on_refused: called with the status of a request that gets an error.
        begin: called when the application starts.
        end: called when it has ended.
        extend: adds what else the application serves, behind the same checks.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        begin()
        yield
        await run_in_threadpool(end)

    app = FastAPI(
        title="acclimate",
        version=__version__,
        summary="A server that trains on the examples in a request.",
        lifespan=lifespan,
        # Their pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
    )
    routes.add_to(app)
    _add_errors(app, on_refused)
    if extend is not None:
        # Before the checks: what is added last is asked first.
        extend(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "x-acclimate-ttt", "retry-after"],
        )
    app.add_middleware(
        Admission,
        settings=settings,
        checks_host=routes.access.keys is None or bool(settings.allowed_hosts),
        on_refused=on_refused,
    )
    return app


def _add_errors(app: FastAPI, on_refused: Callable[[int], None]) -> None:
    """Let every error have OpenAI's shape."""

    def answer(error: ApiError) -> JSONResponse:
        on_refused(error.status)
        body = error_body(str(error), error.kind, code=error.code)
        return JSONResponse(body, error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or None
        message = f"{where or 'the request'}: {first['msg'].removeprefix('Value error, ')}"
        on_refused(400)
        return JSONResponse(error_body(message, "invalid_request_error", param=where), 400)

    @app.exception_handler(StarletteHTTPException)
    async def unknown(_request: Request, error: StarletteHTTPException) -> JSONResponse:
        return answer(ApiError(error.status_code, str(error.detail), "invalid_request_error"))

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> JSONResponse:
        return answer(api_error(error))

    for kind in (ApiError, AcclimateError, PermissionError):
        app.exception_handler(kind)(failed)


def _text_alone(model: str, serves_media: bool) -> str:
    remedy = f"ask the model {MEDIA_MODEL!r}" if serves_media else "the server answers about them with media = true"
    return f"the model {model[:100]!r} reads text, and the messages hold images or sounds; {remedy}"


class Routes(ABC):
    """The handlers of the API; who answers is left to subclasses.

    Args:
        catalogue: what can be asked.
        access: who may ask.
        serves_media: whether images and sounds are answered about.

    Attributes:
        access: who may ask.
    """

    def __init__(self, catalogue: Catalogue[Any], access: Access, *, serves_media: bool) -> None:
        self._catalogue, self.access, self._serves_media = catalogue, access, serves_media
        self._settings: ServerSettings = catalogue.settings
        self._started = int(time.time())

    @abstractmethod
    async def generate(
        self, shape: Shape, body: ChatRequest | CompletionRequest, request: Request, caller: Caller
    ) -> Response:
        """Answer a conversation or continue a prompt."""

    @abstractmethod
    async def answer_media(self, body: ChatRequest, request: Request, caller: Caller) -> Response:
        """Answer about an image or a sound."""

    @abstractmethod
    async def create_adapter(self, body: AdapterRequest, request: Request, caller: Caller) -> AdapterInfo:
        """Train an adapter on examples."""

    @abstractmethod
    async def load(self, body: LoadRequest, caller: Caller) -> PlainTextResponse:
        """Load an adapter from below the configured folder."""

    @abstractmethod
    async def health(self) -> Response:
        """Say whether requests can be answered."""

    @abstractmethod
    async def metrics(self) -> bytes:
        """Return Prometheus' text."""

    def info(self, named: NamedAdapter) -> AdapterInfo:
        """Return what is shown of an adapter."""
        return _info(named)

    async def remove(self, named: NamedAdapter) -> None:
        """Serve an adapter no longer."""
        self._catalogue.library.remove(named)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the application."""
        infer, train, admin = (Depends(self._caller(scope)) for scope in SCOPES)

        @app.post("/v1/chat/completions", tags=["ask"], response_model=None)
        async def chat_completions(body: ChatRequest, request: Request, caller: Caller = infer) -> Response:
            """Answer a conversation, adapted to the worked examples in it where that helps."""
            if body.model == MEDIA_MODEL and self._serves_media:
                return await self.answer_media(body, request, caller)
            if body.has_media:
                raise ApiError(400, _text_alone(body.model, self._serves_media), "invalid_request_error")
            return await self.generate(CHAT, body, request, caller)

        @app.post("/v1/completions", tags=["ask"], response_model=None)
        async def completions(body: CompletionRequest, request: Request, caller: Caller = infer) -> Response:
            """Continue a prompt, adapted to the worked examples in it where that helps."""
            return await self.generate(COMPLETION, body, request, caller)

        @app.get("/v1/models", tags=["models"])
        async def models(caller: Caller = infer) -> dict[str, Any]:
            """List base models, and adapters as models."""
            listed = [self._model(name) for name in self._catalogue.models]
            listed += [self._model(MEDIA_MODEL)] if self._serves_media else []
            adapters = self._catalogue.library.of(caller.id, sees_all=caller.may("admin"))
            listed += [self._model(named.model_id, parent=named.base_model) for named in adapters]
            return {"object": "list", "data": listed}

        @app.get("/v1/models/{model:path}", tags=["models"])
        async def one_model(model: str, caller: Caller = infer) -> dict[str, Any]:
            """Show one model."""
            _, named = self._catalogue.find(model, caller.id, sees_all=caller.may("admin"))
            return self._model(model, parent=named.base_model if named is not None else None)

        @app.post("/v1/adapters", tags=["adapters"], status_code=201)
        async def create_adapter(body: AdapterRequest, request: Request, caller: Caller = train) -> AdapterInfo:
            """Train an adapter on examples, to be asked as a model."""
            return await self.create_adapter(body, request, caller)

        @app.get("/v1/adapters", tags=["adapters"])
        async def adapters(caller: Caller = infer) -> dict[str, Any]:
            """List adapters."""
            found = self._catalogue.library.of(caller.id, sees_all=caller.may("admin"))
            return {"object": "list", "data": [self.info(named).model_dump() for named in found]}

        @app.get("/v1/adapters/{adapter:path}", tags=["adapters"])
        async def one_adapter(adapter: str, caller: Caller = infer) -> AdapterInfo:
            """Show one adapter, by its id ``base:name``."""
            return self.info(self._adapter(adapter, caller))

        @app.delete("/v1/adapters/{adapter:path}", tags=["adapters"])
        async def delete_adapter(adapter: str, caller: Caller = train) -> dict[str, Any]:
            """Delete an adapter; requests that use it now are finished with it."""
            await self.remove(self._adapter(adapter, caller))
            return {"id": adapter, "object": "adapter", "deleted": True}

        if self._settings.allow_lora_loading:

            @app.post("/v1/load_lora_adapter", tags=["adapters"], response_class=PlainTextResponse)
            async def load_adapter(body: LoadRequest, caller: Caller = admin) -> PlainTextResponse:
                """Load an adapter that peft wrote, from below the configured folder."""
                return await self.load(body, caller)

            @app.post("/v1/unload_lora_adapter", tags=["adapters"], response_class=PlainTextResponse)
            async def unload_adapter(body: UnloadRequest, caller: Caller = admin) -> PlainTextResponse:
                """Serve a loaded adapter no longer."""
                library = self._catalogue.library
                found = [n for n in library.of(EVERYBODY, sees_all=True) if n.name == body.lora_name]
                if not found:
                    raise ApiError(404, f"the adapter {body.lora_name!r} is not loaded", "NotFoundError")
                for named in found:
                    await self.remove(named)
                return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

        @app.get("/health", tags=["operation"])
        async def health() -> Response:
            """Say whether the workers run: 200, or 503."""
            return await self.health()

        @app.get("/readyz", tags=["operation"])
        async def ready() -> Response:
            """Say whether requests are taken: 200, or 503."""
            return await self.health()

        @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
        async def metrics(caller: Caller = infer) -> Response:
            """Show Prometheus metrics."""
            return Response(await self.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _caller(self, scope: Scope) -> Callable[[Request], Any]:
        async def find(request: Request) -> Caller:
            known: Caller | None = getattr(request.state, CALLER, None)
            if known is not None:
                require_scope(known, scope)
                return known
            kind, _, sent = request.headers.get("authorization", "").partition(" ")
            if self.access.keys is not None and (kind.lower() != "bearer" or not sent):
                raise ApiError(
                    401,
                    "send an API key as 'Authorization: Bearer <key>'",
                    "authentication_error",
                    code="missing_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
            caller = await self.access.by_secret(sent)
            self.access.count(caller)
            require_scope(caller, scope)
            return caller

        return find

    def _adapter(self, model_id: str, caller: Caller) -> NamedAdapter:
        _, named = self._catalogue.find(model_id, caller.id, sees_all=caller.may("admin"))
        if named is None:
            raise ApiError(404, f"{model_id!r} is a base model, not an adapter", "invalid_request_error")
        return named

    def _model(self, name: str, *, parent: str | None = None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "acclimate",
            "root": parent or name,
            "parent": parent,
        }


class _LocalRoutes(Routes):
    """Answers with the models of this process; it holds no state of requests."""

    def __init__(self, service: Service, telemetry: Telemetry, access: Access, experiment: ActiveExperiment) -> None:
        super().__init__(service, access, serves_media=service.media is not None)
        self._service, self._telemetry, self._experiment = service, telemetry, experiment

    async def health(self) -> Response:
        """Say whether the workers run."""
        return Response(status_code=200 if self._service.is_alive else 503)

    async def metrics(self) -> bytes:
        """Return Prometheus' text."""
        return self._telemetry.page()

    async def answer_media(self, body: ChatRequest, request: Request, caller: Caller) -> Response:
        """Answer about an image or a sound."""
        media = self._service.media
        assert media is not None  # noqa: S101 - for the type checker: the route has looked
        if body.stream or (body.n or 1) > 1:
            raise ApiError(400, "the answer is one label; leave out stream and n", "invalid_request_error")
        report = await run_in_threadpool(media.answer, body)
        self._telemetry.answered_media(report, request_id=request.state.request_id, actor=caller.id)
        return JSONResponse(media.completion(report, request.state.request_id))

    async def generate(
        self, shape: Shape, body: ChatRequest | CompletionRequest, request: Request, caller: Caller
    ) -> Response:
        """Answer a conversation or continue a prompt."""
        request_id = request.state.request_id
        assignment = None
        if caller.may("train"):
            assignment = self._experiment.assigned(body.ttt, user=body.user or caller.id, request_id=request_id)
        prepared = await run_in_threadpool(
            self._service.prepare,
            body,
            caller.id,
            sees_all=caller.may("admin"),
            may_train=caller.may("train"),
            assigned=assignment.options if assignment is not None else None,
        )
        answer = _Answer(self._service, self._telemetry, shape, body, prepared, caller, request_id, assignment)
        answer.identify(getattr(request.state, ANSWER, None))
        if body.stream:
            return await answer.stream()
        return await answer.whole(request)

    async def create_adapter(self, body: AdapterRequest, request: Request, caller: Caller) -> AdapterInfo:
        """Train an adapter on examples."""
        base = body.model or next(iter(self._service.models))
        served, named = self._service.find(base, caller.id)
        if named is not None:
            raise ApiError(400, f"{base!r} is an adapter; give a base model", "invalid_request_error")
        library = self._service.library
        await or_conflict(lambda: library.reserve(served.name, body.name, caller.id))
        try:
            examples = as_examples([(e.input, e.output) for e in body.examples])
            options = TTTOptions(rank=body.rank, steps=body.steps)
            ticket = self._service.prime(served, examples, caller.id, options)
            try:
                (adapter,) = await results_of([ticket], request)
            finally:
                ticket.give_up()
        except BaseException:
            library.release(served.name, body.name, caller.id)
            raise
        named = NamedAdapter(
            name=body.name, base_model=served.name, adapter=adapter, owner=caller.id, examples=examples
        )
        library.put(named)
        return _info(named)

    async def load(self, body: LoadRequest, caller: Caller) -> PlainTextResponse:
        """Load an adapter from below the configured folder."""
        base = body.base_model_name or next(iter(self._service.models))
        served, _ = self._service.find(base, caller.id)
        library = self._service.library
        await or_conflict(
            lambda: library.reserve(served.name, body.lora_name, caller.id, replace=body.load_inplace), status=400
        )
        try:
            adapter = await run_in_threadpool(self._service.load, served, body.lora_path)
        except BaseException:
            library.release(served.name, body.lora_name, caller.id)
            raise
        library.put(
            NamedAdapter(name=body.lora_name, base_model=served.name, adapter=adapter, owner=caller.id, source="folder")
        )
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def or_conflict(reserve: Callable[[], None], *, status: int = 409) -> None:
    """Reserve a name, or tell the client that it is taken.

    Raises:
        ApiError: it is taken.
    """
    try:
        reserve()
    except NameTakenError as error:
        raise ApiError(status, str(error), "invalid_request_error", code="name_taken") from error


async def results_of(tickets: Sequence[Ticket[Any]], request: Request) -> list[Any]:
    """Return the results of tickets, or raise the first error; who calls gives up the tickets.

    Raises:
        CancelledError: the client left.
    """
    futures = [asyncio.wrap_future(ticket.result) for ticket in tickets]
    waiting = set(futures)
    while waiting:
        done, waiting = await asyncio.wait(waiting, timeout=_LOOK_S, return_when=asyncio.FIRST_EXCEPTION)
        for future in done:
            future.result()
        if waiting and await request.is_disconnected():
            for future in waiting:
                # Nobody asks how they end, and asyncio would log that.
                future.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
            raise CancelledError("the client closed the connection")
    return [future.result() for future in futures]


def _info(named: NamedAdapter) -> AdapterInfo:
    return AdapterInfo(
        id=named.model_id,
        name=named.name,
        base_model=named.base_model,
        created=named.created,
        examples=len(named.examples),
        rank=named.adapter.rank,
        bytes=named.adapter.held_bytes,
        source=named.source,
    )


class _Chat:
    """The shape of conversations."""

    operation = "chat"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl-"

    @staticmethod
    def prompt(body: Any) -> str:
        return "\n".join(message.text for message in body.messages)

    @staticmethod
    def choice(index: int, report: AskReport, decode: Callable[[int], str]) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": report.answer},
            "finish_reason": _finish(report),
            "logprobs": _chat_tokens(report, decode),
        }

    @staticmethod
    def opening(index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}

    @staticmethod
    def piece(index: int, text: str) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text}, "finish_reason": None, "logprobs": None}

    @staticmethod
    def closing(index: int, report: AskReport, decode: Callable[[int], str]) -> dict[str, Any]:
        logprobs = _chat_tokens(report, decode)
        return {"index": index, "delta": {}, "finish_reason": _finish(report), "logprobs": logprobs}


class _Completion:
    """The shape of completions."""

    operation = "text_completion"
    whole_object = chunk_object = "text_completion"
    prefix = "cmpl-"

    @staticmethod
    def prompt(body: Any) -> str:
        return str(body.text)

    @staticmethod
    def choice(index: int, report: AskReport, decode: Callable[[int], str]) -> dict[str, Any]:
        return {
            "index": index,
            "text": report.answer,
            "finish_reason": _finish(report),
            "logprobs": _completion_tokens(report, decode),
        }

    @staticmethod
    def opening(index: int) -> dict[str, Any] | None:
        return None

    @staticmethod
    def piece(index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": None, "logprobs": None}

    @staticmethod
    def closing(index: int, report: AskReport, decode: Callable[[int], str]) -> dict[str, Any]:
        logprobs = _completion_tokens(report, decode)
        return {"index": index, "text": "", "finish_reason": _finish(report), "logprobs": logprobs}


Shape = _Chat | _Completion
CHAT: Final = _Chat()
COMPLETION: Final = _Completion()


class _Answer:
    """One request on its way to its answer."""

    def __init__(
        self,
        service: Service,
        telemetry: Telemetry,
        shape: Shape,
        body: ChatRequest | CompletionRequest,
        prepared: Prepared,
        caller: Caller,
        request_id: str,
        assignment: Assignment | None,
    ) -> None:
        self._assignment = assignment
        self._service, self._telemetry, self._shape, self._body = service, telemetry, shape, body
        self._prepared, self._caller, self._request_id = prepared, caller, request_id
        self._id, self._created = f"{shape.prefix}{uuid4().hex}", int(time.time())
        self._began = time.perf_counter()
        self._decode = prepared.served.model.encoder.token_text

    def identify(self, known: tuple[str, int] | None) -> None:
        """Take the id and the time of an answer that another process has begun; None keeps those made here."""
        if known is not None:
            self._id, self._created = known

    async def whole(self, request: Request) -> JSONResponse:
        """Return the answer when it is complete."""
        tickets: list[Ticket[AskReport]] = []
        try:
            tickets.append(self._service.submit(self._prepared, self._caller.id))
            reports = await results_of(tickets, request)
            if self._prepared.choices > 1:
                # The first choice trained what the others need.
                for number in range(1, self._prepared.choices):
                    tickets.append(self._service.submit(self._prepared, self._caller.id, choice=number))
                reports += await results_of(tickets[1:], request)
        except Exception as error:
            self._failed(error)
            raise
        finally:
            for ticket in tickets:
                ticket.give_up()
        for number, (ticket, report) in enumerate(zip(tickets, reports, strict=True)):
            self._answered(ticket, report, number)
        choices = [self._shape.choice(number, report, self._decode) for number, report in enumerate(reports)]
        body = self._envelope(self._shape.whole_object, choices)
        body |= {"usage": _usage(reports).model_dump(), "ttt": _ttt(reports[0], self._assignment).model_dump()}
        return JSONResponse(body, headers={"x-acclimate-ttt": reports[0].status})

    async def stream(self) -> Response:
        """Return the answer piece by piece."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, int, Any]] = asyncio.Queue()

        def tell(kind: str, choice: int, value: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (kind, choice, value))

        def submit(choice: int) -> Ticket[AskReport]:
            ticket = self._service.submit(
                self._prepared,
                self._caller.id,
                choice=choice,
                on_text=lambda text: tell("text", choice, text),
                on_step=lambda made, most, loss: tell("step", choice, (made, most, loss)),
            )
            ticket.result.add_done_callback(lambda _future: tell("end", choice, ticket))
            return ticket

        # Refused before the stream begins, so that the refusal has a status of its own.
        try:
            tickets = [submit(0)]
        except Exception as error:
            self._failed(error)
            raise
        return EventSourceResponse(
            self._events(events, tickets, submit),
            ping=_PING_S,
            sep="\n",
            # Streams are finished like other answers when the server ends; the worker ends those that take too long.
            shutdown_event=anyio.Event(),
            shutdown_grace_period=self._service.settings.drain_timeout_s + DRAIN_MARGIN_S / 2,
            headers={"x-acclimate-ttt": "in the last chunk", "x-accel-buffering": "no"},
        )

    async def _events(
        self,
        events: asyncio.Queue[tuple[str, int, Any]],
        tickets: list[Ticket[AskReport]],
        submit: Callable[[int], Ticket[AskReport]],
    ) -> AsyncIterator[ServerSentEvent]:
        shape, reports = self._shape, dict[int, AskReport]()
        sent = dict.fromkeys(range(self._prepared.choices), "")
        try:
            for choice in sent:
                if (opening := shape.opening(choice)) is not None:
                    yield self._chunk([opening])
            while len(reports) < self._prepared.choices:
                kind, choice, value = await events.get()
                if kind == "text":
                    sent[choice] += value
                    yield self._chunk([shape.piece(choice, value)])
                elif kind == "step":
                    made, most, loss = value
                    yield ServerSentEvent(comment=f"training step {made} of at most {most}, loss {loss:.4f} nats")
                else:
                    report = value.result.result()
                    rest = report.answer[len(sent[choice]) :] if report.answer.startswith(sent[choice]) else ""
                    if rest:
                        yield self._chunk([shape.piece(choice, rest)])
                    reports[choice] = report
                    self._answered(value, report, choice)
                    closing = shape.closing(choice, report, self._decode)
                    yield self._chunk([closing], ttt=_ttt(report, self._assignment).model_dump())
                    if choice == 0:
                        # The first choice trained what the others need.
                        for number in range(1, self._prepared.choices):
                            tickets.append(submit(number))
            if self._with_usage:
                yield self._chunk([], usage=_usage(list(reports.values())).model_dump())
        except Exception as error:  # noqa: BLE001 - the stream has begun: its end says what went wrong
            self._failed(error)
            told = api_error(error)
            self._telemetry.refused(told.status)
            yield ServerSentEvent(data=json.dumps(error_body(str(told), told.kind, code=told.code)))
        finally:
            for ticket in tickets:
                ticket.give_up()
        yield ServerSentEvent(data="[DONE]")

    @property
    def _with_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and options.include_usage

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> ServerSentEvent:
        body = self._envelope(self._shape.chunk_object, choices)
        if self._with_usage:
            body["usage"] = None
        return ServerSentEvent(data=json.dumps(body | more))

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._body.model,
            "system_fingerprint": self._prepared.served.model.fingerprint[:16],
            "choices": choices,
        }

    def _answered(self, ticket: Ticket[AskReport], report: AskReport, choice: int) -> None:
        self._telemetry.answered(
            self._shape.operation,
            self._body.model,
            ticket,
            report,
            request_id=self._request_id if choice == 0 else f"{self._request_id}-{choice}",
            actor=self._caller.id,
            prompt=self._shape.prompt(self._body),
            # Further choices are no requests of their own.
            assignment=self._assignment if choice == 0 else None,
        )

    def _failed(self, error: Exception) -> None:
        _LOG.info("request %s failed: %s", self._request_id, type(error).__name__)
        self._telemetry.failed(self._shape.operation, self._body.model, error, time.perf_counter() - self._began)


def _finish(report: AskReport) -> str:
    return "stop" if report.complete else "length"


def _usage(reports: Sequence[AskReport]) -> Usage:
    answers = sum(report.answer_tokens for report in reports)
    prompt = reports[0].prompt_tokens if reports else 0
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=answers,
        total_tokens=prompt + answers,
        trained_tokens=sum(report.trained_tokens for report in reports),
    )


def _ttt(report: AskReport, assignment: Assignment | None) -> TTTReport:
    return TTTReport(
        used=report.status == "adapted",
        status=report.status,
        reason=report.reason,
        pattern=report.pattern,
        examples=report.metadata.examples_used,
        steps=report.metadata.training_steps,
        confidence=report.metadata.confidence_score,
        base_confidence=report.icl_confidence,
        held_out_before=report.held_out_before,
        held_out_after=report.held_out_after,
        cached=report.cached,
        seconds={name: round(value, 6) for name, value in report.seconds.items()},
        adapter_id=report.adapter_key,
        experiment=assignment.experiment if assignment is not None else None,
        arm=assignment.arm if assignment is not None else None,
        warnings=list(report.warnings),
    )


def _chat_tokens(report: AskReport, decode: Callable[[int], str]) -> dict[str, Any] | None:
    """Return what OpenAI's conversations say about tokens, or None where nothing was asked."""
    if not report.chosen_tokens:
        return None

    def item(token: int, value: float) -> dict[str, Any]:
        text = decode(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    return {
        "content": [
            item(chosen.token, chosen.log_probability)
            | {"top_logprobs": [item(token, value) for token, value in chosen.alternatives]}
            for chosen in report.chosen_tokens
        ],
        "refusal": None,
    }


def _completion_tokens(report: AskReport, decode: Callable[[int], str]) -> dict[str, Any] | None:
    """Return what OpenAI's completions say about tokens, or None where nothing was asked."""
    if not report.chosen_tokens:
        return None
    tokens = [decode(chosen.token) for chosen in report.chosen_tokens]
    offsets = [0]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": [chosen.log_probability for chosen in report.chosen_tokens],
        "top_logprobs": [
            {decode(token): value for token, value in chosen.alternatives} for chosen in report.chosen_tokens
        ],
        "text_offset": offsets,
    }

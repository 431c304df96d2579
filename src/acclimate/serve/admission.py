"""What every HTTP request passes before it is read: its size, nesting, host, and the headers of every answer."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import uuid4

from acclimate.serve.settings import ServerSettings

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
# The end of a text is optional: a text without one would otherwise be tried again from each quote in it.
_TEXT: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
#: Where the page takes files: the only requests that are not JSON.
UPLOADS: Final = "/_nicegui/client/"
#: A client that sends its request more slowly than this has its connection closed.
_BODY_TIMEOUT_S: Final = 30.0
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Admission:
    """ASGI middleware: refuses what is too large, too deep, too slow or meant for another host.

    Args:
        app: behind it.
        settings: of the server.
        checks_host: whether the name in the Host header must be known: a web page can have its own name point to this
            machine, and would be asked for answers by the browsers of its visitors.
        on_refused: called with the status of a request that is refused here.
    """

    def __init__(
        self, app: App, *, settings: ServerSettings, checks_host: bool, on_refused: Callable[[int], None]
    ) -> None:
        self._app, self._settings, self._on_refused = app, settings, on_refused
        self._hosts = {"localhost", *(host.lower() for host in settings.allowed_hosts)} if checks_host else None
        self._max_body = int(settings.max_body_mib * 2**20)
        self._max_upload = int(settings.max_upload_mib * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["type"] == "websocket":
            await self._connect(scope, headers, receive, send)
            return
        sent = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = sent if _REQUEST_ID.match(sent) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                added = [(name, value) for name, value in _HEADERS if name not in present]
                message["headers"] = [*message["headers"], *added, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check_host(headers)
            body = await self._body(scope, headers, receive)
        except _RefusedError as refused:
            self._on_refused(refused.status)
            await _send_error(answer, refused.status, str(refused))
            return
        except _Gone:
            return
        await self._app(scope, _replayed(body, receive), answer)

    async def _connect(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        try:
            self._check_host(headers)
        except _RefusedError as refused:
            self._on_refused(refused.status)
            await receive()
            # Before it is accepted: the client gets status 403.
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if self._hosts is None or "*" in self._hosts:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        # A name can be made to point here, an address cannot.
        if name in self._hosts or _is_address(name):
            return
        raise _RefusedError(421, f"this server is not called {name[:100]!r}; add the name to allowed_hosts")

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Return the body of a request.

        Raises:
            _RefusedError: it is too large, too slow, or nested too deeply.
        """
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return b""
        is_upload = scope["path"].startswith(UPLOADS)
        most = self._max_upload if is_upload else self._max_body
        too_large = f"the request is larger than {most / 2**20:g} MiB"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise _RefusedError(413, too_large)
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), _BODY_TIMEOUT_S)
            except TimeoutError:
                raise _RefusedError(408, f"the request was not sent within {_BODY_TIMEOUT_S:g} s") from None
            if message["type"] == "http.disconnect":
                raise _Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise _RefusedError(413, too_large)
            if not message.get("more_body", False):
                break
        body = b"".join(parts)
        # Images are no JSON; in their bytes brackets mean nothing.
        if not is_upload and depth_of(body) > self._settings.max_json_depth:
            raise _RefusedError(400, f"the JSON is nested deeper than {self._settings.max_json_depth} levels")
        return body


class _Gone(Exception):  # noqa: N818 - no error: the client left
    """The client closed the connection."""


def depth_of(body: bytes) -> int:
    """Return how deeply JSON is nested, without reading it as JSON; brackets in texts do not count."""
    deepest = depth = 0
    for bracket in _BRACKET.findall(_TEXT.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a receiver that gives the body, and then the end of the connection.

    The body of a request that should have none is still to come; it is dropped.
    """
    given = False

    async def replay() -> dict[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        while (message := await receive())["type"] == "http.request":
            pass
        return message

    return replay


async def _send_error(send: Send, status: int, message: str) -> None:
    body = json.dumps(error_body(message, "invalid_request_error")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""What every request for the page passes: who asks, from which site, and the content policy of the answer."""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acclimate.serve.access import ApiError
from acclimate.serve.admission import error_body
from acclimate.ui.sessions import COOKIE, Sessions

#: NiceGUI's own paths: files, uploads, and the connection that carries what changes.
LIBRARY: Final = "/_nicegui"
CONNECTION: Final = "/_nicegui_ws"
#: Of NiceGUI's paths these are the same for everybody; all others belong to one visitor.
_OF_ONE_VISITOR: Final = (CONNECTION, f"{LIBRARY}/client")
_MARK: Final = b"x-nicegui-content"


def content_policy(nonce: str) -> str:
    """Return the content security policy of a page.

    Scripts need the nonce of their answer. NiceGUI evaluates handlers in the browser and sets styles from scripts,
    which is why ``unsafe-eval`` and inline styles are allowed.
    """
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )


class Gatekeeper:
    """ASGI middleware: hands the page's requests to NiceGUI, and all others on.

    Args:
        app: behind it: the API.
        page: NiceGUI's application.
        sessions: who has signed in.
        paths: of the pages; everything below them too, except below ``/``.
    """

    def __init__(self, app: ASGIApp, *, page: ASGIApp, sessions: Sessions, paths: tuple[str, ...]) -> None:
        self._app, self._page, self._sessions, self._paths = app, page, sessions, paths
        self._files = GZipMiddleware(page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        path = scope.get("path", "")
        if scope["type"] not in ("http", "websocket") or not self._is_page(path):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._connect(scope, receive, send)
        elif any(path == of_one or path.startswith(f"{of_one}/") for of_one in _OF_ONE_VISITOR):
            refused = await self._refused(scope)
            await (self._page if refused is None else refused)(scope, receive, send)
        elif path.startswith(f"{LIBRARY}/"):
            await self._files(scope, receive, send)
        else:
            await self._show(scope, receive, send)

    def _is_page(self, path: str) -> bool:
        if path in self._paths or path.startswith((f"{LIBRARY}/", f"{CONNECTION}/")):
            return True
        return any(path.startswith(f"{known}/") for known in self._paths if known != "/")

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await self._refused(scope) is None:
            await self._page(scope, receive, send)
            return
        await receive()
        # Before it is accepted: the client gets status 403.
        await send({"type": "websocket.close", "code": 1008})

    async def _refused(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is sent by another site or by nobody who has signed in, or None."""
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit(origin).netloc != headers.get(b"host", b"").decode("latin-1"):
            return _error(403, "this page takes requests of its own site alone", "permission_error")
        try:
            caller = await self._sessions.caller(cookie_of(scope, COOKIE))
        except ApiError as error:
            return _error(error.status, str(error), error.kind)
        return None if caller is not None else _error(401, "sign in first", "authentication_error")

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            caller = await self._sessions.caller(cookie_of(scope, COOKIE))
        except ApiError as error:
            await _error(error.status, str(error), error.kind)(scope, receive, send)
            return
        if caller is None:
            await RedirectResponse("/login", 303)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._page(scope, receive, _with_policy(send))


def cookie_of(scope: Scope, name: str) -> str | None:
    """Return the value of a cookie of a request, or None."""
    for key, value in scope["headers"]:
        if key == b"cookie":
            try:
                found = SimpleCookie(value.decode("latin-1")).get(name)
            except CookieError:
                return None
            return None if found is None else found.value
    return None


def _error(status: int, message: str, kind: str) -> Response:
    return JSONResponse(error_body(message, kind), status)


def _with_policy(send: Send) -> Send:
    """Return a sender that gives every script of a page the nonce of its content policy.

    Text of visitors is in the page only as JSON in which ``<`` is escaped: no script can come from there.
    """
    started: dict[str, Any] = {}
    parts: list[bytes] = []
    nonce = secrets.token_urlsafe(16)

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
            return
        if message["type"] != "http.response.body":
            await send(message)
            return
        parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = b"".join(parts)
        headers = [(name, value) for name, value in started["headers"] if name.lower() != b"content-length"]
        if any(name.lower() == _MARK for name, _ in headers):
            body = body.replace(b"<script", b'<script nonce="' + nonce.encode() + b'"')
            headers.append((b"content-security-policy", content_policy(nonce).encode()))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({**started, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer

"""Adds the page to the server: its paths, its sign-in, and NiceGUI behind both."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

import jinja2
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from nicegui import core, ui

from acclimate.errors import ConfigError
from acclimate.extras import is_installed
from acclimate.serve.access import ApiError, Caller
from acclimate.serve.app import Parts
from acclimate.ui import image_view, operate_view, request_view, text_view, watch_view
from acclimate.ui.frame import STATIC, TITLE, framed, heading, paragraph
from acclimate.ui.gatekeeper import Gatekeeper, cookie_of
from acclimate.ui.image_runs import Runner
from acclimate.ui.image_sets import ImageSets, models_of
from acclimate.ui.sessions import COOKIE, Sessions
from acclimate.ui.visit import Visit

_HERE: Final = Path(__file__).parent
#: Seconds without a connection after which what a visitor had open is dropped.
_RECONNECT_S: Final = 10.0
#: Pairs the form that was shown with the form that comes back.
_FORM_COOKIE: Final = "acclimate_form"
_SIGN_IN_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def add_page(app: FastAPI, parts: Parts) -> None:
    """Add the page to the server's application.

    Raises:
        ConfigError: this process serves a page already.
    """
    if core.app.config.has_run_config:
        raise ConfigError("this process serves a page already; serve another one from a process of its own")
    sessions = Sessions(parts.access)
    settings = parts.service.settings
    lab = image_view.Lab(ImageSets(), models_of(settings.image_models), Runner())
    core.app.on_shutdown(lab.sets.close)
    files_lab = None
    if is_installed("media"):
        from acclimate.ui import files_view

        files_lab = files_view.files_lab(settings.max_upload_mib, settings.device)
    _add_sign_in(app, sessions)
    _add_files(app)

    def visit(request: Request) -> Visit:
        caller: Caller = request.state.caller
        return Visit(parts=parts, sessions=sessions, caller=caller, token=request.cookies.get(COOKIE), request=request)

    @ui.page("/", title=f"Language - {TITLE}")
    async def language(request: Request) -> None:
        await text_view.show(visit(request))

    @ui.page("/images", title=f"Images - {TITLE}")
    async def images(request: Request) -> None:
        await image_view.show(visit(request), lab)

    @ui.page("/files", title=f"Files - {TITLE}")
    async def files(request: Request) -> None:
        if files_lab is None:
            with framed(visit(request), "/files"):
                heading("Files", 1)
                paragraph("This needs acclimate[media], which is not installed on this server.", "problem")
            return
        await files_view.show(visit(request), files_lab)

    @ui.page("/watch", title=f"Watch - {TITLE}")
    async def watch(request: Request) -> None:
        await watch_view.show(visit(request))

    @ui.page("/watch/requests/{request_id}", title=f"Request - {TITLE}")
    async def one_request(request: Request, request_id: str) -> None:
        await request_view.show(visit(request), request_id)

    @ui.page("/operate", title=f"Operate - {TITLE}")
    async def operate(request: Request) -> None:
        await operate_view.show(visit(request))

    # Without a polling transport every message comes by the connection that the gatekeeper has checked.
    core.app.config.socket_io_js_transports = ["websocket"]
    ui.run_with(
        app,
        title=TITLE,
        favicon=_HERE / "static" / "icon.svg",
        dark=None,
        language="en-US",
        tailwind=False,
        gzip_middleware_factory=None,
        binding_refresh_interval=None,
        reconnect_timeout=_RECONNECT_S,
        show_welcome_message=False,
    )
    # NiceGUI is mounted last, where it would answer for every path that the API does not know.
    mounted = app.router.routes.pop()
    if getattr(mounted, "app", None) is not core.app:
        raise ConfigError("this version of NiceGUI does not mount its application last; install one that is supported")
    app.add_middleware(
        Gatekeeper,
        page=core.app,
        sessions=sessions,
        paths=("/", "/images", "/files", "/watch", "/operate", "/favicon.ico"),
    )


def _add_files(app: FastAPI) -> None:
    types = {"page.css": "text/css", "icon.svg": "image/svg+xml"}

    @app.get(f"{STATIC}/{{name}}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in types:
            raise ApiError(404, f"there is no file {name[:100]!r}", "invalid_request_error")
        content = (_HERE / "static" / name).read_bytes()
        return Response(content, media_type=types[name], headers={"cache-control": "public, max-age=300"})


def _add_sign_in(app: FastAPI, sessions: Sessions) -> None:
    template = jinja2.Environment(autoescape=True).from_string((_HERE / "static" / "login.html").read_text("utf-8"))

    def form(message: str = "", status: int = 200) -> Response:
        token = secrets.token_urlsafe(32)
        page = HTMLResponse(
            template.render(token=token, message=message, static=STATIC),
            status,
            headers={"content-security-policy": _SIGN_IN_POLICY},
        )
        page.set_cookie(_FORM_COOKIE, token, httponly=True, samesite="strict", max_age=3600)
        return page

    @app.get("/login", include_in_schema=False)
    async def shown(request: Request) -> Response:
        if await sessions.caller(request.cookies.get(COOKIE)) is not None:
            return RedirectResponse("/", 303)
        return form()

    @app.post("/login", include_in_schema=False)
    async def signed_in(request: Request) -> Response:
        fields = await _fields(request)
        if not _same(fields.get("token"), cookie_of(request.scope, _FORM_COOKIE)):
            return form("This form was open for too long, or did not come from this page. Try again.", 403)
        try:
            session = await sessions.sign_in(fields.get("key", ""))
        except ApiError as error:
            return form(f"{str(error).capitalize()}.", error.status)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, session.token, httponly=True, samesite="strict", secure=secure)
        answer.delete_cookie(_FORM_COOKIE)
        return answer

    @app.post("/logout", include_in_schema=False)
    async def signed_out(request: Request) -> Response:
        session = sessions.find(request.cookies.get(COOKIE) or "")
        fields = await _fields(request)
        if session is not None and _same(fields.get("token"), session.form_token):
            sessions.sign_out(session.token)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer


async def _fields(request: Request) -> dict[str, str]:
    body = (await request.body()).decode("utf-8", "replace")
    return {name: values[0] for name, values in parse_qs(body, max_num_fields=8).items()}


def _same(one: str | None, other: str | None) -> bool:
    return bool(one and other) and secrets.compare_digest(str(one).encode(), str(other).encode())

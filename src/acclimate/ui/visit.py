"""One visitor's open page: who looks at it, and what belongs to nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from nicegui import Client, ui

from acclimate.serve.access import ApiError, Caller, api_error, require_scope
from acclimate.serve.app import Parts
from acclimate.serve.keys import Scope
from acclimate.ui.sessions import Sessions


@dataclass(slots=True)
class Visit:
    """One visitor's open page.

    Attributes:
        parts: of the server.
        sessions: who has signed in.
        caller: who looked when the page was opened.
        token: of the session; None where nobody signs in.
        request: that opened the page.
        client: NiceGUI's side of the page.
    """

    parts: Parts
    sessions: Sessions
    caller: Caller
    token: str | None
    request: Request
    client: Client = field(default_factory=lambda: ui.context.client)

    async def allowed(self, scope: Scope) -> Caller:
        """Return who does something now, which counts as a request: keys can be revoked while a page is open.

        Raises:
            ApiError: the session has ended, or the key may not do this.
        """
        caller = await self.sessions.allowed(self.token)
        require_scope(caller, scope)
        return caller

    async def is_open(self) -> bool:
        """Return whether the session of this page goes on, without counting this as its use."""
        try:
            return await self.sessions.caller(self.token, uses=False) is not None
        except ApiError:
            return False

    def parameter(self, name: str, default: str = "") -> str:
        """Return a parameter of the page's address."""
        return self.request.query_params.get(name, default)

    def on_leave(self, act: Callable[[], None]) -> None:
        """Call ``act`` when the page is closed for good."""
        self.client.on_delete(act)


def told(error: Exception) -> str:
    """Return what a visitor is told of an error; what went wrong inside is logged and not shown."""
    known: ApiError = api_error(error)
    text = str(known)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")

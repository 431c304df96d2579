"""Who looks at the page: sessions that begin with an API key and end with it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from acclimate.serve.access import Access, ApiError, Caller

#: The session's cookie. It is not readable by scripts and is sent to this site alone.
COOKIE: Final = "acclimate_session"
#: A session that is not used for this long ends.
IDLE_S: Final = 12 * 3600.0
#: Most sessions that are kept; the one that was unused the longest ends for a new one.
MOST_SESSIONS: Final = 10_000


@dataclass(slots=True)
class Session:
    """One browser that has signed in.

    Attributes:
        token: in the cookie.
        key_id: of the API key; the key itself is kept nowhere.
        form_token: in every form, so that no other site can send one.
        used_at: on the clock of the sessions.
    """

    token: str
    key_id: str
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    used_at: float = 0.0


class Sessions:
    """The sessions of one server, in memory: a server that is started again asks everybody to sign in.

    Args:
        access: finds who an API key belongs to.
        clock: in seconds.
    """

    def __init__(self, access: Access, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._access, self._clock = access, clock
        self._sessions: dict[str, Session] = {}

    @property
    def needed(self) -> bool:
        """Whether people must sign in: whether the server has API keys."""
        return self._access.keys is not None

    async def sign_in(self, secret: str) -> Session:
        """Begin a session with an API key.

        Raises:
            ApiError: the key is not valid, or has been tried too often.
        """
        caller = await self._access.by_secret(secret)
        session = Session(secrets.token_urlsafe(32), caller.id, used_at=self._clock())
        self._sessions[session.token] = session
        while len(self._sessions) > MOST_SESSIONS:
            del self._sessions[min(self._sessions.values(), key=lambda known: known.used_at).token]
        return session

    def sign_out(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(token, None)

    def find(self, token: str, *, uses: bool = True) -> Session | None:
        """Return the session with this token, or None where it has ended; ``uses``: this counts as its use."""
        session = self._sessions.get(token)
        if session is None:
            return None
        if self._clock() - session.used_at > IDLE_S:
            self.sign_out(token)
            return None
        if uses:
            session.used_at = self._clock()
        return session

    async def caller(self, token: str | None, *, uses: bool = True) -> Caller | None:
        """Return who has this session; None where nobody is signed in, or the key was revoked since.

        Args:
            token: of the session.
            uses: whether this counts as use of the session.

        Raises:
            ApiError: the keys cannot be read.
        """
        if not self.needed:
            return await self._access.by_secret("")
        session = self.find(token, uses=uses) if token else None
        if session is None:
            return None
        caller = await self._access.by_id(session.key_id)
        if caller is None:
            self.sign_out(session.token)
        return caller

    async def allowed(self, token: str | None) -> Caller:
        """Return who has this session, and count a request.

        Raises:
            ApiError: the session has ended, or the key may make no more requests in this minute.
        """
        caller = await self.caller(token)
        if caller is None:
            raise ApiError(401, "your session has ended; sign in again", "authentication_error")
        self._access.count(caller)
        return caller

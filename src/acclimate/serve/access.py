"""Who asks, what they may do and how often: the same for requests of programs and of the web page."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.concurrency import run_in_threadpool

from acclimate.errors import CancelledError, ConfigError, InputError
from acclimate.serve.keys import SCOPES, ApiKey, KeyFile, Scope
from acclimate.serve.service import EVERYBODY, NoSuchModelError
from acclimate.serve.vllm import GenerationError
from acclimate.serve.worker import BusyError, DeadlineError, WorkerDiedError

_LOG = logging.getLogger(__name__)
#: Checks of secrets at a time: each takes tens of milliseconds on purpose.
_CHECKS_AT_A_TIME: Final = 2


class ApiError(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: of HTTP.
        kind: OpenAI's type of the error.
        code: OpenAI's code, where there is one.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, kind: str, *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.headers = status, kind, code, headers or {}


def api_error(error: Exception) -> ApiError:
    """Return the error that a client is told for ``error``; what went wrong inside is not shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NoSuchModelError):
        return ApiError(404, str(error), "invalid_request_error", code="model_not_found")
    if isinstance(error, PermissionError):
        return ApiError(403, str(error), "permission_error", code="insufficient_scope")
    if isinstance(error, BusyError):
        status = 503 if isinstance(error, WorkerDiedError) or "shutting down" in str(error) else 429
        kind = "server_error" if status == 503 else "rate_limit_error"
        return ApiError(status, str(error), kind, headers={"retry-after": str(round(max(1.0, error.retry_after_s)))})
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), "timeout_error", code="timeout")
    if isinstance(error, GenerationError):
        wait = {} if error.retry_after_s is None else {"retry-after": str(round(max(1.0, error.retry_after_s)))}
        kind = "timeout_error" if error.status == 504 else "server_error"
        return ApiError(error.status, str(error), kind, code="generation_failed", headers=wait)
    if isinstance(error, CancelledError):
        return ApiError(499, "the client closed the connection", "cancelled")
    if isinstance(error, InputError):
        return ApiError(400, str(error), "invalid_request_error")
    _LOG.error("a request failed", exc_info=error)
    return ApiError(500, "the request failed inside the server; its log says why", "server_error")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        id: of the API key; empty where none are used.
        scopes: what it may do.
        name: of the key, for people.
    """

    id: str
    scopes: tuple[Scope, ...]
    name: str = ""

    def may(self, scope: Scope) -> bool:
        """Return whether the caller may do ``scope``."""
        return scope in self.scopes or "admin" in self.scopes


class Access:
    """Finds who a secret belongs to, and counts what each caller asks for.

    Args:
        keys: of the API; None lets everybody do everything.
        requests_per_minute: of one key; 0 sets no limit.
    """

    def __init__(self, keys: KeyFile | None, *, requests_per_minute: int = 0) -> None:
        self.keys = keys
        self._per_minute = requests_per_minute
        self._times: dict[str, deque[float]] = {}
        self._checks = asyncio.Semaphore(_CHECKS_AT_A_TIME)

    async def by_secret(self, sent: str) -> Caller:
        """Return who sends this API key.

        Raises:
            ApiError: the key is not valid, or the keys cannot be read.
        """
        if self.keys is None:
            return Caller(EVERYBODY, SCOPES)
        async with self._checks:
            key = await self._read(lambda keys: keys.find(sent.strip()))
        if key is None:
            raise ApiError(401, "the API key is not valid", "authentication_error", code="invalid_api_key")
        return Caller(key.id, key.scopes, key.name)

    async def by_id(self, key_id: str) -> Caller | None:
        """Return who has the key with this id, which was checked before; None where it is valid no longer.

        Raises:
            ApiError: the keys cannot be read.
        """
        if self.keys is None:
            return Caller(EVERYBODY, SCOPES)
        key = await self._read(lambda keys: keys.by_id(key_id))
        return None if key is None or key.revoked is not None else Caller(key.id, key.scopes, key.name)

    def count(self, caller: Caller) -> None:
        """Count a request.

        Raises:
            ApiError: the key has made as many in the last minute as it may.
        """
        if not self._per_minute:
            return
        now = time.monotonic()
        times = self._times.setdefault(caller.id, deque())
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= self._per_minute:
            wait = str(round(max(1.0, times[0] + 60 - now)))
            raise ApiError(
                429,
                f"this API key may make {self._per_minute} requests a minute",
                "rate_limit_error",
                headers={"retry-after": wait},
            )
        times.append(now)

    async def _read(self, read: Callable[[KeyFile], ApiKey | None]) -> ApiKey | None:
        assert self.keys is not None  # noqa: S101 - for the type checker: callers have looked
        try:
            return await run_in_threadpool(read, self.keys)
        except ConfigError as error:
            _LOG.error("%s", error)
            message = "the server's API keys cannot be read; its log says why"
            raise ApiError(503, message, "server_error", headers={"retry-after": "10"}) from error


def require_scope(caller: Caller, scope: Scope) -> None:
    """Refuse a caller that may not do ``scope``.

    Raises:
        ApiError: it may not.
    """
    if not caller.may(scope):
        raise ApiError(403, f"this API key lacks the scope {scope}", "permission_error", code="insufficient_scope")

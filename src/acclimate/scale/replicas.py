"""Handing requests to the replicas of a server, each to the one that is likely to have its adapter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, Protocol

from acclimate.errors import AcclimateError, ConfigError, first_line
from acclimate.scale.replica import AdapterRecord, Call, Made, Refused, Replica, ReplicaReport
from acclimate.serve.settings import ServerSettings
from acclimate.serve.worker import BusyError, DeadlineError

_LOG = logging.getLogger(__name__)
APPLICATION: Final = "acclimate"
#: How long a replica may take to say how it is; one that takes longer is left out.
_REPORT_S: Final = 10.0
#: How often Ray Serve asks each replica whether it is well.
_HEALTH_S: Final = 1.0
#: Beyond what a request may take: the replica ends it first, and says why.
_MARGIN_S: Final = 10.0
_ROUTER: Final = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


class ReplicaLostError(AcclimateError):
    """The replica that worked on a request ended."""


class Replicas(Protocol):
    """Whoever answers requests for the front."""

    def answer(self, call: Call, key: str | None) -> AsyncGenerator[dict[str, Any]]:
        """Yield what :meth:`acclimate.scale.replica.Replica.answer` yields.

        Args:
            call: the request.
            key: requests with the same key go to the same replica; None for any.

        Raises:
            ReplicaLostError: the replica ended.
        """

    async def make(self, record: AdapterRecord, key: str) -> Made | Refused:
        """Return what :meth:`acclimate.scale.replica.Replica.make` returns.

        Raises:
            ReplicaLostError: the replica ended.
        """

    async def forget(self, record: AdapterRecord) -> None:
        """Tell all replicas that an adapter has its name no longer."""

    async def reports(self) -> Sequence[ReplicaReport]:
        """Return how the replicas are that live."""


class ServeReplicas:
    """Replicas of Ray Serve.

    Serve starts them, asks them whether they are well, and replaces those that ended. Its consistent hashing by session
    gives requests with one key to one replica, and to the next on the ring where that one is full or has ended.

    Args:
        handle: of the deployment.
        timeout_s: for the first message of an answer.
    """

    def __init__(self, handle: Any, *, timeout_s: float) -> None:
        self._handle, self._timeout_s = handle, timeout_s

    @classmethod
    def started(cls, settings: ServerSettings) -> ServeReplicas:
        """Start replicas on the cluster that this process is connected to, and wait until they answer.

        Args:
            settings: of the server.

        Raises:
            ConfigError: they do not start.
        """
        from ray import serve
        from ray.serve.config import RequestRouterConfig

        # What Serve does is no news for who runs the server.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config=_quiet())
        router = RequestRouterConfig(
            request_router_class=_ROUTER,
            request_router_kwargs={"num_fallback_replicas": max(1, settings.replicas - 1)},
        )
        options = {"num_cpus": settings.threads or 1, "num_gpus": int(settings.device.startswith("cuda"))}
        deployment = serve.deployment(
            name="replica",
            num_replicas=settings.replicas,
            # What one worker takes; beyond it the next replica is asked.
            max_ongoing_requests=settings.max_running + settings.max_waiting,
            max_queued_requests=max(1, settings.max_waiting),
            health_check_period_s=_HEALTH_S,
            # Loading weights and training hold the interpreter for a while.
            health_check_timeout_s=60.0,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=settings.drain_timeout_s + _MARGIN_S,
            ray_actor_options=options,
            request_router_config=router,
            logging_config=_quiet(),
        )(Replica)
        try:
            handle = serve.run(deployment.bind(settings), name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            raise ConfigError(f"the replicas did not start: {first_line(error)}") from error
        return cls(handle, timeout_s=settings.request_timeout_s + _MARGIN_S)

    def close(self) -> None:
        """End the replicas when they have finished what they work on."""
        from ray import serve

        serve.delete(APPLICATION)
        serve.shutdown()

    async def answer(self, call: Call, key: str | None) -> AsyncGenerator[dict[str, Any]]:
        """Yield which replica answers, and the messages of the answer; see :class:`Replicas`.

        Raises:
            ReplicaLostError: the replica ended.
            BusyError: every replica has as many requests as it may.
            DeadlineError: no replica began to answer in time.
        """
        handle = self._handle.options(stream=True, **({} if key is None else {"session_id": key}))
        response = handle.answer.remote(call)
        messages = aiter(response)
        ended = False
        try:
            while True:
                try:
                    async with asyncio.timeout(self._timeout_s):
                        message = await anext(messages)
                except StopAsyncIteration:
                    ended = True
                    return
                except Exception as error:
                    raise _told(error) from error
                yield message
        finally:
            if not ended:
                response.cancel()

    async def make(self, record: AdapterRecord, key: str) -> Made | Refused:
        """Let a replica make an adapter; see :class:`Replicas`.

        Raises:
            ReplicaLostError: the replica ended.
            BusyError: every replica has as many requests as it may.
            DeadlineError: it took too long.
        """
        response = self._handle.options(session_id=key).make.remote(record)
        try:
            async with asyncio.timeout(self._timeout_s):
                made: Made | Refused = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            response.cancel()
            raise _told(error) from error
        return made

    async def forget(self, record: AdapterRecord) -> None:
        """Tell all replicas that an adapter has its name no longer."""
        await self._all("forget", record)

    async def reports(self) -> Sequence[ReplicaReport]:
        """Return how the replicas are that live."""
        found = [one for one in await self._all("report") if isinstance(one, ReplicaReport)]
        return sorted(found, key=lambda report: report.number)

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        try:
            response = self._handle.broadcast(method, *arguments)
            results: list[Any] = await response.results_async(timeout_s=_REPORT_S, return_exceptions=True)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, replicas that do not answer are not there
            _LOG.warning("the replicas did not answer: %s", first_line(error))
            return []
        return results


def _told(error: Exception) -> Exception:
    """Return what an error of Ray means here."""
    import ray
    from ray.serve import exceptions

    if isinstance(error, ray.exceptions.RayActorError | exceptions.DeploymentUnavailableError):
        return ReplicaLostError(f"a replica ended while it worked on a request: {first_line(error)}")
    if isinstance(error, exceptions.BackPressureError):
        return BusyError("every replica has as many requests as it may; try again later", 5.0)
    if isinstance(error, TimeoutError):
        return DeadlineError("the request took longer than it may")
    return error


def _quiet() -> dict[str, Any]:
    return {"log_level": "ERROR", "enable_access_log": False}

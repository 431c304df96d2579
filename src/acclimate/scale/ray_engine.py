"""Shards on Ray actors: each shard is pinned to one, whose model and adaptation state nothing else uses.

Actors and not Ray Data: adaptation is a state that follows a stream in order, and Ray Data divides and reorders blocks
as it sees fit. An actor runs one shard at a time from its last commit to its end; when it is lost, another one goes on.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from acclimate.errors import ConfigError, InputError, SessionError, first_line
from acclimate.scale.cluster import cluster
from acclimate.scale.commits import Commit
from acclimate.scale.job import ShardedJob
from acclimate.scale.shard_run import ShardWorker
from acclimate.scale.shards import Shard

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardProgress:
    """How far a shard is.

    Attributes:
        shard: its name; ``images``: of it; 0 while those of an archive are not listed.
        adapted, predicted: images that were committed.
        attempt: how many workers have had it.
        worker: process id of the worker that has it; None before and after.
        error: why it ended without its last images; None otherwise.
        finished: whether it is done.
    """

    shard: str
    images: int
    adapted: int = 0
    predicted: int = 0
    attempt: int = 1
    worker: int | None = None
    error: str | None = None
    finished: bool = False


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of a shard: its last commit, or why there is none."""

    shard: Shard
    commit: Commit | None
    error: str | None
    attempts: int


OnProgress = Callable[[ShardProgress], None]


class Worker:
    """What an actor is: it loads the model when it is asked to, and runs shards."""

    def __init__(self, job: ShardedJob, categories: Mapping[int, str]) -> None:
        self._job, self._categories = job, dict(categories)
        self._worker: ShardWorker | None = None
        self._commit: Commit | None = None
        self._lock = threading.Lock()

    def prepare(self) -> tuple[int, str | None]:
        """Load the model; return the process id, and what is wrong with model or settings."""
        try:
            self._worker = ShardWorker(self._job, self._categories)
        except InputError as error:
            return os.getpid(), str(error)
        return os.getpid(), None

    def run(self, shard: Shard) -> tuple[Commit | None, str | None]:
        """Run a shard; return its last commit, and why it ended early."""
        worker = self._worker
        if worker is None:
            raise SessionError("a worker was given a shard before it loaded the model")
        with self._lock:
            self._commit = None
        try:
            return worker.run(shard, self._note), None
        except InputError as error:
            return self._commit, str(error)
        except Exception as error:  # One shard must not end the others, whatever its images make a network do.
            logger.exception("shard %s", shard.name)
            return self._commit, f"{type(error).__name__}: {first_line(error)}"

    def _note(self, commit: Commit) -> None:
        with self._lock:
            self._commit = commit

    def progress(self) -> tuple[int, int, int] | None:
        """Return how many images of the present shard are adapted to and predicted, and how many it has."""
        with self._lock:
            commit = self._commit
        return None if commit is None else (commit.adapted, commit.predicted, commit.images)


@dataclass(slots=True)
class _Busy:
    actor: Any
    pid: int
    shard: Shard
    attempt: int
    seen: tuple[int, int, int] = (-1, -1, 0)


def run_on_ray(
    job: ShardedJob,
    shards: Sequence[Shard],
    categories: Mapping[int, str],
    *,
    workers: int,
    address: str | None = None,
    on_progress: OnProgress = lambda progress: None,
    on_result: Callable[[ShardResult], None] = lambda result: None,
) -> None:
    """Run every shard on Ray; a shard that cannot be run ends by itself.

    Args:
        job: what to do.
        shards: of the data set.
        categories: category names by id.
        workers: how many actors, each with one processor.
        address: of a running cluster; None starts one on this machine, for this export alone.
        on_progress: called whenever a shard has advanced.
        on_result: called when a shard has ended.

    Raises:
        InputError: the model cannot be loaded, or the settings do not fit it.
        ConfigError: the cluster cannot be reached or started.
    """
    with cluster(workers, address) as ray:
        _Driver(ray, job, categories, on_progress, on_result).run(shards, workers)


class _Driver:
    def __init__(
        self,
        ray: Any,
        job: ShardedJob,
        categories: Mapping[int, str],
        on_progress: OnProgress,
        on_result: Callable[[ShardResult], None],
    ) -> None:
        self._ray, self._job, self._categories = ray, job, categories
        self._on_progress, self._on_result = on_progress, on_result
        # Two calls at a time: one runs a shard, and one says how far it is. A lost actor is replaced here, not by Ray,
        # which would call a method again without loading the model.
        self._kind = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, max_concurrency=2)(Worker)

    def run(self, shards: Sequence[Shard], workers: int) -> None:
        waiting = deque((shard, 1) for shard in shards)
        idle: list[tuple[Any, int]] = []
        busy: dict[Any, _Busy] = {}
        losses: dict[str, tuple[int, int]] = {}
        while waiting or busy:
            while waiting and len(busy) < workers:
                shard, attempt = waiting.popleft()
                actor, pid = idle.pop() if idle else self._started()
                busy[actor.run.remote(shard)] = _Busy(actor, pid, shard, attempt)
                self._tell(shard, attempt=attempt, worker=pid)
            done, _ = self._ray.wait(list(busy), timeout=_POLL_S)
            for reference in done:
                work = busy.pop(reference)
                try:
                    commit, error = self._ray.get(reference)
                except self._ray.exceptions.RayActorError:
                    self._lost(work, waiting, losses)
                    continue
                idle.append((work.actor, work.pid))
                self._end(work.shard, commit, error, work.attempt)
            for work in busy.values():
                self._look(work)

    def _started(self) -> tuple[Any, int]:
        """Return a new actor with the model loaded, and its process id.

        Raises:
            ConfigError: the model cannot be loaded, or the settings do not fit it.
        """
        actor = self._kind.remote(self._job, self._categories)
        try:
            pid, problem = self._ray.get(actor.prepare.remote())
        except self._ray.exceptions.RayError as error:
            raise ConfigError(f"a worker cannot load the model: {first_line(error)}") from error
        if problem is not None:
            raise ConfigError(problem)
        return actor, pid

    def _lost(self, work: _Busy, waiting: deque[tuple[Shard, int]], losses: dict[str, tuple[int, int]]) -> None:
        """Give the shard of a lost worker to another one, unless that happened too often at the same place.

        ``losses``: by shard, how far it was when its worker was lost, and how often it was lost there.
        """
        place = sum(max(0, count) for count in work.seen[:2])
        before = losses.get(work.shard.name, (-1, 0))
        count = before[1] + 1 if before[0] == place else 1
        losses[work.shard.name] = (place, count)
        if count >= self._job.attempts:
            reason = (
                f"{count} workers ended one after the other without a commit after image {max(0, work.seen[1])} of "
                f"{len(work.shard.records) or work.seen[2]}"
            )
            self._end(work.shard, None, reason, work.attempt)
            return
        logger.warning("the worker %d of shard %s ended; another one goes on", work.pid, work.shard.name)
        waiting.appendleft((work.shard, work.attempt + 1))

    def _look(self, work: _Busy) -> None:
        try:
            found = self._ray.get(work.actor.progress.remote(), timeout=_POLL_S)
        except self._ray.exceptions.RayError:
            # Lost, which the next wait reports, or busy in code that lets no other thread run.
            return
        if found is not None and found != work.seen:
            work.seen = found
            adapted, predicted, images = found
            self._tell(work.shard, images, adapted=adapted, predicted=predicted, attempt=work.attempt, worker=work.pid)

    def _end(self, shard: Shard, commit: Commit | None, error: str | None, attempt: int) -> None:
        done = {} if commit is None else {"adapted": commit.adapted, "predicted": commit.predicted}
        images = 0 if commit is None else commit.images
        self._tell(shard, images, **done, attempt=attempt, error=error, finished=error is None)
        self._on_result(ShardResult(shard, commit, error, attempt))

    def _tell(self, shard: Shard, images: int = 0, **what: Any) -> None:
        self._on_progress(ShardProgress(shard=shard.name, images=len(shard.records) or images, **what))

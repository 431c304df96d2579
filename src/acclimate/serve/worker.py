"""The thread that owns one network: it takes requests, makes their steps, and hands their results back.

Nothing else runs the network while requests are served, so that no pass needs a lock and no request can meet another
one's adapter half attached. What requests ask for is one of two kinds of work: generating (reading prompts, making
tokens) and adapting (scoring held-out answers, training). Neither may starve the other: each gets its share of the
time, by what it costs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from acclimate.errors import AcclimateError, CancelledError, ConfigError, first_line
from acclimate.language import LanguageModel
from acclimate.language.models.decoding import Answer
from acclimate.language.steps import Generate, Steps, Together, Train, generated_alone
from acclimate.language.training.trainer import Training, trained
from acclimate.serve.batch import Batch, Generation, generation_of, why_not
from acclimate.serve.prefixes import PrefixCache
from acclimate.serve.slots import AdapterSlots

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
#: A worker that fails more often than this is not replaced again.
_MOST_RESTARTS: Final = 3
#: Throughput is estimated from requests that ended in the last minute.
_WINDOW_S: Final = 60.0
#: How often it is looked whether a request is over while it is worked on elsewhere.
_LOOK_S: Final = 0.05
#: Jobs whose longest rows differ by more than this factor would pad each other too much.
_MOST_LENGTH_RATIO: Final = 1.5


class BusyError(AcclimateError):
    """No further request is taken.

    Attributes:
        retry_after_s: when it is worth trying again.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerDiedError(BusyError):
    """The thread that owns the network ended while it worked on the request."""


class DeadlineError(AcclimateError):
    """A request took longer than it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one worker does at a time.

    Attributes:
        max_rows: answers that are generated side by side.
        max_running: requests that are worked on.
        max_waiting: requests that wait; further ones are refused.
        adapter_slots: different adapters in one pass.
        key_value_bytes: of the rows that are generated.
        prefix_bytes: of the beginnings of prompts that are kept.
        training_sets: sets of examples that are trained on in one pass.
        adapting_share: of the time, while both kinds of work wait; above 0 and below 1.

    Raises:
        ConfigError: a limit is out of range.
    """

    max_rows: int = 64
    max_running: int = 64
    max_waiting: int = 32
    adapter_slots: int = 32
    key_value_bytes: int = 2 * 2**30
    prefix_bytes: int = 512 * 2**20
    training_sets: int = 6
    adapting_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_running", "adapter_slots", "training_sets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_waiting", "key_value_bytes", "prefix_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.adapting_share < 1:
            raise ConfigError(f"adapting_share must be above 0 and below 1, got {self.adapting_share}")


class Ticket(Generic[T]):
    """A request in the hands of a worker.

    Args:
        owner: whose request it is; owners get equal shares of the time.
        is_quick: whether its first step costs next to nothing; it does not wait for training then.
        trains: what the request will train, if it has not been trained before; of several that train the same, the
            others wait until the first has.
        has_trained: says whether it has.
        deadline_s: seconds from now after which it is given up; None for no limit.

    Attributes:
        result: of the request, or its error.
        charged_s: seconds of passes that were its own, or its share of those that it shared.
        why: it was given up; None where nobody waits.
        submitted, started, first_text, ended: on :func:`time.perf_counter`; None where that has not happened.
    """

    def __init__(
        self,
        *,
        owner: str = "",
        is_quick: bool = False,
        trains: str | None = None,
        has_trained: Callable[[], bool] = lambda: False,
        deadline_s: float | None = None,
    ) -> None:
        self.owner, self.is_quick = owner, is_quick
        self.trains = None if is_quick else trains
        self.has_trained = has_trained
        self.result: Future[T] = Future()
        self.charged_s = 0.0
        self.submitted = time.perf_counter()
        self.started: float | None = None
        self.first_text: float | None = None
        self.ended: float | None = None
        self._deadline = None if deadline_s is None else self.submitted + deadline_s
        self._given_up = threading.Event()
        self.why: Exception | None = None
        self._inside_since: float | None = None

    def give_up(self, why: Exception | None = None) -> None:
        """Let the request end before its next step or token.

        Args:
            why: the error that it ends with; None where nobody waits for the result.
        """
        if why is not None:
            self.why = why
        self._given_up.set()

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self._deadline is not None and time.perf_counter() > self._deadline

    def is_over(self) -> bool:
        """Return whether the request is to end, because nobody waits or it is late."""
        return self._given_up.is_set() or self.is_late

    def clock(self) -> float:
        """Return the seconds that the request is charged with, those of a step that is running included."""
        inside = 0.0 if self._inside_since is None else time.perf_counter() - self._inside_since
        return self.charged_s + inside

    def note_text(self) -> None:
        """Note the time of the first text."""
        if self.first_text is None:
            self.first_text = time.perf_counter()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Charge the request with the time that the block takes."""
        began = self._inside_since = time.perf_counter()
        try:
            yield
        finally:
            self._inside_since = None
            self.charged_s += time.perf_counter() - began


@dataclass(slots=True, eq=False)
class _Running:
    """A request that has begun.

    Attributes:
        ticket: of the request.
        steps: that are still to be made.
        generations: of the step that is being made, if answers are generated in it.
        answers: of those that have ended, by their number.
        is_together: whether the step wants a list of answers for each.
    """

    ticket: Ticket[Any]
    steps: Steps[Any]
    generations: list[Generation] = field(default_factory=list)
    answers: dict[int, Any] = field(default_factory=dict)
    is_together: bool = False


@dataclass(slots=True, eq=False)
class _Resumed:
    """A request whose last step has ended: with ``value``, or with ``error``."""

    running: _Running
    value: Any = None
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class _WaitingTraining:
    running: _Running
    step: Train
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a worker does now, and what it has done.

    Attributes:
        waiting, running, reading, generating, training: requests, and rows of answers.
        ended: requests, since the start.
        passes: by kind, since the start.
        pass_seconds: by kind.
        key_value_bytes, prefix_bytes, slot_bytes: held.
        prefix_hits, prefix_misses: look-ups of beginnings of prompts.
        slots_in_use: adapters that rows use.
        adapter_loads: adapters copied into a slot.
        restarts: how often the worker was replaced.
    """

    waiting: int
    running: int
    reading: int
    generating: int
    training: int
    ended: int
    passes: dict[str, int]
    pass_seconds: dict[str, float]
    key_value_bytes: int
    prefix_bytes: int
    slot_bytes: int
    prefix_hits: int
    prefix_misses: int
    slots_in_use: int
    adapter_loads: int
    restarts: int


class Generator(Protocol):
    """Generates answers in place of the worker."""

    def submit(self, generation: Generation, done: Callable[[Generation, Callable[[], list[Answer]]], None]) -> None:
        """Generate the answers of a step; see :meth:`acclimate.serve.vllm.VllmGenerator.submit`."""


class Worker:
    """Serves requests with one model, from a thread of its own.

    Args:
        model: nobody else should run it meanwhile; who does waits between passes.
        limits: on what is done at a time.
        generator: generates answers elsewhere; None generates them here.

    Attributes:
        runs_alone: why requests to this model share no passes; None where they do.
    """

    def __init__(
        self, model: LanguageModel, limits: Limits | None = None, *, generator: Generator | None = None
    ) -> None:
        self.model, self.limits = model, limits or Limits()
        self._generator = generator
        self._elsewhere: deque[tuple[Generation, Callable[[], list[Answer]]]] = deque()
        self.runs_alone = why_not(model)
        if self.runs_alone is not None:
            _LOG.warning("requests are answered one after the other: %s", self.runs_alone)
        self._condition = threading.Condition()
        self._inbox: deque[tuple[Ticket[Any], Callable[[], Steps[Any]]]] = deque()
        self._closing = False
        self._died: BaseException | None = None
        self._restarts = 0
        self._ended = 0
        self._ended_at: deque[float] = deque()
        self._pass_counts: dict[str, int] = {}
        self._pass_seconds: dict[str, float] = {}
        self._adapting_spent = self._generating_spent = 0.0
        self._spent_by_owner: dict[str, float] = {}
        self._reset()
        self._thread = threading.Thread(target=self._main, name="acclimate-worker", daemon=True)

    def _reset(self) -> None:
        """Begin without any request, and with the hooks of new slots."""
        with self.model.lock:
            self.slots = AdapterSlots(self.model, self.limits.adapter_slots)
            self.prefixes = PrefixCache(self.limits.prefix_bytes)
            self.batch: Batch | None = None
            if self.runs_alone is None:
                self.batch = Batch(
                    self.model,
                    self.slots,
                    self.prefixes,
                    max_rows=self.limits.max_rows,
                    max_bytes=self.limits.key_value_bytes,
                )
        self._waiting: dict[str, deque[tuple[Ticket[Any], Callable[[], Steps[Any]]]]] = {}
        self._running: dict[int, _Running] = {}
        self._resumed: deque[_Resumed] = deque()
        self._to_generate: deque[Generation] = deque()
        self._to_train: list[_WaitingTraining] = []
        self._training: Training | None = None
        self._trained: list[_WaitingTraining] = []

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are worked on."""
        return self._thread.is_alive() and self._died is None

    @property
    def waiting_count(self) -> int:
        """Requests that have not begun."""
        return len(self._inbox) + sum(len(queue) for queue in list(self._waiting.values()))

    def submit(self, ticket: Ticket[T], begin: Callable[[], Steps[T]]) -> Ticket[T]:
        """Take a request; its result comes by ``ticket.result``.

        Args:
            ticket: of the request.
            begin: returns its steps; called in the worker's thread.

        Raises:
            BusyError: as many requests wait as may, or the worker is ending.
            WorkerDiedError: it has ended.
        """
        with self._condition:
            ended = self._thread.ident is not None and not self._thread.is_alive() and not self._closing
            if self._died is not None or ended:
                raise WorkerDiedError("the worker of this model has ended; restart the server", 30.0)
            if self._closing:
                raise BusyError("the server is shutting down", 5.0)
            most = self.limits.max_waiting + self.limits.max_running
            if self.waiting_count + len(self._running) >= most:
                raise BusyError(
                    f"{self.waiting_count} requests are waiting and no more may; try again later", self._wait_s()
                )
            self._inbox.append((ticket, begin))
            self._condition.notify()
        return ticket

    def close(self, *, timeout_s: float = 30.0) -> bool:
        """Take no further requests, finish those that are there, and end; return whether all was finished in time."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread.ident is None:
            self.slots.close()
            return True
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        # Whoever still waits is told; the thread ends after its pass, and removes its hooks from the network itself.
        refused = BusyError("the server is shutting down; try again", 5.0)
        with self._condition:
            entries = [*self._inbox, *(entry for queue in list(self._waiting.values()) for entry in tuple(queue))]
        for ticket in [*(entry[0] for entry in entries), *(r.ticket for r in list(self._running.values()))]:
            ticket.give_up(refused)
        self._thread.join(timeout_s)
        return False

    def load(self) -> Load:
        """Return what is done now, and what has been done."""
        batch = self.batch
        return Load(
            waiting=self.waiting_count,
            running=len(self._running),
            reading=batch.reading if batch is not None else 0,
            generating=batch.generating if batch is not None else 0,
            training=len(self._trained) + len(self._to_train),
            ended=self._ended,
            passes=dict(self._pass_counts),
            pass_seconds=dict(self._pass_seconds),
            key_value_bytes=batch.held_bytes if batch is not None else 0,
            prefix_bytes=self.prefixes.held_bytes,
            slot_bytes=self.slots.held_bytes,
            prefix_hits=self.prefixes.hits,
            prefix_misses=self.prefixes.misses,
            slots_in_use=self.slots.in_use,
            adapter_loads=self.slots.loads,
            restarts=self._restarts,
        )

    def _wait_s(self) -> float:
        """Return how long the requests that wait will take, from how many ended lately."""
        # Copied in one operation: the worker's thread appends meanwhile.
        recent = sum(1 for at in tuple(self._ended_at) if at > time.perf_counter() - _WINDOW_S)
        return min(60.0, max(1.0, self.waiting_count * _WINDOW_S / recent)) if recent else 5.0

    def _main(self) -> None:
        while True:
            try:
                self._serve()
                self.slots.close()
                return
            except BaseException as error:  # noqa: BLE001 - whatever ends the thread, nobody may wait for ever
                _LOG.exception("the worker failed; its requests are refused")
                self._fail_all(error)
                if self._restarts >= _MOST_RESTARTS or not isinstance(error, Exception):
                    self.slots.close()
                    with self._condition:
                        self._died = error
                        self._refuse_inbox()
                    return
                self._restarts += 1
                self.slots.close()
                self._reset()

    def _serve(self) -> None:
        while True:
            with self._condition:
                while not self._inbox and not self._has_work():
                    if self._closing:
                        return
                    self._condition.wait()
                if self._only_waits():
                    # Deadlines, and clients who leave, are noticed meanwhile.
                    self._condition.wait(_LOOK_S)
                self._take_inbox()
            with self.model.lock:
                self._drop_ended()
                self._begin()
                self._work()

    def _has_work(self) -> bool:
        return bool(self._running) or any(self._waiting.values())

    def _only_waits(self) -> bool:
        """Return whether all that is left to do is done elsewhere."""
        here = self._resumed or self._to_train or self._to_generate or self._training
        return self._generator is not None and bool(self._running) and not (here or self._inbox or self._elsewhere)

    def _note_elsewhere(self, generation: Generation, make: Callable[[], list[Answer]]) -> None:
        """Take the answers of a step that were generated elsewhere; called in another thread."""
        with self._condition:
            self._elsewhere.append((generation, make))
            self._condition.notify()

    def _take_inbox(self) -> None:
        while self._inbox:
            ticket, begin = self._inbox.popleft()
            if not self._waiting.get(ticket.owner):
                # An owner who comes back after a pause has saved nothing up, and has not fallen behind.
                others = [self._spent_by_owner.get(owner, 0.0) for owner, queue in self._waiting.items() if queue]
                floor = min(others, default=0.0)
                self._spent_by_owner[ticket.owner] = max(self._spent_by_owner.get(ticket.owner, 0.0), floor)
            self._waiting.setdefault(ticket.owner, deque()).append((ticket, begin))

    def _begin(self) -> None:
        """Begin requests that wait: the next of the owner who was charged least."""
        while len(self._running) < self.limits.max_running:
            training = {
                r.ticket.trains for r in self._running.values() if r.ticket.trains and not r.ticket.has_trained()
            }
            ready = {
                owner: entry
                for owner, queue in self._waiting.items()
                if (entry := next((entry for entry in queue if entry[0].trains not in training), None)) is not None
            }
            if not ready:
                return
            owner = min(ready, key=lambda name: self._spent_by_owner.get(name, 0.0))
            ticket, begin = ready[owner]
            self._waiting[owner].remove(ready[owner])
            if not self._waiting[owner]:
                del self._waiting[owner]
            # Charged beforehand with nothing, so that equal owners take turns.
            self._spend(owner, 1e-6)
            ticket.started = time.perf_counter()
            running = _Running(ticket, begin())
            self._running[id(running)] = running
            resumed = _Resumed(running)
            if ticket.is_quick:
                self._resume(resumed)
            else:
                self._resumed.append(resumed)

    def _drop_ended(self) -> None:
        """End requests that nobody waits for, wherever they are."""
        for queue in self._waiting.values():
            for entry in [entry for entry in queue if entry[0].is_over()]:
                queue.remove(entry)
                self._finish(entry[0], error=self._over(entry[0]))
        for waiting in [w for w in self._to_train if w.running.ticket.is_over()]:
            self._to_train.remove(waiting)
            self._resume(_Resumed(waiting.running, error=self._over(waiting.running.ticket)))
        for running in [r for r in self._running.values() if r.generations and r.ticket.is_over()]:
            self._give_up_generations(running)
            self._resume(_Resumed(running, error=self._over(running.ticket)))
        if self.batch is not None:
            self.batch.drop_done()

    def _over(self, ticket: Ticket[Any]) -> Exception:
        if ticket.why is not None:
            return ticket.why
        if ticket.is_late:
            return DeadlineError("the request took longer than it may")
        return CancelledError("the request was cancelled")

    def _work(self) -> None:
        """Make one pass of the kind of work that has had less than its share."""
        while self._elsewhere:
            self._generated(*self._elsewhere.popleft())
        can_generate = bool(self._to_generate) or (self.batch is not None and len(self.batch) > 0)
        can_adapt = bool(self._resumed) or bool(self._to_train) or self._training is not None
        share = self.limits.adapting_share
        adapts_next = self._adapting_spent / share <= self._generating_spent / (1 - share)
        began = time.perf_counter()
        if can_adapt and (adapts_next or not can_generate):
            self._adapt()
            self._adapting_spent += time.perf_counter() - began
        elif can_generate:
            self._generate()
            self._generating_spent += time.perf_counter() - began
        if not (can_adapt and can_generate):
            # Time that one kind had to itself is not held against it when the other comes back.
            level = max(self._adapting_spent / share, self._generating_spent / (1 - share))
            self._adapting_spent, self._generating_spent = level * share, level * (1 - share)

    def _generate(self) -> None:
        batch = self.batch
        if batch is None:
            generation = self._to_generate.popleft()
            self._generate_alone(generation)
            return
        while self._to_generate and batch.can_join(self._to_generate[0]):
            generation = self._to_generate[0]
            try:
                if not batch.join(generation):
                    break
            except AcclimateError as error:
                self._give_up_generations(generation.owner)
                self._resume(_Resumed(generation.owner, error=error))
                continue
            self._to_generate.popleft()
        if batch.reading:
            self._pass("read", batch, batch.read)
        if batch.generating:
            self._pass("generate", batch, batch.generate)

    def _pass(self, kind: str, batch: Batch, make: Callable[[], list[Generation]]) -> None:
        """Make a pass, charge those whose rows it has, and go on with those that it ends."""
        owners = batch.owners(reading=kind == "read")
        with self._timed(kind) as timer:
            ended = make()
        for owner, share in owners.items():
            self._charge(owner.ticket, timer.seconds * share)
        for generation in ended:
            self._generated(generation, generation.answers)

    def _generated(self, generation: Generation, make: Callable[[], list[Answer]]) -> None:
        """Let a request go on when all of its answers are there, or one of them has failed.

        Args:
            generation: that has ended.
            make: returns its answers, or raises the error of one.
        """
        running: _Running = generation.owner
        if not any(generation is known for known in running.generations):
            # Another one of this step has failed before; the request has gone on without.
            return
        try:
            answers = make()
        except Exception as error:  # noqa: BLE001 - of a row: it belongs to the request
            self._give_up_generations(running)
            self._resume(_Resumed(running, error=error))
            return
        number = next(n for n, known in enumerate(running.generations) if known is generation)
        running.answers[number] = answers
        if len(running.answers) == len(running.generations):
            found = [running.answers[n] for n in range(len(running.generations))]
            running.generations = []
            self._resume(_Resumed(running, found if running.is_together else found[0]))

    def _give_up_generations(self, running: _Running) -> None:
        """End the answers of a request that are still generated or wait for it."""
        for generation in running.generations:
            if generation in self._to_generate:
                self._to_generate.remove(generation)
            for row in generation.rows:
                row.continuation.done = True
        running.generations = []

    def _generate_alone(self, generation: Generation) -> None:
        def make() -> list[Answer]:
            with self._charged("alone", generation.owner.ticket):
                return generated_alone(self.model, generation.step)

        self._generated(generation, make)

    def _adapt(self) -> None:
        """Make one training step, or bring one request to the point where it wants to be trained."""
        enough = sum(len(waiting.step.job.sets) for waiting in self._to_train) >= self.limits.training_sets
        if self._training is None and self._to_train and (enough or not self._resumed):
            self._form_training()
        if self._training is not None:
            self._train()
        elif self._resumed:
            self._resume(self._resumed.popleft())

    def _form_training(self) -> None:
        """Choose jobs that are trained side by side: the next one in turn, and others that fit to it."""
        spent = self._spent_by_owner
        first = min(self._to_train, key=lambda waiting: spent.get(waiting.running.ticket.owner, 0.0))
        chosen = [first]
        if self.runs_alone is None:
            sets = len(first.step.job.sets)
            for other in self._to_train:
                lengths = sorted((first.longest, other.longest))
                fits = (
                    other is not first
                    and first.step.job.fits(other.step.job)
                    and other.step.recipe == first.step.recipe
                    and lengths[1] <= _MOST_LENGTH_RATIO * lengths[0]
                    and sets + len(other.step.job.sets) <= self.limits.training_sets
                )
                if fits:
                    chosen.append(other)
                    sets += len(other.step.job.sets)
        for waiting in chosen:
            self._to_train.remove(waiting)
        self._start_training(chosen)

    def _start_training(self, chosen: Sequence[_WaitingTraining]) -> None:
        try:
            with self._timed("train"):
                self._training = Training(self.model, [w.step.job for w in chosen], chosen[0].step.recipe)
            self._trained = list(chosen)
        except Exception as error:  # noqa: BLE001 - handed on: each request decides what it means
            self._training = None
            self._retry_training(chosen, error)

    def _train(self) -> None:
        training, together = self._training, self._trained
        assert training is not None  # noqa: S101 - for the type checker
        try:
            with self._timed("train") as timer, training.attached():
                training.step()
        except Exception as error:  # noqa: BLE001 - handed on: each request decides what it means
            training.let_go()
            self._training, self._trained = None, []
            self._retry_training(together, error)
            return
        sets = sum(len(waiting.step.job.sets) for waiting in together)
        for waiting in together:
            self._charge(waiting.running.ticket, timer.seconds * len(waiting.step.job.sets) / sets)
        for job, adapter in training.ended():
            waiting = next(w for w in together if w.step.job is job)
            together.remove(waiting)
            self._resumed.append(_Resumed(waiting.running, adapter))
        if training.finished:
            training.let_go()
            self._training = None

    def _retry_training(self, chosen: Sequence[_WaitingTraining], error: Exception) -> None:
        """Hand an error to the one request that was trained, or try the requests one by one."""
        if len(chosen) == 1:
            self._resumed.append(_Resumed(chosen[0].running, error=error))
            return
        _LOG.warning(
            "training %d requests together failed (%s); each is trained by itself", len(chosen), first_line(error)
        )
        for waiting in chosen:
            resumed = _Resumed(waiting.running)
            with self._charged("train", waiting.running.ticket):
                try:
                    resumed.value = trained(self.model, waiting.step.job, waiting.step.recipe)
                except Exception as again:  # noqa: BLE001 - handed on: the request decides what it means
                    resumed.error = again
            self._resumed.append(resumed)

    def _resume(self, resumed: _Resumed) -> None:
        """Let a request go on until it asks for its next step, or ends."""
        running = resumed.running
        try:
            with self._charged("score", running.ticket):
                step = (
                    running.steps.send(resumed.value) if resumed.error is None else running.steps.throw(resumed.error)
                )
        except StopIteration as ended:
            self._end(running, result=ended.value)
        except Exception as error:  # noqa: BLE001 - the result of the request
            self._end(running, error=error)
        else:
            if isinstance(step, Generate | Together):
                parts = step.steps if isinstance(step, Together) else (step,)
                running.generations = [generation_of(self.model, part, running) for part in parts]
                running.answers = {}
                running.is_together = isinstance(step, Together)
                if self._generator is None:
                    self._to_generate.extend(running.generations)
                else:
                    for generation in running.generations:
                        self._generator.submit(generation, self._note_elsewhere)
            else:
                longest = max(sum(len(e.input) + len(e.output) for e in examples) for examples in step.job.sets)
                self._to_train.append(_WaitingTraining(running, step, longest))

    def _end(self, running: _Running, *, result: Any = None, error: Exception | None = None) -> None:
        self._running.pop(id(running), None)
        # What is still generated elsewhere is of no use to anybody, and must not be handed to a request that has ended.
        self._give_up_generations(running)
        running.steps.close()
        if isinstance(error, CancelledError):
            error = self._over(running.ticket)
        self._finish(running.ticket, result=result, error=error)

    def _finish(self, ticket: Ticket[Any], *, result: Any = None, error: BaseException | None = None) -> None:
        ticket.ended = time.perf_counter()
        self._ended += 1
        self._ended_at.append(ticket.ended)
        while self._ended_at[0] < ticket.ended - _WINDOW_S:
            self._ended_at.popleft()
        if not ticket.result.set_running_or_notify_cancel():
            return
        if error is None:
            ticket.result.set_result(result)
        else:
            ticket.result.set_exception(error)

    def _charge(self, ticket: Ticket[Any], seconds: float) -> None:
        """Charge a request, and its owner, with its share of a pass."""
        ticket.charged_s += seconds
        self._spend(ticket.owner, seconds)

    @contextlib.contextmanager
    def _charged(self, kind: str, ticket: Ticket[Any]) -> Iterator[None]:
        """Count the block as a pass, and charge one request, and its owner, with all of it."""
        before = ticket.charged_s
        try:
            with self._timed(kind), ticket.inside():
                yield
        finally:
            self._spend(ticket.owner, ticket.charged_s - before)

    def _spend(self, owner: str, seconds: float) -> None:
        self._spent_by_owner[owner] = self._spent_by_owner.get(owner, 0.0) + seconds

    def _fail_all(self, error: BaseException) -> None:
        failed = WorkerDiedError(f"the worker failed: {first_line(error)}; try again", 1.0)
        for running in list(self._running.values()):
            self._end(running, error=failed)
        for queue in self._waiting.values():
            for ticket, _ in queue:
                self._finish(ticket, error=failed)
        self._waiting.clear()

    def _refuse_inbox(self) -> None:
        while self._inbox:
            self._finish(self._inbox.popleft()[0], error=WorkerDiedError("the worker has ended", 30.0))

    @contextlib.contextmanager
    def _timed(self, kind: str) -> Iterator[_Timer]:
        timer = _Timer()
        began = time.perf_counter()
        try:
            yield timer
        finally:
            timer.seconds = time.perf_counter() - began
            self._pass_counts[kind] = self._pass_counts.get(kind, 0) + 1
            self._pass_seconds[kind] = self._pass_seconds.get(kind, 0.0) + timer.seconds


@dataclass(slots=True)
class _Timer:
    seconds: float = field(default=0.0)

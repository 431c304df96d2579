"""One question of a visitor, answered without and with adapting, told step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

from starlette.concurrency import run_in_threadpool

from acclimate.errors import CancelledError, DataError
from acclimate.language import AskReport, Example
from acclimate.serve.access import Caller
from acclimate.serve.app import Parts
from acclimate.serve.library import NamedAdapter
from acclimate.serve.schemas import ChatRequest
from acclimate.serve.service import Prepared
from acclimate.serve.worker import Ticket

Side = Literal["base", "adapted"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of an answer."""

    side: Side
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """A training step: its number, the most there can be, and the loss in nats per answer token."""

    made: int
    most: int
    loss: float


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer that is complete."""

    side: Side
    report: AskReport


@dataclass(frozen=True, slots=True)
class Failed:
    """An answer that will not come."""

    side: Side
    error: Exception


Event = Text | Step | Ended | Failed


class Question:
    """A question on its way; who asked gives it up when they leave.

    Args:
        parts: of the server.
        caller: who asks.
        body: of the request; its ``ttt.mode`` is of the side that adapts.
    """

    def __init__(self, parts: Parts, caller: Caller, body: ChatRequest) -> None:
        self._parts, self._caller, self._body = parts, caller, body
        self._tickets: list[Ticket[AskReport]] = []
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._adapted: Prepared | None = None
        self._is_given_up = False
        self.request_id = uuid4().hex

    async def events(self) -> AsyncIterator[Event]:
        """Ask both sides and yield what happens, until both have ended.

        Raises:
            Exception: the request is refused before it is worked on.
        """
        ready = await run_in_threadpool(
            self._parts.service.prepare,
            self._body,
            self._caller.id,
            sees_all=self._caller.may("admin"),
            may_train=self._caller.may("train"),
        )
        if self._is_given_up:
            raise CancelledError("the request was given up before it was worked on")
        # The same examples and question, without adapting: what the model would have been sent otherwise.
        plain = replace(ready, request=replace(ready.request, policy="never", adapter=None), trains=None)
        prepared: dict[Side, Prepared] = {"base": plain}
        if ready.request.policy != "never":
            prepared["adapted"] = self._adapted = ready
        try:
            for side, wanted in prepared.items():
                self._tickets.append(self._submit(side, wanted, is_recorded=side == "adapted" or len(prepared) == 1))
            waiting = len(prepared)
            while waiting:
                event = await self._events.get()
                if isinstance(event, Ended | Failed):
                    waiting -= 1
                yield event
        finally:
            self.give_up()

    def give_up(self) -> None:
        """End what is not finished."""
        self._is_given_up = True
        for ticket in self._tickets:
            ticket.give_up()

    @property
    def can_be_saved(self) -> bool:
        """Whether an adapter was trained that can be given a name."""
        prepared = self._adapted
        return (
            prepared is not None and prepared.trains is not None and prepared.served.cache.is_trained(prepared.trains)
        )

    def save(self, name: str, caller: Caller) -> NamedAdapter:
        """Give the trained adapter a name, under which it is asked as a model.

        Raises:
            DataError: there is none any more, the name is taken, or no more may be held.
        """
        prepared, library = self._adapted, self._parts.service.library
        kept = prepared.served.cache.get(prepared.trains) if prepared is not None and prepared.trains else None
        if prepared is None or kept is None or not kept[0].weights:
            raise DataError("the adapter is not kept any more; run the prompt again")
        base = prepared.served.name
        library.reserve(base, name, caller.id)
        named = NamedAdapter(
            name=name,
            base_model=base,
            adapter=kept[0],
            owner=caller.id,
            examples=tuple(Example(e.input, e.output) for e in prepared.request.examples),
        )
        library.put(named)
        return named

    def _submit(self, side: Side, prepared: Prepared, *, is_recorded: bool) -> Ticket[AskReport]:
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        def on_step(made: int, most: int, loss: float) -> None:
            tell(Step(made, most, loss))

        ticket = self._parts.service.submit(
            prepared,
            self._caller.id,
            on_text=lambda text: tell(Text(side, text)),
            on_step=on_step if side == "adapted" else None,
        )

        def ended(future: Any) -> None:
            error = CancelledError("the request was given up") if future.cancelled() else future.exception()
            if error is not None:
                tell(Failed(side, error))
                return
            try:
                if is_recorded:
                    self._record(ticket, future.result())
            finally:
                # An answer is shown whatever comes of its record.
                tell(Ended(side, future.result()))

        ticket.result.add_done_callback(ended)
        return ticket

    def _record(self, ticket: Ticket[AskReport], report: AskReport) -> None:
        self._parts.telemetry.answered(
            "chat",
            self._body.model,
            ticket,
            report,
            request_id=self.request_id,
            actor=self._caller.id,
            prompt="\n".join(message.text for message in self._body.messages),
        )


def losses_of(steps: Sequence[Step]) -> list[list[float]]:
    """Return the losses of training steps, run by run: the gate's adapters are trained before the answer's.

    A run begins where the number of the step does not rise.
    """
    runs: list[list[float]] = []
    last = 0
    for step in steps:
        if step.made <= last or not runs:
            runs.append([])
        runs[-1].append(step.loss)
        last = step.made
    return runs

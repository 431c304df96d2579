"""Requests to a worker, alone and together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from acclimate.language import AskReport, Engine, LanguageModel
from acclimate.language.models.decoding import ChosenToken, Sampling
from acclimate.language.steps import run_alone
from acclimate.language.work import Request
from acclimate.serve.worker import Limits, Ticket, Worker

TIMEOUT_S = 300.0
WORDS = "apple river stone cloud table green house light water bread melon plant".split()
#: What rounding may change: two tokens whose log-probabilities are nearer than this may change places.
TIE_NATS = 1e-3


@contextmanager
def running(model: LanguageModel, **limits: Any) -> Iterator[Worker]:
    """Yield a worker that runs, and end it."""
    worker = Worker(model, Limits(**limits))
    worker.start()
    try:
        yield worker
    finally:
        assert worker.close(timeout_s=TIMEOUT_S)


def submitted(worker: Worker, engine: Engine, request: Request, **ticket: Any) -> Ticket[AskReport]:
    """Hand a request to a worker."""
    given: Ticket[AskReport] = Ticket(**ticket)
    ready = dataclasses.replace(request, cancelled=given.is_over, clock=given.clock)
    return worker.submit(given, lambda: engine.steps(ready))


def together(worker: Worker, engine: Engine, requests: Sequence[Request]) -> list[AskReport]:
    """Return the reports of requests that are made at once."""
    tickets = [submitted(worker, engine, request, owner=str(n % 5)) for n, request in enumerate(requests)]
    return [ticket.result.result(timeout=TIMEOUT_S) for ticket in tickets]


def alone(engine: Engine, request: Request) -> AskReport:
    """Return the report of a request with nothing beside it."""
    return run_alone(engine.model, engine.steps(request))


def with_tokens(request: Request) -> Request:
    """Return the request with the two likeliest tokens at each place reported."""
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, alternatives=2))


def assert_same(found: AskReport, expected: AskReport, *, tie_nats: float = TIE_NATS) -> None:
    """Check that two answers are the same token for token, up to a place where two tokens are equally likely."""
    for one, other in zip(found.chosen_tokens, expected.chosen_tokens, strict=False):
        if one.token != other.token:
            assert _gap(other) < tie_nats, f"{found.answer!r} beside others, {expected.answer!r} alone"
            return
        assert abs(one.log_probability - other.log_probability) < 0.02, (one, other)
    assert found.answer == expected.answer
    assert len(found.chosen_tokens) == len(expected.chosen_tokens) > 0


def _gap(chosen: ChosenToken) -> float:
    return chosen.alternatives[0][1] - chosen.alternatives[1][1]


GREEDY_WITH_TOKENS = Sampling(alternatives=2)

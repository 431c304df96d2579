"""Many requests with adapters and secrets of their own share passes: none sees anything of another.

``ACCLIMATE_BREAK_ROW_INDEX=1`` lets the rows of a pass use each other's adapters. The tests here must fail then, and
one of them checks that they would.
"""

from __future__ import annotations

import dataclasses
import os
import random
import string
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from acclimate.errors import CancelledError
from acclimate.language import Adapter, AdapterManager, AskReport, Engine, LanguageModel
from acclimate.language.steps import run_alone
from acclimate.language.work import Request
from acclimate.serve.batch import Row
from acclimate.serve.slots import AdapterSlots
from acclimate.serve.worker import Worker
from tests.language.models import digest, spark
from tests.serve.running import TIMEOUT_S, WORDS, alone, assert_same, running, submitted, together, with_tokens

SLOTS = 7


def secret(user: int) -> str:
    """Return a text that nobody else has; letters that spark knows."""
    rng = random.Random(user)
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(6))


def engine_for(model: LanguageModel, **settings: Any) -> Engine:
    # Few steps: enough for the secret to be in the weights, where it could leak from.
    recipe = dataclasses.replace(model.recipe, steps=3, rank=4)
    return Engine(model, recipe=recipe, **settings)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return spark()


@pytest.fixture(autouse=True)
def bit_identical(model: LanguageModel) -> Iterator[None]:
    before = digest(model)
    yield
    assert digest(model) == before
    assert not any(module._forward_hooks for module in model.network.modules())


@pytest.fixture(scope="module", params=[32, pytest.param(64, marks=pytest.mark.slow)], ids="{} users".format)
def requests(model: LanguageModel, request: pytest.FixtureRequest) -> list[Request]:
    """Return a request for each user; every fourth has no adapter, every eighth no examples either."""
    engine = engine_for(model)
    found = []
    for user in range(request.param):
        rng = random.Random(user)
        words = rng.sample(WORDS, 5)
        examples = [(word, f"{secret(user)} {word}") for word in words[:-1]]
        if user % 8 == 7:
            asked = engine.read_prompt(f"{secret(user)} {words[0]}")
            asked = dataclasses.replace(asked, max_tokens=8)
        else:
            asked = engine.read_examples(examples, words[-1])
            asked = dataclasses.replace(asked, policy="never" if user % 4 == 3 else "always", max_tokens=16)
        found.append(with_tokens(asked))
    return found


@pytest.fixture(scope="module")
def expected(model: LanguageModel, requests: list[Request]) -> list[AskReport]:
    engine = engine_for(model)
    return [alone(engine, request) for request in requests]


def broken(worker: Worker) -> Worker:
    """Let each row of a pass use the adapter of the next one."""
    worker.slots.index_of_row = lambda slots: [*slots[1:], *slots[:1]]
    return worker


def maybe_broken(worker: Worker) -> Worker:
    return broken(worker) if os.environ.get("ACCLIMATE_BREAK_ROW_INDEX") == "1" else worker


def assert_apart(found: Sequence[AskReport | BaseException], expected: Sequence[AskReport]) -> None:
    for user, (report, other) in enumerate(zip(found, expected, strict=True)):
        if isinstance(report, BaseException):
            continue
        assert_same(report, other)
        for stranger in range(len(expected)):
            if stranger != user:
                assert secret(stranger) not in report.answer


def test_each_answer_is_the_one_that_it_is_alone(
    model: LanguageModel, requests: list[Request], expected: list[AskReport]
) -> None:
    adapted = [report for report in expected if report.status == "adapted"]
    assert len(adapted) > len(requests) // 2
    assert sum(secret(user) in report.answer for user, report in enumerate(expected)) > len(requests) // 2
    with running(model, adapter_slots=SLOTS, prefix_bytes=2 * 2**20) as worker:
        found = together(maybe_broken(worker), engine_for(model, cache=AdapterManager(4)), requests)
        load = worker.load()
    assert_apart(found, expected)
    # Rows did share passes, and slots were written over.
    assert load.passes["generate"] < sum(report.answer_tokens for report in found) / 2
    assert load.adapter_loads > SLOTS


def test_a_broken_row_index_is_noticed(
    model: LanguageModel, requests: list[Request], expected: list[AskReport]
) -> None:
    with running(model, adapter_slots=SLOTS) as worker:
        found = together(broken(worker), engine_for(model), requests[:16])
    with pytest.raises(AssertionError):
        assert_apart(found, expected[:16])


def test_cancellations_and_failing_passes_hurt_nobody_else(
    model: LanguageModel, requests: list[Request], expected: list[AskReport]
) -> None:
    rng = random.Random(1)
    users = range(len(requests))
    cancelled = set(rng.sample(users, len(users) // 5))
    poisoned = set(rng.sample(sorted(set(users) - cancelled), len(users) // 10))
    marks = {requests[user].query: user for user in poisoned}
    assert marks

    def fails(rows: Sequence[Row]) -> None:
        if rng.random() < 0.05:
            raise MemoryError("can't allocate memory")
        for row in rows:
            if row.tokens in bad:
                raise RuntimeError("a kernel failed")

    with running(model, adapter_slots=SLOTS) as worker:
        maybe_broken(worker)
        engine = engine_for(model, cache=AdapterManager(8))
        encoder = model.encoder
        bad = {
            encoder.row(requests[user].examples, query=requests[user].query).tokens
            for user in poisoned
            if requests[user].examples
        }
        assert worker.batch is not None
        worker.batch.before_pass = fails
        tickets = []
        for user, request in enumerate(requests):
            tickets.append(submitted(worker, engine, request))
            if user in cancelled and user % 2:
                tickets[-1].give_up()
        for user in cancelled:
            tickets[user].give_up()
        found: list[AskReport | BaseException] = []
        for ticket in tickets:
            error = ticket.result.exception(timeout=TIMEOUT_S)
            found.append(ticket.result.result() if error is None else error)
    for user, report in enumerate(found):
        if isinstance(report, BaseException):
            assert isinstance(report, CancelledError | RuntimeError | MemoryError), report
        elif report.status == "fallback":
            # Its own pass ran out of memory: the base model answered.
            assert report.reason == "memory"
            found[user] = CancelledError("not compared")
    assert sum(isinstance(report, AskReport) for report in found) > len(users) // 3
    assert_apart(found, expected)


def test_an_adapter_that_is_replaced_under_its_name_is_not_mixed_with_the_new_one(model: LanguageModel) -> None:
    engine = engine_for(model)
    # Random weights: two versions that answer the same prompt differently for certain.
    slots = AdapterSlots(model, 1)
    versions = {mark: slots.random_adapter(seed=seed) for mark, seed in (("old", 1), ("new", 2))}
    slots.close()
    examples = [(word, word) for word in WORDS[:5]]
    requests = {
        mark: with_tokens(dataclasses.replace(engine.read_examples(examples, "melon", adapter=adapter), max_tokens=12))
        for mark, adapter in versions.items()
    }
    alone_ = {mark: alone(engine, request) for mark, request in requests.items()}
    assert alone_["old"].answer != alone_["new"].answer
    with running(model, adapter_slots=1) as worker:
        maybe_broken(worker)
        for mark in ("old", "new", "old", "new"):
            for report in together(worker, engine, [requests[mark]] * 3):
                assert_same(report, alone_[mark])
        assert worker.load().prefix_hits > 0
        held = {key[0] for key in worker.prefixes._entries}
        assert held == {adapter.identity for adapter in versions.values()}


def test_training_together_is_training_alone(model: LanguageModel, requests: list[Request]) -> None:
    engine = engine_for(model)
    some = [request for request in requests if request.policy == "always" and request.examples][:9]
    by_themselves = [run_alone(model, engine.priming(request)) for request in some]
    with running(model, training_sets=4) as worker:
        from acclimate.serve.worker import Ticket

        tickets: list[Ticket[Adapter]] = []
        for request in some:
            ticket: Ticket[Adapter] = Ticket()
            tickets.append(worker.submit(ticket, lambda request=request: engine.priming(request)))  # type: ignore[misc]
        side_by_side = [ticket.result.result(timeout=TIMEOUT_S) for ticket in tickets]
        assert worker.load().passes["train"] < sum(len(adapter.losses) for adapter in side_by_side)
    for one, other in zip(by_themselves, side_by_side, strict=True):
        assert len(one.losses) == len(other.losses)
        assert one.losses == pytest.approx(other.losses, abs=1e-3)
        for name, (down, up) in one.weights.items():
            assert (down - other.weights[name][0]).abs().max() < 5e-3
            assert (up - other.weights[name][1]).abs().max() < 5e-3

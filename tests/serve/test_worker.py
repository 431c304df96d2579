"""The thread that owns a network: queues, deadlines, cancellation, fair shares, failures, and its end."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest
import torch

from acclimate.errors import CancelledError, ConfigError, DataError
from acclimate.language import AdapterManager, Engine, LanguageModel
from acclimate.language.steps import Generate
from acclimate.language.training.memory import RequestMemory
from acclimate.language.work import Request
from acclimate.serve.worker import BusyError, DeadlineError, Limits, Ticket, Worker, WorkerDiedError
from tests.language.models import digest, small, spark
from tests.serve.running import TIMEOUT_S, WORDS, alone, running, submitted, together

TAGGED = [(word, f"<q>{word}</q>") for word in WORDS[:8]]


def plain(engine: Engine, text: str = "apple", tokens: int = 8) -> Request:
    return dataclasses.replace(engine.read_prompt(text), max_tokens=tokens)


def test_requests_of_all_kinds_end_as_they_do_alone() -> None:
    model = spark()
    before = digest(model)
    requests = [
        Engine(model).read_examples(TAGGED, "melon"),
        Engine(model).read_examples([(word, word.upper()) for word in WORDS[:6]], "melon"),
        dataclasses.replace(Engine(model).read_examples(TAGGED, "plant"), compare=True),
        dataclasses.replace(Engine(model).read_examples(TAGGED, "plant"), policy="never"),
        Engine(model).read_examples(TAGGED[:1], "melon"),
        plain(Engine(model)),
    ]
    expected = [alone(Engine(model), request) for request in requests]
    with running(model) as worker:
        found = together(worker, Engine(model, cache=AdapterManager(8)), requests)
    for one, other in zip(found, expected, strict=True):
        assert (one.answer, one.status, one.reason, one.ttt_answer) == (
            other.answer,
            other.status,
            other.reason,
            other.ttt_answer,
        )
        assert one.seconds["total"] > 0
    assert {report.status for report in found} == {"adapted", "declined", "plain"}
    assert digest(model) == before


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    model = small()
    engine = Engine(model)
    with running(model, max_running=1, max_waiting=2) as worker, model.lock:
        # Nothing can be passed while this thread holds the model.
        tickets = []
        for _ in range(3):
            tickets.append(submitted(worker, engine, plain(engine)))
        with pytest.raises(BusyError, match="no more may") as refused:
            submitted(worker, engine, plain(engine))
        assert refused.value.retry_after_s >= 1
    assert all(ticket.result.result(timeout=TIMEOUT_S).answer is not None for ticket in tickets)


def test_deadlines_end_waiting_training_and_generating() -> None:
    model = spark()
    engine = Engine(model)
    with running(model) as worker:
        long = dataclasses.replace(plain(engine, tokens=900), sampling=_never_ending())
        with model.lock:
            late = submitted(worker, engine, plain(engine), deadline_s=0.0)
            later = submitted(worker, engine, long, deadline_s=0.3)
            training = submitted(worker, engine, engine.read_examples(TAGGED, "melon"), deadline_s=0.05)
            time.sleep(0.1)
        for ticket in (late, later, training):
            with pytest.raises(DeadlineError):
                ticket.result.result(timeout=TIMEOUT_S)
        assert together(worker, engine, [plain(engine)])[0].status == "plain"


def _never_ending() -> Any:
    from acclimate.language.models.decoding import Sampling

    return Sampling(temperature=50.0)


def test_giving_up_ends_a_request_within_a_token() -> None:
    model = spark()
    engine = Engine(model)
    with running(model) as worker:
        texts: list[str] = []
        long = dataclasses.replace(plain(engine, tokens=900), sampling=_never_ending(), on_text=texts.append)
        ticket = submitted(worker, engine, long)
        _until(lambda: len(texts) > 3)
        ticket.give_up()
        with pytest.raises(CancelledError):
            ticket.result.result(timeout=TIMEOUT_S)
        seen = len(texts)
        time.sleep(0.05)
        assert len(texts) == seen
        assert worker.load().generating == 0


def test_a_budget_that_is_spent_by_the_request_itself_falls_back() -> None:
    model = spark()
    engine = Engine(model, max_seconds=0.0)
    with running(model) as worker:
        (report,) = together(worker, engine, [engine.read_examples(TAGGED, "melon")])
    assert (report.status, report.reason) == ("fallback", "timeout")


def test_owners_take_turns() -> None:
    model = small()
    engine = Engine(model)
    order: list[str] = []
    with running(model, max_running=1) as worker:
        with model.lock:
            tickets = [submitted(worker, engine, plain(engine), owner="many") for _ in range(6)]
            tickets += [submitted(worker, engine, plain(engine), owner="few") for _ in range(2)]
            for ticket, name in zip(tickets, ["many"] * 6 + ["few"] * 2, strict=True):
                ticket.result.add_done_callback(lambda _future, name=name: order.append(name))  # type: ignore[misc]
        for ticket in tickets:
            ticket.result.result(timeout=TIMEOUT_S)
    # The two of the owner with few requests do not wait for all of the other's.
    assert order.index("few") <= 2
    assert "few" in order[2:5]


def test_of_those_that_train_the_same_one_does() -> None:
    model = spark()
    engine = Engine(model, cache=AdapterManager(4))
    request = dataclasses.replace(engine.read_examples(TAGGED, "melon"), policy="always")
    key = engine.adapter_key(request)
    assert key is not None
    with running(model) as worker:
        with model.lock:
            tickets = [submitted(worker, engine, request, trains=key, owner=str(n)) for n in range(5)]
            other = submitted(worker, engine, dataclasses.replace(plain(engine), policy="never"), is_quick=True)
        reports = [ticket.result.result(timeout=TIMEOUT_S) for ticket in tickets]
        assert other.result.result(timeout=TIMEOUT_S).status == "plain"
    assert [report.answer for report in reports] == ["<q>melon</q>"] * 5
    assert sorted(report.cached for report in reports) == [False, *[True] * 4]
    assert engine.adapter_key(plain(engine)) is None


def test_an_answer_goes_on_while_others_train() -> None:
    model = spark()
    engine = Engine(model)
    with running(model, adapting_share=0.5) as worker:
        training = [
            submitted(worker, engine, dataclasses.replace(engine.read_examples(examples, "melon"), policy="always"))
            for examples in ([(word, f"{mark}{word}") for word in WORDS[:8]] for mark in "abcd")
        ]
        _until(lambda: worker.load().passes.get("train", 0) > 0)
        quick = submitted(worker, engine, plain(engine, tokens=4), is_quick=True)
        quick.result.result(timeout=TIMEOUT_S)
        assert not all(ticket.result.done() for ticket in training)
        for ticket in training:
            ticket.result.result(timeout=TIMEOUT_S)


def test_closing_finishes_what_was_begun_and_refuses_the_rest() -> None:
    model = spark()
    engine = Engine(model)
    worker = Worker(model)
    worker.start()
    tickets = [submitted(worker, engine, plain(engine, tokens=32)) for _ in range(5)]
    assert worker.close(timeout_s=TIMEOUT_S)
    assert all(ticket.result.done() and ticket.result.exception() is None for ticket in tickets)
    with pytest.raises(BusyError, match="shutting down"):
        submitted(worker, engine, plain(engine))
    assert not worker.is_alive
    assert not any(module._forward_hooks for module in model.network.modules())


def test_closing_gives_up_what_takes_too_long() -> None:
    model = spark()
    engine = Engine(model)
    worker = Worker(model)
    worker.start()
    long = dataclasses.replace(plain(engine, tokens=900), sampling=_never_ending())
    ticket = submitted(worker, engine, long)
    assert not worker.close(timeout_s=0.05)
    with pytest.raises(BusyError, match="shutting down"):
        ticket.result.result(timeout=TIMEOUT_S)


def test_closing_tells_those_that_wait_and_removes_the_hooks_in_the_end() -> None:
    model = spark()
    engine = Engine(model)
    worker = Worker(model, Limits(max_running=1))
    worker.start()
    long = dataclasses.replace(plain(engine, tokens=900), sampling=_never_ending())
    tickets = [submitted(worker, engine, long) for _ in range(4)]
    assert not worker.close(timeout_s=0.05)
    for ticket in tickets:
        with pytest.raises(BusyError, match="shutting down"):
            ticket.result.result(timeout=TIMEOUT_S)
    _until(lambda: not worker._thread.is_alive())
    assert not any(module._forward_hooks for module in model.network.modules())


def test_a_worker_that_fails_is_replaced_and_in_the_end_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    engine = Engine(model)
    worker = Worker(model)
    broken = threading.Event()
    work = worker._work

    def fails() -> None:
        if broken.is_set():
            raise SystemError("a bug in the worker")
        work()

    monkeypatch.setattr(worker, "_work", fails)
    worker.start()
    for restart in range(4):
        broken.set()
        ticket = submitted(worker, engine, plain(engine))
        with pytest.raises(WorkerDiedError):
            ticket.result.result(timeout=TIMEOUT_S)
        broken.clear()
        if restart < 3:
            assert submitted(worker, engine, plain(engine)).result.result(timeout=TIMEOUT_S).status == "plain"
            assert worker.is_alive
    _until(lambda: not worker.is_alive)
    with pytest.raises(WorkerDiedError):
        submitted(worker, engine, plain(engine))
    assert worker.load().restarts == 3
    worker.close()


def test_what_a_request_raises_is_its_result_alone() -> None:
    model = small()
    engine = Engine(model)
    with running(model) as worker:
        too_long = dataclasses.replace(plain(engine), query="apple " * 400)
        bad, good = submitted(worker, engine, too_long), submitted(worker, engine, plain(engine))
        with pytest.raises(DataError, match="tokens"):
            bad.result.result(timeout=TIMEOUT_S)
        assert good.result.result(timeout=TIMEOUT_S).status == "plain"


def test_training_that_fails_together_is_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from acclimate.serve import worker as worker_module

    class Fails(worker_module.Training):
        def step(self) -> None:
            if len(self._jobs) > 1:
                raise MemoryError("can't allocate memory")
            super().step()

    monkeypatch.setattr(worker_module, "Training", Fails)
    model = spark()
    engine = Engine(model)
    requests = [
        dataclasses.replace(engine.read_examples([(w, f"{n}{w}") for w in WORDS[:5]], "melon"), policy="always")
        for n in range(3)
    ]
    with running(model) as worker:
        with model.lock:
            tickets = [submitted(worker, engine, request) for request in requests]
        reports = [ticket.result.result(timeout=TIMEOUT_S) for ticket in tickets]
    assert [report.status for report in reports] == ["adapted"] * 3


def test_a_model_that_cannot_share_passes_is_served_one_by_one() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=160, state_size=8)
    network = transformers.MambaForCausalLM(config).eval().requires_grad_(False)
    model: LanguageModel = dataclasses.replace(small(), network=network)
    engine = Engine(model)
    with running(model) as worker:
        assert worker.runs_alone is not None
        reports = together(worker, engine, [plain(engine), plain(engine, "river")])
        assert worker.load().passes["alone"] == 2
    assert [report.status for report in reports] == ["plain", "plain"]


@pytest.mark.parametrize("bad", [{"max_rows": 0}, {"max_waiting": -1}, {"adapting_share": 1.0}, {"training_sets": 0}])
def test_limits_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Limits(**bad)


def test_a_ticket_is_charged_with_what_it_costs() -> None:
    ticket: Ticket[None] = Ticket()
    with ticket.inside():
        time.sleep(0.02)
        assert ticket.clock() > 0.015
    assert 0.015 < ticket.charged_s < 1
    assert Generate(prompts=[(1,)], max_tokens=1, memory=RequestMemory()).adapter is None


def _until(condition: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)

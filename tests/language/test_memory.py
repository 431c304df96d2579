"""What a request holds is counted from its tensors, and its limit is its own."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from acclimate.core.budget import Budget
from acclimate.language import Engine, StopReason, as_examples, cross_fit, train
from acclimate.language.models.generate import generate
from acclimate.language.training.memory import Activations, OverLimitError, RequestMemory, training_bytes
from tests.language.models import digest, small

EXAMPLES = as_examples([("ab", "ba"), ("cd", "dc"), ("efg", "gfe"), ("hi", "ih"), ("jkl", "lkj")])
MANY = as_examples([(f"ab{i}cdefgh", f"{i}hgfedcba") for i in range(8)])


def test_parts_add_up_and_the_peak_stays() -> None:
    memory = RequestMemory()
    memory.set("one", 100)
    memory.set("one", 60)
    with memory.holding("two", 50):
        assert memory.held_bytes == 110
    assert (memory.held_bytes, memory.peak_bytes) == (60, 110)


def test_what_autograd_saves_is_measured_once_for_each_shape_and_storage() -> None:
    memory, layer = RequestMemory(), torch.nn.Linear(4, 4)
    activations = Activations(memory, None)
    x = torch.ones(10, 4)
    with activations.measured(layer, (10, 4)):
        # Saved: the input, once although two operations want it, and the output of exp.
        (layer(x) + layer(x)).exp().sum().backward()
    assert memory.held_bytes == 2 * 10 * 4 * 4
    with activations.measured(layer, (10, 4)):
        (layer(x).exp() + layer(x).tanh()).sum().backward()
    assert memory.held_bytes == 2 * 10 * 4 * 4


def test_a_forward_pass_ends_before_it_takes_more_than_the_limit() -> None:
    layer, ran = torch.nn.Linear(4, 4), []
    activations = Activations(RequestMemory(), 400)
    x = torch.ones(10, 4, requires_grad=True)

    def run() -> None:
        state = x
        for step in range(100):
            state = layer(state).tanh()
            ran.append(step)

    with pytest.raises(OverLimitError), activations.measured(layer, (10, 4)):
        run()
    assert len(ran) == 1


@pytest.mark.parametrize(
    "settings", [{}, {"share_adapted": 1.0, "context_share": 0.5, "initial_weights": "first_gradient"}]
)
def test_measuring_changes_nothing_and_the_limit_is_exact(settings: dict[str, object]) -> None:
    model = small()
    recipe = dataclasses.replace(model.recipe, **settings)  # type: ignore[arg-type]
    before = digest(model)
    adapter = train(model, [EXAMPLES], recipe)
    count = sum(part.numel() for pair in adapter.weights.values() for part in pair)
    assert adapter.peak_bytes > training_bytes(count, torch.float32)
    enough = train(model, [EXAMPLES], recipe, budget=Budget(max_bytes=adapter.peak_bytes))
    assert enough.stop is StopReason.FINISHED
    assert enough.losses == pytest.approx(adapter.losses, rel=1e-4)
    short = train(model, [EXAMPLES], recipe, budget=Budget(max_bytes=adapter.peak_bytes - 1))
    assert short.stop is StopReason.MEMORY_BUDGET
    assert len(short.losses) <= 1
    assert short.peak_bytes <= adapter.peak_bytes
    assert digest(model) == before
    assert not any(module._forward_hooks for module in model.network.modules())


def test_more_examples_take_more() -> None:
    model = small()
    assert train(model, [MANY], model.recipe).peak_bytes > 1.5 * train(model, [MANY[:3]], model.recipe).peak_bytes


def test_a_neighbour_does_not_count() -> None:
    model, recipe = small(), small().recipe
    alone = train(model, [EXAMPLES], recipe).peak_bytes
    stop, taken = threading.Event(), []

    def take() -> None:
        while not stop.is_set():
            taken.append(torch.ones(2**18))
            if len(taken) > 100:
                taken.clear()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        adapter = train(model, [EXAMPLES], recipe, budget=Budget(max_bytes=alone))
    finally:
        stop.set()
        thread.join()
    assert adapter.stop is StopReason.FINISHED
    assert adapter.peak_bytes == alone


def test_all_parts_of_a_request_share_its_limit() -> None:
    model = small()
    memory = RequestMemory()
    _, adapter = cross_fit(model, EXAMPLES, model.recipe, memory=memory)
    assert memory.held_bytes == 0
    assert memory.peak_bytes >= adapter.peak_bytes
    held = RequestMemory()
    held.set("adapters", 10**9)
    refused = train(model, [EXAMPLES], model.recipe, budget=Budget(max_bytes=10**9), memory=held)
    assert refused.stop is StopReason.MEMORY_BUDGET


def test_key_value_caches_count() -> None:
    model, memory = small(), RequestMemory()
    generate(model, [[3, 4, 5, 6]] * 2, max_tokens=1, memory=memory)
    # Keys and values of four layers, two rows and two heads of width 16, for four tokens or five.
    one_token = 2 * 4 * 2 * 2 * 16 * 4
    assert memory.peak_bytes in (4 * one_token, 5 * one_token)
    assert memory.held_bytes == 0


def test_a_request_reports_the_same_peak_every_time() -> None:
    model = small()
    peaks = {Engine(model, max_answer_tokens=4).answer(EXAMPLES, "ab", policy="always").peak_bytes for _ in range(3)}
    assert len(peaks) == 1
    assert peaks.pop() > 0

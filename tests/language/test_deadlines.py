"""A limit on seconds holds for the whole request, and is looked at inside passes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from acclimate.core.budget import Budget
from acclimate.language import Engine, LanguageModel, StopReason, train
from acclimate.language.models.deadlines import Deadline, OutOfTimeError, Pace
from acclimate.language.models.generate import generate
from tests.language.models import digest, small

PROMPT = "Mark it.\n" + "".join(f"{w} -> <q>{w}</q>\n" for w in ("stone", "lamp", "river", "cabin")) + "melon ->"
LAYER_S = 0.03


class Waited:
    """What layers waited for, in seconds: on a busy machine less than the time that passed, and never more."""

    def __init__(self, seconds: float, *, really: bool) -> None:
        self.seconds, self.really, self.total_s = seconds, really, 0.0

    def wait(self, *_: object) -> None:
        self.total_s += self.seconds
        if self.really:
            time.sleep(self.seconds)

    def __call__(self) -> float:
        """As a clock: only layers take time."""
        return self.total_s


@contextmanager
def slow(model: LanguageModel, seconds: float = LAYER_S, *, really: bool = True) -> Iterator[Waited]:
    """Let every layer of the model take longer, there and back; or let only the clock that this yields go on."""
    waited = Waited(seconds, really=really)

    def wait(_layer: object, _given: object, output: object) -> None:
        waited.wait()
        state = output if isinstance(output, torch.Tensor) else output[0]  # type: ignore[index]
        if state.requires_grad:
            state.register_hook(waited.wait)

    # What is built at the first use of a model is not what is measured.
    model.decoder(model.recipe.share_adapted)
    handles = [layer.register_forward_hook(wait) for layer in model.decoder(1.0).layers or ()]
    try:
        yield waited
    finally:
        for handle in handles:
            handle.remove()


class Ticks:
    """A clock that goes on by one each time that it is asked."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_a_deadline_is_looked_at_before_every_layer_there_and_back() -> None:
    model, ticks = small(), Ticks()
    tokens = torch.arange(3, 20)[None]
    embedded = model.network.get_input_embeddings()(tokens).requires_grad_()
    with Deadline(1e9, ticks).inside(model.network):
        loss = model.network(inputs_embeds=embedded).logits.sum()
        forward = ticks.now
        loss.backward()
    assert (forward, ticks.now) == (1 + 4, 1 + 8)
    for limit, at_least in ((3.5, 3), (6.5, 6)):
        late = Ticks()
        with pytest.raises(OutOfTimeError), Deadline(limit, late).inside(model.network):
            model.network(inputs_embeds=embedded).logits.sum().backward()
        assert late.now >= at_least
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())


def test_what_is_known_of_the_pace_says_how_long_an_answer_takes() -> None:
    pace = Pace()
    assert pace.answer_s(100, 10) == 0
    pace.read(10, 5.0)
    assert pace.answer_s(100, 10) == 0
    pace.read(200, 2.0)
    assert pace.answer_s(100, 10) == pytest.approx(1.0 + 10 * 16 * 0.01)
    pace.generated(10, 0.5)
    assert pace.answer_s(100, 10) == pytest.approx(1.5)


def test_training_ends_inside_a_step() -> None:
    model = small()
    examples = Engine(model).read_prompt(PROMPT).examples
    before = digest(model)
    with slow(model) as waited:
        adapter = train(model, [examples], model.recipe, budget=Budget(max_seconds=3 * LAYER_S))
    assert (adapter.stop, adapter.losses) == (StopReason.TIME_BUDGET, ())
    assert waited.total_s < 5 * LAYER_S
    assert digest(model) == before


def test_answers_end_at_the_deadline() -> None:
    model = small()
    prompt = model.encoder.text_tokens("some text")
    with slow(model, really=False) as clock:
        (unread,) = generate(model, [prompt], max_tokens=50, deadline=Deadline(2 * LAYER_S, clock))
        (cut,) = generate(model, [prompt], max_tokens=50, open_ended=True, deadline=Deadline(11 * LAYER_S, clock))
    assert (unread.tokens, unread.complete) == (0, False)
    assert (0 < cut.tokens < 10, cut.complete) == (True, False)


@pytest.mark.parametrize("policy", ["gate", "always", "never"])
@pytest.mark.parametrize("limit", [0.2, 0.8])
def test_a_limit_holds_for_the_whole_request(policy: str, limit: float) -> None:
    model = small(steps=30)
    with slow(model) as waited:
        report = Engine(model, max_seconds=limit).ask(PROMPT, policy=policy)  # type: ignore[arg-type]
    assert waited.total_s < 1.1 * limit + LAYER_S
    if policy != "never":
        assert (report.status, report.reason) == ("fallback", "timeout")
    if report.complete or report.metadata.fallback_reason is None:
        return
    assert report.out_of_time == any("time limit" in warning for warning in report.warnings)


def test_there_is_time_left_to_answer() -> None:
    model = small(steps=200)
    with slow(model, 0.005):
        # After a first answer it is known what passes take: adapting ends early enough to read and to generate.
        Engine(model, max_answer_tokens=4).ask(PROMPT, policy="never")
        report = Engine(model, max_seconds=1.5, max_answer_tokens=4).ask(PROMPT)
    assert (report.reason, report.out_of_time, report.answer_tokens) == ("timeout", False, 4)

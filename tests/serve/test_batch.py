"""Rows that join and leave, read in pieces, with and without adapters: each answer is the one it is alone."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
import torch

from acclimate.errors import SessionError
from acclimate.language import LanguageModel
from acclimate.language.models.decoding import Answer, Sampling
from acclimate.language.steps import Generate, generated_alone
from acclimate.language.training.memory import RequestMemory
from acclimate.serve import batch as batch_module
from acclimate.serve.batch import Batch, Generation, Row, complete, generation_of, why_not
from acclimate.serve.prefixes import PrefixCache
from acclimate.serve.slots import AdapterSlots
from tests.language.models import digest, small, spark
from tests.serve.running import TIE_NATS

KINDS = ("llama", "gpt2", "gemma", "neox")


def assert_same_answers(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one.chosen, other.chosen, strict=False):
            assert abs(mine.log_probability - theirs.log_probability) < 1e-2
            if mine.token != theirs.token:
                assert theirs.alternatives[0][1] - theirs.alternatives[1][1] < TIE_NATS
                break
        else:
            assert one.text == other.text


def steps(model: LanguageModel, slots: AdapterSlots, count: int, *, seed: int = 0) -> list[Generate]:
    rng = random.Random(seed)
    known = [None, *(slots.random_adapter(seed=number) for number in range(3))]
    shared = tuple(rng.randrange(5, 150) for _ in range(20))
    found = []
    for _ in range(count):
        beginning = shared if rng.random() < 0.5 else ()
        tokens = (*beginning, *(rng.randrange(5, 150) for _ in range(rng.choice([3, 12, 40, 150]))))
        found.append(
            Generate(
                prompts=[tokens] * rng.choice([1, 1, 2]),
                max_tokens=rng.randrange(1, 12),
                memory=RequestMemory(),
                adapter=rng.choice(known),
                shared_tokens=len(beginning),
                open_ended=True,
                sampling=Sampling(alternatives=2),
            )
        )
    return found


@pytest.mark.parametrize("kind", [*KINDS, "spark"])
def test_rows_that_join_and_leave_answer_as_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small pieces, so that prompts are read in several.
    monkeypatch.setattr(batch_module, "_MOST_PROMPT_TOKENS", 48)
    model = spark() if kind == "spark" else small(kind)
    before = digest(model)
    slots = AdapterSlots(model, 3)
    prefixes = PrefixCache(2**20)
    batch = Batch(model, slots, prefixes, max_rows=6, max_bytes=2**30)
    waiting = [generation_of(model, step, number) for number, step in enumerate(steps(model, slots, 24))]
    ended: dict[int, list[Answer]] = {}
    rng = random.Random(1)
    while waiting or len(batch):
        while waiting and batch.can_join(waiting[0]) and rng.random() < 0.7:
            assert batch.join(waiting[0])
            del waiting[0]
        done: list[Generation] = []
        if batch.reading:
            done += batch.read()
        if batch.generating:
            done += batch.generate()
        ended |= {generation.owner: generation.answers() for generation in done}
    slots.close()
    assert len(ended) == 24
    assert prefixes.hits > 3
    for number, step in enumerate(steps_again(model)):
        assert_same_answers(ended[number], generated_alone(model, step))
    assert digest(model) == before


def steps_again(model: LanguageModel) -> list[Generate]:
    slots = AdapterSlots(model, 3)
    try:
        return steps(model, slots, 24)
    finally:
        slots.close()


def test_sampled_answers_do_not_depend_on_what_is_asked_beside_them() -> None:
    model = spark()
    slots = AdapterSlots(model, 2)
    batch = Batch(model, slots, PrefixCache(0), max_rows=8, max_bytes=2**30)
    step = Generate(
        prompts=[tuple(range(5, 15))],
        max_tokens=10,
        memory=RequestMemory(),
        open_ended=True,
        sampling=Sampling(temperature=1.5, top_p=0.9, seed=3),
    )
    other = dataclasses.replace(step, prompts=[(9, 8, 7)], sampling=Sampling(temperature=1.5, seed=4))
    together = [generation_of(model, each) for each in (step, other, step)]
    complete(batch, together)
    slots.close()
    (one,), (apart,), (again,) = (generation.answers() for generation in together)
    assert one.text == again.text == generated_alone(model, step)[0].text
    assert apart.text != one.text


def test_a_row_that_cannot_be_passed_fails_alone() -> None:
    model = small()
    slots = AdapterSlots(model, 1)
    batch = Batch(model, slots, PrefixCache(0), max_rows=8, max_bytes=2**30)
    generations = [
        generation_of(model, Generate(prompts=[(n + 5, 6, 7)], max_tokens=4, memory=RequestMemory(), open_ended=True))
        for n in range(4)
    ]

    def fails(rows: Sequence[Row]) -> None:
        if any(row.tokens[0] == 6 for row in rows):
            raise RuntimeError("a kernel failed")

    batch.before_pass = fails
    complete(batch, generations)
    slots.close()
    assert [len(g.answers()) for n, g in enumerate(generations) if n != 1] == [1, 1, 1]
    with pytest.raises(RuntimeError, match="a kernel failed"):
        generations[1].answers()


def test_rows_are_admitted_by_what_they_will_hold() -> None:
    model = small()
    slots = AdapterSlots(model, 1)
    step = Generate(prompts=[(5,) * 10], max_tokens=10, memory=RequestMemory(), open_ended=True)
    probe = Batch(model, slots, PrefixCache(0), max_rows=9, max_bytes=2**40)
    complete(probe, [generation_of(model, step)])
    token_bytes = probe._key_values.token_bytes
    batch = Batch(model, slots, PrefixCache(0), max_rows=9, max_bytes=2 * 20 * token_bytes)
    for fits in (True, True, False):
        assert batch.can_join(generation_of(model, step)) is fits
        if fits:
            batch.join(generation_of(model, step))
            batch.read()
    slots.close()


def test_models_that_cannot_share_passes_are_known() -> None:
    import transformers

    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=160, state_size=8)
    torch.manual_seed(0)
    recurrent = dataclasses.replace(small(), network=transformers.MambaForCausalLM(config).eval())
    reason = why_not(recurrent)
    assert reason is not None
    assert "Mamba" in reason
    assert why_not(small()) is None


def test_what_goes_wrong_while_a_token_is_chosen_belongs_to_its_row() -> None:
    model = small()
    slots = AdapterSlots(model, 1)
    batch = Batch(model, slots, PrefixCache(0), max_rows=8, max_bytes=2**30)

    def leaves(_text: str) -> None:
        raise RuntimeError("the loop is closed")

    step = Generate(prompts=[(5, 6, 7)], max_tokens=6, memory=RequestMemory(), open_ended=True)
    told = dataclasses.replace(step, on_text=leaves, sampling=Sampling(temperature=2.0))
    poisoned = slots.random_adapter(seed=0, size=1e30)
    overflows = dataclasses.replace(step, adapter=poisoned, sampling=Sampling(temperature=1.0))
    generations = [generation_of(model, each) for each in (step, told, overflows, step)]
    complete(batch, generations)
    slots.close()
    assert generations[0].answers()[0].text == generations[3].answers()[0].text
    with pytest.raises(RuntimeError, match="the loop is closed"):
        generations[1].answers()
    with pytest.raises(SessionError, match="not finite"):
        generations[2].answers()

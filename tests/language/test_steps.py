"""Several sets of answers in the same passes."""

from __future__ import annotations

import dataclasses

import pytest

from acclimate.language import Adapter, LanguageModel, as_examples, train
from acclimate.language.models.decoding import Answer
from acclimate.language.steps import Generate, generated_alone, generated_together
from acclimate.language.training.memory import RequestMemory
from tests.language.models import digest, small

EXAMPLES = as_examples([("ab", "ba"), ("cd", "dc"), ("efg", "gfe"), ("hi", "ih")])


def prompts(model: LanguageModel, *orders: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [model.encoder.row([EXAMPLES[i] for i in order], query="kl").tokens for order in orders]


def trained(model: LanguageModel, seed: int = 0, rank: int = 4) -> Adapter:
    recipe = dataclasses.replace(model.recipe, steps=8, learning_rate=5e-2, seed=seed, rank=rank, early_stop_loss=1e-9)
    return train(model, [EXAMPLES], recipe)


def steps_of(model: LanguageModel, adapters: tuple[Adapter | None, ...]) -> tuple[Generate, ...]:
    memory = RequestMemory()
    orders = ((0, 1, 2, 3), (3, 1, 0, 2)), ((0, 1, 2, 3),), ((2, 0, 1, 3),)
    return tuple(
        Generate(prompts=prompts(model, *orders[number]), max_tokens=6, memory=memory, adapter=adapter)
        for number, adapter in enumerate(adapters)
    )


def passes(model: LanguageModel) -> list[int]:
    """Return a list that gets the number of rows of each pass of the network."""
    found: list[int] = []
    model.network.register_forward_pre_hook(
        lambda _module, _inputs, given: found.append(len(given["input_ids"])), with_kwargs=True
    )
    return found


def alike(one: Answer, other: Answer) -> bool:
    return one.text == other.text and one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma", "neox"])
def test_answers_of_several_adapters_and_of_the_base_model_share_passes(kind: str) -> None:
    model = small(kind)
    first, second = trained(model), trained(model, seed=3, rank=2)
    before = digest(model)
    wanted = steps_of(model, (first, None, second))
    alone = [generated_alone(model, step) for step in wanted]
    made = passes(model)
    together = generated_together(model, wanted)
    assert set(made) == {4}, "two orders, and one each"
    assert [len(answers) for answers in together] == [2, 1, 1]
    for some, others in zip(together, alone, strict=True):
        assert all(alike(one, other) for one, other in zip(some, others, strict=True))
    assert alone[0][0].text != alone[1][0].text, "the adapter changes the answer"
    assert digest(model) == before


def test_steps_that_differ_in_more_than_prompts_and_adapter_are_made_one_after_the_other() -> None:
    model = small()
    adapter = trained(model)
    both = steps_of(model, (adapter, None))
    told: list[str] = []
    for other in (
        dataclasses.replace(both[1], max_tokens=3),
        dataclasses.replace(both[1], on_text=told.append),
        dataclasses.replace(both[1], prompts=[both[1].prompts[0][1:]]),
        dataclasses.replace(both[1], memory=RequestMemory()),
    ):
        alone = [generated_alone(model, step) for step in (both[0], other)]
        made = passes(model)
        together = generated_together(model, (both[0], other))
        assert set(made) == {2, 1}
        assert together == alone
    assert told


def test_without_an_adapter_nothing_is_packed() -> None:
    model = small()
    one, two = steps_of(model, (None, None))
    assert generated_together(model, (one, two)) == [generated_alone(model, one), generated_alone(model, two)]

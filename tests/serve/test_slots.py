"""Rows of one pass use the adapter of their slot, and nothing of any other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import CheckpointError, TTTNotSupportedError
from acclimate.language import Adapter, LanguageModel
from acclimate.serve.slots import AdapterSlots, OutOfSlotsError
from tests.language.models import digest, small


def adapters(model: LanguageModel, count: int) -> list[Adapter]:
    slots = AdapterSlots(model, 1)
    try:
        return [slots.random_adapter(seed=seed) for seed in range(count)]
    finally:
        slots.close()


def hidden(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.network(input_ids=tokens, use_cache=False).logits
    return found


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_row_is_what_it_is_with_its_adapter_alone(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["llama", "gpt2", "neox"]))
    model = small(kind)
    before = digest(model)
    known = adapters(model, 5)
    rows = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=7))
    length = data.draw(st.sampled_from([1, 2, 9]))
    tokens = torch.randint(1, 150, (len(rows), length), generator=torch.Generator().manual_seed(7))
    slots = AdapterSlots(model, 5)
    try:
        found = {number: slots.acquire(known[number - 1].identity, known[number - 1]) for number in set(rows) if number}
        with slots.rows([found.get(number, 0) for number in rows]):
            together = hidden(model, tokens)
        outside = hidden(model, tokens)
    finally:
        slots.close()
    for row, number in enumerate(rows):
        alone = hidden(model, tokens[row : row + 1])
        assert torch.allclose(outside[row], alone[0], atol=1e-4)
        if number:
            with known[number - 1].installed(model.network):
                alone = hidden(model, tokens[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-3 * float(alone.abs().max()))
    assert digest(model) == before
    assert not any(module._forward_hooks for module in model.network.modules())


def test_slots_that_nobody_uses_are_written_over_and_others_are_not() -> None:
    model = small()
    one, two, three = adapters(model, 3)
    slots = AdapterSlots(model, 2)
    first = slots.acquire(one.identity, one)
    assert slots.acquire(one.identity, one) == first
    second = slots.acquire(two.identity, two)
    with pytest.raises(OutOfSlotsError):
        slots.acquire(three.identity, three)
    slots.release(one.identity)
    with pytest.raises(OutOfSlotsError):
        slots.acquire(three.identity, three)
    slots.release(one.identity)
    assert slots.in_use == 1
    assert slots.acquire(three.identity, three) == first != second
    assert slots.loads == 3
    slots.release(three.identity)
    slots.drop(three.identity)
    assert slots.acquire(one.identity, one) == first
    slots.close()


def test_a_larger_rank_is_made_room_for_and_leaves_nothing_behind() -> None:
    model = small()
    (narrow,) = adapters(model, 1)
    wide = dataclasses.replace(
        narrow,
        weights={name: (torch.cat([down] * 3), torch.cat([up] * 3, 1)) for name, (down, up) in narrow.weights.items()},
        rank=6,
        alpha=6.0,
        identity="wide",
    )
    tokens = torch.arange(1, 9)[None]
    slots = AdapterSlots(model, 1)
    for adapter in (narrow, wide, narrow):
        slot = slots.acquire(adapter.identity, adapter)
        with slots.rows([slot]):
            found = hidden(model, tokens)
        slots.release(adapter.identity)
        with adapter.installed(model.network):
            expected = hidden(model, tokens)
        assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))
    slots.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: dataclasses.replace(a, fingerprint="other"), "another model"),
        (lambda a: dataclasses.replace(a, weights={"nowhere": (torch.ones(2, 3), torch.ones(3, 2))}), "'nowhere'"),
        (lambda a: dataclasses.replace(a, copies=2), "does not fit"),
        (
            lambda a: dataclasses.replace(a, weights={n: (d, u * float("inf")) for n, (d, u) in a.weights.items()}),
            "not finite",
        ),
        (
            lambda a: dataclasses.replace(a, weights={n: (d[:, :5], u) for n, (d, u) in a.weights.items()}),
            "does not fit",
        ),
    ],
)
def test_adapters_that_cannot_be_served_are_refused_and_take_no_slot(change: object, said: str) -> None:
    model = small()
    (adapter,) = adapters(model, 1)
    slots = AdapterSlots(model, 1)
    with pytest.raises(CheckpointError, match=said):
        slots.acquire("bad", change(adapter))  # type: ignore[operator]
    assert slots.acquire(adapter.identity, adapter) == 1
    slots.close()


def test_a_layer_that_mixes_rows_is_refused() -> None:
    model = small()
    (adapter,) = adapters(model, 1)
    slots = AdapterSlots(model, 1)
    slot = slots.acquire(adapter.identity, adapter)
    layer = model.network.get_submodule(next(iter(adapter.weights)))
    with slots.rows([slot, slot]), pytest.raises(TTTNotSupportedError, match="one after the other"):
        layer(torch.ones(6, 32))
    slots.close()


def test_an_adapter_whose_products_overflow_hurts_itself_alone() -> None:
    model = small()
    (harmless,) = adapters(model, 1)
    huge = {name: (torch.full_like(down, 3e38), up) for name, (down, up) in harmless.weights.items()}
    overflowing = dataclasses.replace(harmless, weights=huge, identity="huge")
    tokens = torch.arange(1, 9)[None].repeat(3, 1)
    slots = AdapterSlots(model, 2)
    used = [slots.acquire("huge", overflowing), slots.acquire(harmless.identity, harmless), 0]
    for length in (1, 8):
        with slots.rows(used):
            together = hidden(model, tokens[:, :length])
        assert not together[0].isfinite().all()
        with slots.rows([used[1]]):
            alone = hidden(model, tokens[1:2, :length])
        assert torch.allclose(together[1], alone[0], atol=1e-3 * float(alone.abs().max()))
        assert torch.allclose(together[2], hidden(model, tokens[2:, :length])[0], atol=1e-4)
    slots.close()


def test_a_slot_that_could_not_be_written_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    one, two = adapters(model, 2)
    slots = AdapterSlots(model, 1)
    monkeypatch.setattr(slots, "_write", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(MemoryError):
        slots.acquire(one.identity, one)
    monkeypatch.undo()
    assert slots.acquire(two.identity, two) == 1
    slots.close()

"""What is kept of prompts: by adapter, within a limit; and where rows lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.serve.key_values import KeyValues, Stored
from acclimate.serve.prefixes import PrefixCache


def stored(tokens: int) -> Stored:
    return Stored([(torch.zeros(1, tokens, 2), torch.zeros(1, tokens, 2))], tokens)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from("ab"), st.lists(st.integers(0, 1), min_size=1, max_size=6), st.sampled_from(["put", "find"])
        ),
        max_size=40,
    )
)
def test_a_prefix_is_found_under_its_adapter_alone_and_the_limit_holds(
    steps: list[tuple[str, list[int], str]],
) -> None:
    limit = 8 * stored(1).held_bytes
    cache = PrefixCache(limit)
    everything: set[tuple[str, tuple[int, ...]]] = set()
    for identity, tokens, what in steps:
        if what == "put":
            cache.put(identity, tokens, stored(len(tokens)))
            everything.add((identity, tuple(tokens)))
            assert cache.has(identity, tokens)
        else:
            found = cache.find(identity, tokens)
            if found is not None:
                assert found.token_count < len(tokens)
                assert (identity, tuple(tokens[: found.token_count])) in everything
        assert cache.held_bytes <= limit
    cache.drop("a")
    assert cache.find("a", [0, 1, 0, 1]) is None
    cache.clear()
    assert (len(cache), cache.held_bytes) == (0, 0)


def test_the_longest_prefix_wins_and_the_oldest_goes_first() -> None:
    cache = PrefixCache(10 * stored(1).held_bytes)
    for tokens in ([1], [1, 2], [1, 2, 3]):
        cache.put("", tokens, stored(len(tokens)))
    found = cache.find("", [1, 2, 3, 4])
    assert found is not None
    assert found.token_count == 3
    # A whole prompt is no beginning: its last token has to be run.
    found = cache.find("", [1, 2, 3])
    assert found is not None
    assert found.token_count == 2
    cache.put("", [5] * 5, stored(5))
    assert not cache.has("", [1])
    assert cache.has("", [1, 2])
    cache.put("", [6] * 11, stored(11))
    assert not cache.has("", [6] * 11)
    assert (cache.hits, cache.misses) == (2, 0)


def test_rows_grow_shrink_move_and_keep_their_values() -> None:
    values = KeyValues(1, torch.device("cpu"))
    values.fit(2, 3)
    positions, seen = values.aim(0, [0, 0], 3)
    new = torch.arange(2 * 1 * 3 * 2, dtype=torch.float32).view(2, 1, 3, 2)
    values.cache.update(new, -new, 0)
    assert positions.tolist() == [[0, 1, 2]] * 2
    assert seen[0, 0, 1].tolist()[:4] == [True, True, False, False]
    values.fit(9, 200)
    assert values.columns >= 200
    values.move(1, 5, 3)
    values.swap(0, 5, 3)
    one, other = values.take(0, 3), values.take(5, 3)
    assert torch.equal(one.layers[0][0], new[1])
    assert torch.equal(other.layers[0][1], -new[0])
    values.fit(6, 3)
    assert values.columns < 200
    assert torch.equal(values.take(5, 3).layers[0][0], new[0])
    values.put(1, one)
    positions, seen = values.aim(1, [3], 1)
    keys, _ = values.cache.update(torch.full((1, 1, 1, 2), 9.0), torch.zeros(1, 1, 1, 2), 0)
    assert keys[0, 0, :4].tolist() == [*new[1][0].tolist(), [9.0, 9.0]]
    assert int(seen.sum()) == 4


def test_an_allocation_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = KeyValues(3, torch.device("cpu"))
    values.fit(1, 4)
    values.aim(0, [0], 4)
    for layer in range(3):
        values.cache.update(torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2), layer)
    third = values._layers[2]
    monkeypatch.setattr(third, "resized", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(MemoryError):
        values.fit(1, 100)
    monkeypatch.undo()
    assert {layer.keys.shape[2] for layer in values._layers} == {values.columns}
    values.fit(1, 100)
    assert {layer.keys.shape[2] for layer in values._layers} == {values.columns} == {128}

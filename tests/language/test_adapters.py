"""The cache of adapters: keys, limits, nearness."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch

from acclimate.errors import ConfigError
from acclimate.language import Adapter, AdapterManager, Recipe, as_examples
from acclimate.language.training.adapter_cache import adapter_key


def adapter(value: float = 0.0, size: int = 16, model: str = "m") -> Adapter:
    pair = (torch.full((1, size), value), torch.full((size, 1), value))
    return Adapter({"layer": pair}, 1, 1.0, 1, model, (), "finished", 0.0, 0.0, 0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = AdapterManager(max_cache_size=2)
    keys = [cache.put(adapter(v)) for v in (1.0, 2.0)]
    assert cache.get(keys[0]) is not None
    cache.put(adapter(3.0))
    assert cache.get(keys[1]) is None
    assert cache.get(keys[0]) is not None
    assert len(cache) == 2


def test_bytes_are_limited_too() -> None:
    one = adapter(1.0, size=1024)
    cache = AdapterManager(max_cache_size=9, max_bytes=2 * one.held_bytes)
    for value in (1.0, 2.0, 3.0):
        cache.put(adapter(value, size=1024))
    assert len(cache) == 2
    assert cache.held_bytes == 2 * one.held_bytes


def test_adapters_expire_after_their_last_use() -> None:
    clock = Clock()
    cache = AdapterManager(time_to_live_s=10, clock=clock)
    key = cache.put(adapter())
    clock.now = 9
    assert cache.get(key) is not None
    clock.now = 18
    assert cache.get(key) is not None
    clock.now = 29
    assert cache.get(key) is None
    assert len(cache) == 0


def test_cleaning_up_forgets() -> None:
    cache = AdapterManager()
    key = cache.put(adapter())
    cache.remove(key)
    cache.remove("never there")
    assert cache.get(key) is None
    cache.put(adapter())
    cache.clear()
    assert len(cache) == 0


def test_keys_depend_on_model_examples_order_and_settings() -> None:
    examples = as_examples([("a", "b"), ("c", "d")])
    recipe = Recipe()
    keys = {
        adapter_key("m", examples, recipe),
        adapter_key("n", examples, recipe),
        adapter_key("m", examples[::-1], recipe),
        adapter_key("m", as_examples([("a", "bc"), ("", "d")]), recipe),
        adapter_key("m", examples, dataclasses.replace(recipe, seed=1)),
    }
    assert len(keys) == 5
    assert adapter_key("m", examples, Recipe()) in keys


def test_the_nearest_task_comes_first_and_other_models_never() -> None:
    cache = AdapterManager()
    upper, tagged = as_examples([("ab", "AB"), ("cd", "CD")]), as_examples([("ab", "<ab>"), ("cd", "<cd>")])
    cache.put(adapter(1.0), examples=upper)
    cache.put(adapter(2.0), examples=tagged)
    cache.put(adapter(3.0, model="other"), examples=tagged)
    found = cache.nearest("m", as_examples([("xy", "<xy>")]))
    assert [seen for _, seen in found] == [tagged, upper]


@pytest.mark.parametrize("limit", [{"max_cache_size": -1}, {"max_bytes": -1}, {"time_to_live_s": -1.0}])
def test_negative_limits_are_refused(limit: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        AdapterManager(**limit)


def test_many_threads_may_share_it() -> None:
    cache = AdapterManager(max_cache_size=3)

    def work(start: int) -> None:
        for value in range(start, start + 50):
            key = cache.put(adapter(float(value)))
            cache.get(key)
            cache.remove(key)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 0

"""Saved adapters load in PEFT by themselves, have a rank that others take, and add up exactly."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path

import pytest
import torch

from acclimate.errors import DataError
from acclimate.language import Adapter, Engine, LanguageModel, as_examples, load, train
from acclimate.language.training.adapter import USUAL_MAX_RANK
from tests.language.architectures import saved
from tests.language.models import small, spark

EXAMPLES = as_examples([(word, word.upper()) for word in ("sun", "sea", "fox", "hen")])
OTHERS = as_examples([(word, word[::-1]) for word in ("star", "lake", "wolf", "crow")])
TOKENS = torch.randint(3, 150, (2, 11), generator=torch.Generator().manual_seed(1))


def logits(model: LanguageModel, adapter: Adapter) -> torch.Tensor:
    with torch.no_grad(), adapter.installed(model.network):
        found: torch.Tensor = model.network(input_ids=TOKENS).logits
    return found


def test_peft_loads_a_folder_by_itself(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load(saved("Qwen2", tmp_path / "model"), dtype=torch.float32)
    adapter = train(model, [EXAMPLES], dataclasses.replace(model.recipe, rank=8, steps=4, learning_rate=1e-2))
    adapter.save(tmp_path / "adapter", base_model=model.source)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", str(tmp_path / "model"))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "adapter").iterdir()}
    assert all(mode & stat.S_IRUSR and not mode & stat.S_IXUSR for mode in modes)
    plain = tmp_path / "plain"
    plain.write_text("")
    assert modes == {stat.S_IMODE(plain.stat().st_mode)}
    wrapped = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(wrapped(input_ids=TOKENS).logits, logits(model, adapter), atol=1e-5)


def test_a_rank_is_lowered_where_nothing_is_lost(tmp_path: Path) -> None:
    model = small()
    narrow = [train(model, [each], dataclasses.replace(model.recipe, rank=6)) for each in (EXAMPLES, OTHERS)]
    wide = Adapter.combined([*narrow, narrow[0]])
    wide.save(tmp_path / "narrow")
    again = Adapter.load(tmp_path / "narrow", model)
    assert (wide.rank, again.rank) == (18, USUAL_MAX_RANK)
    assert torch.allclose(logits(model, again), logits(model, wide), atol=1e-5)
    # One whose products have a higher rank is saved as it is.
    full = train(model, [EXAMPLES], dataclasses.replace(model.recipe, rank=24))
    full.save(tmp_path / "full")
    assert Adapter.load(tmp_path / "full", model).rank == 24


def test_adapters_add_up_exactly() -> None:
    model = small()
    one = train(model, [EXAMPLES], dataclasses.replace(model.recipe, rank=4, alpha=8.0))
    other = train(model, [OTHERS], dataclasses.replace(model.recipe, rank=2, share_adapted=1.0))
    both = Adapter.combined([one, other], [0.5, -2.0])
    assert both.rank == 6
    assert set(both.weights) == set(one.weights) | set(other.weights)
    for name, (down, up) in both.weights.items():
        expected = torch.zeros(len(up), down.shape[1])
        for adapter, weight in ((one, 0.5), (other, -2.0)):
            if name in adapter.weights:
                inner, outer = adapter.weights[name]
                expected += weight * adapter.alpha / adapter.rank * outer @ inner
        assert torch.allclose(both.alpha / both.rank * up @ down, expected, atol=1e-6)
    assert torch.allclose(logits(model, Adapter.combined([one])), logits(model, one), atol=1e-6)
    assert torch.equal(
        Adapter.combined([one, other]).weights[next(iter(one.weights))][0][:4], one.weights[next(iter(one.weights))][0]
    )


@pytest.mark.parametrize(
    ("weights", "said"), [([1.0], "one weight for each"), ([1.0, float("nan")], "finite"), ([], "one weight for each")]
)
def test_weights_that_do_not_fit_are_refused(weights: list[float], said: str) -> None:
    adapter = Adapter.of_weights({"a": (torch.ones(1, 2), torch.ones(2, 1))}, rank=1, fingerprint="m")
    with pytest.raises(DataError, match=said):
        Adapter.combined([adapter, adapter], weights)
    with pytest.raises(DataError, match="different models"):
        Adapter.combined([adapter, dataclasses.replace(adapter, fingerprint="n")])
    with pytest.raises(DataError, match="0 adapters"):
        Adapter.combined([])


def test_a_combined_adapter_answers() -> None:
    engine = Engine(spark())
    words = ("stone", "lamp", "river", "cabin", "piano", "tiger")
    marks = as_examples([(w, f"<q>{w}</q>") for w in words])
    adapter = engine.prime(marks)
    whole = Adapter.combined([adapter, adapter], [0.25, 0.75])
    assert engine.answer(marks, "melon", adapter=whole).answer == "<q>melon</q>"

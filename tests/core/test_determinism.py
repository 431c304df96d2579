"""Random numbers: one seed, one stream, and the caller's own stream left alone, in several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from acclimate.core.determinism import ModelDraws, seeded


class StochasticDepth(nn.Module):
    """As torchvision has it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1) > self.p) if self.training else x


class DropPath(StochasticDepth):
    """As timm has it."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.drop_prob = p


def network(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), layer).train()


def calls(model: nn.Module, draws: ModelDraws, count: int = 4) -> list[Tensor]:
    found = []
    for _ in range(count):
        with draws.isolated():
            found.append(model(torch.ones(16, 8)).detach())
    return found


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.RReLU(), StochasticDepth(0.5), DropPath(0.5)])
def test_all_calls_draw_the_stream_of_one_seed_and_the_callers_goes_on(layer: nn.Module) -> None:
    model = network(layer)
    with seeded(7):
        expected = [model(torch.ones(16, 8)).detach() for _ in range(4)]
    torch.manual_seed(1)
    alone = [torch.rand(3) for _ in range(2)]
    torch.manual_seed(1)
    before = torch.rand(3)
    found = calls(model, ModelDraws(model, 7))
    assert torch.equal(before, alone[0])
    assert torch.equal(torch.rand(3), alone[1])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(found[0], found[1])


def test_resetting_begins_the_stream_again() -> None:
    model = network(nn.Dropout(0.5))
    draws = ModelDraws(model, 7)
    first = calls(model, draws)
    draws.reset()
    assert all(torch.equal(one, other) for one, other in zip(calls(model, draws), first, strict=True))


def test_an_exception_puts_the_callers_stream_back() -> None:
    model = network(nn.Dropout(0.5))
    draws = ModelDraws(model, 7)
    state = torch.get_rng_state()
    model[0].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))  # type: ignore[index]
    with pytest.raises(RuntimeError, match="stop"), draws.isolated():
        model(torch.rand(16, 8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.Identity(), nn.Dropout(0.5).eval()])
def test_a_model_that_draws_nothing_waits_for_nobody(layer: nn.Module) -> None:
    drawing, other = network(nn.Dropout(0.5)), network(nn.Identity())
    other[1] = layer  # type: ignore[index]
    done = threading.Event()

    def call() -> None:
        calls(other, ModelDraws(other, 1))
        done.set()

    with ModelDraws(drawing, 1).isolated():
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        assert done.wait(240)
    thread.join()


def test_sessions_in_several_threads_draw_what_they_draw_alone() -> None:
    models = [network(nn.Dropout(0.5)) for _ in range(4)]
    alone = [calls(model, ModelDraws(model, seed), 30) for seed, model in enumerate(models)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found: dict[int, list[Tensor]] = {}

    def work(seed: int) -> Callable[[], None]:
        return lambda: found.__setitem__(seed, calls(models[seed], ModelDraws(models[seed], seed), 30))

    threads = [threading.Thread(target=work(seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert all(torch.equal(one, other) for one, other in zip(found[seed], alone[seed], strict=True))
    assert torch.equal(torch.get_rng_state(), state)

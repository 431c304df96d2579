"""How costs grow with classes, rank, examples, and adapters side by side, in CPU seconds of one thread.

    python benchmarks/scale/growth.py --out benchmarks/scale/results/growth.json

``classes``: a step of each method on 64 images with a network that costs nearly nothing, so that what is left is the
method's and the guards' own work on the logits. ``rank`` and ``examples``: an adaptation of the model spark. ``slots``:
a token of an answer for rows that each have an adapter of their own, and for one row beside many adapters that are
kept. The exponent is the slope of a line through the logarithms of size and cost.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.core import Classification, Session
from acclimate.core.losses import softmax_entropy
from acclimate.language import LanguageModel, load
from acclimate.language.prompts import Example
from acclimate.language.steps import Generate
from acclimate.language.training.memory import RequestMemory
from acclimate.language.training.trainer import Training, TrainingJob
from acclimate.methods import BatchNormStats, Deyo, Eata, Lame, Neo, Roid, Sar, Tent
from acclimate.serve.batch import Batch, generation_of
from acclimate.serve.prefixes import PrefixCache
from acclimate.serve.slots import AdapterSlots

BATCH = 64
CLASSES = (10, 100, 1_000, 10_000)
RANKS = (4, 8, 16, 32, 64)
EXAMPLES = (4, 8, 16, 32)
SLOTS = (1, 2, 4, 8, 16, 32)
METHODS: dict[str, Callable[[], Any]] = {
    "bn": BatchNormStats, "tent": Tent, "eata": Eata, "sar": Sar, "deyo": Deyo, "roid": Roid, "lame": Lame, "neo": Neo,
}  # fmt: skip


def cpu_seconds(work: Callable[[], Any], *, least_s: float, least: int = 5) -> float:
    """Return the median CPU seconds of this process for one call, after two that are not counted."""
    for _ in range(2):
        work()
    found: list[float] = []
    while len(found) < least or sum(found) < least_s:
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of the line through the logarithms."""
    return round(float(np.polyfit(np.log(sizes), np.log(costs), 1)[0]), 2)


class Small(nn.Module):
    """BatchNorm and one linear layer on 8 numbers an image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.head = nn.BatchNorm2d(8), nn.Linear(8, classes)
        nn.init.normal_(self.head.weight, std=2.0)

    def forward(self, images: Tensor) -> Tensor:
        spread = nn.functional.interpolate(images[:, :1], size=(2, 4)).flatten(1)[:, :, None, None]
        return self.head(self.first(spread).flatten(1))


def classes(least_s: float) -> dict[str, Any]:
    rows: dict[str, dict[str, float]] = {}
    for count in CLASSES:
        torch.manual_seed(0)
        images = torch.rand(BATCH, 3, 32, 32)
        network = Small(count).eval()

        def plain(network: nn.Module = network, images: Tensor = images) -> None:
            with torch.no_grad():
                network(images)

        def gradient(network: nn.Module = network, images: Tensor = images) -> None:
            network.zero_grad()
            softmax_entropy(network(images)).mean().backward()

        rows.setdefault("prediction alone", {})[str(count)] = cpu_seconds(plain, least_s=least_s)
        rows.setdefault("entropy and its gradient alone", {})[str(count)] = cpu_seconds(gradient, least_s=least_s)
        for name, make in METHODS.items():
            for guards in (None, ()):
                torch.manual_seed(0)
                with Session(
                    Small(count).eval(), make(), task=Classification(pixel_range=(0.0, 1.0)), guards=guards
                ) as session:

                    def step(session: Session = session, images: Tensor = images) -> None:
                        session.adapt_and_predict(images)

                    # Guards compare more on the first images of a stream.
                    for _ in range(16):
                        step()
                    label = name if guards is None else f"{name}, no guards"
                    rows.setdefault(label, {})[str(count)] = cpu_seconds(step, least_s=least_s)
        print(count, {name: f"{1e3 * row[str(count)]:.2f} ms" for name, row in rows.items()}, flush=True)
    found: dict[str, Any] = {"batch": BATCH}
    for name, row in rows.items():
        costs = [row[str(count)] for count in CLASSES]
        found[name] = {
            "ms": {count: round(1e3 * cost, 3) for count, cost in row.items()},
            "exponent": exponent(CLASSES, costs),
            "exponent_from_1000": exponent(CLASSES[2:], costs[2:]),
        }
    return found


def example_set(seed: int, count: int) -> list[Example]:
    """Return examples of the same lengths with other letters."""
    rng = random.Random(seed)

    def word(length: int) -> str:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))

    return [Example(word(8), word(8)) for _ in range(count)]


def adaptation_s(model: LanguageModel, *, rank: int, count: int, least_s: float) -> tuple[float, int]:
    """Return the CPU seconds of an adaptation with 8 steps, and the tokens of a step."""
    recipe = dataclasses.replace(model.recipe, rank=rank, steps=8, early_stop_loss=1e-9)
    examples = example_set(0, count)
    tokens = 0

    def work() -> None:
        nonlocal tokens
        made = Training(model, [TrainingJob(sets=[examples])], recipe)
        with made.attached():
            while not made.finished:
                made.step()
        tokens = sum(row.tokens.numel() for row in made._schedule.at(0))
        made.ended()

    with model.lock:
        return cpu_seconds(work, least_s=least_s, least=3), tokens


def adaptations(model: LanguageModel, least_s: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, sizes in (("rank", RANKS), ("examples", EXAMPLES)):
        costs, tokens = [], []
        for size in sizes:
            given = {"rank": 16, "count": 8} | {"rank" if name == "rank" else "count": size}
            cost, number = adaptation_s(model, **given, least_s=least_s)
            costs.append(cost)
            tokens.append(number)
            print(name, size, f"{cost:.3f} s", number, "tokens", flush=True)
        found[name] = {
            "s": {str(size): round(cost, 4) for size, cost in zip(sizes, costs, strict=True)},
            "step_tokens": {str(size): number for size, number in zip(sizes, tokens, strict=True)},
            "exponent": exponent(sizes, costs),
        }
        if name == "examples":
            found[name]["exponent_in_tokens"] = exponent(tokens, costs)
    return found


def token_s(model: LanguageModel, *, rows: int, kept: int, tokens: int = 24) -> tuple[float, int]:
    """Return the CPU seconds of a token for ``rows`` rows beside ``kept`` adapters, and the bytes of these."""
    slots = AdapterSlots(model, max(rows, kept))
    rng = random.Random(0)
    adapters = [slots.random_adapter(seed=number, size=0.01) for number in range(max(rows, kept))]
    found = []
    with model.lock:
        for adapter in adapters:
            slots.acquire(adapter.identity, adapter)
            slots.release(adapter.identity)
        for _ in range(3):
            batch = Batch(model, slots, PrefixCache(2**20), max_rows=64, max_bytes=2**32)
            for number in range(rows):
                step = Generate(
                    prompts=[tuple(rng.randrange(5, 150) for _ in range(32))],
                    max_tokens=tokens,
                    memory=RequestMemory(),
                    adapter=adapters[-1 - number],
                    open_ended=True,
                )
                assert batch.join(generation_of(model, step, number))
            while batch.reading:
                batch.read()
            passes, start = 0, time.process_time()
            while len(batch) == rows and passes < tokens - 4:
                batch.generate()
                passes += 1
            found.append((time.process_time() - start) / max(1, passes))
            while len(batch):
                batch.generate()
    held = slots.held_bytes
    slots.close()
    return statistics.median(found), held


def slots(model: LanguageModel) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("in use", "kept beside one in use"):
        costs, held = [], []
        for size in SLOTS:
            cost, number = token_s(model, rows=size if name == "in use" else 1, kept=size)
            costs.append(cost)
            held.append(number)
            print(name, size, f"{1e3 * cost:.2f} ms", f"{number / 2**20:.2f} MiB", flush=True)
        found[name] = {
            "token_ms": {str(size): round(1e3 * cost, 3) for size, cost in zip(SLOTS, costs, strict=True)},
            "held_mib": {str(size): round(number / 2**20, 3) for size, number in zip(SLOTS, held, strict=True)},
            "exponent": exponent(SLOTS, costs),
            "exponent_of_memory": exponent(SLOTS, held),
        }
    return found


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=("classes", "adaptations", "slots"))
    parser.add_argument("--least-s", type=float, default=0.3, help="CPU seconds that each number is measured for")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if given.out is not None and given.out.exists():
        results = json.loads(given.out.read_text())
    results |= {"torch": torch.__version__, "threads": 1}
    if given.only in (None, "classes"):
        results["classes"] = classes(given.least_s)
    if given.only != "classes":
        model = load("spark")
        if given.only in (None, "adaptations"):
            results |= adaptations(model, given.least_s)
        if given.only in (None, "slots"):
            results["slots"] = slots(model)
    assert not any(math.isnan(found["exponent"]) for found in (results.get("rank"), results.get("examples")) if found)
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

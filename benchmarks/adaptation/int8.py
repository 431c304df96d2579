"""What a training step would gain if frozen weights were multiplied in 8-bit integers, and what that would cost.

    python benchmarks/adaptation/int8.py --out benchmarks/adaptation/results/int8.json

Weights are rounded once, with a scale for each output (Jacob et al. 2018, arXiv 1712.05877), activations and gradients
in every pass, with a scale for each row. Low-rank weights, norms, softmax and loss stay in float32. Steps in both
number formats are made in turns, since the processor may be busy with other programs. Examples are of development
tasks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from costs import examples_for
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "fewshot"))
from known import known_tasks

from acclimate.language import LanguageModel, load
from acclimate.language.decision.trials import answer_scores
from acclimate.language.training.recipes import decided
from acclimate.language.training.trainer import Training, TrainingJob

#: Integers with a scale for each row.
Rounded = tuple[Tensor, Tensor]
STEPS = 8


def rounded(rows: Tensor) -> Rounded:
    """Return ``rows``, ``(n, width)``, in 8-bit integers, and what each row of them is multiplied by, ``(n, 1)``."""
    scale = rows.abs().amax(1, keepdim=True).mul_(1 / 127).clamp_(min=torch.finfo(rows.dtype).tiny)
    return (rows / scale).round_().to(torch.int8), scale


class Product(torch.autograd.Function):
    """``inputs @ weight.T`` with a frozen weight; the gradient is that of the rounded weight."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Rounded, given: Rounded) -> Tensor:
        """Return the product of ``given``, which are the inputs in integers."""
        ctx.weight, ctx.shape = weight, inputs.shape
        product = inputs.new_empty(*inputs.shape[:-1], len(weight[0]))
        flat = product.view(len(given[0]), -1)
        flat.copy_(torch._int_mm(given[0], weight[0].t()))
        flat.mul_(given[1]).mul_(weight[1][:, 0])
        return product

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the inputs."""
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        values, scale = rounded(grad * ctx.weight[1][:, 0])
        return torch._int_mm(values, ctx.weight[0]).to(grad.dtype).mul_(scale).view(ctx.shape), None, None


@contextmanager
def in_integers(model: LanguageModel, weights: Mapping[str, Rounded]) -> Iterator[None]:
    """Let the linear layers named in ``weights`` multiply by those inside the block."""
    # Queries, keys and values get the same inputs, which are rounded once.
    last: list[tuple[Tensor, Rounded]] = []

    def forward_of(weight: Rounded) -> Callable[[Tensor], Tensor]:
        def forward(inputs: Tensor) -> Tensor:
            if not last or last[0][0] is not inputs:
                last[:] = [(inputs, rounded(inputs.detach().reshape(-1, inputs.shape[-1])))]
            return Product.apply(inputs, weight, last[0][1])  # type: ignore[no-any-return, no-untyped-call]

        return forward

    layers = [model.network.get_submodule(name) for name in weights]
    try:
        for layer, weight in zip(layers, weights.values(), strict=True):
            layer.forward = forward_of(weight)
        yield
    finally:
        for layer in layers:
            del layer.forward


def step_seconds(model: LanguageModel, weights: Mapping[str, Rounded]) -> dict[str, Any]:
    """Return the CPU seconds of a training step on about 200 tokens in float32 and in integers."""
    task = known_tasks(model.name, "DEVELOPMENT", per=1, shots=24, questions=1, seed=5)[2]
    examples = task.examples[: examples_for(model, task)]
    recipe = replace(decided(model.recipe, examples), steps=4 * STEPS, early_stop_loss=0.0)
    seconds: dict[str, list[float]] = {"float32": [], "int8": []}
    with model.lock:
        training = Training(model, [TrainingJob(sets=[examples])], recipe)
        with training.attached():
            training.step()
            for _ in range(STEPS):
                for name, used in (("float32", {}), ("int8", weights)):
                    with in_integers(model, used):
                        began = time.process_time()
                        training.step()
                        seconds[name].append(time.process_time() - began)
    medians = {f"step_{name}_cpu_s": statistics.median(values) for name, values in seconds.items()}
    return {**medians, "times_faster": medians["step_float32_cpu_s"] / medians["step_int8_cpu_s"]}


def likelihoods(model: LanguageModel, weights: Mapping[str, Rounded]) -> dict[str, Any]:
    """Return how the base model answers development tasks in float32 and in integers."""
    tasks = known_tasks(model.name, "DEVELOPMENT", per=1, shots=10, questions=8, seed=5)
    found: dict[str, list[tuple[bool, float]]] = {"float32": [], "int8": []}
    for task in tasks:
        for name, used in (("float32", {}), ("int8", weights)):
            with in_integers(model, used):
                found[name] += answer_scores(model, task.examples, task.questions)
    result: dict[str, Any] = {"tasks": len(tasks), "questions": len(found["int8"])}
    for name, rows in found.items():
        result[f"exact_{name}"] = statistics.fmean(exact for exact, _ in rows)
        result[f"log_likelihood_{name}"] = statistics.fmean(value for _, value in rows)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["spark", "smollm2"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"torch": torch.__version__, "threads": 1}
    for name in given.models:
        model = load(name, dtype=torch.float32)
        weights = {layer: rounded(model.network.get_submodule(layer).weight) for layer in model.decoder(1.0).targets}
        results[name] = step_seconds(model, weights) | likelihoods(model, weights)
        print(name, json.dumps(results[name], indent=1), flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

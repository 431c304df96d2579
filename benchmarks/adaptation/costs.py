"""What costs what: CPU seconds of the parts of one request, and what they are times plain in-context learning.

    python benchmarks/adaptation/costs.py --out benchmarks/adaptation/results/costs.json --models spark

What is measured replaces the rows of the same models in the file. Prompts of test tasks with about 200 tokens of
examples. ICL is the base model on the same examples: they are read once, and the answer is generated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fewshot"))
from known import known_tasks

from acclimate.language import Adapter, AdapterManager, Engine, Example, LanguageModel, load
from acclimate.language.decision.evidence import cross_fit
from acclimate.language.decision.trials import KnownTask
from acclimate.language.examples import orderings
from acclimate.language.steps import Generate, generated_together, run_alone
from acclimate.language.training.memory import RequestMemory
from acclimate.language.training.parts import adapter_to
from acclimate.language.training.recipes import decided
from acclimate.language.training.trainer import TrainingJob

TOKENS = 200
MODELS = {"spark": (None,), "smollm2": (torch.float32, torch.bfloat16)}


def prompt_of(task: KnownTask, count: int) -> str:
    """Return a prompt with ``count`` examples and the first question."""
    shown = "".join(f"Input: {e.input}\nOutput: {e.output}\n\n" for e in task.examples[:count])
    return f"{shown}Input: {task.questions[0].input}\nOutput:"


def examples_for(model: LanguageModel, task: KnownTask) -> int:
    """Return how many examples take about :data:`TOKENS` tokens."""
    sizes = [len(model.encoder.row(task.examples[:n]).tokens) for n in range(1, len(task.examples) + 1)]
    return 1 + min(range(len(sizes)), key=lambda at: abs(sizes[at] - TOKENS))


def both_answers(
    model: LanguageModel, task: KnownTask, examples: Sequence[Example], adapter: Adapter
) -> tuple[Generate, Generate]:
    """Return the steps that a request with the gate asks both models in."""
    longest = max(model.encoder.answer_tokens(example) for example in examples)
    prompts = [
        model.encoder.row([examples[i] for i in order], query=task.questions[0].input).tokens
        for order in orderings(len(examples), 2, seed=0)
    ]
    adapted = Generate(prompts=prompts, max_tokens=2 * longest + 16, memory=RequestMemory(), adapter=adapter)
    return adapted, replace(adapted, prompts=prompts[:1], adapter=None)


def costs(model: LanguageModel, task: KnownTask) -> dict[str, float]:
    """Return the CPU seconds of the parts of one request, and of others that are compared with it."""
    count = examples_for(model, task)
    text, examples = prompt_of(task, count), task.examples[:count]
    cache = AdapterManager()
    engine = Engine(model, max_seconds=None, cache=cache)

    def asked(policy: str, engine: Engine = engine) -> tuple[dict[str, float], float]:
        began = time.process_time()
        request = engine.read_prompt(text)
        reading = time.process_time() - began
        request = replace(request, clock=time.process_time, policy=policy)  # type: ignore[arg-type]
        report = run_alone(model, engine.steps(request))
        parts = {name: value for name, value in report.seconds.items() if name != "total"}
        return {"reading the prompt": reading, **parts}, time.process_time() - began

    began = time.process_time()
    engine.answer(examples, task.questions[0].input, policy="never")
    icl = time.process_time() - began
    recipe = decided(model.recipe, examples)
    began = time.process_time()
    evidence, halves = cross_fit(model, examples, recipe, even_if_perfect=True)
    gate = time.process_time() - began
    began = time.process_time()
    adapter = adapter_to(model, TrainingJob(sets=[examples]), recipe, halves if evidence.likelier else None)
    after_gate = time.process_time() - began
    began = time.process_time()
    with model.lock:
        generated_together(model, both_answers(model, task, examples, adapter))
    both = time.process_time() - began
    parts, total = asked("always")
    _, cached = asked("always")
    # The gate asks for two orders, as two votes do.
    in_two_orders, _ = asked("always", Engine(model, max_seconds=None, cache=cache, votes=2))
    return {
        "tokens": len(model.encoder.row(examples).tokens),
        "reading the prompt": parts["reading the prompt"],
        "gate: held-out examples": gate - halves.cpu_seconds,
        "gate: training": halves.cpu_seconds,
        "training after the gate": after_gate,
        "training without the gate": parts["training"],
        "one training step": parts["training"] / (recipe.steps or 1),
        "answer, two orders": in_two_orders["answer"],
        "answer, two orders, and the base model's": both,
        "answer, one order": parts["answer"],
        "ICL": icl,
        "request with the gate": parts["reading the prompt"] + gate + after_gate + both,
        "request, always adapted": total,
        "request, adapter in the cache": cached,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--formats", nargs="+", choices=["float32", "bfloat16"], help="of the weights; all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    results |= {"torch": torch.__version__, "threads": 1, "amx": torch.cpu._is_amx_tile_supported()}
    for name, dtype in [(chosen, dtype) for chosen in given.models for dtype in MODELS[chosen]]:
        if given.formats and dtype is not None and str(dtype).removeprefix("torch.") not in given.formats:
            continue
        model = load(name, dtype=dtype)
        tasks = known_tasks(name, "TEST", per=1, shots=24, questions=1, seed=91)[: given.tasks]
        costs(model, tasks[0])  # What is built at the first use of a model is not counted.
        rows = [costs(model, task) for task in tasks]
        medians = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
        times = {
            part: statistics.median(row[part] / row["ICL"] for row in rows) for part in rows[0] if part != "tokens"
        }
        key = f"{name}, {str(model.dtype).removeprefix('torch.')}"
        results[key] = {"tasks": len(rows), "cpu_s": medians, "times_icl": times, "rows": rows}
        print(key, json.dumps(medians, indent=1), flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

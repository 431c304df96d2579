"""Cost and accuracy of adapting: a loop with peft against ours, on the same examples, in the same run.

    python benchmarks/adaptation/run.py --out benchmarks/adaptation/results/adaptation.json

The loop is what a careful user of peft writes: ``get_peft_model``, low-rank weights in every linear layer of every
block, AdamW with the same schedule, and in every step one causal pass over the examples in a new order, in which all
answers after the first are learned. Its learning rate is chosen on other tasks (``--tune``), as ours is. ``--baseline
leave_one_out`` reads one leave-one-out prompt after the other in every step.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fewshot"))
from known import known_tasks

from acclimate.language import Example, LanguageModel, load
from acclimate.language.decision.trials import scored
from acclimate.language.examples import orderings
from acclimate.language.prompts import Row
from acclimate.language.training.parts import adapter_to
from acclimate.language.training.recipes import decided
from acclimate.language.training.trainer import TrainingJob, cosine

#: Of AdamW, by model and loop; chosen with ``--tune``.
PEFT_RATES = {
    "spark": {"causal": 5e-3, "leave_one_out": 5e-3},
    "smollm2": {"causal": 1e-3, "leave_one_out": 1e-3},
}
#: Steps of the loop, with which it is most accurate; ours makes as many as its recipe says.
PEFT_STEPS = {"spark": 16, "smollm2": 8}


def labelled(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of a row and its labels: answer tokens, and -100 elsewhere."""
    labels = [token if mark >= 0 else -100 for token, mark in zip(row.tokens, row.answer, strict=True)]
    return torch.tensor([row.tokens]), torch.tensor([labels])


def passes(
    model: LanguageModel, examples: Sequence[Example], steps: int, baseline: str
) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return the tokens and labels of the passes of each step."""
    count, row = len(examples), model.encoder.row
    if baseline == "causal":
        orders = orderings(count, steps, seed=1)
        return [[labelled(row([examples[i] for i in o], answers=[-1, *[0] * (count - 1)]))] for o in orders]
    marks = [*[-1] * (count - 1), 0]
    one = [labelled(row([*examples[:i], *examples[i + 1 :], examples[i]], answers=marks)) for i in range(count)]
    return [one] * steps


def plain_peft(
    model: LanguageModel,
    examples: Sequence[Example],
    questions: Sequence[Example],
    *,
    steps: int,
    rank: int,
    rate: float,
    baseline: str = "causal",
) -> tuple[list[bool], float, float]:
    """Return which questions a loop with peft gets right, and the CPU and wall seconds of its training."""
    from peft import LoraConfig, get_peft_model

    cpu, wall = time.process_time(), time.perf_counter()
    torch.manual_seed(0)
    targets = sorted({name.rsplit(".", 1)[-1] for name in model.decoder(1.0).targets})
    wrapped = get_peft_model(
        model.network,
        LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"),
    )
    wrapped.train()
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    for step, batches in enumerate(passes(model, examples, steps, baseline)):
        optimizer.param_groups[0]["lr"] = rate * cosine(step, steps)
        optimizer.zero_grad()
        for tokens, labels in batches:
            (wrapped(input_ids=tokens, labels=labels).loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    wrapped.eval()
    right = scored(model, examples, questions)
    wrapped.unload()
    del wrapped, optimizer
    gc.collect()
    model.network.requires_grad_(False)
    return right, cpu, wall


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half its 95 % interval."""
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5


def measured(name: str, model: LanguageModel, given: argparse.Namespace) -> dict[str, Any]:
    """Return the comparison on one model."""
    rate = PEFT_RATES[name][given.baseline]
    if given.tune:
        found = known_tasks(name, "DEVELOPMENT", per=2, shots=given.shots, questions=8, seed=31)
        for candidate in given.rates:
            right = []
            for task in found[:: given.every]:
                examples, questions = task.examples, task.questions
                steps, rank = PEFT_STEPS[name], model.recipe.rank_or_default
                got, _, _ = plain_peft(
                    model, examples, questions, steps=steps, rank=rank, rate=candidate, baseline=given.baseline
                )
                right += got
            print(f"{name}: plain loop at {candidate:g}: {statistics.fmean(right):.3f}", flush=True)
        return {}
    rows = []
    for task in known_tasks(name, "TEST", per=given.per, shots=given.shots, questions=8, seed=32)[:: given.every]:
        examples, questions = task.examples, task.questions
        recipe = decided(model.recipe, examples)
        steps, rank = PEFT_STEPS[name], recipe.rank_or_default
        theirs, cpu, wall = plain_peft(
            model, examples, questions, steps=steps, rank=rank, rate=rate, baseline=given.baseline
        )
        began_cpu, began = time.process_time(), time.perf_counter()
        ours = adapter_to(model, TrainingJob(sets=[examples]), recipe)
        ours_cpu, ours_wall = time.process_time() - began_cpu, time.perf_counter() - began
        right = scored(model, examples, questions, ours)
        before = scored(model, examples, questions)
        rows.append(
            {
                "task": task.name,
                "tokens": len(model.encoder.row(examples).tokens),
                "steps": steps,
                "steps_made": len(ours.losses),
                "icl": statistics.fmean(before),
                "peft": statistics.fmean(theirs),
                "ours": statistics.fmean(right),
                "peft_cpu_s": cpu,
                "ours_cpu_s": ours_cpu,
                "peft_wall_s": wall,
                "ours_wall_s": ours_wall,
                "ours_cpu_s_per_step": ours_cpu / max(1, len(ours.losses)),
                "peft_cpu_s_per_step": cpu / steps,
                "peak_mib": ours.peak_bytes / 2**20,
            }
        )
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    difference = interval([row["ours"] - row["peft"] for row in rows])
    return {
        "model": name,
        "baseline": given.baseline,
        "tasks": len(rows),
        "icl": interval([r["icl"] for r in rows]),
        "peft": interval([r["peft"] for r in rows]),
        "ours": interval([r["ours"] for r in rows]),
        "ours_minus_peft": difference,
        "times_faster": sum(r["peft_cpu_s"] for r in rows) / sum(r["ours_cpu_s"] for r in rows),
        "times_faster_per_step": statistics.median(r["peft_cpu_s_per_step"] / r["ours_cpu_s_per_step"] for r in rows),
        "ours_wall_s": {
            "median": statistics.median(r["ours_wall_s"] for r in rows),
            "worst": max(r["ours_wall_s"] for r in rows),
        },
        "ours_cpu_s": statistics.median(r["ours_cpu_s"] for r in rows),
        "peft_cpu_s": statistics.median(r["peft_cpu_s"] for r in rows),
        "tokens": statistics.median(r["tokens"] for r in rows),
        "peak_mib": max(r["peak_mib"] for r in rows),
        "rows": rows,
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["spark", "smollm2"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--per", type=int, default=3, help="tasks of each family")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th task: the plain loop is slow")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--baseline", choices=["causal", "leave_one_out"], default="causal")
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3, 5e-3, 1e-2], help="with --tune")
    parser.add_argument("--tune", action="store_true", help="try learning rates of the plain loop on development tasks")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: dict[str, Any] = {
        "threads": given.threads,
        "shots": given.shots,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
    }
    if given.out and given.out.exists():
        results = json.loads(given.out.read_text()) | results
    for name in given.models:
        results[name] = measured(name, load(name), given)
        summary = {k: v for k, v in results[name].items() if k != "rows"}
        print(json.dumps(summary, indent=1))
        if given.out and not given.tune:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

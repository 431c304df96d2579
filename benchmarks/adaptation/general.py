"""The recipe for models without one of their own, on a model that it was not made for: spark, which has another.

    python benchmarks/adaptation/general.py --out benchmarks/adaptation/results/general.json

Test tasks of spark: in-context learning, its own recipe, the general recipe, that with an adapter trained anew after
the gate's, and the one before (the last quarter of the layers, a random start, rank and steps by the examples). Each
adapter is trained as it is after the gate's evidence, whose passes count in the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fewshot"))
from known import known_tasks

from acclimate.language import Recipe, load
from acclimate.language.decision.evidence import cross_fit
from acclimate.language.decision.trials import scored
from acclimate.language.training.parts import adapter_to
from acclimate.language.training.recipes import GENERAL, decided
from acclimate.language.training.trainer import TrainingJob


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per", type=int, default=1, help="tasks of each family")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load("spark")
    recipes = {
        "own": model.recipe,
        "general": GENERAL,
        "general, trained anew": replace(GENERAL, parts=None),
        "general before": Recipe(),
    }
    rows = []
    cpu_s = dict.fromkeys(recipes, 0.0)
    for task in known_tasks("spark", "TEST", per=given.per, shots=10, questions=8, seed=32):
        row: dict[str, Any] = {"task": task.name, "ICL": statistics.fmean(scored(model, task.examples, task.questions))}
        for name, recipe in recipes.items():
            chosen, began = decided(recipe, task.examples), time.process_time()
            evidence, parts = cross_fit(model, task.examples, chosen, even_if_perfect=True)
            adapter = adapter_to(model, TrainingJob(sets=[task.examples]), chosen, parts if evidence.likelier else None)
            cpu_s[name] += time.process_time() - began
            row[name] = statistics.fmean(scored(model, task.examples, task.questions, adapter))
        rows.append(row)
        print(json.dumps(row), flush=True)
    means = {name: 100 * statistics.fmean(row[name] for row in rows) for name in ("ICL", *recipes)}
    gains = [row["general"] - row["ICL"] for row in rows]
    half = 196 * statistics.stdev(gains) / len(gains) ** 0.5
    summary = {
        "tasks": len(rows), **means, "general_minus_icl": [100 * statistics.fmean(gains), half],
        "cpu_s": {name: total / len(rows) for name, total in cpu_s.items()},
    }  # fmt: skip
    print(json.dumps(summary))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

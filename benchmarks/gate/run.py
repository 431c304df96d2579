"""How good the gate's confidence is, and what the gate does to each task family.

    python benchmarks/gate/run.py --calibrate            # fits and writes the calibrations that ship
    python benchmarks/gate/run.py --out benchmarks/gate/results/gate.json

Calibrations are fitted on families that are in neither training nor test; what is printed is measured on test families.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fewshot"))
from known import known_tasks

from acclimate.language import load
from acclimate.language.decision.calibration import (
    FOLDER,
    Calibration,
    area_under_roc,
    expected_calibration_error,
    shipped,
)
from acclimate.language.decision.gate import CONFIDENCE_THRESHOLDS, Gate
from acclimate.language.decision.trials import Trial, fit_trials, trials

SHOTS = {"spark": (4, 5, 6, 8, 10), "smollm2": (4, 6, 8, 10)}
PER = {"spark": (10, 6), "smollm2": (2, 4)}
#: Of the tasks that calibrations are fitted on, which are drawn once with each.
SEEDS = {"spark": (5,), "smollm2": (5, 6)}
QUESTIONS = 4


def family_loss(found: Sequence[tuple[str, int, bool, bool]], seed: int = 0) -> dict[str, Any]:
    """Return by family the gated minus the ICL accuracy in points, with a 95 % interval by bootstrap over tasks."""
    rng = np.random.default_rng(seed)
    families: dict[str, dict[int, list[int]]] = {}
    for family, task, gated, icl in found:
        families.setdefault(family, {}).setdefault(task, []).append(int(gated) - int(icl))
    result = {}
    for family, tasks in families.items():
        means = np.array([statistics.fmean(values) for values in tasks.values()])
        drawn = rng.choice(means, (2000, len(means))).mean(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        result[family] = {"points": 100 * float(means.mean()), "interval": [100 * float(low), 100 * float(high)]}
    return result


def measured(name: str, found: Sequence[Trial], fitted: Calibration) -> dict[str, Any]:
    """Return confidence quality and gains on test tasks."""
    confidence = [fitted.probability(t.evidence, "adapted") for t in found]
    right = [t.adapted_right for t in found]
    by_task = np.array(right).reshape(-1, QUESTIONS).mean(1) >= 0.75
    task_confidence = np.array(confidence).reshape(-1, QUESTIONS).mean(1)
    result: dict[str, Any] = {
        "model": name,
        "tasks": len(found) // QUESTIONS,
        "questions": len(found),
        "auroc_task_solved": area_under_roc(task_confidence.tolist(), by_task.tolist()),
        "auroc_question_right": area_under_roc(confidence, right),
        "expected_calibration_error": expected_calibration_error(confidence, right),
        "icl": 100 * statistics.fmean(t.icl_right for t in found),
        "adapted": 100 * statistics.fmean(right),
        "best_of_both": 100 * statistics.fmean(t.icl_right or t.adapted_right for t in found),
        "gate_cpu_s": statistics.fmean(t.gate_seconds for t in found),
        "training_cpu_s": statistics.fmean(t.train_seconds for t in found),
    }
    for environment in (None, *CONFIDENCE_THRESHOLDS):
        gate = Gate(calibration=fitted, environment=environment)
        chosen = [gate.decide(t.evidence).adapt for t in found]
        gated = [t.adapted_right if use else t.icl_right for t, use in zip(found, chosen, strict=True)]
        gains = [int(g) - int(t.icl_right) for g, t in zip(gated, found, strict=True)]
        tasks = np.array(gains).reshape(-1, QUESTIONS).mean(1)
        result[f"gated, {environment or 'no environment'}"] = {
            "accuracy": 100 * statistics.fmean(gated),
            "used": statistics.fmean(chosen),
            "gain": 100 * float(tasks.mean()),
            "half_interval": 196 * float(tasks.std(ddof=1)) / len(tasks) ** 0.5,
        }
        if environment is None:
            names = [
                (t.task, i // QUESTIONS, g, t.icl_right) for i, (t, g) in enumerate(zip(found, gated, strict=True))
            ]
            result["families"] = family_loss(names)
            worst = min(result["families"].items(), key=lambda item: item[1]["points"])
            result["worst_family"] = {"name": worst[0], **worst[1]}
    return result


def main() -> None:
    """Calibrate, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["spark", "smollm2"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--examples", type=int, nargs="+", help="so many in each task, in turn, instead of 4 to 10")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    for name in given.models:
        model = load(name)
        per = PER[name][0 if given.calibrate else 1]
        shots = tuple(given.examples or SHOTS[name])
        split, seeds = ("CALIBRATION", SEEDS[name]) if given.calibrate else ("TEST", (77,))
        tasks = [
            task
            for seed in seeds
            for task in known_tasks(name, split, per=per, shots=shots, questions=QUESTIONS, seed=seed)
        ]
        found = list(
            trials(model, tasks, progress=lambda done, total: print(f"\r{done}/{total}", end="", file=sys.stderr))
        )
        if given.calibrate:
            families = len({t.task for t in found})
            words = f"{len(tasks)} tasks of {families} families in neither training nor test, {shots} examples"
            fit_trials(name, found, fitted_on=words).save(FOLDER / f"{name}.json")
            continue
        fitted = shipped(name)
        if fitted is None:
            raise FileNotFoundError(f"no calibration for {name}: run with --calibrate first")
        results[name] = measured(name, found, fitted)
        print(json.dumps({k: v for k, v in results[name].items() if k != "families"}, indent=1))
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

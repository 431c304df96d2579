"""Exact match with ICL, TTT, TTT behind the gate, and TTT with votes, on tasks that nothing was tuned on.

    python benchmarks/fewshot/run.py --part spark    --out benchmarks/fewshot/results/fewshot.json
    python benchmarks/fewshot/run.py --part english  --out benchmarks/fewshot/results/fewshot.json
    python benchmarks/fewshot/run.py --part bbh --data FOLDER --out benchmarks/fewshot/results/fewshot.json

``spark`` and ``english`` are families held out from training, tuning and calibration; ``bbh`` is nine tasks of
BIG-Bench Hard (Suzgun et al. 2022, arXiv 2210.09261), on which nothing was trained, tuned or calibrated. The decision
of the gate is made once for a task, from its examples and the first question's answers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from known import BIG_BENCH_HARD, REFERENCE_FAMILIES, big_bench_hard, known_tasks

from acclimate.language import Adapter, Example, Gate, LanguageModel, load, shipped
from acclimate.language.decision.evidence import cross_fit
from acclimate.language.decision.trials import KnownTask, answer_scores, answers, scored
from acclimate.language.examples import orderings
from acclimate.language.models.generate import PERMUTED_PROMPTS, agreement
from acclimate.language.training.parts import adapter_to
from acclimate.language.training.recipes import decided
from acclimate.language.training.trainer import TrainingJob


def voted(
    model: LanguageModel, task: KnownTask, adapter: Adapter, votes: int, most: int
) -> tuple[list[bool], list[bool]]:
    """Return which of the first questions are right by the majority of answers over orders, and by their likelihood.

    By likelihood, every answer that was given in any order is scored in all orders, and the one with the highest sum of
    log-likelihoods is taken.
    """
    questions = task.questions[:most]
    orders = orderings(len(task.examples), votes, seed=0)
    shown = [[task.examples[i] for i in order] for order in orders]
    texts = [[a.text for a in answers(model, examples, questions, adapter)] for examples in shown]
    wanted = [model.encoder.format.clean(q.output) for q in questions]
    columns = list(zip(*texts, strict=True))
    majority = [Counter(column).most_common(1)[0][0] for column in columns]
    candidates = [(i, text) for i, column in enumerate(columns) for text in dict.fromkeys(column) if text]
    asked = [Example(questions[i].input, text) for i, text in candidates]
    scores = [answer_scores(model, examples, asked, adapter) for examples in shown]
    likeliest: dict[int, tuple[float, str]] = {}
    for place, (i, text) in enumerate(candidates):
        total = sum(row[place][1] for row in scores)
        likeliest[i] = max(likeliest.get(i, (-math.inf, "")), (total, text))
    by_likelihood = [likeliest.get(i, (0.0, ""))[1] for i in range(len(questions))]
    return [m == w for m, w in zip(majority, wanted, strict=True)], [
        t == w for t, w in zip(by_likelihood, wanted, strict=True)
    ]


def run_task(model: LanguageModel, task: KnownTask, votes: int, vote_questions: int) -> dict[str, Any]:
    """Return one task's accuracy in every mode, and seconds."""
    gate = Gate(calibration=shipped(model.name))
    recipe = decided(model.recipe, task.examples)
    start = time.process_time()
    evidence, parts = cross_fit(model, task.examples, recipe, even_if_perfect=True)
    gate_s = time.process_time() - start
    adapter = adapter_to(model, TrainingJob(sets=[task.examples]), recipe, parts if evidence.likelier else None)
    icl = scored(model, task.examples, task.questions)
    ttt = scored(model, task.examples, task.questions, adapter)
    first = task.questions[:1]
    plain, adapted = answers(model, task.examples, first)[0], answers(model, task.examples, first, adapter)[0]
    order = orderings(len(task.examples), PERMUTED_PROMPTS, seed=recipe.seed)[-1]
    again = answers(model, [task.examples[i] for i in order], first, adapter)[0]
    known = evidence.answered(adapter, adapted=adapted, icl=plain, agreement=agreement([adapted, again]))
    decision = gate.decide(known)
    by_majority, by_likelihood = voted(model, task, adapter, votes, vote_questions)
    return {
        "task": task.name,
        "icl": statistics.fmean(icl),
        "ttt": statistics.fmean(ttt),
        "gated": statistics.fmean(ttt if decision.adapt else icl),
        "votes": statistics.fmean(by_majority),
        "likelihood_votes": statistics.fmean(by_likelihood),
        "icl_where_voted": statistics.fmean(icl[:vote_questions]),
        "ttt_where_voted": statistics.fmean(ttt[:vote_questions]),
        "used": decision.adapt,
        "confidence": decision.confidence,
        "tokens": len(model.encoder.row(task.examples).tokens),
        "gate_cpu_s": gate_s,
        "train_cpu_s": adapter.cpu_seconds,
        "train_wall_s": adapter.seconds,
        "steps": len(adapter.losses),
        "peak_mib": adapter.peak_bytes / 2**20,
    }


def mean_and_half(values: Sequence[float]) -> list[float | None]:
    """Return mean and half the 95 % interval, in points; one value has no interval."""
    if len(values) < 2:
        return [100 * statistics.fmean(values), None]
    return [100 * statistics.fmean(values), 196 * statistics.stdev(values) / len(values) ** 0.5]


def against(mode: str) -> str:
    """Return the ICL accuracy that a mode is compared with: on the same questions."""
    return "icl_where_voted" if mode in ("votes", "likelihood_votes") else "icl"


def clustered(rows: Sequence[dict[str, Any]], mode: str, seed: int = 0) -> list[float]:
    """Return the mean gain over ICL in points with its 95 % interval, families drawn anew."""
    families: dict[str, list[float]] = {}
    for row in rows:
        families.setdefault(row["task"], []).append(row[mode] - row[against(mode)])
    means = np.array([statistics.fmean(values) for values in families.values()])
    drawn = np.random.default_rng(seed).choice(means, (4000, len(means))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [100 * float(means.mean()), 100 * float(low), 100 * float(high)]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means, intervals, and a row for each family."""
    modes = ("icl", "ttt", "gated", "votes", "likelihood_votes")
    shown = (*modes, "icl_where_voted", "ttt_where_voted")
    result: dict[str, Any] = {mode: mean_and_half([row[mode] for row in rows]) for mode in shown}
    for mode in modes[1:]:
        gains = [row[mode] - row[against(mode)] for row in rows]
        result[f"{mode}_minus_icl"] = mean_and_half(gains)
        result[f"{mode}_minus_icl_over_families"] = clustered(rows, mode)
        result[f"{mode}_better"] = statistics.fmean(g > 0 for g in gains)
        result[f"{mode}_worse"] = statistics.fmean(g < 0 for g in gains)
    for name in ("gate_cpu_s", "train_cpu_s", "train_wall_s", "tokens", "peak_mib"):
        result[name] = statistics.median(row[name] for row in rows)
    result["adapted_share"] = statistics.fmean(row["used"] for row in rows)
    result["tasks"] = len(rows)
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["task"], []).append(row)
    result["families"] = {
        name: {mode: 100 * statistics.fmean(row[mode] for row in group) for mode in modes}
        | {"used": statistics.fmean(row["used"] for row in group)}
        for name, group in families.items()
    }
    return result


def main() -> None:
    """Run one part and write it into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=["spark", "english", "bbh"])
    parser.add_argument("--data", type=Path, default=os.environ.get("ACCLIMATE_DATA"), help="folder that holds bbh/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per", type=int, default=None, help="tasks of each family")
    parser.add_argument("--shots", type=int, default=None)
    parser.add_argument("--questions", type=int, default=None)
    parser.add_argument("--votes", type=int, default=3)
    parser.add_argument("--vote-questions", type=int, default=30, help="questions of a task that votes are taken on")
    parser.add_argument("--tasks", nargs="+", default=list(BIG_BENCH_HARD))
    parser.add_argument("--seeds", type=int, default=3, help="of bbh")
    parser.add_argument("--first-seed", type=int, default=0, help="of bbh")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load("spark" if given.part == "spark" else "smollm2")
    if given.part == "bbh":
        if given.data is None:
            parser.error("--data names the folder that holds bbh/ (or set ACCLIMATE_DATA)")
        tasks = [
            big_bench_hard(
                Path(given.data) / "bbh", name, shots=given.shots or 10, questions=given.questions or 100, seed=seed
            )
            for seed in range(given.first_seed, given.first_seed + given.seeds)
            for name in given.tasks
        ]
    else:
        per = given.per or (16 if given.part == "spark" else 6)
        shots = given.shots or (6 if given.part == "spark" else 10)
        questions = given.questions or (4 if given.part == "spark" else 20)
        tasks = known_tasks(model.name, "TEST", per=per, shots=shots, questions=questions, seed=78)
    rows = []
    for number, task in enumerate(tasks, 1):
        rows.append(run_task(model, task, given.votes, given.vote_questions))
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}
        print(f"{number}/{len(tasks)} {json.dumps(shown)}", flush=True)
        if len(rows) > 2:
            # A long run that is interrupted leaves what it has.
            write(given.out, given.part, rows)
    print(json.dumps({k: v for k, v in write(given.out, given.part, rows).items() if k != "families"}, indent=1))


def write(path: Path, part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write a part's results into the file and return its summary."""
    result = summary(rows)
    if part == "spark" and (reference := [row for row in rows if row["task"] in REFERENCE_FAMILIES]):
        result["reference_families"] = {k: v for k, v in summary(reference).items() if k != "families"}
    results = json.loads(path.read_text()) if path.exists() else {}
    results[part] = result | {"rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()

"""Accuracy and cost of recipes on development tasks, or on those of other families: how the defaults were chosen.

    python benchmarks/adaptation/recipes.py --model smollm2 --out recipes.json share_adapted=0.5,orderings=4 rank=8

Every recipe is written as what it changes in the model's own; ``peft`` stands for the plain loop of ``run.py``. With
``--evidence`` an adapter is trained as it is after the gate's evidence, whose passes count: ``parts.share=0.5`` changes
how, and ``parts=null`` trains it anew. ``--begin`` gives initial weights to recipes with ``initial_weights="learned"``,
and ``--strings`` adds the development tasks of spark, which are of other kinds than those of the other models.
``--families CALIBRATION`` takes the families that calibrations are fitted on: a recipe that was chosen on DEVELOPMENT
is to be compared there before it ships.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from run import PEFT_RATES, PEFT_STEPS, interval, known_tasks, plain_peft

from acclimate.language import load
from acclimate.language.decision.evidence import cross_fit
from acclimate.language.decision.trials import answer_scores
from acclimate.language.models.learned_start import LearnedStart
from acclimate.language.training.parts import adapter_to
from acclimate.language.training.recipes import Parts, Recipe, decided
from acclimate.language.training.trainer import TrainingJob


def parsed(text: str) -> dict[str, Any]:
    """Return ``name=value,name=value`` as the fields of a recipe."""
    known = {field.name for field in fields(Recipe)}
    found = dict(part.split("=", 1) for part in text.split(",") if part)
    if unknown := set(found) - known:
        raise SystemExit(f"no such setting of a recipe: {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
    return {name: value if name == "loss" else json.loads(value) for name, value in found.items()}


def changed(recipe: Recipe, text: str) -> Recipe:
    """Return ``recipe`` with the settings in ``text``; those of its parts begin with ``parts.``."""
    given = [part for part in text.split(",") if part]
    inner = {
        name: json.loads(value)
        for name, value in (p.removeprefix("parts.").split("=", 1) for p in given if p.startswith("parts."))
    }
    recipe = replace(recipe, **parsed(",".join(p for p in given if not p.startswith("parts."))))
    return replace(recipe, parts=replace(recipe.parts or Parts(), **inner)) if inner else recipe


def main() -> None:
    """Measure every recipe on the same tasks; write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="'own', 'peft', or settings that differ from the model's own")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--per", type=int, default=2)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--begin", type=Path, help="folder of initial weights, as learned_start/train.py writes it")
    parser.add_argument("--families", choices=("DEVELOPMENT", "CALIBRATION"), default="DEVELOPMENT")
    parser.add_argument("--strings", action="store_true", help="the tasks on strings too, which spark is developed on")
    parser.add_argument("--evidence", action="store_true", help="with the gate's evidence, whose passes count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load(given.model)
    if given.begin is not None:
        model = replace(model, learned_start=LearnedStart.read(given.begin, model.network))
    drawn = {"per": given.per, "shots": given.shots, "questions": 8, "seed": given.seed}
    tasks = known_tasks(given.model, given.families, **drawn)
    if given.strings:
        tasks += known_tasks("spark", given.families, **drawn)
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    for text in ("icl", *given.recipes):
        rows = []
        for task in tasks:
            recipe = decided(model.recipe, task.examples)
            if text == "icl":
                found, cpu_s, steps = answer_scores(model, task.examples, task.questions), 0.0, 0
            elif text == "peft":
                steps = PEFT_STEPS[given.model]
                answered, cpu_s, _ = plain_peft(
                    model, task.examples, task.questions,
                    steps=steps, rank=recipe.rank_or_default, rate=PEFT_RATES[given.model]["causal"],
                )  # fmt: skip
                found = [(right, math.nan) for right in answered]
            else:
                recipe = decided(changed(model.recipe, "" if text == "own" else text), task.examples)
                began, parts = time.process_time(), None
                if given.evidence:
                    evidence, parts = cross_fit(model, task.examples, recipe, even_if_perfect=True)
                    parts = parts if evidence.likelier else None
                adapter = adapter_to(model, TrainingJob(sets=[task.examples]), recipe, parts)
                cpu_s, steps = time.process_time() - began, len(adapter.losses)
                found = answer_scores(model, task.examples, task.questions, adapter)
            right, nats = zip(*found, strict=True)
            row = {"right": statistics.fmean(right), "log_likelihood_nats": statistics.fmean(nats)}
            rows.append({"task": task.name, **row, "cpu_s": cpu_s, "steps": steps})
        mean, half = interval([row["right"] for row in rows])
        cpu_s = statistics.fmean(row["cpu_s"] for row in rows)
        nats = statistics.fmean(row["log_likelihood_nats"] for row in rows)
        print(f"{100 * mean:5.1f} +- {100 * half:4.1f}  {nats:6.2f} nats  {cpu_s:6.2f} CPU s  {text}", flush=True)
        results[text] = {"right": mean, "half_interval": half, "cpu_s": cpu_s, "rows": rows}
        if given.out:
            given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

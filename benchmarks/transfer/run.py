"""What a library of adapters is worth: accuracy, steps and CPU seconds with and without it, on the same requests.

    python benchmarks/transfer/run.py --out benchmarks/transfer/results/transfer.json

Every request is answered without a library, with one that has other tasks of its family (and of all others), and with
one that has tasks of other families only. The settings were chosen on other families (``tune.py``).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from libraries import Filled, Request, requests

from acclimate.language import AdapterLibrary, AdapterManager, Engine, LanguageModel, load

RESAMPLES = 4000
#: What is compared, and how it is named in the results.
MEASURES = ("right", "steps", "trained_tokens", "cpu_s")
Row = dict[str, Any]


def answered(model: LanguageModel, request: Request, library: AdapterLibrary | None) -> Row:
    """Return how a request is answered; its first question is timed, the others only asked."""
    engine = Engine(model, library=library, cache=AdapterManager(), max_seconds=None)
    right, first, cpu_s, added = [], None, 0.0, None
    for question in request.questions:
        began = time.thread_time()
        report = engine.answer(request.examples, question.input)
        if first is None:
            first, cpu_s = report, time.thread_time() - began
        right.append(report.answer == question.output)
        added = report.adapter_key if report.library is not None and report.library.added else added
    if library is not None and added is not None:
        # The next request finds the library as this one did.
        library.remove(added)
    if first is None:
        raise ValueError("a request has no questions")
    used = first.library
    return {
        "right": sum(right) / len(right),
        "steps": first.metadata.training_steps if first.status == "adapted" else 0,
        "trained_tokens": first.trained_tokens,
        "cpu_s": cpu_s,
        "status": first.status,
        "use": used.use if used is not None else None,
        "confidence": first.metadata.confidence_score,
    }


def interval(rows: Sequence[Row], condition: str, measure: str) -> dict[str, float]:
    """Return the mean of ``condition`` minus that without a library, with a 95 % interval; families are drawn anew."""
    by_family: dict[str, list[float]] = {}
    for row in rows:
        by_family.setdefault(row["family"], []).append(row[condition][measure] - row["none"][measure])
    sums = np.array([sum(values) for values in by_family.values()])
    sizes = np.array([len(values) for values in by_family.values()])
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return {"difference": float(sums.sum() / sizes.sum()), "low": float(low), "high": float(high)}


def compared(rows: Sequence[Row], condition: str) -> dict[str, Any]:
    """Return one condition against none on some of the requests."""
    found: dict[str, Any] = {"requests": len(rows), "families": len({row["family"] for row in rows})}
    for measure in MEASURES:
        means = {c: float(np.mean([row[c][measure] for row in rows])) for c in ("none", condition)}
        found[measure] = {
            "none": means["none"],
            "library": means[condition],
            **interval(rows, condition, measure),
        }
    for use in ("answered", "start", None):
        chosen = [row for row in rows if row[condition]["use"] == use]
        found[f"use: {use or 'none'}"] = {
            "requests": len(chosen),
            "right": float(np.mean([row[condition]["right"] for row in chosen])) if chosen else None,
            "right_without": float(np.mean([row["none"]["right"] for row in chosen])) if chosen else None,
        }
    return found


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return all comparisons."""
    same = [row for row in rows if row["same_rule"]]
    other = [row for row in rows if not row["same_rule"]]
    return {
        "the same rule, other examples": compared(same, "like"),
        "the same family, other parameters": compared(other, "like"),
        "other families only": compared(rows, "unlike"),
    }


def main() -> None:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per", type=int, default=3, help="requests of each family")
    parser.add_argument("--questions", type=int, default=4, help="of each request")
    parser.add_argument("--filling", type=int, default=2, help="tasks of each family that fill the library")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=Path, help="also write a line for each request, as they come")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load("spark")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        filled = Filled(model, "TEST", Path(folder) / "filled", per=given.filling, seed=201)
        for request in requests("TEST", filled, per=given.per, questions=given.questions, seed=202):
            row: Row = {
                "family": request.family,
                "same_rule": request.same_rule,
                "kept_of_family": filled.kept[request.family],
                "examples": len(request.examples),
                "none": answered(model, request, None),
            }
            for kind, without in (("like", None), ("unlike", request.family)):
                row[kind] = answered(model, request, filled.library(Path(folder) / "library", without=without))
            rows.append(row)
            print(json.dumps(row), flush=True)
            if given.rows:
                given.rows.write_text("".join(json.dumps(one) + "\n" for one in rows))
        kept = filled.kept
    result = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
        "filled": {"tasks": given.filling * len(kept), "kept": sum(kept.values()), "kept_by_family": kept},
        "questions_each": given.questions,
        "results": summary(rows),
        "requests": rows,
    }
    print(json.dumps(result["results"], indent=1))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What a start from a library's adapter is worth, by how well it answers the examples: for choosing the settings.

    python benchmarks/transfer/tune.py

Requests are of families that no result is reported on.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from libraries import Filled, Request, requests

from acclimate.language import LanguageModel, load, train
from acclimate.language.decision.side_by_side import compared
from acclimate.language.decision.trials import scored
from acclimate.language.training.adapter_library import AdapterLibrary
from acclimate.language.training.recipes import decided

CANDIDATES = 8
SHARES = (0.25, 0.5, 1.0)


def share_right(model: LanguageModel, request: Request, adapter: Any = None) -> float:
    """Return which share of the questions is answered exactly."""
    right = scored(model, request.examples, request.questions, adapter)
    return sum(right) / len(right)


def measured(model: LanguageModel, request: Request, library: AdapterLibrary) -> dict[str, Any]:
    """Return how one request does with the nearest adapters, without and after further training."""
    listing = library.read()
    near = library.nearest(listing, model.fingerprint, request.examples, CANDIDATES)
    adapters = [library.load(entry, model) for entry in near]
    recipe = decided(model.recipe, request.examples)
    base, *scores = compared(model, request.examples, adapters, seed=recipe.seed)
    best = max(range(len(near)), key=lambda i: scores[i].log_likelihood)
    steps = recipe.steps or recipe.steps_cap
    row: dict[str, Any] = {
        "family": request.family,
        "same_rule": request.same_rule,
        "shots": len(request.examples),
        "base_exact": base.exact,
        "best_rank": best,
        "best_exact": scores[best].exact,
        "gain": 1 - scores[best].log_likelihood / min(-1e-6, base.log_likelihood),
        "icl": share_right(model, request),
        "untrained": share_right(model, request, adapters[best]),
    }
    for share in SHARES:
        fewer = replace(recipe, steps=max(1, math.ceil(steps * share)))
        warm = train(model, [request.examples], fewer, start=adapters[best])
        row[f"start {share}"] = share_right(model, request, warm), len(warm.losses)
    cold = train(model, [request.examples], recipe)
    row["scratch"] = share_right(model, request, cold), len(cold.losses)
    return row


def main() -> None:
    """Measure, and print a line for each request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load("spark")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        filled = Filled(model, "DEVELOPMENT", Path(folder) / "filled", per=2, seed=101)
        print(json.dumps(filled.kept), flush=True)
        for request in requests("DEVELOPMENT", filled, per=given.per, questions=8, seed=102):
            for kind in ("like", "unlike"):
                library = filled.library(Path(folder) / "library", without=request.family if kind == "unlike" else None)
                rows.append({"library": kind, **measured(model, request, library)})
                print(json.dumps(rows[-1]), flush=True)
    if given.out:
        given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()

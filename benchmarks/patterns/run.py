"""How well examples in prompts are found and read, on layouts that nothing was tuned on.

python benchmarks/patterns/run.py --out benchmarks/patterns/results/patterns.json

``--also`` takes further files of labelled prompts, in the form of ``unseen_layouts.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompts import Labelled, is_exact, load

from acclimate.language import detect
from acclimate.language.patterns import KINDS, Detection

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SHARES = ("precision", "recall", "exact", "acted_on_wrongly")


def acts(found: Detection | None) -> bool:
    """Return whether a model would be adapted: there are two examples and an open item."""
    return found is not None and found.query is not None and len(found.examples) >= 2


def measured(rows: Sequence[Labelled]) -> dict[str, Any]:
    """Return precision and recall, how often prompts are read exactly, and how often they are acted on wrongly.

    ``exact`` is the share, of the prompts that have examples and an open item, of which all examples and the item are
    read exactly; ``acted_on_wrongly`` the share, of all prompts, that a model would be adapted to though they were not
    read exactly or show no examples.
    """
    found, seconds = [], []
    for row in rows:
        start = time.process_time()
        found.append(detect(row.prompt))
        seconds.append(time.process_time() - start)
    seen = [d is not None for d in found]
    few = [row.few_shot for row in rows]
    hits = sum(a and b for a, b in zip(few, seen, strict=True))
    exact = [
        d is not None and is_exact(row, [(e.input, e.output) for e in d.examples], d.query)
        for row, d in zip(rows, found, strict=True)
    ]
    both = [bool(row.examples) and row.query is not None for row in rows]
    wrong = [acts(d) and not (row.few_shot and right) for row, d, right in zip(rows, found, exact, strict=True)]
    result: dict[str, Any] = {
        "prompts": len(rows),
        "with_examples": sum(few),
        "precision": hits / max(1, sum(seen)),
        "recall": hits / max(1, sum(few)),
        "exact": sum(e and b for e, b in zip(exact, both, strict=True)) / max(1, sum(both)),
        "acted_on": statistics.fmean(acts(d) for d in found),
        "acted_on_wrongly": statistics.fmean(wrong),
        "milliseconds": {"median": 1000 * statistics.median(seconds), "worst": 1000 * max(seconds)},
    }
    if any(row.kind for row in rows):
        result["kinds"] = {}
        for kind in KINDS:
            named = [d is not None and d.kind == kind for d in found]
            right = sum(n and row.kind == kind for n, row in zip(named, rows, strict=True))
            total = sum(row.kind == kind for row in rows)
            result["kinds"][kind] = {"prompts": total, "precision": right / max(1, sum(named)), "recall": right / total}
    return result


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT / "tests/data/patterns.jsonl")
    parser.add_argument("--unseen", type=Path, default=HERE / "unseen_layouts.jsonl")
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    corpora = {
        "unseen_layouts": list(load(given.unseen)),
        "short_prompts": [row for row in load(given.corpus) if row.split == "test"],
        **{path.stem: list(load(path)) for path in given.also},
    }
    results = {name: measured(rows) for name, rows in corpora.items()}
    for name, result in results.items():
        print(f"{name} ({result['prompts']} prompts):", *(f"{share} {result[share]:.3f}" for share in SHARES))
        for kind, values in result.get("kinds", {}).items():
            shares = f"precision {values['precision']:.3f}  recall {values['recall']:.3f}"
            print(f"  {kind:22s} {shares}  ({values['prompts']} prompts)")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

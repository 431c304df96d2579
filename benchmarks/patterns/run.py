"""Precision and recall of pattern detection by kind, on the half of the corpus that nothing was tuned on.

python benchmarks/patterns/run.py --out benchmarks/patterns/results/patterns.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from acclimate.language import detect
from acclimate.language.patterns import KINDS

ROOT = Path(__file__).parents[2]


def measured(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return precision and recall by kind, and how often examples and query are found exactly."""
    found, seconds = [], []
    for row in rows:
        start = time.process_time()
        found.append(detect(row["prompt"]))
        seconds.append(time.process_time() - start)
    result: dict[str, Any] = {"prompts": len(rows), "kinds": {}}
    for kind in KINDS:
        named = [d is not None and d.kind == kind for d in found]
        right = sum(n and row["kind"] == kind for n, row in zip(named, rows, strict=True))
        total = sum(row["kind"] == kind for row in rows)
        result["kinds"][kind] = {"prompts": total, "precision": right / max(1, sum(named)), "recall": right / total}
    positive = [row["kind"] is not None for row in rows]
    seen = [d is not None for d in found]
    hits = sum(a and b for a, b in zip(positive, seen, strict=True))
    result["pattern_or_not"] = {
        "precision": hits / sum(seen),
        "recall": hits / sum(positive),
        "accuracy": statistics.fmean(a == b for a, b in zip(positive, seen, strict=True)),
    }
    examples, queries = [], []
    for row, d in zip(rows, found, strict=True):
        if row["kind"] is not None and row["examples"]:
            examples.append(d is not None and [[e.input, e.output] for e in d.examples] == row["examples"])
            queries.append(d is not None and d.query == row["query"])
    result["examples_exact"] = statistics.fmean(examples)
    result["query_exact"] = statistics.fmean(queries)
    result["milliseconds"] = {"median": 1000 * statistics.median(seconds), "worst": 1000 * max(seconds)}
    return result


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT / "tests/data/patterns.jsonl")
    parser.add_argument("--split", default="test", choices=["test", "tuning"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = [row for line in given.corpus.open(encoding="utf-8") if (row := json.loads(line))["split"] == given.split]
    result = measured(rows)
    for kind, values in result["kinds"].items():
        print(
            f"{kind:22s} precision {values['precision']:.3f}  recall {values['recall']:.3f}"
            f"  ({values['prompts']} prompts)"
        )
    both = result["pattern_or_not"]
    print(f"{'pattern or not':22s} precision {both['precision']:.3f}  recall {both['recall']:.3f}")
    print(f"examples exact {result['examples_exact']:.3f}, query exact {result['query_exact']:.3f}")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

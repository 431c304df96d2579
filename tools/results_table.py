# ruff: noqa: E501 - a row of a table is one line
"""The rows of the README, from committed results."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
STUDENT_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447}
"""Half-width of a 95 % interval in standard errors, by the number of seeds or pools."""


def results_table() -> str:
    """Return what adaptation does on each benchmark, with 95 % intervals of the change."""
    lines = [
        "| what | benchmark | without | with | change [95 % interval] |",
        "| --- | --- | --- | --- | --- |",
    ]
    stream = "[ResNet-20, CIFAR-10, ten corruptions in a row](benchmarks/cifar), error %"
    lines += [
        _guards_row("blend", f"`blend`, given 2,000 source images, with flip averaging | {stream}"),
        _guards_row("eata", f"EATA, given the same images for its Fisher information | {stream}"),
        _detector_row(),
    ]
    names = {
        "spark": "24 families of string tasks",
        "english": "12 English tasks",
        "bbh": "nine tasks of BIG-Bench Hard",
    }
    for part, tasks in names.items():
        found = _results("fewshot")[part]
        model = "`spark`" if part == "spark" else "`smollm2`"
        change = _interval(*found["gated_minus_icl_over_families"])
        lines.append(
            f"| {model} with the gate | [{tasks}](benchmarks/fewshot), exact match % | "
            f"{found['icl'][0]:.1f} | {found['gated'][0]:.1f} | {change} |"
        )
    lines += [_media_row("undamaged", clean=True), _media_row("damaged", clean=False)]
    return "\n".join(lines)


def _media_row(queries: str, *, clean: bool) -> str:
    """Return a row of labelled images and sounds, averaged over pools; the interval is over pools."""
    pools = list(_results("media", "report")["pools"].values())
    first = {"image": "efficientnet_lite0", "audio": "speech"}

    def accuracy(pool: dict[str, Any], way: str) -> float:
        values = pool["ways"][way]["accuracy"]
        return float(values["clean"]) if clean else mean(value for name, value in values.items() if name != "clean")

    before = [accuracy(pool, f"{first[pool['kind']]}, class_means") for pool in pools]
    after = [accuracy(pool, "chosen") for pool in pools]
    changes = [b - a for a, b in zip(before, after, strict=True)]
    half = STUDENT_T_95[len(changes)] * stdev(changes) / math.sqrt(len(changes))
    change = _interval(mean(changes), mean(changes) - half, mean(changes) + half)
    what = f"a few labelled files, {queries} queries; without: class means of the first encoder"
    return f"| {what} | [{len(pools)} pools of images and sounds](benchmarks/media), accuracy % | {mean(before):.1f} | {mean(after):.1f} | {change} |"


def _guards_row(method: str, what: str) -> str:
    rows = _results("guards")["rows"]
    row = next(row for row in rows if (row["fault"], row["method"]) == ("nothing wrong", method))
    change = row["guarded_minus_none"]
    return f"| {what} | {row['none']:.1f} | {row['guarded']:.1f} | {_interval(change['points'], change['low'], change['high'])} |"


def _detector_row() -> str:
    """Return the detector's row; the interval is over seeds, of the mean over conditions."""
    by_seed: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in _results("pose_scenes", "online")["rows"]:
        if row["condition"] != "clean" and row["setting"] in ("none", "spectrum"):
            by_seed[row["setting"], row["seed"]].append(row["mAP"])
    seeds = sorted({seed for _, seed in by_seed})
    before = {seed: mean(by_seed["none", seed]) for seed in seeds}
    after = {seed: mean(by_seed["spectrum", seed]) for seed in seeds}
    changes = [after[seed] - before[seed] for seed in seeds]
    half = STUDENT_T_95[len(seeds)] * stdev(changes) / math.sqrt(len(seeds))
    change = _interval(mean(changes), mean(changes) - half, mean(changes) + half)
    what = "`--ttt` on the detector that ships (`spectrum`) | [synthetic scenes with poses, twenty conditions](benchmarks/pose_scenes), mAP"
    return f"| {what} | {mean(before.values()):.1f} | {mean(after.values()):.1f} | {change} |"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _results(folder: str, name: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BENCHMARKS / folder / "results" / f"{name or folder}.json").read_text())
    return found

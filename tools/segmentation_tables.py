"""Tables of the segmentation benchmark from its committed results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_ORDER: Final = ("none", "bn", "tent", "eata", "sar", "spectrum", "blend", "auto")
_RESULTS: Final = Path(__file__).parent.parent / "benchmarks" / "segmentation" / "results"


def kinds_table(half: str, light: str) -> str:
    """Return the mean IoU under every kind of damage of one half, by day or at dusk."""
    of, methods, kinds = _by_kind(half, light)
    lines = ["| kind | " + " | ".join(methods) + " |", "| --- |" + " --- |" * len(methods)]
    for kind in kinds:
        cells = (f"{of[kind, method]['mIoU']:.1f}" if (kind, method) in of else "-" for method in methods)
        lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary_table(half: str) -> str:
    """Return clean and mean damaged IoU, the share of the loss that is recovered, and the cost, by method."""
    lines = [
        "| light | method | clean | damaged | recovered | cost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for light in ("day", "dusk"):
        of, methods, kinds = _by_kind(half, light)
        damaged = [kind for kind in kinds if kind != "clean"]
        clean = of["clean", "none"]["mIoU"]
        without = _mean([of[kind, "none"]["mIoU"] for kind in damaged])
        for method in methods:
            if any((kind, method) not in of for kind in kinds):
                continue
            mean = _mean([of[kind, method]["mIoU"] for kind in damaged])
            # Rows of an earlier run keep the time of plain prediction in that run.
            plain = {kind: of[kind, method].get("plain_cpu_s", of[kind, "none"]["cpu_s"]) for kind in damaged}
            cost = _mean([of[kind, method]["cpu_s"] / plain[kind] for kind in damaged])
            back = "" if method == "none" else f"{100 * (mean - without) / (clean - without):.0f} %"
            lines.append(
                f"| {light} | {method} | {of['clean', method]['mIoU']:.1f} | {mean:.1f} | {back} | {cost:.1f} |"
            )
    return "\n".join(lines)


def _by_kind(half: str, light: str) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str], list[str]]:
    rows = json.loads((_RESULTS / f"{half}.json").read_text())["rows"]
    of = {(row["kind"], row["method"]): row for row in rows if row["light"] == light}
    methods = sorted({method for _, method in of}, key=_ORDER.index)
    return of, methods, list(dict.fromkeys(kind for kind, _ in of))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

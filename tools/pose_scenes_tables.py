"""Tables of the detector benchmark from its committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "pose_scenes" / "results"


def summary_table(name: str) -> str:
    """Return one line for each setting: means over corruptions with 95 % intervals over seeds."""
    summary = _results(name)["summary"]
    lines = [
        "| setting | mAP clean | mAP corrupted | recovered % | mAP50 | rotation, degrees | depth % | found % | cost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting, values in summary.items():
        cells = [
            _pm(values["mAP_clean"]),
            _pm(values["mAP"]),
            "" if setting == "none" else _pm(values["won_back_percent"]),
            f"{values['mAP50']['mean']:.1f}",
            f"{values['rotation_degrees']['mean']:.1f}",
            f"{100 * values['depth_relative']['mean']:.1f}",
            f"{100 * values['found']['mean']:.0f}",
            f"{values['cost']['mean']:.2f}",
        ]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conditions_table(name: str) -> str:
    """Return the mAP of each setting under each condition, the mean over seeds."""
    rows = _results(name)["rows"]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    lines = ["| condition | " + " | ".join(settings) + " |", "| --- " * (len(settings) + 1) + "|"]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        cells = []
        for setting in settings:
            values = [r["mAP"] for r in rows if r["condition"] == condition and r["setting"] == setting]
            cells.append(f"{sum(values) / len(values):.1f}" if values else "")
        lines.append(f"| {condition} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def auto_table() -> str:
    """Return what auto chose under each condition, beside the best single method on the same scenes."""
    rows = _results("auto")["rows"]
    seeds = {row["seed"] for row in rows}
    single: dict[str, dict[str, list[float]]] = {}
    for row in _results("online")["rows"]:
        if row["seed"] in seeds and row["setting"] not in ("none", "align, stream", "auto"):
            single.setdefault(row["condition"], {}).setdefault(row["setting"], []).append(row["mAP"])
    lines = [
        "| condition | chosen | auto | best single | its mAP | auto - best | none |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ours, plain = [], []
    means: dict[str, list[float]] = {}
    for condition in single:
        own = [row for row in rows if row["condition"] == condition]
        auto = _mean([row["mAP"] for row in own if row["setting"] == "auto"])
        none = _mean([row["mAP"] for row in own if row["setting"] == "none"])
        chosen = ", ".join(dict.fromkeys(row["chosen"] for row in own if row["setting"] == "auto"))
        found = {method: _mean(values) for method, values in single[condition].items()}
        best = max(found, key=lambda method: found[method])
        top = found[best]
        lines.append(f"| {condition} | {chosen} | {auto:.1f} | {best} | {top:.1f} | {auto - top:+.1f} | {none:.1f} |")
        if condition != "clean":
            ours.append(auto)
            plain.append(none)
            for method, value in found.items():
                means.setdefault(method, []).append(value)
    best = max(means, key=lambda method: _mean(means[method]))
    top, mean, none = _mean(means[best]), _mean(ours), _mean(plain)
    lines.append(f"| mean, corrupted |  | {mean:.1f} | {best} | {top:.1f} | {mean - top:+.1f} | {none:.1f} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _pm(value: dict[str, float]) -> str:
    return f"{value['mean']:.1f} ± {value['half_width']:.1f}"

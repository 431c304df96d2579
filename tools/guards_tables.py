"""Tables of what the guards do, where their thresholds are from, and what ``auto`` chooses, from committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def faults_table() -> str:
    """Return what each fault does to Tent, and what the guards make of it."""
    lines = [
        "| stream | none | Tent | Tent, guarded | guarded - none | first guard | at batch |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in _results("guards", "guards")["rows"]:
        if row["method"] == "tent":
            first = row["first"] or {"guard": "", "batch": ""}
            errors = f"{row['none']:.1f} | {row['unguarded']:.1f} | {row['guarded']:.1f}"
            change = _change(row["guarded_minus_none"])
            # Results that were recorded before the guard had its present name.
            guard = first["guard"].replace("AgainstSource", "WorseThanSource")
            lines.append(f"| {row['fault']} | {errors} | {change} | {guard} | {first['batch']} |")
    return "\n".join(lines)


def others_table() -> str:
    """Return the change against the unadapted model of every method with default guards."""
    rows = _results("guards", "guards")["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| stream | " + " | ".join(methods) + " |", "| --- " * (len(methods) + 1) + "|"]
    for fault in dict.fromkeys(row["fault"] for row in rows):
        found = {row["method"]: _change(row["guarded_minus_none"]) for row in rows if row["fault"] == fault}
        lines.append(f"| {fault} | " + " | ".join(found.get(method, "") for method in methods) + " |")
    return "\n".join(lines)


def thresholds_table() -> str:
    """Return the change against the unadapted model by group of streams, without the guard and with its defaults."""
    found = _results("guards", "thresholds")
    lines = ["| streams | no guard, mean | worst | guarded, mean | worst |", "| --- | --- | --- | --- | --- |"]
    for group, free in found["no guard"].items():
        kept = found["default"]["change"][group]
        numbers = " | ".join(f"{value:+.1f}" for value in (free["mean"], free["worst"], kept["mean"], kept["worst"]))
        lines.append(f"| {group} | {numbers} |")
    return "\n".join(lines)


def detector_signals_table() -> str:
    """Return the extremes of the signals on detectors, for methods with their presets and for broken ones."""
    rows = _results("guards", "thresholds")["detectors"]
    lines = [
        "| methods | smallest variety | smallest detection | largest degradation score |",
        "| --- | --- | --- | --- |",
    ]
    for name, chosen in (
        ("with their presets", [row for row in rows if row["lr_factor"] == 1]),
        ("align at 100 and 1,000 times its rate", [r for r in rows if r["method"] == "align" and r["lr_factor"] > 1]),
        ("tent at 1,000 times its rate", [r for r in rows if r["method"] == "tent" and r["lr_factor"] == 1000]),
    ):
        signals = ("variety_ratio", "least_detection_ratio", "most_doubt")
        low, seen, high = ([row[signal] for row in chosen] for signal in signals)
        lines.append(f"| {name} | {min(low):.2f} | {min(seen):.2f} | {max(high):.2f} |")
    return "\n".join(lines)


def auto_table() -> str:
    """Return what was chosen on each stream, beside the best single method and no adaptation."""
    lines = [
        "| stream | chosen | error | best single | its error | auto - best | none | auto - none |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in _results("auto", "auto")["rows"]:
        best = f"{row['best']} | {row['single'][row['best']]:.2f} | {_change(row['auto_minus_best'])}"
        none = f"{row['none']:.2f} | {_change(row['auto_minus_none'])}"
        lines.append(f"| {row['stream']} | {row['chosen']} | {row['auto']:.2f} | {best} | {none} |")
    return "\n".join(lines)


def _change(change: dict[str, float]) -> str:
    return f"{change['points']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]"


def _results(folder: str, name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((BENCHMARKS / folder / "results" / f"{name}.json").read_text())
    return results

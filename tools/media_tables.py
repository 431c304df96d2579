# ruff: noqa: E501 - a row of a table is one line
"""Tables of the benchmark of images and sounds, from its committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_RESULTS: Final = Path(__file__).parent.parent / "benchmarks" / "media" / "results"
CHOSEN: Final = "chosen"


def accuracy_table(half: str) -> str:
    """Return the accuracy of requests, and of the best fixed way in hindsight, for each pool."""
    lines = [
        "| pool | clean | damaged | class means, first encoder: clean, damaged | best fixed way on clean queries, in hindsight | its clean, damaged | chosen minus it, clean [95 % interval] |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for pool in _pools(half):
        ways = pool["ways"]
        best = _best(ways)
        plain = ways[f"{_first_encoder(pool)}, class_means"]
        gain = ways[best]["gain_of_chosen"]["clean"]
        lines.append(
            f"| {pool['title']} | {_clean(ways[CHOSEN]):.1f} | {_damaged(ways[CHOSEN]):.1f} | {_clean(plain):.1f}, {_damaged(plain):.1f} | "
            f"{best} | {_clean(ways[best]):.1f}, {_damaged(ways[best]):.1f} | {_interval(gain)} |"
        )
    return "\n".join(lines)


def conditions_table(half: str) -> str:
    """Return the accuracy of requests under each kind of damage."""
    lines = []
    for kind in ("image", "audio"):
        pools = [pool for pool in _pools(half) if pool["kind"] == kind]
        conditions = list(pools[0]["ways"][CHOSEN]["accuracy"]) if pools else []
        lines += [f"| {kind} | " + " | ".join(conditions) + " |", "| --- |" + " --- |" * len(conditions)]
        for pool in pools:
            accuracy = pool["ways"][CHOSEN]["accuracy"]
            lines.append(f"| {pool['title']} | " + " | ".join(f"{accuracy[name]:.1f}" for name in conditions) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def evidence_table(half: str) -> str:
    """Return how good probabilities and refusals are, and what a request costs."""
    lines = [
        "| pool | held-out accuracy | calibration error: clean, damaged | refused at 0.05: right queries, other classes, another pool | CPU s beyond encoding: median, largest | most frequent choices |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for pool in _pools(half):
        row = pool["ways"][CHOSEN]
        error = row["calibration_error"]
        damaged = [value for name, value in error.items() if name != "clean"]
        refused = [
            f"{row['refused'][name]['0.05']:.0f} %" if name in row["refused"] else "-"
            for name in ("clean", "other classes", "another pool")
        ]
        cost = row["cpu_s_beyond_encoding"]
        chosen = "; ".join(f"{name} ({count})" for name, count in list(row["combinations"].items())[:2])
        lines.append(
            f"| {pool['title']} | {row['held_out_accuracy']:.1f} | {error['clean']:.1f}, {sum(damaged) / len(damaged):.1f} | {', '.join(refused)} | "
            f"{cost['median']:.2f}, {cost['largest']:.2f} | {chosen} |"
        )
    return "\n".join(lines)


def targets_table(half: str) -> str:
    """Return for each pool how far a request is behind the best head and the best encoder, and in how many episodes."""
    lines = [
        "| pool | behind the best head on its encoder | behind the best encoder | episodes where the best encoder with the preferred head is better | episodes where the first encoder's class means are better |",
        "| --- | --- | --- | --- | --- |",
    ]
    for pool in _pools(half):
        ways = pool["ways"]
        encoder = next(iter(ways[CHOSEN]["combinations"])).split(", ")[0]
        own = [row for name, row in ways.items() if name.startswith(f"{encoder}, ")]
        preferred = [row for name, row in ways.items() if name.endswith(", logistic, damaged views")]
        chosen = _clean(ways[CHOSEN])
        best = max(preferred, key=_clean)["clean_episodes_where_chosen_is_worse"]
        lost = ways[f"{_first_encoder(pool)}, class_means"]["clean_episodes_where_chosen_is_worse"]
        lines.append(
            f"| {pool['title']} | {max(map(_clean, own)) - chosen:.1f} | {max(map(_clean, preferred)) - chosen:.1f} | {best:.0f} % | {lost:.0f} % |"
        )
    return "\n".join(lines)


def adapt_table() -> str:
    """Return what training the encoder's norm parameters brings, without and with the gate."""
    lines = [
        "| pool | episodes | frozen: clean, noise | trained: clean, noise | trained minus frozen, clean [95 % interval] | kept by the gate | with the gate: clean, noise | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in json.loads((_RESULTS / "adapt.json").read_text())["pools"].items():
        of = {way: f"{values['clean']:.1f}, {values['noise']:.1f}" for way, values in row["accuracy"].items()}
        lines.append(
            f"| {name.replace('_', ' ')} | {row['episodes']} | {of['frozen']} | {of['trained']} | {_interval(row['trained_minus_frozen']['clean'])} | "
            f"{row['kept']} of {row['episodes']} | {of['gate']} | {row['cpu_s']:.0f} |"
        )
    return "\n".join(lines)


def _pools(half: str) -> list[dict[str, Any]]:
    return list(json.loads((_RESULTS / f"{half}.json").read_text())["pools"].values())


def _first_encoder(pool: dict[str, Any]) -> str:
    return {"image": "efficientnet_lite0", "audio": "speech"}[pool["kind"]]


def _best(ways: dict[str, Any]) -> str:
    return max((name for name in ways if name != CHOSEN), key=lambda name: _clean(ways[name]))


def _clean(row: dict[str, Any]) -> float:
    return float(row["accuracy"]["clean"])


def _damaged(row: dict[str, Any]) -> float:
    values = [value for name, value in row["accuracy"].items() if name != "clean"]
    return float(sum(values) / len(values))


def _interval(change: dict[str, float]) -> str:
    return f"{change['points']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]"

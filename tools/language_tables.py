# ruff: noqa: E501 - a row of a table is one line
"""Tables of the language benchmarks, from their committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks"


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / name / "results" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _pm(pair: list[float]) -> str:
    return f"{pair[0]:.1f} ± {pair[1]:.1f}"


def _gain(triple: list[float]) -> str:
    return f"{triple[0]:+.1f} [{triple[1]:+.1f}, {triple[2]:+.1f}]"


def fewshot_table() -> str:
    """Return accuracy in every mode, and gains over ICL with intervals over families."""
    names = {
        "spark": "spark, 24 held-out families",
        "english": "smollm2, 12 English tasks",
        "bbh": "smollm2, BIG-Bench Hard",
    }
    lines = [
        "| model and tasks | ICL | TTT | TTT with gate | TTT with 3 votes (ICL there) | TTT - ICL | with gate - ICL | adapted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, result in _read("fewshot").items():
        votes = f"{_pm(result['votes'])} ({result['icl_where_voted'][0]:.1f})"
        lines.append(
            f"| {names[part]} | {_pm(result['icl'])} | {_pm(result['ttt'])} | {_pm(result['gated'])} | {votes} | "
            f"{_gain(result['ttt_minus_icl_over_families'])} | {_gain(result['gated_minus_icl_over_families'])} | "
            f"{result['adapted_share']:.0%} |"
        )
    return "\n".join(lines)


def fewshot_families_table(part: str) -> str:
    """Return every family of a part."""
    lines = ["| family | ICL | TTT | with gate | with votes | adapted |", "| --- | --- | --- | --- | --- | --- |"]
    for name, row in _read("fewshot").get(part, {}).get("families", {}).items():
        lines.append(
            f"| {name} | {row['icl']:.1f} | {row['ttt']:.1f} | {row['gated']:.1f} | {row['votes']:.1f} | {row['used']:.0%} |"
        )
    return "\n".join(lines)


def serve_table(model: str) -> str:
    """Return what sharing passes brings, by kind of load and number of clients."""
    path = RESULTS / "serve" / "results" / f"{model}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    lines = [
        "| load | clients | requests/s | times one client | CPU s a request | times one client | tokens/s | first text s: p50, p95, p99 | whole s: p50, p95, p99 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for load, rows in result.get("load", {}).items():
        one = rows["1"]
        for clients, row in rows.items():
            if clients == "transformers":
                lines.append(
                    f"| {load} | `transformers`, plain | {row['requests_per_second']} | | {row['cpu_seconds_per_request']} | | "
                    f"{row['tokens_per_second']} | | |"
                )
                continue
            speed = row["requests_per_second"] / one["requests_per_second"]
            cost = one["cpu_seconds_per_request"] / row["cpu_seconds_per_request"]
            times = [
                ", ".join(f"{row[kind][p]:.2f}" for p in ("p50", "p95", "p99")) for kind in ("first_token_s", "whole_s")
            ]
            lines.append(
                f"| {load} | {clients} | {row['requests_per_second']} | {speed:.1f} | {row['cpu_seconds_per_request']} | "
                f"{cost:.1f} | {row['tokens_per_second']} | {times[0]} | {times[1]} |"
            )
    return "\n".join(lines)


def gate_table() -> str:
    """Return the quality of confidence and what each environment's threshold does."""
    lines = [
        "| model | tasks | AUROC, task solved | AUROC, answer right | calibration error | ICL | always TTT | gate | gate, production |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in _read("gate").items():
        gated, strict = r["gated, no environment"], r["gated, production"]
        lines.append(
            f"| {name} | {r['tasks']} | {r['auroc_task_solved']:.3f} | {r['auroc_question_right']:.3f} | "
            f"{r['expected_calibration_error']:.3f} | {r['icl']:.1f} | {r['adapted']:.1f} | {gated['accuracy']:.1f} | "
            f"{strict['accuracy']:.1f} |"
        )
    return "\n".join(lines)


def transfer_table() -> str:
    """Return what a library changes, by what it has, with intervals over families."""
    lines = [
        "| the library has | requests | accuracy without | with | difference | steps without | with | difference | CPU s without | with | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in _read("transfer").get("results", {}).items():
        cells = [name, f"{r['requests']}"]
        for measure, factor, digits in (("right", 100, 1), ("steps", 1, 1), ("cpu_s", 1, 2)):
            none, library, *change = (factor * r[measure][k] for k in ("none", "library", "difference", "low", "high"))
            low, high = (f"{value:+.{digits}f}" for value in change[1:])
            cells += [f"{none:.{digits}f}", f"{library:.{digits}f}", f"{change[0]:+.{digits}f} [{low}, {high}]"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def transfer_uses_table() -> str:
    """Return how often a library's adapters answered or training started from them, and how those were answered."""
    lines = [
        "| the library has | use | requests | accuracy | without a library |",
        "| --- | --- | --- | --- | --- |",
    ]
    words = {"answered": "an adapter answered", "start": "training started from one", "none": "none was used"}
    for name, r in _read("transfer").get("results", {}).items():
        for use, said in words.items():
            one = r[f"use: {use}"]
            shares = ("-" if one[k] is None else f"{100 * one[k]:.1f}" for k in ("right", "right_without"))
            lines.append(f"| {name} | {said} | {one['requests']} | {' | '.join(shares)} |")
    return "\n".join(lines)


def adaptation_table() -> str:
    """Return cost and accuracy beside the loop with peft."""
    lines = [
        "| model | tasks | tokens | ICL | loop with peft | ours | difference | CPU s, peft | CPU s, ours | times faster | per step | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in _read("adaptation").items():
        if not isinstance(r, dict):
            continue
        means = [f"{100 * r[k][0]:.1f}" for k in ("icl", "peft", "ours")]
        difference = f"{100 * r['ours_minus_peft'][0]:+.1f} ± {100 * r['ours_minus_peft'][1]:.1f}"
        lines.append(
            f"| {name} | {r['tasks']} | {r['tokens']:.0f} | {means[0]} | {means[1]} | {means[2]} | {difference} | "
            f"{r['peft_cpu_s']:.2f} | {r['ours_cpu_s']:.2f} | {r['times_faster']:.1f} | {r['times_faster_per_step']:.1f} | "
            f"{r['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def instructions_table() -> str:
    """Return what the user's layout and instruction are worth."""
    ways = {
        "format": "`Input: ... Output: ...`, no instruction",
        "user_layout": "the user's layout, no instruction",
        "with_instruction": "the user's layout and instruction",
    }
    found = json.loads((RESULTS / "fewshot" / "results" / "instructions.json").read_text())["summary"]
    lines = [
        "| what is sent | tokens | ICL | TTT | TTT with gate | confidence less TTT |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, name in ways.items():
        r = found[way]
        means = " | ".join(f"{r[mode]:.1f}" for mode in ("icl", "ttt", "gated"))
        lines.append(f"| {name} | {r['tokens']:.0f} | {means} | {r['confidence_minus_right']:+.1f} |")
    gains = [
        f"{found[f'instruction_gain_{m}'][0]:+.1f} ± {found[f'instruction_gain_{m}'][1]:.1f}"
        for m in ("icl", "ttt", "gated")
    ]
    lines.append(f"| *gain by the instruction* | | {' | '.join(gains)} | |")
    lines.append(f"| the prompt by the chat template, not adapted | | {found['chat_exact']:.1f} | | | |")
    return "\n".join(lines)


def costs_table() -> str:
    """Return what the parts of a request cost, as multiples of in-context learning."""
    found = json.loads((RESULTS / "adaptation" / "results" / "costs.json").read_text())
    models = {name: row for name, row in found.items() if isinstance(row, dict)}
    lines = ["| part | " + " | ".join(models) + " |", "| --- |" + " --- |" * len(models)]
    parts = [part for part in next(iter(models.values()))["times_icl"] if part != "ICL"]
    for part in parts:
        lines.append(f"| {part} | " + " | ".join(f"{row['times_icl'][part]:.2g}" for row in models.values()) + " |")
    ours = " | ".join(f"{row['cpu_s']['ICL']:.2f} s" for row in models.values())
    return "\n".join([*lines, f"| ICL: the examples read once, and the answer | {ours} |"])


def patterns_table() -> str:
    """Return how prompts are found and read, by corpus, and precision and recall by kind."""
    results = _read("patterns")
    shares = ("precision", "recall", "exact", "acted_on_wrongly")
    lines = [
        "| corpus | prompts | precision | recall | read exactly | acted on wrongly |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in results.items():
        lines.append(
            f"| {name.replace('_', ' ')} | {r['prompts']} | " + " | ".join(f"{r[share]:.3f}" for share in shares) + " |"
        )
    lines += ["", "| kind (short prompts) | prompts | precision | recall |", "| --- | --- | --- | --- |"]
    for kind, r in results.get("short_prompts", {}).get("kinds", {}).items():
        lines.append(f"| {kind} | {r['prompts']} | {r['precision']:.3f} | {r['recall']:.3f} |")
    return "\n".join(lines)

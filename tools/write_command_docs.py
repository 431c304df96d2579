"""Write the generated parts of the documentation: every command's help, presets, options, and benchmark tables."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from acclimate.cli.main import main
from acclimate.json_values import to_jsonable
from acclimate.monitoring import KPIS, kpis_table
from acclimate.registry import METHODS, presets
from acclimate.vision.run.config import preset_values

sys.path.insert(0, str(Path(__file__).parent))
import guards_tables
import language_tables
import media_tables
import pose_scenes_tables
import results_table
import segmentation_tables

ROOT = Path(__file__).parent.parent

# Error in per cent and cost of the authors' code on the same arrays (see benchmarks/cifar/README.md).
AUTHORS = {
    "none": (51.22, 1.00),
    "bn": (29.95, 0.83),
    "tent": (28.98, 2.27),
    "eata": (27.88, 2.13),
    "sar": (29.73, 4.25),
    "deyo": (28.89, 3.23),
    "roid": (28.65, 3.92),
    "rotta": (46.74, 9.51),
    "lame": (69.92, 0.81),
    "cotta": (25.26, 66.5),
}

# Methods that nobody else has.
OURS = ("tent, paced", "eata, paced", "spectrum", "blend, without flip averaging", "blend")

# Forward and backward of the normalisation parameters without an update, against plain prediction, in the same run.
AUTHORS_BARE = 2.16


def commands_page() -> str:
    """Return docs/commands.md."""
    parts = ["# Commands\n\nWritten by `make docs` from the commands themselves.\n"]
    parts += [_help(("acclimate",), main)]
    return "\n".join(parts)


def generated_pages() -> dict[Path, str]:
    """Return the content of every file that has generated parts, by path."""
    pages = {ROOT / "docs" / "commands.md": commands_page()}
    pages[ROOT / "src" / "acclimate" / "methods" / "__init__.pyi"] = methods_stub()
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "benchmarks").rglob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ):
        if path not in pages:
            pages[path] = _with_tables(path.read_text(encoding="utf-8"))
    return pages


def methods_stub() -> str:
    """Return the stub of ``acclimate.methods``, from which type checkers know its classes."""
    targets = sorted(entry.target.removeprefix("acclimate.methods").split(":") for entry in METHODS.shipped().values())
    return "".join(f"from {module} import {cls} as {cls}\n" for module, cls in targets)


def methods_table() -> str:
    """Return what every method needs, from what stands on it."""
    lines = [
        "| method | gradient | needs | source images | for | cost | paper |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in METHODS.shipped().items():
        info = METHODS.info(name)
        needs = " or ".join(need.replace("_", " ") for need in info.needs_one_of) or "-"
        source = "used" if info.uses_source_images else "-"
        paper = (
            "-"
            if info.paper is None
            else f"[{info.paper.authors} {info.paper.year}](https://arxiv.org/abs/{info.paper.arxiv})"
        )
        gradient = "yes" if info.needs_gradient else "no"
        kinds = ", ".join(f"{kind}s" for kind in info.kinds)
        lines.append(
            f"| [{entry.name}]({name}.md) | {gradient} | {needs} | {source} | {kinds} | {info.cost:g} | {paper} |"
        )
    return "\n".join([*lines, "", "Cost is CPU time as a multiple of plain prediction, roughly (`benchmarks/cifar`)."])


def presets_table() -> str:
    """Return the presets as a table."""
    lines = [
        "| preset | method | update filter | lr: classifier / segmenter / detector | batch size | other |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    shown = {"method", "update_filter", "lr", "batch_size"}
    for name in presets():
        one = preset_values(name, "classifier")
        each = [one, preset_values(name, "segmenter"), preset_values(name, "detector")]
        rates = " / ".join(f"{values['lr']:g}" for values in each) if "lr" in one else "-"
        rest = ", ".join(f"{key} {value}" for key, value in one.items() if key not in shown)
        sizes = " / ".join(str(values["batch_size"]) for values in each)
        lines.append(f"| `{name}` | {one['method']} | {one['update_filter']} | {rates} | {sizes} | {rest} |")
    return "\n".join(lines)


def options_table(method: str) -> str:
    """Return the fields of a method as a table."""
    settings = METHODS.info(method).own_settings
    flags = {"lr": "--ttt-lr"} | {name: f"--ttt-{setting.replace('_', '-')}" for name, setting in settings.items()}
    lines = ["| name | default | flag |", "| --- | --- | --- |"]
    for field in dataclasses.fields(METHODS.load(method)):
        if field.name not in ("update", "spectrum") and field.repr:
            flag = f"`{flags[field.name]}`" if field.name in flags else ""
            lines.append(f"| `{field.name}` | `{json.dumps(to_jsonable(field.default))}` | {flag} |")
    return "\n".join(lines)


def detector_table() -> str:
    """Return what the methods recover for the detector that ships, under damage that the package does not have."""
    lines = [
        "| half | method | mAP | recovered, % | clean | worst change, points |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for half in ("tune", "report"):
        path = ROOT / "benchmarks" / "shifts" / "results" / f"detector_{half}.json"
        found = json.loads(path.read_text()).get("summary", {}) if path.exists() else {}
        for method, row in found.items():
            kind, change = row["worst"]
            worst = "" if method == "none" else f"{change:+.1f} ({kind.replace('_', ' ')})"
            lines.append(f"| {half} | {method} | {row['mAP']} | {row['recovered']} | {row['clean']} | {worst} |")
    return "\n".join(lines)


def detector_kinds_table(half: str) -> str:
    """Return the detector's mAP by kind of damage and method, and what ``auto`` chose."""
    found = json.loads((ROOT / "benchmarks" / "shifts" / "results" / f"detector_{half}.json").read_text())["rows"]
    methods = list(dict.fromkeys(row["method"] for row in found))
    by = {(row["kind"], row["method"]): row for row in found}
    lines = [f"| kind | {' | '.join(methods)} | chosen |", "| --- " * (len(methods) + 2) + "|"]
    for kind in dict.fromkeys(row["kind"] for row in found):
        values = " | ".join(f"{by[kind, method]['mAP']:.1f}" for method in methods)
        lines.append(f"| {kind.replace('_', ' ')} | {values} | {by[kind, 'auto']['chosen']} |")
    return "\n".join(lines)


def page_table() -> str:
    """Return how long the page's queries take on a million rows."""
    found = json.loads((ROOT / "benchmarks" / "monitoring" / "results" / "page.json").read_text())
    lines = ["| query | SQLite, s | PostgreSQL, s |", "| --- | --- | --- |"]
    for name, query in found["sqlite"]["queries"].items():
        what, _, stretch = name.rpartition(", ")
        if stretch == "month":
            lines.append(f"| {what} | {query['first_s']:.2f} | {found['postgresql']['queries'][name]['first_s']:.2f} |")
    upgrades = [f"{found[kind]['upgrade_s']:.0f} s" for kind in ("sqlite", "postgresql")]
    lines += ["", f"The upgrade of the store took {upgrades[0]} (SQLite) and {upgrades[1]} (PostgreSQL)."]
    return "\n".join(lines)


def ten_million_table() -> str:
    """Return how long the page's queries take on ten million rows, and for how long a writer waits for retention."""
    found = json.loads((ROOT / "benchmarks" / "monitoring" / "results" / "page_10_million.json").read_text())
    found = found["postgresql"]
    lines = ["| query | first, s | then, s |", "| --- | --- | --- |"]
    for name, query in found["queries"].items():
        what, _, stretch = name.rpartition(", ")
        if stretch == "month":
            lines.append(f"| {what} | {query['first_s']:.2f} | {query['s']:.2f} |")
    lines += ["", "| a writer's wait for one row, ms | median | 99 % | longest |", "| --- | --- | --- | --- |"]
    for name, title in (("nothing else", "nothing else to do"), ("retention", "while the oldest day is deleted")):
        waits = found["waits"][name]
        times = " | ".join(f"{1e3 * waits[f'wait_s_{part}']:.0f}" for part in ("median", "p99", "longest"))
        lines.append(f"| {title} | {times} |")
    removed, taken = found["waits"]["removed"], found["waits"]["retention"]["s"]
    lines += [
        "",
        f"Retention deleted {removed['requests']:,} requests, {removed['ttt_metrics']:,} attempts and "
        f"{removed['audit_log']:,} entries of the audit log in {taken:.0f} s.",
        f"The upgrade of the store took {found['upgrade_s']:.0f} s. Beside ten million rows a writer writes "
        f"{found['writer']['full_over_empty']:.2f} times as many rows a second as into an empty store.",
    ]
    return "\n".join(lines)


def sums_table() -> str:
    """Return what reading a month's indicators costs before and after the sums of several processes are added up."""
    found = json.loads((ROOT / "benchmarks" / "monitoring" / "results" / "page_sums.json").read_text())
    lines = ["| database | rows of sums | first, s | then, s | CPU s |", "| --- | --- | --- | --- | --- |"]
    for kind, title in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
        one = found[kind]
        for when, rows in (("before", one["rows"]), ("after", one["rows"] - one["merged"])):
            times = one[when]
            processor = times["cpu_s_of_this_process"] + times["cpu_s_of_the_server"]
            lines.append(f"| {title} | {rows:,} | {times['first_s']:.2f} | {times['s']:.2f} | {processor:.2f} |")
    return "\n".join(lines)


def replicas_table() -> str:
    """Return what replicas on Ray add to the processor time of a request."""
    found = json.loads((ROOT / "benchmarks" / "serve" / "results" / "replicas.json").read_text())["summary"]
    kinds = {
        "new": "new examples, trained",
        "known": "known examples",
        "known to the store, after a restart": "known to the store, after a restart",
        "plain": "the prompt as it stands, 4 tokens",
    }
    lines = ["| CPU ms a request | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for kind, title in kinds.items():
        cells = []
        for one in found.values():
            parts = one.get(kind)
            if parts is None:
                cells.append("")
            elif parts["replicas_ms"]:
                cells.append(f"{parts['cpu_ms']:.0f} (of it the front {parts['front_ms']:.0f})")
            else:
                cells.append(f"{parts['cpu_ms']:.0f}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for name in ("idle, ms of processor a second", "start, s of processor"):
        lines.append(f"| {name} | " + " | ".join(f"{one[name]:.0f}" for one in found.values()) + " |")
    return "\n".join(lines)


def growth_table() -> str:
    """Return how costs grow with classes, rank, examples and adapters."""
    found = json.loads((ROOT / "benchmarks" / "scale" / "results" / "growth.json").read_text())
    lines = ["| cost | sizes | measured | exponent |", "| --- | --- | --- | --- |"]

    def add(what: str, costs: dict[str, float], unit: str, exponent: str) -> None:
        sizes = ", ".join(f"{int(size):,}" for size in costs).replace(", ", " / ")
        lines.append(
            f"| {what} | {sizes} | {' / '.join(f'{cost:.3g}' for cost in costs.values())} {unit} | {exponent} |"
        )

    for name in ("prediction alone", "entropy and its gradient alone", *_GROWING):
        row = found["classes"][name]
        title = name if name.endswith("alone") else f"a step of `{name.partition(',')[0]}`{name.partition(',')[2]}"
        exponents = f"{row['exponent']:.2f}; {row['exponent_from_1000']:.2f} from 1,000"
        add(f"classes: {title}", row["ms"], "ms", exponents)
    add("rank: an adaptation", found["rank"]["s"], "s", f"{found['rank']['exponent']:.2f}")
    add("examples: an adaptation", found["examples"]["s"], "s", f"{found['examples']['exponent']:.2f}")
    for name, title in (
        ("in use", "adapters in one pass"),
        ("kept beside one in use", "adapters kept beside one in use"),
    ):
        row = found["slots"][name]
        add(f"{title}: a token of an answer", row["token_ms"], "ms", f"{row['exponent']:.2f}")
    return "\n".join(lines)


_GROWING: Final = (
    *(
        "bn, no guards",
        "bn",
        "tent, no guards",
        "tent",
        "eata",
        "sar",
        "deyo",
        "roid",
        "lame, no guards",
        "lame",
        "neo",
    ),
)


def monitoring_table() -> str:
    """Return what recording costs a request."""
    found = json.loads((ROOT / "benchmarks" / "monitoring" / "results" / "monitoring.json").read_text())
    lines = ["| row | wall, median | wall, 99th percentile | CPU |", "| --- | --- | --- | --- |"]
    for name in ("written before going on", "handed over"):
        row = found[name]
        lines.append(f"| {name} | {row['wall_us_median']:.0f} | {row['wall_us_p99']:.0f} | {row['cpu_us']:.0f} |")
    times = found["times less CPU for the request"]
    lines += [
        "",
        f"{times:.0f} times less CPU. The writer takes {found['rows a second, writer']:.0f} rows a second, and all",
    ]
    lines.append(f"indicators over them {1000 * found['CPU s for all indicators']:.0f} ms.")
    return "\n".join(lines)


def cifar_table() -> str:
    """Return error and cost beside the authors' from the committed results."""
    runs = _cifar_runs()
    lines = [
        "| method | error % | authors' | cost against plain | authors' | cost against a bare pass | authors' |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, (error, cost) in AUTHORS.items():
        run = next((r for r in runs if (r["stream"], r["method"], r["guards"]) == ("continual", method, "off")), None)
        if run is None:
            continue
        ours = f"{run['mean_error_percent']:.2f} | {error:.2f} | {run['cost_against_plain']:.2f} | {cost:.2f}"
        # The authors' bare pass was of the normalisation parameters; CoTTA's would be of all.
        comparable = method in ("tent", "eata", "sar")
        bare = f"{run['cost_against_bare']:.2f} | {cost / AUTHORS_BARE:.2f}" if comparable else " | "
        lines.append(f"| {method} | {ours} | {bare} |")
    for method in OURS:
        run = next(r for r in runs if (r["stream"], r["method"]) == ("continual", method))
        lines.append(f"| {method} | {run['mean_error_percent']:.2f} |  | {run['cost_against_plain']:.2f} |  |  |  |")
    return "\n".join(lines)


def cifar_streams_table() -> str:
    """Return the mean error of every method on every stream."""
    runs = [run for run in _cifar_runs() if run["guards"] == "off" and run["stream"] != "cycles"]
    streams = list(dict.fromkeys(run["stream"] for run in runs))
    lines = ["| method | " + " | ".join(streams) + " |", "| --- " * (len(streams) + 1) + "|"]
    for method in sorted(dict.fromkeys(run["method"] for run in runs), key=lambda method: method != "none"):
        found = {run["stream"]: f"{run['mean_error_percent']:.2f}" for run in runs if run["method"] == method}
        lines.append(f"| {method} | " + " | ".join(found.get(stream, "") for stream in streams) + " |")
    return "\n".join(lines)


def cifar_cycles_table() -> str:
    """Return the mean error of the first, the worst and the last of twenty repetitions."""
    lines = ["| method | first | highest | last |", "| --- | --- | --- | --- |"]
    for run in _cifar_runs():
        if run["stream"] == "cycles" and (errors := run["cycle_error_percent"]):
            lines.append(f"| {run['method']} | {errors[0]:.2f} | {max(errors):.2f} | {errors[-1]:.2f} |")
    return "\n".join(lines)


def cifar_costs_table() -> str:
    """Return cost against plain prediction and a bare backward pass, continual stream."""
    lines = ["| method | guards | against plain | against bare |", "| --- | --- | --- | --- |"]
    for run in _cifar_runs():
        if run["stream"] == "continual" and run["method"] != "none":
            bare = "" if run["cost_against_bare"] is None else f"{run['cost_against_bare']:.2f}"
            lines.append(f"| {run['method']} | {run['guards']} | {run['cost_against_plain']:.2f} | {bare} |")
    return "\n".join(lines)


def bn_strength_table() -> str:
    """Return the mean error of each strength at each batch size."""
    rows = json.loads((ROOT / "benchmarks" / "bn_strength" / "results" / "bn_strength.json").read_text())["rows"]
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    lines = ["| N | " + " | ".join(f"batch {size}" for size in sizes) + " |", "| --- " * (len(sizes) + 1) + "|"]
    for strength in dict.fromkeys(row["strength"] for row in rows):
        found = {row["batch_size"]: row["mean_error_percent"] for row in rows if row["strength"] == strength}
        name = "half and half" if strength is None else str(strength)
        lines.append(f"| {name} | " + " | ".join(f"{found[size]:.2f}" for size in sizes) + " |")
    return "\n".join(lines)


def _cifar_runs() -> list[dict[str, Any]]:
    path = ROOT / "benchmarks" / "cifar" / "results" / "cifar.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return runs


SHIFTS = (
    "tune",
    "tune_plain",
    "report",
    "report_separable",
    "report_group_norm",
    "report_transformer",
    "report_efficientnet_lite0",
)


def shifts_summary_table(half: str) -> str:
    """Return what every method does over all kinds of damage of one half, and where it does the most harm."""
    path = ROOT / "benchmarks" / "shifts" / "results" / f"{half}.json"
    rows = json.loads(path.read_text())["rows"]
    lines = ["| method | error | calibration error | times plain | most against none | on |", "| --- " * 6 + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == method]
        damaged = [row for row in found if row["kind"] != "clean"]
        means = [
            f"{sum(row[value] for row in damaged) / len(damaged):.{digits}f}"
            for value, digits in (("error", 1), ("calibration_error", 1), ("times_plain", 2))
        ]
        worst = max(found, key=lambda row: row["minus_none"]["points"])
        change = worst["minus_none"]
        interval = f"{change['points']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]"
        lines.append(f"| {method} | {' | '.join(means)} | {interval} | {worst['kind'].replace('_', ' ')} |")
    return "\n".join(lines)


def shifts_table(half: str) -> str:
    """Return the error under every kind of damage of one half."""
    path = ROOT / "benchmarks" / "shifts" / "results" / f"{half}.json"
    rows = json.loads(path.read_text())["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    errors = {(row["kind"], row["method"]): row["error"] for row in rows}
    damaged = [kind for kind in kinds if kind != "clean"]
    lines = ["| kind | " + " | ".join(methods) + " |", "| --- |" + " --- |" * len(methods)]
    lines += [
        f"| {kind.replace('_', ' ')} | " + " | ".join(f"{errors[kind, method]:.1f}" for method in methods) + " |"
        for kind in kinds
    ]
    means = (sum(errors[kind, method] for kind in damaged) / len(damaged) for method in methods)
    return "\n".join([*lines, "| **mean without clean** | " + " | ".join(f"**{mean:.1f}**" for mean in means) + " |"])


LONG_STREAM = "each kind, 800 images"


def streams_table(half: str) -> str:
    """Return the error on every kind of stream of one half; its number of images is beside the name."""
    path = ROOT / "benchmarks" / "shifts" / "results" / f"streams_{half}.json"
    rows = json.loads(path.read_text())["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    errors = {(row["stream"], row["method"]): row["error"] for row in rows}
    images = {row["stream"]: row["images"] for row in rows}
    lines = ["| stream | images | " + " | ".join(methods) + " |", "| --- | --- |" + " --- |" * len(methods)]
    for stream, count in images.items():
        cells = (f"{errors[stream, method]:.1f}" for method in methods)
        lines.append(f"| {stream} | {count:,} | " + " | ".join(cells) + " |")
    costs = {row["method"]: row["times_plain"] for row in rows if row["stream"] == LONG_STREAM}
    cells = (f"{costs[method]:.2f}" for method in methods)
    return "\n".join([*lines, f"| **times plain, {LONG_STREAM}** | | " + " | ".join(cells) + " |"])


def _with_tables(text: str) -> str:
    tables: dict[str, Callable[[], str]] = {
        "results": results_table.results_table,
        "methods": methods_table,
        "presets": presets_table,
        "kpis": functools.partial(kpis_table, KPIS),
        "monitoring": monitoring_table,
        "page": page_table,
        "page 10 million": ten_million_table,
        "page sums": sums_table,
        "serve replicas": replicas_table,
        "growth": growth_table,
        "detector": detector_table,
        "cifar": cifar_table,
        "bn strength": bn_strength_table,
        "cifar streams": cifar_streams_table,
        "cifar costs": cifar_costs_table,
        "cifar cycles": cifar_cycles_table,
        "guards": guards_tables.faults_table,
        "guards others": guards_tables.others_table,
        "thresholds": guards_tables.thresholds_table,
        "detector signals": guards_tables.detector_signals_table,
        "auto": guards_tables.auto_table,
        "fewshot": language_tables.fewshot_table,
        **{
            f"fewshot {part}": functools.partial(language_tables.fewshot_families_table, part)
            for part in ("spark", "english", "bbh")
        },
        "fewshot instructions": language_tables.instructions_table,
        "pose_scenes": functools.partial(pose_scenes_tables.summary_table, "online"),
        "pose_scenes conditions": functools.partial(pose_scenes_tables.conditions_table, "online"),
        **{f"detector {half}": functools.partial(detector_kinds_table, half) for half in ("tune", "report")},
        "pose_scenes auto": pose_scenes_tables.auto_table,
        "pose_scenes policies": functools.partial(pose_scenes_tables.summary_table, "policies"),
        **{f"shifts {half}": functools.partial(shifts_table, half) for half in SHIFTS},
        **{f"streams {half}": functools.partial(streams_table, half) for half in ("report", "report_group_norm")},
        **{f"shifts {half} summary": functools.partial(shifts_summary_table, half) for half in SHIFTS},
        "segmentation report": functools.partial(segmentation_tables.summary_table, "report"),
        **{
            f"segmentation report {light}": functools.partial(segmentation_tables.kinds_table, "report", light)
            for light in ("day", "dusk")
        },
        "media accuracy": functools.partial(media_tables.accuracy_table, "report"),
        "media conditions": functools.partial(media_tables.conditions_table, "report"),
        "media evidence": functools.partial(media_tables.evidence_table, "report"),
        "media targets": functools.partial(media_tables.targets_table, "report"),
        "media adapt": media_tables.adapt_table,
        "gate": language_tables.gate_table,
        **{f"serve {model}": functools.partial(language_tables.serve_table, model) for model in ("spark", "smollm2")},
        "transfer": language_tables.transfer_table,
        "transfer uses": language_tables.transfer_uses_table,
        "adaptation": language_tables.adaptation_table,
        "costs": language_tables.costs_table,
        "patterns": language_tables.patterns_table,
        **{f"options {name}": functools.partial(options_table, name) for name in METHODS.shipped()},
    }

    def replaced(match: re.Match[str]) -> str:
        name = match.group(1)
        # The keys of results that were recorded before the term was settled.
        table = tables[name]().replace(", one side", ", without flip averaging")
        return f"<!-- table: {name} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w ]+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


def _help(names: tuple[str, ...], command: click.Command) -> str:
    # The names that the command group sets: a command keeps those of the first context that asked for its help.
    context = click.Context(
        command, info_name=" ".join(names), max_content_width=100, help_option_names=["-h", "--help"]
    )
    context.terminal_width = 100
    page = f"## {' '.join(names)}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                page += "\n" + _help((*names, name), child)
    return page


if __name__ == "__main__":
    for target, content in generated_pages().items():
        target.write_text(content, encoding="utf-8")

"""``acclimate list``: lists methods, adapters, guards and presets, with their origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

from acclimate import registry
from acclimate.cli.terminal import reports_input_errors, stdout
from acclimate.errors import ConfigError


@click.group("list", short_help="List methods, adapters, guards and presets.")
def list_group() -> None:
    """List methods, adapters, guards and presets, and whether they come from this package or from a plug-in."""


def _json_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@list_group.command("methods")
@_json_option
@reports_input_errors
def methods_command(as_json: bool) -> None:
    """List methods: the kinds of model they work on, their requirements, and their approximate cost."""

    def row(info: registry.MethodInfo) -> dict[str, str]:
        needs = " or ".join(need.replace("_", " ") for need in info.needs_one_of)
        return {
            "title": info.title,
            "works on": ", ".join(info.kinds),
            "gradient": "yes" if info.needs_gradient else "no",
            "needs": needs or "-",
            "source images": "used" if info.uses_source_images else "-",
            "cost": f"{info.cost:g}",
            "paper": "-" if info.paper is None else str(info.paper),
        }

    _show(registry.METHODS, row, as_json, note="cost: approximate CPU time as a multiple of prediction without TTT")


@list_group.command("adapters")
@_json_option
@reports_input_errors
def adapters_command(as_json: bool) -> None:
    """List adapters: what they run, and what --model takes."""

    def row(info: registry.AdapterInfo) -> dict[str, str]:
        return {"runs": info.title, "--model": info.model or "-", "default": info.default_model or "-"}

    _show(registry.ADAPTERS, row, as_json)


@list_group.command("guards")
@_json_option
@reports_input_errors
def guards_command(as_json: bool) -> None:
    """List guards: what they fire on, and whether they are on by default."""

    def row(info: registry.GuardInfo) -> dict[str, str]:
        flag = "-" if info.setting is None else f"--ttt-{info.setting.replace('_', '-')}"
        return {"fires on": info.title, "default": "on" if info.on_by_default else "off", "short form": flag}

    _show(registry.GUARDS, row, as_json, note="set by --ttt-guard NAME[=VALUE]")


@list_group.command("presets")
@_json_option
@reports_input_errors
def presets_command(as_json: bool) -> None:
    """List presets: their methods and settings."""
    from acclimate.vision.run.config import preset_values

    rows: list[dict[str, Any]] = []
    origins = {name: entry.origin for name, entry in registry.METHODS.entries().items()}
    for name, (method, _) in registry.presets().items():
        kinds = registry.METHODS.info(method).kinds
        values = {kind: preset_values(name, kind) for kind in kinds}
        if as_json:
            rows.append({"name": name, "method": method, "origin": origins[method], "settings": values})
            continue
        of = {kind: {k: v for k, v in settings.items() if k != "method"} for kind, settings in values.items()}
        row = {"name": name, "method": method}
        row |= {kind: ", ".join(f"{k} {v}" for k, v in of.get(kind, {}).items()) or "-" for kind in registry.KINDS}
        rows.append(row | {"from": origins[method]})
    _print(rows, as_json)


def _show(
    entries: registry.Registry[Any], row: Callable[[Any], dict[str, str]], as_json: bool, *, note: str | None = None
) -> None:
    rows = []
    for name, entry in entries.entries().items():
        try:
            described = row(entries.info(name))
        except ConfigError as error:
            described = {"problem": str(error)}
        rows.append({"name": name, **described, "from": entry.origin})
    _print(rows, as_json)
    if note is not None and not as_json:
        click.echo(note)


def _print(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table(title_justify="left")
    headings = list(dict.fromkeys(heading for row in rows for heading in row if heading != "problem"))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        if "problem" not in row:
            table.add_row(*(str(row.get(heading, "-")) for heading in headings))
    stdout().print(table)
    for row in rows:
        if "problem" in row:
            click.echo(f"{row['name']}: {row['problem']}")

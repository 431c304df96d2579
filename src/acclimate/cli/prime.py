"""``acclimate prime``: train an adapter on examples once, for reuse."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from acclimate.cli import language_options
from acclimate.cli.terminal import reports_input_errors, set_up_logging
from acclimate.errors import DataError
from acclimate.output_files import check_folder_writable, write_output


@click.command("prime", short_help="Train an adapter on examples once, for reuse.")
@click.argument("examples", type=click.Path(path_type=Path))
@click.option(
    "--save", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write."
)
@language_options.model
@language_options.training
@click.option("--max-seconds", type=click.FloatRange(0), help="Limit on training.  [default: none]")
@click.option("--overwrite", is_flag=True, help="Replace what is in the folder.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@reports_input_errors
def prime_command(examples: Path, folder: Path, **given: Any) -> None:
    """Train an adapter on EXAMPLES and save it in PEFT's format, with the examples beside it.

    EXAMPLES holds JSON lines {"input": ..., "output": ...}. Use the folder with acclimate ask --adapter, or load it
    with peft.
    """
    from acclimate.language import Engine, validated

    set_up_logging(given["verbose"])
    check_folder_writable(folder)
    if folder.exists() and any(folder.iterdir()) and not given["overwrite"]:
        raise DataError(f"{folder} is not empty; give another folder, or --overwrite")
    read = language_options.read_examples(examples)
    checked = validated(read)
    for warning in checked.warnings:
        click.echo(f"Warning: {warning}", err=True)
    model = language_options.load_model(given)
    engine = Engine(model, recipe=language_options.recipe_from(model.recipe, given), max_seconds=given["max_seconds"])
    adapter = engine.prime(read)
    adapter.save(folder, base_model=model.source)
    lines = [json.dumps(asdict(example)) for example in read]
    write_output(folder / language_options.PRIMED_EXAMPLES, "\n".join(lines) + "\n")
    click.echo(
        f"{len(adapter.losses)} steps on {len(checked.examples)} examples, rank {adapter.rank}, "
        f"loss {adapter.losses[0]:.3f} -> {adapter.losses[-1]:.3f} nats per token, {adapter.seconds:.2f} s, "
        f"{adapter.held_bytes / 2**20:.1f} MiB -> {folder}"
    )

"""``acclimate corrupt``: write corrupted copies of images."""

from __future__ import annotations

from pathlib import Path

import click

from acclimate.cli import options
from acclimate.cli.terminal import reports_input_errors
from acclimate.errors import ConfigError, DataError
from acclimate.output_files import check_folder_writable, open_output


@click.command("corrupt", short_help="Write corrupted copies of images.")
@click.argument("images", type=options.existing_path(), required=False)
@click.argument("output", type=options.existing_path(), required=False)
@click.option("--name", "name", metavar="NAME[:SEVERITY]", help="The corruption, with a severity from 1 to 5.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers.")
@click.option(
    "--exif-orientation/--no-exif-orientation",
    default=True,
    show_default=True,
    help="Rotate images as their EXIF data says, or keep the stored pixel grid.",
)
@click.option("--list", "list_names", is_flag=True, help="List the corruptions and exit.")
@reports_input_errors
def corrupt_command(
    images: Path | None, output: Path | None, name: str | None, seed: int, exif_orientation: bool, list_names: bool
) -> None:
    """Apply an ImageNet-C style corruption to IMAGES and write the copies to the folder OUTPUT, as PNG."""  # fmt: skip
    # Imported here: options and their help need no image library.
    from PIL import Image

    from acclimate.vision.data.corruptions import CORRUPTIONS
    from acclimate.vision.data.images import CorruptionSpec, ImageReader
    from acclimate.vision.data.records import load_dataset

    if list_names:
        for known, function in CORRUPTIONS.items():
            click.echo(f"{known:16s} {(function.__doc__ or '').splitlines()[0]}")
        return
    if images is None or output is None or name is None:
        raise ConfigError("give IMAGES, OUTPUT and --name, or --list")
    check_folder_writable(output)
    reader = ImageReader(CorruptionSpec.parse(name), seed=seed, exif_orientation=exif_orientation)
    dataset = load_dataset(images)
    root = images if images.is_dir() else images.parent
    targets = {record: _target(Path(record.image), root, output) for record in dataset.records}
    if taken := [str(target) for target in targets.values() if target.exists()]:
        raise DataError(f"{taken[0]} already exists and is not overwritten; give an empty OUTPUT")
    if len(set(targets.values())) < len(targets):
        raise DataError(
            "two images would be written to the same file, because their names differ only in suffix or folder; rename "
            "one"
        )
    written = 0
    for record, target in targets.items():
        for _, pixels in reader.read_many([record]):
            with open_output(target) as file:
                Image.fromarray(pixels).save(file, "PNG")
            written += 1
    if not written:
        raise DataError(
            f"none of the {len(targets)} images can be used; the first: {next(iter(reader.skipped.values()))}"
        )
    for warning in reader.warnings:
        click.echo(f"note: {warning}", err=True)
    click.echo(f"{written} images written to {output}" + (f", {len(reader.skipped)} skipped" if reader.skipped else ""))


def _target(image: Path, root: Path, output: Path) -> Path:
    relative = image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
    return (output / relative).with_suffix(".png")

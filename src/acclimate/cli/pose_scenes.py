"""``acclimate pose-scenes``: writes synthetic scenes with boxes and poses."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from acclimate.cli import options
from acclimate.cli.terminal import reports_input_errors
from acclimate.vision.demos.pose_scenes.splits import IMAGE_SIDE, SPLITS, Split


@click.command("pose-scenes", short_help="Write synthetic scenes with boxes and poses, as COCO.")
@click.option("-o", "--out", type=options.existing_path(), required=True, help="The folder to write to.")
@click.option("--images", type=click.IntRange(min=1), default=500, show_default=True, help="Number of scenes.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers.")
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="test",
    show_default=True,
    help="The set that digit images are taken from; the sets have no image in common.",
)
@click.option(
    "--side", type=click.IntRange(min=32), default=IMAGE_SIDE, show_default=True, help="Side of the images in pixels."
)
@click.option("--photos", type=options.existing_path(), help="A folder of photos to use as backgrounds.")
@reports_input_errors
def pose_scenes_command(out: Path, images: int, seed: int, split: Split, side: int, photos: Path | None) -> None:
    """Write synthetic scenes of flat plates with handwritten digits, in random poses in front of a known camera.

    The folder will contain images/ and annotations.json, a COCO file with the intrinsics of each image and the pose of
    each annotation. The same options always write the same scenes.
    """  # fmt: skip
    # Imported here: the help needs no image library.
    from acclimate.vision.demos.pose_scenes.dataset import write_dataset
    from acclimate.vision.demos.pose_scenes.photos import load_photos

    backgrounds = () if photos is None else load_photos(photos)
    with click.progressbar(length=images, label="drawing", file=sys.stderr) as bar:
        annotations = write_dataset(
            out, images=images, split=split, seed=seed, side=side, photos=backgrounds, on_image=lambda _: bar.update(1)
        )
    click.echo(f"{images} scenes written to {annotations}")

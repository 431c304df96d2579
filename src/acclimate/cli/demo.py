"""``acclimate demo``: demonstrations that need no download."""

from __future__ import annotations

from pathlib import Path

import click

from acclimate.cli import options
from acclimate.cli.compare import print_comparison
from acclimate.cli.terminal import reports_input_errors, set_up_logging, stdout
from acclimate.output_files import check_folder_writable

_FACTORY = "acclimate.vision.demos.digits:digit_network"


@click.group("demo", short_help="Run a demonstration on data of this package, without downloads.")
def demo_group() -> None:
    """Run a demonstration on data of this package, without downloads."""


@demo_group.command("vision")
@click.option(
    "-o",
    "--output",
    type=options.existing_path(),
    default=Path("acclimate-demo"),
    show_default=True,
    help="A folder for images, weights, table and picture.",
)
@click.option(
    "--corrupt",
    default="gaussian_noise:5",
    show_default=True,
    metavar="NAME[:SEVERITY]",
    help="The corruption of the images.",
)
@reports_input_errors
def demo_vision_command(output: Path, corrupt: str) -> None:
    """Adapt a small network to corrupted handwritten digits with several methods, and compare them."""  # fmt: skip
    # Imported here: the help needs no torch.
    from acclimate.vision.data.images import CorruptionSpec
    from acclimate.vision.demos import digits
    from acclimate.vision.evaluation.compare import Comparison, compare
    from acclimate.vision.models.loading import AdapterOptions

    set_up_logging(verbose=False)
    corruption = CorruptionSpec.parse(corrupt)
    check_folder_writable(output)
    labels = digits.write_test_images(output)
    checkpoint = output / "digits.safetensors"
    click.echo(f"training a small BatchNorm network on {digits.TRAINING_IMAGES} clean handwritten digits ...")
    accuracy = digits.train(checkpoint)
    click.echo(f"accuracy on other clean digits: {100 * accuracy:.2f} %")
    click.echo(f"adapting to the same digits with the corruption {corruption}, without labels, by several methods ...")
    result = compare(
        Comparison(
            source=output / "images",
            output=output,
            ground_truth=labels,
            adapter=AdapterOptions(adapter="torch", model=_FACTORY, checkpoint=str(checkpoint)),
            corruption=corruption,
            ttt_source=digits.write_source_images(output),
        )
    )
    click.echo("the same with single commands:")
    click.echo(
        f"  acclimate export {output}/images --adapter torch --model {_FACTORY} "
        f"--checkpoint {checkpoint} --corrupt {corruption} --ttt --ttt-reset online -o {output}/adapted.json"
    )
    click.echo(f"  acclimate evaluate {output}/adapted.json --ground-truth {labels}")
    print_comparison(result)


@demo_group.command("detect")
@click.option(
    "-o",
    "--output",
    type=options.existing_path(),
    default=Path("acclimate-demo-detect"),
    show_default=True,
    help="A folder for scenes, predictions and picture.",
)
@click.option(
    "--corrupt",
    default="contrast:4",
    show_default=True,
    metavar="NAME[:SEVERITY]",
    help="The corruption of the scenes.",
)
@click.option("--images", type=click.IntRange(min=6), default=96, show_default=True, help="Number of scenes.")
@reports_input_errors
def demo_detect_command(output: Path, corrupt: str, images: int) -> None:
    """Detect objects and their poses in corrupted synthetic scenes, with and without TTT."""
    from rich.table import Table

    from acclimate.vision.data.images import CorruptionSpec
    from acclimate.vision.demos.pose_scenes.demo import run_detect_demo

    set_up_logging(verbose=False)
    corruption = CorruptionSpec.parse(corrupt)
    check_folder_writable(output)
    click.echo(
        f"drawing {images} scenes with digits that are not in the detector's training data, clean and with the "
        f"corruption {corruption} ..."
    )
    demo = run_detect_demo(output, corruption=corruption, images=images)
    table = Table(title=f"{images} scenes", title_justify="left")
    for heading in ("scenes", "TTT", "mAP50-95", "mAP50", "poses of", "rotation", "depth"):
        table.add_column(heading, justify="left" if heading in ("scenes", "TTT") else "right")
    for scenes, method, outcome in (
        ("clean", "none", demo.clean),
        (str(corruption), "none", demo.before),
        (str(corruption), demo.method, demo.after),
    ):
        poses = outcome.poses
        table.add_row(
            scenes,
            method,
            f"{100 * outcome.metrics['mAP']:.1f} %",
            f"{100 * outcome.metrics['mAP50']:.1f} %",
            "-" if poses is None else f"{100 * poses.found:.0f} %",
            "-" if poses is None else f"{poses.rotation_degrees:.1f} degrees",
            "-" if poses is None else f"{100 * poses.depth_relative:.1f} %",
        )
    stdout().print(table)
    click.echo("rotation and depth: median errors over the objects that were found")
    click.echo(f"picture: {demo.picture}")
    click.echo("the same with single commands:")
    click.echo(
        f"  acclimate export {demo.annotations} --adapter rtdetr_pose --corrupt {corruption} --ttt "
        f"--ttt-reset online -o {output}/adapted.json"
    )
    click.echo(f"  acclimate evaluate {output}/adapted.json --ground-truth {demo.annotations}")

"""``acclimate demo``: see it work, without a download."""

from __future__ import annotations

from pathlib import Path

import click

from acclimate.cli import options
from acclimate.cli.compare import print_comparison
from acclimate.cli.terminal import reports_input_errors, set_up_logging
from acclimate.vision import digits
from acclimate.vision.adapters import AdapterOptions
from acclimate.vision.compare import Comparison, compare
from acclimate.vision.images import CorruptionSpec

_FACTORY = "acclimate.vision.digits:digit_network"


@click.group("demo", short_help="See it work on data that ships with the package.")
def demo_group() -> None:
    """See it work on data that ships with the package."""


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
    help="What the camera does to the images.",
)
@reports_input_errors
def demo_vision_command(output: Path, corrupt: str) -> None:
    """Adapt a small network to corrupted handwritten digits with every method, and compare."""  # fmt: skip
    set_up_logging(verbose=False)
    corruption = CorruptionSpec.parse(corrupt)
    labels = digits.write_test_images(output)
    checkpoint = output / "digits.safetensors"
    click.echo(f"training a small BatchNorm network on {digits.TRAINING_IMAGES} clean handwritten digits ...")
    accuracy = digits.train(checkpoint)
    click.echo(f"accuracy on other clean digits: {100 * accuracy:.2f} %")
    click.echo(f"the same digits under {corruption}, without labels, by every method:")
    result = compare(
        Comparison(
            source=output / "images",
            output=output,
            ground_truth=labels,
            adapter=AdapterOptions(adapter="torch", model=_FACTORY, checkpoint=str(checkpoint)),
            corruption=corruption,
        )
    )
    click.echo("the same by hand:")
    click.echo(
        f"  acclimate export {output}/images --adapter torch --model {_FACTORY} "
        f"--checkpoint {checkpoint} --corrupt {corruption} --ttt --ttt-reset online -o {output}/adapted.json"
    )
    click.echo(f"  acclimate evaluate {output}/adapted.json --ground-truth {labels}")
    print_comparison(result)

"""``acclimate evaluate``: scores predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from acclimate.cli import options
from acclimate.cli.terminal import reports_input_errors
from acclimate.errors import DataError
from acclimate.json_values import to_jsonable

if TYPE_CHECKING:
    from acclimate.vision.evaluation.pose_errors import PoseErrors


@click.command("evaluate", short_help="Score predictions against COCO annotations, class labels or label images.")
@click.argument("predictions", type=options.existing_path())
@click.option(
    "--ground-truth",
    type=options.existing_path(),
    required=True,
    help="COCO annotations (json), class indices as json {image: class} or csv image,class, or a folder of label "
    "images (PNG), whose pixels are class ids.",
)
@options.ignore_value_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_input_errors
def evaluate_command(predictions: Path, ground_truth: Path, ignore_value: int | None, as_json: bool) -> None:
    """Score PREDICTIONS, a file of acclimate export (with or without --wrap, or COCO results).

    acclimate's own format is scored over the predicted images, COCO results over all images of the ground truth.
    """  # fmt: skip
    # Imported here: the help needs no image library.
    from acclimate.vision.data.predictions import read_coco_results, read_predictions
    from acclimate.vision.evaluation.evaluate import CocoScorer, check_ignore_value, make_scorer
    from acclimate.vision.evaluation.segmentation import SegmentationScorer

    poses: PoseErrors | None = None
    classes: dict[int, float] = {}
    check_ignore_value(ground_truth, ignore_value)
    results = read_coco_results(predictions)
    if results is not None:
        score, count = CocoScorer(ground_truth).score_results(results), len({r["image_id"] for r in results})
    else:
        entries = read_predictions(predictions)
        if not entries:
            raise DataError(f"{predictions} contains no predictions; give a file that acclimate export wrote")
        scorer = make_scorer(ground_truth, entries, ignore_value=ignore_value)
        score, count = scorer.score(entries), len(entries)
        if isinstance(scorer, CocoScorer):
            poses = scorer.pose_errors(entries)
        if isinstance(scorer, SegmentationScorer):
            classes = scorer.by_class(score)
            if never := scorer.never_predicted(score):
                click.echo(
                    f"note: no pixel was predicted to have class {', '.join(map(str, never))}; if that value means "
                    "'no label', give it as --ignore-value",
                    err=True,
                )
    if as_json:
        pose = {} if poses is None else {"pose": to_jsonable(poses)}
        iou = {"IoU": {str(label): value for label, value in classes.items()}} if classes else {}
        click.echo(json.dumps({"images": count, **score.metrics, **iou, **pose}))
        return
    click.echo(f"{count} images")
    for name, value in score.metrics.items():
        click.echo(f"{name:10s} {100 * value:6.2f} %")
    for label, value in classes.items():
        click.echo(f"class {label:<4d} {100 * value:6.2f} %")
    if poses is not None:
        click.echo(f"poses of {100 * poses.found:.1f} % of the objects, median errors:")
        click.echo(f"rotation   {poses.rotation_degrees:6.2f} degrees")
        click.echo(f"depth      {100 * poses.depth_relative:6.2f} %")
        click.echo(f"centre     {100 * poses.translation_relative:6.2f} % of the depth")

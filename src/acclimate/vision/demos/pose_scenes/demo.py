"""The whole way on the model that ships: draw scenes, corrupt them, predict with and without TTT, score, and draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acclimate.errors import ConfigError
from acclimate.output_files import check_folder_writable
from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.data.records import load_dataset, read_json
from acclimate.vision.demos.pose_scenes.camera import PLATE_SIDE_M
from acclimate.vision.demos.pose_scenes.dataset import write_dataset
from acclimate.vision.evaluation.evaluate import CocoScorer
from acclimate.vision.evaluation.pose_errors import PoseErrors
from acclimate.vision.evaluation.pose_pictures import truth_before_after
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.run.export import ExportJob, export

_ADAPTER: Final = AdapterOptions(adapter="rtdetr_pose")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How good one way to predict was: COCO's metrics as fractions, and median pose errors."""

    metrics: Mapping[str, float]
    poses: PoseErrors | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectDemo:
    """What the demo found: clean scenes, the same corrupted, and with TTT; and what the report of the run warns of."""

    clean: Outcome
    before: Outcome
    after: Outcome
    method: str
    warnings: tuple[str, ...]
    annotations: Path
    picture: Path


def run_detect_demo(
    folder: Path, *, corruption: CorruptionSpec, images: int = 96, seed: int = 0, ttt: Mapping[str, Any] | None = None
) -> DetectDemo:
    """Write scenes, three predictions files and a picture to ``folder``, and return the scores.

    Args:
        folder: must not hold a data set of plates yet, unless it is this demo's own: that is used again.
        corruption: what the camera does to the scenes.
        images: how many scenes.
        seed: of the scenes.
        ttt: settings for the adaptation, see :class:`~acclimate.vision.run.export.ExportJob`; the default preset with
            reset ``online`` where None.

    Raises:
        ConfigError: the folder holds another data set of plates.
    """
    check_folder_writable(folder)
    annotations = folder / "annotations.json"
    if not annotations.exists():
        write_dataset(folder, images=images, split="test", seed=seed)
    truth = read_json(annotations, "annotations")
    described = {"description": "acclimate pose-scenes", "split": "test", "seed": seed}
    if not isinstance(truth, dict) or truth.get("info") != described or len(truth.get("images", ())) != images:
        raise ConfigError(f"{annotations} is another data set; give the demo a folder of its own")
    scorer = CocoScorer(annotations)

    def predicted(name: str, **job: Any) -> Any:
        return export(ExportJob(source=annotations, output=folder / f"{name}.json", adapter=_ADAPTER, **job))

    def outcome(result: Any) -> Outcome:
        return Outcome(metrics=scorer.score(result.entries).metrics, poses=scorer.pose_errors(result.entries))

    clean = predicted("clean")
    before = predicted("before", corruption=corruption)
    after = predicted("after", corruption=corruption, ttt={"reset": "online"} if ttt is None else ttt)
    picture = folder / "poses.png"
    truth_before_after(
        picture,
        ImageReader(corruption),
        load_dataset(annotations).records[-6:],
        truth,
        before.entries,
        after.entries,
        axis_length_m=PLATE_SIDE_M / 2,
    )
    return DetectDemo(
        clean=outcome(clean),
        before=outcome(before),
        after=outcome(after),
        method=after.meta["ttt"]["method"],
        warnings=after.report.warnings,
        annotations=annotations,
        picture=picture,
    )

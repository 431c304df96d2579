"""Where the default thresholds of the guard WorseThanSource are from: signals of adapted and unadapted model.

    python benchmarks/guards/thresholds.py --data FOLDER --out benchmarks/guards/results/thresholds.json

Classifiers: Tent without guards on images that are not reported, under corruptions and severities that are not; each
batch's signals and errors are kept, and every candidate setting of :class:`acclimate.core.Certainty` is replayed on
them. Detectors: methods at their own and at a hundred and a thousand times their learning rate, on scenes of `val`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
sys.path.insert(0, str(Path(__file__).parent))
from network import load
from streams import Batch, Images, one_class, ordered_by_class

from acclimate.core import Certainty, Classification, Session, WorseThanSource
from acclimate.core.signals import SignalPair
from acclimate.core.source_model import REMEMBERED_COMPARISONS, STICKY_PASSES, STICKY_SCORE
from acclimate.methods import Tent
from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.data.records import load_dataset
from acclimate.vision.demos.pose_scenes.dataset import write_dataset
from acclimate.vision.models.rtdetr_pose.adapter import RTDETRPoseAdapter
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt import TTTRun

Rows = Sequence[Mapping[str, float]]

PARTS, PART_IMAGES = 4, 1100
SCENES = 64
SCENE_CONDITIONS = ("clean", "motion_blur:4", "snow:3", "gaussian_noise:2", "fog:2", "contrast:2", "jpeg:4")


def streams(data: Images, model: nn.Module, *, part: int) -> Iterator[tuple[str, list[Batch]]]:
    """Yield the name of a group and a stream of it."""
    yield "mixed", list(data.continual())
    yield "clean", list(data.mixed("clean"))
    yield "ordered by class", list(ordered_by_class(data, model))
    for label in range(10):
        yield "one class", list(one_class(label)(data, model))
        if part == 0:
            yield "one class, clean", list(one_class(label, only="clean")(data, model))


def measured(model: nn.Module, batches: Sequence[Batch]) -> list[dict[str, float]]:
    """Return signals and errors of unguarded Tent and of the unadapted model on each batch."""
    rows, task = [], Classification()
    with Session(copy.deepcopy(model), Tent(lr=1e-3), guards=()) as session:
        for batch in batches:
            with torch.no_grad():
                plain = model(batch.images)
            outputs, _ = session.adapt_and_predict(batch.images)
            both = SignalPair.of(task, outputs, plain, samples=len(plain))
            rows.append(
                {
                    "images": len(plain),
                    "wrong_source": int((plain.argmax(1) != batch.labels).sum()),
                    "wrong_adapted": int((outputs.argmax(1) != batch.labels).sum()),
                    "entropy_rise": both.entropy_rise,
                    "energy_drop": both.energy_drop,
                    "agreement": both.agreement or 0.0,
                }
            )
    return rows


def replayed(rows: Rows, certainty: Certainty, guard: WorseThanSource) -> float:
    """Return by how many points the guarded model's error exceeds the unadapted one's, had it been judged so."""
    failures: list[bool] = []
    scores: list[float] = []
    wrong, passes, sticky = 0.0, 0, False
    for row in rows:
        lost = row["agreement"] < certainty.lost_agreement
        weight = certainty.lost_energy_weight if lost else certainty.energy_weight
        score = row["entropy_rise"] / certainty.allowed(int(row["images"]), lost=lost) + weight * row["energy_drop"]
        limit = (
            guard.sticky_factor
            if sticky
            else guard.repeated_factor
            if sum(failures[-REMEMBERED_COMPARISONS:]) > 2
            else 1.0
        )
        scores.append(score)
        failures.append(score > limit)
        passes = 0 if failures[-1] else passes + 1
        if all(failures[-2:]) and len(failures) > 1 and sum(scores[-2:]) > 2 * STICKY_SCORE:
            sticky = True
        elif passes >= STICKY_PASSES:
            sticky = False
        wrong += row["wrong_source"] if failures[-1] else row["wrong_adapted"]
    images = sum(row["images"] for row in rows)
    return 100 * (wrong - sum(row["wrong_source"] for row in rows)) / images


def summary(
    found: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], certainty: Certainty | None
) -> dict[str, Any]:
    """Return mean and worst change against the unadapted model by group; None guards nothing."""
    never = dataclasses.replace(
        Certainty(), entropy_rise=1e9, lost_entropy_rise=1e9, energy_weight=0, lost_energy_weight=0
    )
    result = {}
    for group, kept in found.items():
        changes = [replayed(rows, certainty or never, WorseThanSource()) for rows in kept]
        result[group] = {"mean": round(float(np.mean(changes)), 2), "worst": round(max(changes), 2)}
    return result


def candidates() -> Iterator[Certainty]:
    """Yield the settings that were compared."""
    for rise, lost, energy, lost_energy in itertools.product((0.04, 0.06, 0.08), (0.1, 0.12), (0, 1, 2, 3), (0, 1)):
        yield Certainty(entropy_rise=rise, lost_entropy_rise=lost, energy_weight=energy, lost_energy_weight=lost_energy)


def detector_signals(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what the signals are for methods that work and for methods that were made to fail."""
    records = load_dataset(write_dataset(folder / "scenes", images=SCENES, split="val", seed=3)).records
    reader = ImageReader(seed=3)
    adapter = RTDETRPoseAdapter(reader=reader, categories={})
    for condition in SCENE_CONDITIONS:
        reader.corruption = None if condition == "clean" else CorruptionSpec.parse(condition)
        for method, factor in itertools.product(("bn", "spectrum", "align", "tent"), (1, 100, 1000)):
            if factor > 1 and method in ("bn", "spectrum"):
                continue
            given: dict[str, Any] = {"method": method, "reset": "online", "batch_size": 16, "guards": False}
            config = TTTConfig.resolve(given, kind="detector")
            config = dataclasses.replace(config, lr=config.lr * factor)
            pairs = []
            with TTTRun(adapter, config) as run:
                for batch in adapter.build_loader(records, batch_size=16):
                    outputs, _ = run.session.adapt_and_predict(batch.inputs)
                    plain = run.session.predict_as_source(batch.inputs)
                    pairs.append(SignalPair.of(run.task, outputs, plain, samples=len(batch.records)))
            whole = SignalPair.recent(pairs, decisions=10**9)
            yield {
                "condition": condition,
                "method": method,
                "lr_factor": factor,
                "variety_ratio": round(whole.variety_ratio, 3),
                "least_detection_ratio": round(min(pair.detection_ratio for pair in pairs), 3),
                "most_doubt": round(max(Certainty().degradation_score(pair) for pair in pairs), 3),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, or that folder itself")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data / "cifar10" if (options.data / "cifar10").is_dir() else options.data
    model = load(folder / "resnet20.safetensors")
    found: dict[str, list[list[dict[str, float]]]] = {}
    for part in range(PARTS):
        data = Images.tuned(folder, count=PART_IMAGES, start=part * PART_IMAGES)
        for group, batches in streams(data, model, part=part):
            found.setdefault(group, []).append(measured(model, batches))
        print(f"part {part + 1} of {PARTS} measured", flush=True)
    grid = [{"certainty": dataclasses.asdict(one), "change": summary(found, one)} for one in candidates()]
    with tempfile.TemporaryDirectory() as scenes:
        detectors = list(detector_signals(Path(scenes)))
    result = {
        "default": {"certainty": dataclasses.asdict(Certainty()), "change": summary(found, Certainty())},
        "no guard": summary(found, None),
        "grid": grid,
        "detectors": detectors,
    }
    for name, change in (("no guard", result["no guard"]), ("default", summary(found, Certainty()))):
        print(f"{name:10s}", *(f"{group} {v['mean']:+.1f} (worst {v['worst']:+.1f})" for group, v in change.items()))
    for row in detectors:
        print(*row.values())
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

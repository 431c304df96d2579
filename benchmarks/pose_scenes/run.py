"""Accuracy of the detector with pose heads under corruption, with and without TTT.

    python benchmarks/pose_scenes/run.py --part online --seeds 0 1 2 --out FILE     # every method, all corruptions
    python benchmarks/pose_scenes/run.py --part policies --seeds 0 1 2 --out FILE   # stream, sample, CoTTA: 100 scenes
    python benchmarks/pose_scenes/run.py --part online --seeds --join A B --out FILE  # seeds that were run apart

Each corruption is a stream of its own, from the source weights. Every seed draws other scenes and other noise. Cost is
CPU seconds of the run (reading and corrupting images apart) over those of plain prediction of the same batches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.data.records import Record, load_dataset
from acclimate.vision.demos.pose_scenes.dataset import write_dataset
from acclimate.vision.demos.pose_scenes.photos import load_photos
from acclimate.vision.evaluation.evaluate import CocoScorer
from acclimate.vision.models.adapter import Adapter, Entry, ImageBatch, predict_in_batches
from acclimate.vision.models.rtdetr_pose.adapter import RTDETRPoseAdapter
from acclimate.vision.run.auto import AUTO, choose
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt import TTTRun

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur", "fog", "brightness", "contrast",
    "pixelate", "jpeg",
)  # fmt: skip
SEVERITIES = (3, 5)
CONDITIONS = ("clean", *(f"{name}:{severity}" for severity in SEVERITIES for name in CORRUPTIONS))
FEW_CONDITIONS = ("clean", "gaussian_noise:5", "fog:5", "contrast:5", "pixelate:5")
BATCH = 16


@dataclass(frozen=True)
class Setting:
    """One way to predict: a name, and what :meth:`TTTConfig.resolve` is given; None does not adapt."""

    name: str
    given: Mapping[str, Any] | None = None


ONLINE = (
    Setting("none"),
    Setting("bn", {"method": "bn"}),
    Setting("spectrum", {"method": "spectrum"}),
    Setting("align", {"method": "align"}),
    Setting("align, stream", {"method": "align", "reset": "stream"}),
    Setting("tent", {"method": "tent"}),
    Setting("mim", {"method": "mim"}),
    Setting("eata", {"method": "eata"}),
    Setting("sar", {"method": "sar"}),
    Setting("auto", {"method": AUTO}),
)
POLICIES = (
    Setting("none"),
    Setting("cotta online", {"method": "cotta"}),
    *(
        Setting(f"{method} {reset}", {"method": method, "reset": reset})
        for method in ("spectrum", "align", "tent", "mim")
        for reset in ("online", "stream", "sample")
    ),
)


class PreparedBatches:
    """An adapter whose images were read and corrupted once, for all settings."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.name, self.task, self.reader = adapter.name, adapter.task, adapter.reader
        self.source_spectrum = getattr(adapter, "source_spectrum", None)
        self._kept: dict[tuple[Any, ...], list[ImageBatch]] = {}
        self.aside_seconds = 0.0

    def get_model(self) -> nn.Module:
        return self._adapter.get_model()

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        return self._adapter.predict(records)

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        return self._adapter.entries(outputs, batch)

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        key = (records[0], len(records), batch_size, str(self.reader.corruption), self.reader.seed)
        if key not in self._kept:
            started = time.process_time()
            self._kept[key] = list(self._adapter.build_loader(records, batch_size=batch_size))
            self.aside_seconds += time.process_time() - started
        yield from self._kept[key]

    def forget(self) -> None:
        self._kept.clear()


@dataclass
class Scene:
    """The scenes of one seed, and what scores predictions of them."""

    records: tuple[Record, ...]
    scorer: CocoScorer

    @classmethod
    def draw(cls, folder: Path, *, images: int, seed: int, photos: Any, split: Any) -> Scene:
        annotations = write_dataset(folder, images=images, split=split, seed=seed, photos=photos)
        return cls(load_dataset(annotations).records, CocoScorer(annotations))


def measure(adapter: PreparedBatches, scene: Scene, setting: Setting) -> dict[str, Any]:
    """Return accuracy and CPU seconds of one setting on one condition."""
    adapter.aside_seconds = 0.0
    started = time.process_time()
    counts: dict[str, int] = {}
    found: dict[str, Any] = {}
    if setting.given is None:
        entries = [e for part in predict_in_batches(adapter, scene.records, batch_size=BATCH) for e in part]
    else:
        given = {"reset": "online", "batch_size": BATCH, **setting.given}
        chosen = ""
        if given["method"] == AUTO:
            choice = choose(adapter, given, scene.records)
            config, chosen = choice.config, choice.method
        else:
            config = TTTConfig.resolve(given, kind="detector")
        if config is None:
            entries = [e for part in predict_in_batches(adapter, scene.records, batch_size=BATCH) for e in part]
        else:
            with TTTRun(adapter, config) as run:
                entries = [entry for part in run.predictions(scene.records) for entry in part]
                counts = run.report().session.counts
        found = {"chosen": chosen} if chosen else {}
    seconds = time.process_time() - started - adapter.aside_seconds
    score = scene.scorer.score(entries).metrics
    errors = scene.scorer.pose_errors(entries)
    if errors is not None:
        found |= {
            "rotation_degrees": errors.rotation_degrees,
            "depth_relative": errors.depth_relative,
            "found": errors.found,
        }
    return {"mAP": 100 * score["mAP"], "mAP50": 100 * score["mAP50"], "seconds": seconds, "steps": counts, **found}


def run(
    settings: Sequence[Setting],
    *,
    seeds: Sequence[int],
    images: int,
    conditions: Sequence[str],
    model: str,
    photos: Any = (),
    split: str = "test",
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Return one row for each seed, condition and setting."""
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            scene = Scene.draw(Path(folder) / "scenes", images=images, seed=seed, photos=photos, split=split)
            reader = ImageReader(seed=seed)
            adapter = PreparedBatches(RTDETRPoseAdapter(model, reader=reader, categories={}))
            for condition in conditions:
                reader.corruption = None if condition == "clean" else CorruptionSpec.parse(condition)
                for setting in settings:
                    row = {"seed": seed, "condition": condition, "setting": setting.name}
                    rows.append({**row, **measure(adapter, scene, setting)})
                    say(
                        " ".join(
                            f"{value:.1f}" if isinstance(value, float) else str(value) for value in rows[-1].values()
                        )
                    )
                plain = next((row["seconds"] for row in rows[-len(settings) :] if row["setting"] == "none"), None)
                for row in rows[-len(settings) :]:
                    row["cost"] = None if plain is None else row["seconds"] / plain
                adapter.forget()
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return, by setting, means over corruptions with 95 % intervals over seeds, and what was won back."""
    seeds = sorted({row["seed"] for row in rows})
    names = list(dict.fromkeys(row["setting"] for row in rows))

    def mean(setting: str, key: str, seed: int, *, clean: bool) -> float:
        values = [
            row[key]
            for row in rows
            if row["setting"] == setting and row["seed"] == seed and (row["condition"] == "clean") == clean
            and key in row
        ]  # fmt: skip
        return float(np.mean(values)) if values else float("nan")

    result = {}
    for name in names:
        per_seed: dict[str, list[float]] = {}
        for seed in seeds:
            clean, plain = mean("none", "mAP", seed, clean=True), mean("none", "mAP", seed, clean=False)
            corrupted = mean(name, "mAP", seed, clean=False)
            values = {
                "mAP": corrupted,
                "mAP50": mean(name, "mAP50", seed, clean=False),
                "mAP_clean": mean(name, "mAP", seed, clean=True),
                "won_back_percent": 100 * (corrupted - plain) / (clean - plain),
                "rotation_degrees": mean(name, "rotation_degrees", seed, clean=False),
                "depth_relative": mean(name, "depth_relative", seed, clean=False),
                "found": mean(name, "found", seed, clean=False),
                "cost": mean(name, "cost", seed, clean=False),
            }
            for key, value in values.items():
                per_seed.setdefault(key, []).append(value)
        result[name] = {key: _with_interval(values) for key, values in per_seed.items()}
    return result


def _with_interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean and half width of the 95 % interval of the mean over seeds (Student's t)."""
    if len(values) < 2:
        return {"mean": float(np.mean(values)), "half_width": float("nan")}
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return {"mean": round(float(np.mean(values)), 3), "half_width": round(float(half), 3)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("online", "policies"), required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--images", type=int, help="scenes of each seed  [default: 500, or 100 for policies]")
    parser.add_argument("--model", default="pose_scenes", help="a folder, or the model that ships")
    parser.add_argument("--photos", type=Path, help="a folder of photos for backgrounds")
    parser.add_argument("--split", default="test")
    parser.add_argument("--conditions", nargs="+")
    parser.add_argument("--settings", nargs="+", help="names; all by default")
    parser.add_argument(
        "--join", type=Path, nargs="+", default=[], help="results to put in one file; the last of each counts"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    online = arguments.part == "online"
    known = ONLINE if online else POLICIES
    rows = [row for path in arguments.join for row in json.loads(path.read_text())["rows"]]
    # What was run last counts, in the order in which settings are listed.
    rows = list({(row["seed"], row["condition"], row["setting"]): row for row in rows}.values())
    order = [setting.name for setting in known]
    rows.sort(key=lambda row: (row["seed"], order.index(row["setting"])))
    rows += run(
        [setting for setting in known if arguments.settings is None or setting.name in arguments.settings],
        seeds=arguments.seeds,
        images=arguments.images or (500 if online else 100),
        conditions=arguments.conditions or (CONDITIONS if online else FEW_CONDITIONS),
        model=arguments.model,
        photos=() if arguments.photos is None else load_photos(arguments.photos),
        split=arguments.split,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"summary": summary(rows), "rows": rows}, indent=1) + "\n")
    for name, values in summary(rows).items():
        print(f"{name:16s}", *(f"{key} {value['mean']:.2f}" for key, value in values.items()))


if __name__ == "__main__":
    main()

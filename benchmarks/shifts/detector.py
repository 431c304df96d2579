"""The detector that ships, under kinds of damage that the package does not have itself.

    python benchmarks/shifts/detector.py --half tune --out benchmarks/shifts/results/detector_tune.json
    python benchmarks/shifts/detector.py --half report --out benchmarks/shifts/results/detector_report.json

The kinds are those of ``kinds.py``, without those that move things, for which boxes would be wrong. Scenes are of the
split ``test``, of a seed that no other benchmark uses; each kind begins from the source weights. Methods have their
presets and default guards, as ``--ttt`` gives them. Recovered is the share of the loss in mAP that a method recovers,
over the mean of all kinds; where a kind costs less than one point, the difference in points is what counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import kinds

from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.records import load_dataset
from acclimate.vision.demos.pose_scenes.dataset import write_dataset
from acclimate.vision.evaluation.evaluate import CocoScorer, difference
from acclimate.vision.models.adapter import predict_in_batches
from acclimate.vision.models.loading import AdapterOptions, make_adapter
from acclimate.vision.run.settings import settings_for
from acclimate.vision.run.ttt import TTTRun

MOVES = ("elastic", "rotation", "another_size", "occlusion")
METHODS = ("default", "bn", "tent", "align", "spectrum", "auto")
IMAGES, SEED, BATCH = 64, 77, 16
RESAMPLES = 100


def write_damaged(source: Path, target: Path, damage: kinds.Damage | None) -> Path:
    """Write the scenes again, damaged; return their annotations."""
    truth = json.loads((source / "annotations.json").read_text())
    (target / "images").mkdir(parents=True)
    names = [image["file_name"] for image in truth["images"]]
    pixels = np.stack([np.asarray(Image.open(source / "images" / Path(name).name)) for name in names])
    if damage is not None:
        pixels = damage(pixels, np.random.default_rng(1))
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(target / "images" / Path(name).name)
    (target / "annotations.json").write_text(json.dumps(truth))
    return target / "annotations.json"


def rows(half: str, methods: Sequence[str], resamples: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind and method."""
    chosen: Mapping[str, kinds.Damage] = kinds.TUNE if half == "tune" else kinds.REPORT
    seed = SEED if half == "tune" else SEED + 1
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "scenes", images=IMAGES, split="test", seed=seed)
        for kind in ("clean", *(name for name in chosen if name not in MOVES)):
            annotations = write_damaged(Path(folder) / "scenes", Path(folder) / kind, chosen.get(kind))
            records, scorer = load_dataset(annotations).records, CocoScorer(annotations)
            adapter = make_adapter(AdapterOptions(adapter="rtdetr_pose"), reader=ImageReader(None), categories={})
            began = time.process_time()
            plain = scorer.score([e for part in predict_in_batches(adapter, records, batch_size=BATCH) for e in part])
            plain_seconds = time.process_time() - began
            yield {"kind": kind, "method": "none", "mAP": 100 * plain.metrics["mAP"], "times_plain": 1.0}
            for method in methods:
                adapter = make_adapter(AdapterOptions(adapter="rtdetr_pose"), reader=ImageReader(None), categories={})
                given = {"reset": "online", **({} if method == "default" else {"method": method})}
                began = time.process_time()
                config, choice = settings_for(adapter, given, None, records, source_records=(), goes_on=False)
                if config is None:
                    entries = [e for part in predict_in_batches(adapter, records, batch_size=BATCH) for e in part]
                else:
                    with TTTRun(adapter, config) as run:
                        entries = [e for part in run.predictions(records) for e in part]
                seconds = time.process_time() - began
                score = scorer.score(entries)
                gain = difference(scorer, plain, score, resamples=resamples)
                yield {
                    "kind": kind,
                    "method": method,
                    "chosen": None if choice is None else choice.method,
                    "mAP": 100 * score.metrics["mAP"],
                    "minus_none": [100 * gain.value, 100 * gain.low, 100 * gain.high],
                    "times_plain": seconds / plain_seconds,
                }


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return by method: mean mAP, the share of the loss that is won back, and the worst change."""
    by = {(row["kind"], row["method"]): row["mAP"] for row in found}
    names = list(dict.fromkeys(kind for kind, _ in by if kind != "clean"))
    clean, before = by["clean", "none"], np.mean([by[kind, "none"] for kind in names])
    result = {}
    for method in dict.fromkeys(method for _, method in by):
        after = np.mean([by[kind, method] for kind in names])
        worst = min(("clean", *names), key=lambda kind: by[kind, method] - by[kind, "none"])
        result[method] = {
            "mAP": round(float(after), 1),
            "recovered": round(float(100 * (after - before) / (clean - before)), 1),
            "clean": round(by["clean", method], 1),
            "worst": [worst, round(by[worst, method] - by[worst, "none"], 1)],
        }
    return result


def main() -> None:
    """Measure one half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("tune", "report"), required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of images, for the intervals")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for row in rows(given.half, given.methods, given.resamples):
        found.append(row)
        change = row.get("minus_none")
        shown = "" if change is None else f" {change[0]:+.1f} [{change[1]:+.1f}, {change[2]:+.1f}]"
        print(f"{row['kind']} {row['method']} {row.get('chosen') or ''}: {row['mAP']:.1f}{shown}", flush=True)
        given.out.write_text(json.dumps({"images": IMAGES, "rows": found}, indent=1) + "\n")
    result = {"images": IMAGES, "rows": found, "summary": summary(found)}
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()

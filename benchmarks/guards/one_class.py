"""Streams that begin clean and are then damaged in many ways, of one class or of all: what guards were changed on.

    python benchmarks/guards/one_class.py --data FOLDER --out benchmarks/guards/results/one_class.json

The images are 846 of the network's training images, the source images all others; the damage is that of the half
``tune`` of ``benchmarks/shifts``, one kind after the other in random order. A stream of one class has 1,000 images, so
that a kind lasts one to two batches of 64; one of all classes has 192 images, clean and of five kinds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import adapted, methods, unadapted

sys.path.insert(0, str(Path(__file__).parent.parent / "shifts"))
import kinds
from network import load
from paired import difference, percent
from streams import BATCH, Batch, to_tensor

IMAGES = 846
MIXED_IMAGES, MIXED_KINDS = 192, 5
CLASSES = 10


def conditions_of(images: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the images clean and under each kind of damage that leaves their size."""
    conditions = {"clean": to_tensor(images)}
    for name, damage in kinds.TUNE.items():
        damaged = damage(images, np.random.default_rng(1))
        if damaged.shape == images.shape:
            conditions[name] = to_tensor(damaged)
    return conditions


def drawn(
    conditions: Mapping[str, torch.Tensor], labels: torch.Tensor, *, runs: int, mixed: bool
) -> Iterator[tuple[str, list[Batch]]]:
    """Yield the name and the batches of each stream; the order of kinds is drawn by its number."""
    for run in range(runs):
        names = [name for name in conditions if name != "clean"]
        random.Random(str(run)).shuffle(names)
        if mixed:
            names = ["clean", *names[:MIXED_KINDS]]
            chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(run))[:MIXED_IMAGES]
        else:
            names = ["clean", *names]
            chosen = (labels == run % CLASSES).nonzero()[:, 0]
        stream = torch.cat([conditions[name][chosen] for name in names])
        wanted = labels[chosen].repeat(len(names))
        most = len(stream) if mixed else 1000
        parts = zip(stream[:most].split(BATCH), wanted[:most].split(BATCH), strict=True)
        what = "all classes" if mixed else f"class {run % CLASSES}"
        yield f"{what}, {', '.join(names[1:4])}, ...", [Batch(*part) for part in parts]


def main() -> None:
    """Measure every stream with and without guards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, or that folder itself")
    parser.add_argument("--methods", nargs="+", default=["spectrum", "blend"])
    parser.add_argument("--runs", type=int, default=20, help="streams of one class; half as many are of all classes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data / "cifar10" if (options.data / "cifar10").is_dir() else options.data
    known = np.load(folder / "source_train.npz")
    order = np.random.default_rng(0).permutation(len(known["labels"]))
    chosen, rest = order[:IMAGES], order[IMAGES:]
    labels = torch.from_numpy(known["labels"][chosen].astype(np.int64))
    model, available = load(folder / "resnet20.safetensors"), methods(to_tensor(known["images"][rest]))
    conditions = conditions_of(known["images"][chosen])
    result: dict[str, Any] = {}
    for name in options.methods:
        for mixed in (False, True):
            rows = []
            runs = options.runs // 2 if mixed else options.runs
            for stream, batches in drawn(conditions, labels, runs=runs, mixed=mixed):
                plain = unadapted(model, batches)
                free, _ = adapted(model, available[name], batches, guarded=False)
                kept, did = adapted(model, available[name], batches, guarded=True)
                change = difference(kept, plain)
                row = {"stream": stream, "none": percent(plain), "unguarded": percent(free), "guarded": percent(kept)}
                rows.append(row | {"guarded_minus_none": change, **did})
                print(f"{name:9s} {stream:60s} none {row['none']:5.1f} unguarded {row['unguarded']:5.1f} "
                      f"guarded {row['guarded']:5.1f}", flush=True)  # fmt: skip
            changes = [row["guarded"] - row["none"] for row in rows]
            result[f"{name}, {'all classes' if mixed else 'one class'}"] = {
                "mean_points": statistics.fmean(changes),
                "worst_points": max(changes),
                "worse_by_more_than_a_point": sum(change > 1 for change in changes),
                "rows": rows,
            }
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

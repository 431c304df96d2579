"""How many samples should the source statistics count for? Tuned on images that no report uses.

    python benchmarks/bn_strength/run.py --data FOLDER --out benchmarks/bn_strength/results/bn_strength.json

Images are those of tune_jpeg.npz under corruptions that the report's ten do not include (motion blur, frost, snow), and
under three of the ten at a lower severity; the mean error of each strength N at each batch size.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
from network import load

from acclimate.core import Session
from acclimate.methods import BatchNormStats
from acclimate.vision.data.corruptions import corrupt

CORRUPTIONS = (
    ("motion_blur", 5),
    ("frost", 5),
    ("snow", 5),
    ("gaussian_noise", 3),
    ("fog", 3),
    ("jpeg", 3),
    ("clean", 0),
)
STRENGTHS = (None, 0, 4, 8, 16, 32, 64, 128)
IMAGES_BY_BATCH = {1: 256, 4: 512, 8: 512, 16: 512, 64: 1024, 200: 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data / "cifar10" if (options.data / "cifar10").is_dir() else options.data
    arrays = np.load(folder / "tune_jpeg.npz")
    # The file is sorted by label.
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    labels = torch.from_numpy(arrays["labels"][order].astype(np.int64))
    model = load(folder / "resnet20.safetensors")
    streams = {}
    for name, severity in CORRUPTIONS:
        images = arrays["images"][order[: max(IMAGES_BY_BATCH.values())]]
        if name != "clean":
            images = np.stack([corrupt(image, name, severity=severity, seed=n) for n, image in enumerate(images)])
        streams[f"{name}:{severity}"] = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    rows = []
    for batch_size, count in IMAGES_BY_BATCH.items():
        for strength in STRENGTHS:
            errors = {}
            with Session(model, BatchNormStats(source_strength=strength), guards=()) as session:
                for stream, images in streams.items():
                    parts = images[:count].split(batch_size)
                    found = torch.cat([session.predict(part).argmax(1) for part in parts])
                    errors[stream] = round(100 * float((found != labels[:count]).float().mean()), 2)
            mean = round(float(np.mean(list(errors.values()))), 2)
            row = {"batch_size": batch_size, "strength": strength, "mean_error_percent": mean, "errors": errors}
            rows.append(row)
            shown = "half" if strength is None else str(strength)
            print(f"batch {batch_size:3d}  N {shown:4s}  mean {mean:5.2f} %  {errors}", flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

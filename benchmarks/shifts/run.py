"""Error under kinds of damage that the package does not have itself, each by itself, guards off.

    python benchmarks/shifts/run.py --data DATA --half tune --out tune.json      # to choose settings
    python benchmarks/shifts/run.py --data DATA --half report --out report.json  # to write a result down

The network is the ResNet-20 of ``benchmarks/cifar``. The half ``tune`` damages images of ``tune_jpeg.npz``, the half
``report`` the clean images of ``report_corrupted.npz``, 512 each, in batches of 64.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
sys.path.insert(0, str(Path(__file__).parent))
import kinds
from network import load

from acclimate.core import Session
from acclimate.core.spectrum import measure
from acclimate.methods import BatchNormStats, Blend, Eata, Sar, SpectrumFilter, Tent
from acclimate.methods.eata import fisher_information

BATCH = 64
IMAGES = 512


def to_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


def methods(model: nn.Module, source: Tensor) -> dict[str, Any]:
    """Return what is measured; the settings are those of ``benchmarks/cifar``."""
    spectrum = SpectrumFilter(source=measure(source.split(250)))
    fisher = fisher_information(model, source.split(BATCH))
    return {
        "bn": BatchNormStats(source_strength=0),
        "tent": Tent(lr=1e-3),
        "eata": Eata(lr=5e-3, fisher=fisher, fisher_weight=1.0),
        "sar": Sar(lr=1e-3, base="adam"),
        "spectrum": spectrum,
        "blend": Blend(spectrum=spectrum),
        "blend, no source images": Blend(),
        "blend, always filtered": Blend(spectrum=spectrum, filter_trial_images=0),
    }


def wrong(model: nn.Module, method: Any, images: Tensor, labels: Tensor) -> tuple[list[bool], float]:
    """Return for each image whether it was predicted wrongly, and the CPU seconds."""
    found: list[bool] = []
    began = time.process_time()
    if method is None:
        with torch.no_grad():
            outputs = [model(batch.to(memory_format=torch.channels_last)) for batch in images.split(BATCH)]
    else:
        with Session(model, method, guards=(), restore=True) as session:
            outputs = [session.adapt_and_predict(batch)[0] for batch in images.split(BATCH)]
    seconds = time.process_time() - began
    for batch, truth in zip(outputs, labels.split(BATCH), strict=True):
        found += (batch.argmax(1) != truth).tolist()
    return found, seconds


def rows(model: nn.Module, data: Path, half: str, only: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    chosen: Mapping[str, kinds.Damage] = kinds.TUNE if half == "tune" else kinds.REPORT
    archive = np.load(data / ("tune_jpeg.npz" if half == "tune" else "report_corrupted.npz"))
    images = archive["images" if half == "tune" else "clean"]
    order = np.random.default_rng(0).permutation(len(images))[:IMAGES]
    images, labels = images[order], torch.tensor(archive["labels"][order])
    known = methods(model, to_tensor(np.load(data / "source_train.npz")["images"]))
    for kind in ("clean", *chosen):
        damaged = images if kind == "clean" else chosen[kind](images, np.random.default_rng(1))
        tensor = to_tensor(damaged)
        plain, plain_seconds = wrong(model, None, tensor, labels)
        yield {"kind": kind, "method": "none", "error": 100 * float(np.mean(plain)), "times_plain": 1.0}
        for name, method in known.items():
            if only is None or name in only:
                found, seconds = wrong(model, method, tensor, labels)
                error = 100 * float(np.mean(found))
                yield {"kind": kind, "method": name, "error": error, "times_plain": seconds / plain_seconds}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/")
    parser.add_argument("--half", choices=("tune", "report"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="write the results as JSON")
    parser.add_argument("--methods", nargs="+", help="run these only")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = given.data / "cifar10"
    model = load(data / "resnet20.safetensors").eval()
    found = []
    for row in rows(model, data, given.half, given.methods):
        print(f"{row['kind']:18s} {row['method']:24s} {row['error']:6.2f} %  {row['times_plain']:.2f}", flush=True)
        found.append(row)
        given.out.write_text(json.dumps({"half": given.half, "images": IMAGES, "rows": found}, indent=1) + "\n")
    damaged = [row for row in found if row["kind"] != "clean"]
    for name in dict.fromkeys(row["method"] for row in found):
        errors = [row["error"] for row in damaged if row["method"] == name]
        print(f"mean over kinds    {name:24s} {np.mean(errors):6.2f} %")


if __name__ == "__main__":
    main()

"""Whether ``auto`` chooses well: on every kind of CIFAR stream, beside every single method and beside no adaptation.

    python benchmarks/auto/run.py --data FOLDER --out benchmarks/auto/results/auto.json

Everything runs as ``acclimate export`` runs it: presets, default guards, source images given, online. Differences are
paired over images; intervals are from 2,000 resamples of batches. Detectors: benchmarks/pose_scenes (setting auto).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
sys.path.insert(0, str(Path(__file__).parent.parent / "guards"))
from network import load
from paired import difference, percent
from streams import REPORTED, Images, to_tensor

from acclimate.core.task import Classification
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Entry, ImageBatch, chunks, predict_in_batches
from acclimate.vision.run.auto import choose
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt import TTTRun

SINGLE = ("bn", "spectrum", "blend", "lame", "tent", "eata", "sar", "deyo", "roid", "rotta")


@dataclass(frozen=True)
class Stream:
    """Which images, in which order and batches."""

    name: str
    batch_size: int = 64
    conditions: tuple[str, ...] = REPORTED
    images: int | None = None
    sorted_by_label: bool = False


STREAMS = (
    Stream("continual"),
    Stream("sorted", sorted_by_label=True),
    Stream("batch_8", batch_size=8, conditions=("gaussian_noise", "fog", "contrast", "pixelate"), images=400),
    Stream("batch_1", batch_size=1, conditions=("gaussian_noise", "fog", "contrast"), images=200),
    Stream("clean", conditions=("clean",)),
)


class Arrays:
    """An adapter whose images are tensors in memory; a record's ``image`` is where its image lies."""

    name = "arrays"
    is_classifier = True

    def __init__(self, model: nn.Module, images: dict[str, Tensor]) -> None:
        self.task, self.reader = Classification(), ImageReader()
        self._model, self._images = model, images

    def get_model(self) -> nn.Module:
        return self._model

    def build_loader(self, records: Sequence[Record], *, batch_size: int) -> Iterator[ImageBatch]:
        for part in chunks(records, batch_size):
            images = []
            for record in part:
                name, _, row = record.image.partition(":")
                images.append(self._images[name][int(row)])
            yield ImageBatch(torch.stack(images), tuple(part), ((32, 32),) * len(part))

    def entries(self, outputs: Any, batch: ImageBatch) -> list[Entry]:
        return [{"class_id": int(label)} for label in outputs.argmax(1)]

    def predict(self, records: Sequence[Record]) -> list[Entry]:
        return [entry for part in predict_in_batches(self, records, batch_size=64) for entry in part]


def records_of(stream: Stream, labels: Tensor) -> list[Record]:
    """Return the stream; an image's id holds its label."""
    order = torch.argsort(labels, stable=True) if stream.sorted_by_label else torch.arange(len(labels))
    rows = order[: stream.images].tolist()
    return [
        Record(image=f"{name}:{row}", image_id=number) for name in stream.conditions for number, row in enumerate(rows)
    ]


def errors(
    adapter: Arrays,
    records: Sequence[Record],
    config: TTTConfig | None,
    source: Sequence[Record],
    truth: Sequence[int],
    batch_size: int,
) -> list[np.ndarray[Any, Any]]:
    """Return 1 for each image that is predicted wrongly, by batches."""
    if config is None:
        entries = [e for part in predict_in_batches(adapter, records, batch_size=batch_size) for e in part]
    else:
        with TTTRun(adapter, config, source_records=source) as run:
            entries = [e for part in run.predictions(records) for e in part]
    wrong = np.array([entry["class_id"] != label for entry, label in zip(entries, truth, strict=True)], dtype=float)
    return np.split(wrong, range(batch_size, len(wrong), batch_size))


def experiments(adapter: Arrays, labels: Tensor, source: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Yield a row for each stream."""
    for stream in STREAMS:
        records = records_of(stream, labels)
        truth = [int(labels[int(record.image.partition(":")[2])]) for record in records]
        given = {"reset": "online", "batch_size": stream.batch_size}
        plain = errors(adapter, records, None, source, truth, stream.batch_size)
        found = {}
        for method in SINGLE:
            config = TTTConfig.resolve({**given, "method": method}, kind="classifier")
            found[method] = errors(adapter, records, config, source, truth, stream.batch_size)
        started = time.process_time()
        choice = choose(adapter, {**given, "method": "auto"}, records, source_records=source)
        trial_s = time.process_time() - started
        ours = errors(adapter, records, choice.config, source, truth, stream.batch_size)
        best = min(found, key=lambda method: percent(found[method]))
        yield {
            "stream": stream.name,
            "chosen": choice.method,
            "reasons": choice.reasons,
            "trial_cpu_s": round(trial_s, 2),
            "none": percent(plain),
            "auto": percent(ours),
            "best": best,
            "single": {method: percent(wrong) for method, wrong in found.items()},
            "auto_minus_best": difference(ours, found[best]),
            "auto_minus_none": difference(ours, plain),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, or that folder itself")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data / "cifar10" if (options.data / "cifar10").is_dir() else options.data
    data = Images.reported(folder)
    images = {**data.conditions, "source": to_tensor(np.load(folder / "source_train.npz")["images"])}
    adapter = Arrays(load(folder / "resnet20.safetensors"), images)
    source = [Record(image=f"source:{row}", image_id=row) for row in range(len(images["source"]))]
    rows = []
    for row in experiments(adapter, data.labels, source):
        rows.append(row)
        print(
            f"{row['stream']:10s} chose {row['chosen']:8s} {row['auto']:5.2f} %  none {row['none']:5.2f}  best "
            f"{row['best']} {row['single'][row['best']]:5.2f}  difference {row['auto_minus_best']}  {row['single']}",
            flush=True,
        )
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

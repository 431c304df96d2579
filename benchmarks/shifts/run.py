"""Error and calibration under kinds of damage that the package does not have itself, each by itself.

    python benchmarks/shifts/run.py --data DATA --half tune --out tune.json      # to choose settings
    python benchmarks/shifts/run.py --data DATA --half report --out report.json  # to write a result down

The network is the ResNet-20 of ``benchmarks/cifar``, or one of ``networks.py``. The half ``tune`` damages images of
``tune_jpeg.npz``, the half ``report`` the clean images of ``report_corrupted.npz``, 512 each, in batches of 64. With
``--network efficientnet_lite0`` they damage the first 128 and the last 192 photographs of ``imagenet_sample/stream``,
in batches of 32. Differences to the unadapted model are paired over images, with 95 % intervals from 2,000
resamples of batches. The calibration error has 15 bins.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
sys.path.insert(0, str(Path(__file__).parent.parent / "guards"))
sys.path.insert(0, str(Path(__file__).parent))
import kinds
from network import load
from paired import difference, percent
from PIL import Image

from acclimate.core import Classification, Session, default_guards
from acclimate.core.source_images import SourceImages
from acclimate.methods import BatchNormStats, Blend, Eata, FoaShift, Neo, Sar, SpectrumFilter, Tent
from acclimate.methods.eata import fisher_information
from networks import NETWORKS, PHOTOGRAPHS, WITH_BATCH_NORM, EfficientNetLite0, load_trained

BATCH = 64
IMAGES = 512
BATCH_OF_PHOTOGRAPHS = 32
PHOTOGRAPHS_TO_TUNE = 128
CALIBRATION_BINS = 15
GUARDED = ("bn", "blend", "neo")


def to_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


def methods(model: nn.Module, source: Tensor, *, batch: int = BATCH) -> dict[str, Any]:
    """Return what is measured; the settings are those of ``benchmarks/cifar``."""
    images, task = SourceImages(batches=source.split), Classification()
    spectrum = SpectrumFilter().with_source(model, images, task=task)
    fisher = fisher_information(model, source.split(batch))
    return {
        "bn": BatchNormStats(source_strength=0),
        "tent": Tent(lr=1e-3),
        "eata": Eata(lr=5e-3, fisher=fisher, fisher_weight=1.0),
        "sar": Sar(lr=1e-3, base="adam"),
        "spectrum": spectrum,
        "blend": Blend(spectrum=spectrum),
        "blend, no source images": Blend(),
    }


def methods_without_batch_norm(model: nn.Module, source: Tensor) -> dict[str, Any]:
    """Return what is measured on networks without BatchNorm."""
    images, task = SourceImages(batches=source.split), Classification()
    return {
        "tent": Tent(lr=1e-3),
        "spectrum": SpectrumFilter().with_source(model, images, task=task),
        "neo": Neo(),
        "foa_shift": FoaShift().with_source(model, images, task=task),
        "blend": Blend().with_source(model, images, task=task),
    }


def predicted(
    model: nn.Module, method: Any, images: Tensor, *, guarded: bool = False, batch: int = BATCH
) -> tuple[list[Tensor], float]:
    """Return the logits by batches, and the CPU seconds."""
    began = time.process_time()
    if method is None:
        with torch.no_grad():
            outputs = [model(part.to(memory_format=torch.channels_last)) for part in images.split(batch)]
    else:
        guards = default_guards() if guarded else ()
        with Session(model, method, guards=guards, restore=True) as session:
            outputs = [session.adapt_and_predict(part)[0] for part in images.split(batch)]
    return outputs, time.process_time() - began


def wrong(outputs: list[Tensor], labels: Tensor, *, batch: int = BATCH) -> list[np.ndarray[Any, Any]]:
    """Return by batches 1 for each image that was predicted wrongly, else 0."""
    both = zip(outputs, labels.split(batch), strict=True)
    return [(found.argmax(1) != truth).numpy().astype(float) for found, truth in both]


def calibration_error(outputs: list[Tensor], labels: Tensor) -> float:
    """Return the expected calibration error in per cent: mean distance of confidence and accuracy, in bins."""
    confidence, classes = torch.cat(outputs).softmax(1).max(1)
    right = (classes == labels).float()
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    total = sum(abs(float((confidence - right)[bins == number].sum())) for number in range(CALIBRATION_BINS))
    return 100 * total / len(labels)


def measured(outputs: list[Tensor], labels: Tensor, plain: list[np.ndarray[Any, Any]], *, batch: int) -> dict[str, Any]:
    """Return error, its difference to the unadapted model's, and calibration error."""
    errors = wrong(outputs, labels, batch=batch)
    return {
        "error": percent(errors),
        "minus_none": difference(errors, plain),
        "calibration_error": round(calibration_error(outputs, labels), 2),
    }


@dataclass(frozen=True)
class Half:
    """A network, what is measured on it, and images of one half that are damaged with its kinds."""

    model: nn.Module
    known: Mapping[str, Any]
    damages: Mapping[str, kinds.Damage]
    images: np.ndarray[Any, Any]
    labels: Tensor
    batch: int = BATCH


def half_of(data: Path, half: str, network: str, *, count: int) -> Half:
    """Return a half with ``count`` images (all photographs); ``data`` is the folder with cifar10/."""
    if network == PHOTOGRAPHS:
        return _half_of_photographs(data / "imagenet_sample", half)
    folder, resnet = data / "cifar10", network == "resnet20"
    model = load(folder / "resnet20.safetensors") if resnet else load_trained(network)
    archive = np.load(folder / ("tune_jpeg.npz" if half == "tune" else "report_corrupted.npz"))
    images = archive["images" if half == "tune" else "clean"]
    order = np.random.default_rng(0).permutation(len(images))[:count]
    source = to_tensor(np.load(folder / "source_train.npz")["images"])
    known = (methods if resnet or network in WITH_BATCH_NORM else methods_without_batch_norm)(model, source)
    return Half(model, known, _damages(half), images[order], torch.tensor(archive["labels"][order]))


def _half_of_photographs(folder: Path, half: str) -> Half:
    model = EfficientNetLite0()
    classes = json.loads((folder / "labels.json").read_text())
    paths = sorted((folder / "stream").iterdir())
    paths = paths[:PHOTOGRAPHS_TO_TUNE] if half == "tune" else paths[PHOTOGRAPHS_TO_TUNE:]
    labels = torch.tensor([classes[path.name] for path in paths])
    source = to_tensor(_photographs(sorted((folder / "source").iterdir())))
    known = methods(model, source, batch=BATCH_OF_PHOTOGRAPHS)
    return Half(model, known, _damages(half), _photographs(paths), labels, batch=BATCH_OF_PHOTOGRAPHS)


def _photographs(paths: Sequence[Path]) -> np.ndarray[Any, Any]:
    return np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])


def _damages(half: str) -> Mapping[str, kinds.Damage]:
    return kinds.TUNE if half == "tune" else kinds.REPORT


def put(rows: list[dict[str, Any]], row: dict[str, Any], stream: str) -> None:
    """Put a row in the place of that of the same method and ``stream`` (a key), or at the end."""
    key = (row[stream], row["method"])
    places = [number for number, old in enumerate(rows) if (old[stream], old["method"]) == key]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)


def options(description: str | None, *networks: str) -> argparse.ArgumentParser:
    """Return the options of the benchmarks that run on a half, with ``networks`` beside those of CIFAR."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and imagenet_sample/")
    parser.add_argument("--half", choices=("tune", "report"), required=True)
    parser.add_argument("--network", choices=("resnet20", *NETWORKS, *networks), default="resnet20")
    parser.add_argument("--out", type=Path, required=True, help="write the results as JSON")
    parser.add_argument("--methods", nargs="+", help="run these only, and keep the others' rows that the file has")
    return parser


def rows(given: Half, only: Sequence[str] | None, only_kinds: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    model, labels, batch = given.model, given.labels, given.batch
    for kind in ("clean", *given.damages) if only_kinds is None else only_kinds:
        damaged = given.images if kind == "clean" else given.damages[kind](given.images, np.random.default_rng(1))
        tensor = to_tensor(damaged)
        outputs, plain_seconds = predicted(model, None, tensor, batch=batch)
        plain = wrong(outputs, labels, batch=batch)

        common = {"kind": kind, "method": "none"}
        yield {**common, **measured(outputs, labels, plain, batch=batch), "times_plain": 1.0}
        for name, method in given.known.items():
            for guarded in (False, True) if name in GUARDED else (False,):
                common["method"] = f"{name}, guarded" if guarded else name
                if only is None or common["method"] in only:
                    outputs, seconds = predicted(model, method, tensor, guarded=guarded, batch=batch)
                    found = measured(outputs, labels, plain, batch=batch)
                    yield {**common, **found, "times_plain": round(seconds / plain_seconds, 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, PHOTOGRAPHS)
    parser.add_argument("--kinds", nargs="+", help="run these only, clean among them, and keep the others' rows")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = []
    if (given.methods is not None or given.kinds is not None) and given.out.exists():
        found = json.loads(given.out.read_text())["rows"]
    half = half_of(given.data, given.half, given.network, count=IMAGES)
    for row in rows(half, given.methods, given.kinds):
        print(f"{row['kind']:18s} {row['method']:24s} {row['error']:6.2f} %  {row['times_plain']:.2f}", flush=True)
        put(found, row, "kind")
        content = {"half": given.half, "network": given.network, "images": len(half.labels), "rows": found}
        given.out.write_text(json.dumps(content, indent=1) + "\n")
    damaged = [row for row in found if row["kind"] != "clean"]
    for name in dict.fromkeys(row["method"] for row in found):
        means = {
            value: np.mean([row[value] for row in damaged if row["method"] == name])
            for value in ("error", "calibration_error", "times_plain")
        }
        print(f"mean over kinds    {name:24s} " + "  ".join(f"{value} {mean:.2f}" for value, mean in means.items()))


if __name__ == "__main__":
    main()

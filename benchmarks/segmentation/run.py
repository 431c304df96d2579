"""Mean intersection over union of a street-scene network under kinds of damage, as ``acclimate export`` runs methods.

    python benchmarks/segmentation/run.py --data DATA --half tune --out tune.json      # to choose settings
    python benchmarks/segmentation/run.py --data DATA --half report --out report.json  # to write a result down

ESPNet on frames of CamVid by day and at dusk. Each kind begins from the source weights; presets, default guards,
batches of 8, online, 31 source images without labels. Rows that are in the output file already are not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import kinds

from acclimate.vision.data.masks import NO_CLASS, read_label_image
from acclimate.vision.data.records import Record, load_dataset
from acclimate.vision.evaluation.segmentation import confusion
from acclimate.vision.models.adapter import ImageBatch, plain_forward
from acclimate.vision.models.torch_adapter import TorchAdapter
from acclimate.vision.run.settings import settings_for
from acclimate.vision.run.ttt import TTTRun

BATCH: Final = 8
EVERY: Final = 2
"""Every second frame is used, because frames are large."""
UNLABELLED: Final = 11
METHODS: Final = ("none", "bn", "tent", "eata", "sar", "spectrum", "blend", "auto")
LIGHTS: Final = {"day": "Seq05VD_*.png", "dusk": "0001TP_*.png"}


@dataclass(frozen=True)
class Stream:
    """Damaged frames, and the labels of their pixels."""

    light: str
    kind: str
    records: tuple[Record, ...]
    labels: tuple[NDArray[np.int32], ...]


def streams(data: Path, half: str, folder: Path) -> Iterator[Stream]:
    """Write damaged frames into ``folder``, and yield the streams: clean, then each kind, by day and at dusk."""
    chosen = kinds.TUNE if half == "tune" else kinds.REPORT
    for kind in ("clean", *chosen):
        for light, pattern in LIGHTS.items():
            paths = sorted((data / "images").glob(pattern))[::EVERY]
            frames = np.stack([np.asarray(Image.open(path)) for path in paths])
            if kind != "clean":
                frames = chosen[kind](frames, np.random.default_rng(1))
            place = folder / kind / light
            place.mkdir(parents=True)
            for path, frame in zip(paths, frames, strict=True):
                Image.fromarray(frame).save(place / path.name)
            values = (read_label_image(data / "labels" / path.name) for path in paths)
            labels = tuple(np.where(value == UNLABELLED, NO_CLASS, value).astype(np.int32) for value in values)
            yield Stream(light, kind, load_dataset(place).records, labels)


def predicted(
    adapter: TorchAdapter, batches: Sequence[ImageBatch], stream: Stream, method: str, source: Sequence[Record]
) -> tuple[list[NDArray[np.int64]], dict[str, Any]]:
    """Return the classes of each frame's pixels, and what running the method was like."""
    details: dict[str, Any] = {}
    config = None
    began = time.process_time()
    if method != "none":
        given = {"method": method, "reset": "online", "batch_size": BATCH}
        used = source if method in ("spectrum", "blend", "eata", "auto") else ()
        config, choice = settings_for(adapter, given, None, stream.records, source_records=used, goes_on=False)
        if choice is not None:
            details = {"chosen": choice.method, "trial_cpu_s": time.process_time() - began}
    found = []
    if config is None:
        forward = plain_forward(adapter)
        began = time.process_time()
        for batch in batches:
            found += list(forward(batch.inputs).argmax(1).numpy())
        return found, {**details, "cpu_s": time.process_time() - began}
    with TTTRun(adapter, config, source_records=used) as run:
        # Statistics of the source images are measured once for a model and not for each stream.
        began = time.process_time()
        for batch in batches:
            outputs, _ = run.session.adapt_and_predict(batch.inputs)
            found += list(outputs.argmax(1).numpy())
        seconds = time.process_time() - began
        return found, {**details, "cpu_s": seconds, "steps": run.report().session.counts}


def score(stream: Stream, found: Sequence[NDArray[np.int64]]) -> float:
    """Return the mean IoU in per cent over the classes in the labels."""
    parts = [confusion(labels, image.astype(np.int32)) for labels, image in zip(stream.labels, found, strict=True)]
    total = np.zeros((3, max(part.shape[1] for part in parts)), dtype=np.int64)
    for part in parts:
        total[:, : part.shape[1]] += part
    right, true, predicted_ = total[:, total[1] > 0]
    return 100 * float((right / (true + predicted_ - right)).mean())


def rows(
    data: Path,
    half: str,
    methods: Sequence[str],
    lights: Sequence[str],
    only: Sequence[str] | None,
    done: Sequence[tuple[str, ...]],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each stream and method that is not among ``done``."""
    sys.path.insert(0, str(Path(__file__).parent))
    adapter = TorchAdapter("espnet:camvid", checkpoint=str(data / "espnet_p2_q8.safetensors"))
    source = load_dataset(data / "source").records
    with tempfile.TemporaryDirectory() as folder:
        for stream in streams(data, half, Path(folder)):
            left = [name for name in methods if (stream.light, stream.kind, name) not in done]
            if stream.light not in lights or not left or (only is not None and stream.kind not in only):
                continue
            batches = list(adapter.build_loader(stream.records, batch_size=BATCH))
            for method in left:
                found, details = predicted(adapter, batches, stream, method, source)
                details["cpu_s"] = details["cpu_s"] / len(stream.records)
                row = {"light": stream.light, "kind": stream.kind, "method": method, "frames": len(stream.records)}
                yield {**row, "mIoU": score(stream, found), **details}


def summary(found: Sequence[dict[str, Any]]) -> str:
    """Return mean IoU and the share of the loss that is recovered, by light and method; and the cost."""
    lines = []
    for light in LIGHTS:
        of = {(row["kind"], row["method"]): row for row in found if row["light"] == light}
        damaged = [kind for kind, method in of if method == "none" and kind != "clean"]
        for method in dict.fromkeys(name for _, name in of):
            kinds_of = [kind for kind in damaged if (kind, method) in of]
            if not kinds_of or ("clean", method) not in of:
                continue
            clean = of["clean", "none"]["mIoU"]
            lost = clean - np.mean([of[kind, "none"]["mIoU"] for kind in kinds_of])
            mean = np.mean([of[kind, method]["mIoU"] for kind in kinds_of])
            # Rows of an earlier run keep the time of plain prediction in that run.
            plain = {kind: of[kind, method].get("plain_cpu_s", of[kind, "none"]["cpu_s"]) for kind in kinds_of}
            cost = np.mean([of[kind, method]["cpu_s"] / plain[kind] for kind in kinds_of])
            back = 100 * (mean - (clean - lost)) / lost
            lines.append(
                f"{light:5s} {method:9s} clean {of['clean', method]['mIoU']:5.1f}  damaged {mean:5.1f}  recovered "
                f"{back:3.0f} %  cost {cost:.2f}  ({len(kinds_of)} kinds)"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid/")
    parser.add_argument("--half", choices=("tune", "report"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="write the results as JSON")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="run these only")
    parser.add_argument("--kinds", nargs="+", help="run these only, clean among them")
    parser.add_argument("--lights", nargs="+", choices=tuple(LIGHTS), default=tuple(LIGHTS), help="run these only")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    done = [(row["light"], row["kind"], row["method"]) for row in found]
    for row in rows(given.data / "camvid", given.half, given.methods, given.lights, given.kinds, done):
        print(
            f"{row['light']:5s} {row['kind']:15s} {row['method']:9s} {row['mIoU']:5.1f}  {row['cpu_s']:.2f} s",
            flush=True,
        )
        found.append(row)
        content = {"half": given.half, "torch": torch.__version__, "rows": found}
        given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(summary(found))


if __name__ == "__main__":
    main()

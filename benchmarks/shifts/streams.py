"""Error on streams in which kinds of damage follow each other, mix, or come in few images or one class at a time.

    python benchmarks/shifts/streams.py --data DATA --half tune --out streams_tune.json      # to choose settings
    python benchmarks/shifts/streams.py --data DATA --half report --out streams_report.json  # to write a result down

Images, kinds, network and methods are those of ``run.py``; each stream begins from the source weights. Differences to
the unadapted model are paired over images, with 95 % intervals from 2,000 resamples of batches (of the images, where
batches are of one). The cost is CPU time relative to plain prediction.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
sys.path.insert(0, str(Path(__file__).parent.parent / "guards"))
sys.path.insert(0, str(Path(__file__).parent))
import kinds
from paired import difference, percent
from run import GUARDED, calibration_error, half_of, options, predicted, put, to_tensor, wrong

BATCH: Final = 64
IMAGES: Final = 800
FEW: Final = 80
IN_A_ROW: Final = 128
SINGLE: Final = 100
#: These have another size than the others, and cannot share a batch with them.
OTHER_SIZE: Final = ("another_size",)


@dataclass(frozen=True)
class Stream:
    """Images in order, with their classes.

    Attributes:
        name: of the kind of stream.
        parts: each begins from the source weights.
        batch: images a batch.
    """

    name: str
    parts: list[tuple[Tensor, Tensor]]
    batch: int = BATCH


def streams(images: np.ndarray[Any, Any], labels: Tensor, damages: Mapping[str, kinds.Damage]) -> Iterator[Stream]:
    """Yield the streams; each kind of damage is applied to the same images."""
    damaged = {name: damage(images, np.random.default_rng(1)) for name, damage in damages.items()}
    alike = [found for name, found in damaged.items() if name not in OTHER_SIZE]
    order = torch.argsort(labels, stable=True)
    batches = torch.arange(len(labels)).split(BATCH)
    clean = to_tensor(images)
    tensors = {name: to_tensor(found) for name, found in damaged.items()}

    yield Stream("each kind, 800 images", [(found, labels) for found in tensors.values()])
    yield Stream("each kind, 80 images", [(found[:FEW], labels[:FEW]) for found in tensors.values()])
    pieces = [slice(n * IN_A_ROW % (len(labels) - IN_A_ROW), None) for n in range(len(alike))]
    row = [
        (to_tensor(found[part][:IN_A_ROW]), labels[part][:IN_A_ROW]) for part, found in zip(pieces, alike, strict=True)
    ]
    yield Stream("all kinds in a row", [(torch.cat([x for x, _ in row]), torch.cat([y for _, y in row]))])
    mixed = np.stack([alike[n // BATCH % len(alike)][n] for n in range(len(labels))])
    yield Stream("a new kind in every batch", [(to_tensor(mixed), labels)])
    mixed = np.stack([alike[n % len(alike)][n] for n in range(len(labels))])
    yield Stream("a new kind in every image", [(to_tensor(mixed), labels)])
    some = list(tensors)[::3]
    yield Stream("sorted by class", [(tensors[name][order], labels[order]) for name in some])
    yield Stream("batches of one", [(tensors[name][:SINGLE], labels[:SINGLE]) for name in some], batch=1)
    yield Stream("clean", [(clean, labels)])
    yield Stream("clean, 80 images", [(clean[:FEW], labels[:FEW])])
    yield Stream("clean, sorted by class", [(clean[order], labels[order])])
    yield Stream("clean, batches of one", [(clean[: 2 * SINGLE], labels[: 2 * SINGLE])], batch=1)
    yield Stream("upside down", [(clean.flip(2), labels)])
    first = [(tensors[name][batches[0]], labels[batches[0]]) for name in some]
    yield Stream(
        "damaged, then clean",
        [
            (torch.cat([x, clean[BATCH:]]), torch.cat([y, labels[BATCH:]]))
            for x, y in first
            if x.shape[2:] == clean.shape[2:]
        ],
    )


def results(
    model: torch.nn.Module,
    known: Mapping[str, Any],
    stream: Stream,
    only: Sequence[str] | None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for the unadapted model and for each method."""
    plain: list[np.ndarray[Any, Any]] = []
    plain_s = 0.0
    names = [(name, guarded) for name in known for guarded in ((False, True) if name in GUARDED else (False,))]
    for name, guarded in [("none", False), *names]:
        label = f"{name}, guarded" if guarded else name
        if name != "none" and only is not None and label not in only:
            continue
        errors, outputs, seconds = [], [], 0.0
        for images, labels in stream.parts:
            method = known.get(name)
            found, taken_s = predicted(model, method, images, guarded=guarded, batch=stream.batch)
            errors += wrong(found, labels, batch=stream.batch)
            outputs += found
            seconds += taken_s
        if name == "none":
            plain, plain_s = errors, seconds
        truth = torch.cat([labels for _, labels in stream.parts])
        yield {
            "stream": stream.name,
            "method": label,
            "images": len(truth),
            "error": percent(errors),
            "minus_none": difference(errors, plain),
            "calibration_error": round(calibration_error(outputs, truth), 2),
            "times_plain": round(seconds / plain_s, 2),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--streams", nargs="+", help="run these only, and keep the others' rows")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    half = half_of(given.data, given.half, given.network, count=IMAGES)
    content = {"half": given.half, "network": given.network, "rows": []}
    if given.out.exists() and (given.methods is not None or given.streams is not None):
        content = json.loads(given.out.read_text())
    for stream in streams(half.images, half.labels, half.damages):
        if given.streams is not None and stream.name not in given.streams:
            continue
        for row in results(half.model, half.known, stream, given.methods):
            change = row["minus_none"]
            print(
                f"{row['stream']:26s} {row['method']:24s} {row['error']:6.2f} %  {change['points']:+6.2f} "
                f"[{change['low']:+.1f}, {change['high']:+.1f}]  {row['times_plain']:.2f}",
                flush=True,
            )
            put(content["rows"], row, "stream")
            given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

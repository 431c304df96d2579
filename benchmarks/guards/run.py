"""What goes wrong with Tent on broken streams, which guard sees it, how soon, and what the error is then.

    python benchmarks/guards/run.py --data FOLDER --out benchmarks/guards/results/guards.json
    python benchmarks/guards/run.py --data FOLDER --split tune --methods tent          # what was looked at for tuning

Errors are over all real, labelled images of a stream. Differences to the unadapted model are paired over images, with
95 % intervals from 2,000 resamples of batches: neighbours in a stream are no independent images.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
sys.path.insert(0, str(Path(__file__).parent))
from network import load
from paired import difference, percent
from streams import FAULTS, Batch, Fault, Images, to_tensor

from acclimate.core import Session, default_guards
from acclimate.core.spectrum import measure as measure_spectrum
from acclimate.methods import Blend, Eata, Sar, SpectrumFilter, Tent
from acclimate.registry import GUARDS

# What a rejection's code is called in the tables.
GUARD_OF = {
    code: entry.target.rpartition(":")[2]
    for entry in GUARDS.shipped().values()
    if entry.info
    for code in entry.info.codes
} | {
    "less_certain_than_source": "WorseThanSource (certainty)",
    "less_consistent_than_source": "WorseThanSource (agreement)",
    "statistics_of_few_classes": "WorseThanSource (few classes)",
    "fewer_classes_than_source": "WorseThanSource (variety)",
    "lower_scores_than_source": "WorseThanSource (detection)",
}


def methods(source: torch.Tensor) -> dict[str, Any]:
    """Return what is measured; the settings are those of benchmarks/cifar."""
    spectrum = SpectrumFilter(source=measure_spectrum(source.split(250)))
    return {
        "tent": Tent(lr=1e-3),
        "eata": Eata(lr=5e-3),
        "sar": Sar(lr=1e-3, base="adam"),
        "spectrum": spectrum,
        "blend": Blend(spectrum=spectrum),
    }


def wrong(outputs: torch.Tensor, batch: Batch) -> np.ndarray[Any, Any]:
    """Return 1 for each real image that was predicted wrongly, 0 for each that was not."""
    real = batch.labels >= 0
    # An output that is not finite is no prediction, whatever argmax makes of it.
    bad = (outputs.argmax(1) != batch.labels) | ~outputs.isfinite().all(1)
    return bad[real].numpy().astype(float)


def unadapted(model: nn.Module, batches: list[Batch]) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        return [wrong(model(batch.images), batch) for batch in batches]


def adapted(
    model: nn.Module, method: Any, batches: list[Batch], *, guarded: bool
) -> tuple[list[np.ndarray[Any, Any]], dict[str, Any]]:
    """Return the errors, and what the guards did."""
    errors = []
    rejections: dict[str, int] = {}
    first = None
    with Session(copy.deepcopy(model), method, guards=default_guards() if guarded else ()) as session:
        for number, batch in enumerate(batches):
            outputs, report = session.adapt_and_predict(batch.images)
            errors.append(wrong(outputs, batch))
            if report.verdict in ("rolled_back", "reset"):
                kind = GUARD_OF[report.code or ""]
                rejections[kind] = rejections.get(kind, 0) + 1
                first = first or {"guard": kind, "batch": number, "reason": report.reason}
        counts = session.report().counts
    return errors, {"rejections": rejections, "first": first, "steps": counts}


def experiments(
    model: nn.Module, data: Images, source: torch.Tensor, *, names: list[str], faults: tuple[Fault, ...]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each fault and method."""
    known = methods(source)
    for fault in faults:
        batches = list(fault.stream(data, model))
        plain = unadapted(model, batches)
        for name in names:
            method = known[name]
            if fault.lr_factor != 1:
                if not hasattr(method, "lr"):
                    continue
                method = dataclasses.replace(method, lr=method.lr * fault.lr_factor)
            free, _ = adapted(model, method, batches, guarded=False)
            kept, did = adapted(model, method, batches, guarded=True)
            yield {
                "fault": fault.name,
                "method": name,
                "images": sum(len(errors) for errors in plain),
                "none": percent(plain),
                "unguarded": percent(free),
                "guarded": percent(kept),
                "guarded_minus_none": difference(kept, plain),
                "unguarded_minus_none": difference(free, plain),
                **did,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, or that folder itself")
    parser.add_argument("--split", choices=("report", "tune"), default="report")
    parser.add_argument("--methods", nargs="+", default=["tent", "eata", "sar", "spectrum", "blend"])
    parser.add_argument("--faults", nargs="+", help="names; all by default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.data / "cifar10" if (options.data / "cifar10").is_dir() else options.data
    data = Images.reported(folder) if options.split == "report" else Images.tuned(folder)
    source = np.load(folder / "source_train.npz")["images"]
    rows = []
    faults = tuple(fault for fault in FAULTS if options.faults is None or fault.name in options.faults)
    for row in experiments(
        load(folder / "resnet20.safetensors"),
        data,
        to_tensor(source),
        names=options.methods,
        faults=faults,
    ):
        rows.append(row)
        change = row["guarded_minus_none"]
        first = "" if row["first"] is None else f"{row['first']['guard']} at batch {row['first']['batch']}"
        print(
            f"{row['fault']:24s} {row['method']:9s} none {row['none']:5.1f}  free {row['unguarded']:5.1f}  guarded "
            f"{row['guarded']:5.1f}  ({change['points']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}])  "
            f"{row['rejections']} {first}",
            flush=True,
        )
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({"split": options.split, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Error and cost of every method on corrupted CIFAR-10 images, with the authors' settings.

    python benchmarks/cifar/run.py --data FOLDER --out benchmarks/cifar/results/cifar.json
    python benchmarks/cifar/run.py --data FOLDER --out ... --methods blend tent --streams cycles   # replaces those rows

Cost is in CPU seconds on one thread. Each batch is predicted by the plain model, put through a bare forward and
backward pass of the normalisation parameters (or of all parameters, for CoTTA), and given to the method, one after
the other; so the ratios compare what ran at the same time on the same machine.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from network import load

from acclimate.core import Session, default_guards
from acclimate.core.losses import softmax_entropy
from acclimate.core.method import settings_of
from acclimate.core.pacing import Pacing
from acclimate.core.spectrum import measure as measure_spectrum
from acclimate.methods import (
    BatchNormStats,
    Blend,
    Cotta,
    Deyo,
    Eata,
    Lame,
    Memo,
    Mim,
    Roid,
    Rotta,
    Sar,
    SpectrumFilter,
    Tent,
)
from acclimate.methods.eata import fisher_information

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur", "fog", "brightness", "contrast",
    "pixelate", "jpeg",
)  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """Which images, in which order and batches."""

    name: str
    batch_size: int = 64
    corruptions: tuple[str, ...] = CORRUPTIONS
    images: int | None = None
    sorted_by_label: bool = False
    reset_between: bool = False
    cycles: int = 1


STREAMS = (
    Stream("continual"),
    Stream("reset", reset_between=True),
    Stream("sorted", sorted_by_label=True),
    Stream("batch_8", batch_size=8, corruptions=("gaussian_noise", "fog", "contrast", "pixelate"), images=400),
    Stream("batch_4", batch_size=4, corruptions=("gaussian_noise", "fog", "contrast", "pixelate"), images=400),
    Stream("batch_1", batch_size=1, corruptions=("gaussian_noise", "fog", "contrast"), images=200),
    Stream("clean", corruptions=("clean",)),
    Stream("cycles", cycles=20),
)
# Twenty repetitions take long, and an image takes memo a hundred predictions.
ONLY_ON: dict[str, tuple[str, ...]] = {"memo": ("batch_4", "batch_1")}
ON_CYCLES = ("none", "tent", "eata", "blend", "blend, without flip averaging")


@dataclass
class Clock:
    """CPU seconds, summed."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds += time.process_time() - started


@dataclass
class Run:
    """One method on one stream."""

    method: str
    stream: str
    error_percent: dict[str, float] = field(default_factory=dict)
    mean_error_percent: float = 0.0
    cpu_seconds: float = 0.0
    cost_against_plain: float = 0.0
    cost_against_bare: float | None = None
    bare_against_plain: float | None = None
    guards: str = "off"
    cycle_error_percent: list[float] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)


class Data:
    """The arrays as tensors (B, 3, 32, 32) in [0, 1]."""

    def __init__(self, folder: Path) -> None:
        arrays = np.load(folder / "report_corrupted.npz")
        self.labels = torch.from_numpy(arrays["labels"].astype(np.int64))
        self.images = {name: _to_tensor(arrays[name]) for name in (*CORRUPTIONS, "clean")}
        self.source = _to_tensor(np.load(folder / "source_train.npz")["images"])

    def batches(self, stream: Stream, corruption: str) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.labels))
        if stream.sorted_by_label:
            order = torch.argsort(self.labels, stable=True)
        order = order[: stream.images]
        for rows in order.split(stream.batch_size):
            yield self.images[corruption][rows], self.labels[rows]


def _to_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).contiguous()


def measure(
    model: nn.Module,
    method: Any,
    stream: Stream,
    data: Data,
    *,
    name: str,
    guards: bool = False,
    pacing: Pacing | None = None,
) -> Run:
    """Adapt a copy of ``model`` online to the stream; time it beside plain prediction and a bare backward pass."""
    run = Run(name, stream.name, guards="default" if guards else "off", settings=settings_of(method))
    adapted, plain, bare = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    method_clock, plain_clock, bare_clock = Clock(), Clock(), Clock()
    # What a bare pass must give gradients of: the method's own parameters.
    bare_method = method if hasattr(method, "lr") else None
    wrongs: dict[str, list[float]] = {}
    with Session(adapted, method, guards=default_guards() if guards else (), pacing=pacing) as session:
        for corruption in stream.corruptions * stream.cycles:
            if stream.reset_between:
                session.reset()
            wrong, count = 0, 0
            for images, labels in data.batches(stream, corruption):
                with plain_clock.running(), torch.no_grad():
                    plain(images)
                if bare_method is not None:
                    bare_pass(bare, bare_method, images, bare_clock)
                with method_clock.running():
                    logits, _ = session.adapt_and_predict(images)
                wrong += int((logits.argmax(1) != labels).sum())
                count += len(labels)
            wrongs.setdefault(corruption, []).append(100 * wrong / count)
        run.steps = session.report().counts
    run.error_percent = {corruption: round(float(np.mean(values)), 2) for corruption, values in wrongs.items()}
    if stream.cycles > 1:
        run.cycle_error_percent = [round(float(v), 2) for v in np.mean(list(wrongs.values()), axis=0)]
    _finish(run, method_clock, plain_clock, bare_clock)
    return run


def bare_pass(model: nn.Module, method: Any, images: Tensor, clock: Clock) -> None:
    """Forward, mean entropy, backward: what no method that learns can do without."""
    with method.select(model) as selection:
        with clock.running():
            softmax_entropy(model(images)).mean().backward()
        for parameter in selection.parameters.values():
            parameter.grad = None


def measure_plain(model: nn.Module, stream: Stream, data: Data) -> Run:
    run = Run("none", stream.name)
    clock = Clock()
    for corruption in stream.corruptions:
        wrong, count = 0, 0
        for images, labels in data.batches(stream, corruption):
            with clock.running(), torch.no_grad():
                logits = model(images)
            wrong += int((logits.argmax(1) != labels).sum())
            count += len(labels)
        run.error_percent[corruption] = round(100 * wrong / count, 2)
    _finish(run, clock, clock, Clock())
    return run


def _finish(run: Run, method: Clock, plain: Clock, bare: Clock) -> None:
    run.mean_error_percent = round(float(np.mean(list(run.error_percent.values()))), 2)
    run.cpu_seconds = round(method.seconds, 2)
    run.cost_against_plain = round(method.seconds / plain.seconds, 3)
    if bare.seconds:
        run.cost_against_bare = round(method.seconds / bare.seconds, 3)
        run.bare_against_plain = round(bare.seconds / plain.seconds, 3)


def experiments(
    model: nn.Module, data: Data, *, only: Sequence[str] | None, streams: Sequence[str] | None
) -> Iterator[Run]:
    """Yield every run, or those of some methods and streams; the settings are those of the authors."""
    fisher = fisher_information(copy.deepcopy(model), data.source.split(64))
    bn, tent = BatchNormStats(source_strength=0), Tent(lr=1e-3)
    eata, sar = Eata(lr=5e-3, fisher=fisher, fisher_weight=1.0), Sar(lr=1e-3, base="adam")
    mim = Mim(patch_size=4)
    spectrum = SpectrumFilter(source=measure_spectrum(data.source.split(250)))
    methods: dict[str, Any] = {
        "bn": bn,
        "bn, half and half": BatchNormStats(),
        "spectrum": spectrum,
        "blend": Blend(spectrum=spectrum),
        "blend, without flip averaging": Blend(spectrum=spectrum, flip_averaging=False),
        "tent": tent,
        "eata": eata,
        "sar": sar,
        "mim": mim,
        "lame": Lame(),
        "deyo": Deyo(),
        "roid": Roid(),
        "rotta": Rotta(),
        "memo": Memo(),
        "cotta": Cotta(),
    }
    continual: dict[str, Any] = {
        "eata, no source samples": Eata(lr=5e-3),
        "cotta, no views needed": Cotta(anchor_threshold=0.0),
    }
    for stream in STREAMS:
        if streams is not None and stream.name not in streams:
            continue
        if only is None or "none" in only:
            yield measure_plain(model, stream, data)
        for name, method in (methods | (continual if stream.name == "continual" else {})).items():
            skipped = stream.name not in ONLY_ON.get(name, (stream.name,))
            if (
                skipped
                or (stream.name == "cycles" and name not in ON_CYCLES)
                or (only is not None and name not in only)
            ):
                continue
            yield measure(model, method, stream, data, name=name)
            if stream.name == "continual" and name in ("tent", "eata"):
                yield measure(model, method, stream, data, name=name, guards=True)
                yield measure(model, method, stream, data, name=f"{name}, paced", pacing=Pacing())
            if name == "blend" and stream.name in ("continual", "sorted", "batch_1"):
                yield measure(model, method, stream, data, name=name, guards=True)


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["method"], row["stream"], row["guards"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, or that folder itself")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--methods", nargs="+", help="run these and replace their rows in --out")
    parser.add_argument("--streams", nargs="+", help="run on these and replace their rows in --out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = options.data / "cifar10" if (options.data / "cifar10").is_dir() else options.data
    data, model = Data(folder), load(folder / "resnet20.safetensors")
    runs: list[dict[str, Any]] = []
    if (options.methods or options.streams) and options.out is not None and options.out.exists():
        runs = json.loads(options.out.read_text())["runs"]
    for run in experiments(model, data, only=options.methods, streams=options.streams):
        row = dataclasses.asdict(run)
        runs = [other for other in runs if _key(other) != _key(row)] + [row]
        per_corruption = " ".join(f"{error:5.1f}" for error in run.error_percent.values())
        bare = "" if run.cost_against_bare is None else f"  x bare {run.cost_against_bare:5.2f}"
        print(
            f"{run.stream:10s} {run.method:24s} guards {run.guards:7s} mean {run.mean_error_percent:6.2f} %  "
            f"CPU {run.cpu_seconds:7.1f} s  x plain {run.cost_against_plain:6.2f}{bare}  | {per_corruption}",
            flush=True,
        )
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            runs.sort(key=lambda entry: [stream.name for stream in STREAMS].index(entry["stream"]))
            content = {
                "torch": torch.__version__,
                "threads": 1,
                "machine": platform.processor() or platform.machine(),
                "runs": runs,
            }
            options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

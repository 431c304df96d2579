"""Memory of an export by the number of images, and its speed beside the model's own and a DataLoader's.

    python benchmarks/export/run.py --work FOLDER --out benchmarks/export/results/export.json

``memory`` exports generated images in processes of their own and records the most memory that each held. ``speed``
takes turns on the same JPEG files of 640 x 480 pixels: the model on tensors that are ready, the export with and
without overlap, and a loop over a DataLoader of torch with two workers that writes the same predictions. Other programs
may use the machine: shares are medians over rounds, of times within one round, and the CPU seconds of every way say
what it costs however busy the machine is. "Steady" is from the second batch to the last, without loading the model;
"undisturbed" leaves out for how long the thread of the model was ready and waited for a processor that other programs
had (from /proc/thread-self/schedstat), so that what remains is its own work and what it waits for by itself: batches
and Python's lock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import numpy as np
import torch
from PIL import Image

import networks
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.predictions import classification_entries, write_json
from acclimate.vision.data.records import load_dataset
from acclimate.vision.models.adapter import ImageBatch
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.models.torch_adapter import TorchAdapter
from acclimate.vision.run.export import ExportJob, export
from networks import resnet

BATCH = 16
SIZES = (1_000, 10_000, 100_000)


def generated(folder: Path, count: int, size: tuple[int, int], quality: int = 90) -> Path:
    """Write ``count`` JPEG files of smooth random colours with some texture, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        if path.exists():
            continue
        pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = pixels + rng.normal(0, 8, pixels.shape).astype(np.int16) if size[0] > 100 else pixels
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=quality)
    return folder


def memory(work: Path, ttt: list[str], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return peak memory and seconds of an export of each size, in a process of its own."""
    rows = []
    for size in sizes:
        folder = generated(work / f"generated_{size}", size, (32, 32))
        output = work / "out" / f"{size}.json"
        command = [
            sys.executable, "-m", "acclimate", "export", str(folder), "-o", str(output), "--adapter", "torch",
            "--model", "networks:tiny", "--no-record", *ttt,
        ]  # fmt: skip
        code = (
            "import re, runpy, sys; from pathlib import Path; sys.argv = sys.argv[1:]\n"
            "try:\n    runpy.run_module('acclimate', run_name='__main__', alter_sys=True)\n"
            "except SystemExit as end:\n    assert not end.code, end.code\n"
            # Not getrusage: what it says of a new process includes the memory of the one that started it.
            "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
        )
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *command[2:]], capture_output=True, text=True, check=False, cwd=HERE
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        row = {"images": size, "peak_mib": round(int(done.stdout.split()[-1]) / 1024, 1)}
        row["seconds"] = round(time.perf_counter() - start, 1)
        row["predictions_mib"] = round(output.stat().st_size / 2**20, 1)
        print(row, flush=True)
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, and for how long this thread was ready and waited for a processor until then."""

    wall_s: float
    waited_s: float

    @classmethod
    def now(cls) -> Moment:
        waited_ns = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
        return cls(time.perf_counter(), waited_ns / 1e9)


class Files(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """What a careful user writes: each image decoded and prepared by a worker."""

    def __init__(self, records: Any, prepare: Any) -> None:
        self.records, self.prepare, self.reader = records, prepare, ImageReader()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        pixels = self.reader.read(self.records[index])
        return self.prepare(pixels).tensor, pixels.shape[1], pixels.shape[0]


def with_data_loader(folder: Path, output: Path, model: str, times: list[Moment]) -> None:
    made = getattr(networks, model)()
    records = load_dataset(folder).records
    loader = torch.utils.data.DataLoader(Files(records, made.preprocess), batch_size=BATCH, num_workers=2)
    adapter = TorchAdapter("networks:tiny")
    entries: list[Any] = []
    with torch.no_grad():
        for images, widths, heights in loader:
            part = tuple(records[len(entries) : len(entries) + len(images)])
            outputs = made.module(images.contiguous(memory_format=torch.channels_last))
            sizes = tuple(zip(widths.tolist(), heights.tolist(), strict=True))
            entries += classification_entries(outputs, ImageBatch(images, part, sizes), labels=adapter.labels)
            times.append(Moment.now())
    write_json(output, entries)


def speed(work: Path, count: int, rounds: int, network: str) -> dict[str, Any]:
    """Return images a second of each way with one of the networks, and what draft decoding changes."""
    folder = generated(work / "photos", count, (640, 480))
    batch = torch.rand(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    model = getattr(networks, network)().module

    def job(name: str, **changes: Any) -> ExportJob:
        values: dict[str, Any] = {"batch_size": BATCH, "decode_threads": 1}
        options = AdapterOptions(adapter="torch", model=f"networks:{network}")
        return ExportJob(source=folder, output=work / "out" / f"{name}.json", adapter=options, **values | changes)

    reader = ImageReader()
    records = load_dataset(folder).records
    prepare = resnet().preprocess

    def reading_alone() -> None:
        for start in range(0, count, BATCH):
            torch.stack([prepare(pixels).tensor for _, pixels in reader.read_many(records[start : start + BATCH])])

    steady: dict[str, list[float]] = {}
    undisturbed: dict[str, list[float]] = {}

    def add(name: str, times: list[Moment]) -> None:
        images = (len(times) - 2) * BATCH
        wall = times[-1].wall_s - times[1].wall_s
        waited = times[-1].waited_s - times[1].waited_s
        steady.setdefault(name, []).append(images / wall)
        undisturbed.setdefault(name, []).append(images / (wall - waited))

    def exported(name: str, **changes: Any) -> None:
        times: list[Moment] = []
        export(job(name, **changes), progress=lambda *_: times.append(Moment.now()))
        add(name, times)

    def model_alone() -> None:
        times: list[Moment] = []
        with torch.no_grad():
            for _ in range(count // BATCH):
                model(batch)
                times.append(Moment.now())
        add("model", times)

    def loaded() -> None:
        times: list[Moment] = []
        with_data_loader(folder, work / "out" / "loader.json", network, times)
        add("loader", times)

    ways: dict[str, Callable[[], Any]] = {
        "model alone": model_alone,
        "reading alone": reading_alone,
        "export": lambda: exported("overlap"),
        "export without overlap": lambda: exported("serial", read_ahead=0),
        "DataLoader, 2 workers": loaded,
        "export with draft decoding": lambda: exported("draft", draft_side=224),
        "export, 2 threads decode": lambda: exported("overlap, 2 threads", decode_threads=2),
    }
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start, cpu = time.perf_counter(), sum(os.times()[:4])
            run()
            walls[name].append(time.perf_counter() - start)
            # With that of workers, which have ended by then.
            cpus[name].append(sum(os.times()[:4]) - cpu)
        print({name: round(count / found[-1], 1) for name, found in walls.items()}, flush=True)
    used = count // BATCH * BATCH
    rate = {name: round(statistics.median(used / taken for taken in found), 2) for name, found in walls.items()}

    def median_ratio(over: list[float], under: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 3)

    contents = {name: (work / "out" / f"{name}.json").read_bytes() for name in ("overlap", "serial", "draft")}
    whole, draft = (json.loads(contents[name]) for name in ("overlap", "draft"))
    pairs = [(a["classification"], b["classification"]) for a, b in zip(whole, draft, strict=True)]
    return {
        "images": count,
        "batch": BATCH,
        "images_per_s": rate,
        "rounds": rounds,
        "steady_images_per_s": {name: round(statistics.median(found), 2) for name, found in steady.items()},
        "undisturbed_images_per_s": {name: round(statistics.median(found), 2) for name, found in undisturbed.items()},
        "cpu_ms_per_image": {name: round(1e3 * statistics.median(found) / used, 2) for name, found in cpus.items()},
        "export_share_of_model": median_ratio(walls["model alone"], walls["export"]),
        "steady_share_of_model": median_ratio(steady["overlap"], steady["model"]),
        "undisturbed_share_of_model": median_ratio(undisturbed["overlap"], undisturbed["model"]),
        "export_times_data_loader": median_ratio(walls["DataLoader, 2 workers"], walls["export"]),
        "steady_times_data_loader": median_ratio(steady["overlap"], steady["loader"]),
        "steady_times_data_loader_2_threads": median_ratio(steady["overlap, 2 threads"], steady["loader"]),
        "undisturbed_times_data_loader": median_ratio(undisturbed["overlap"], undisturbed["loader"]),
        "identical_without_overlap": contents["overlap"] == contents["serial"],
        "draft": {
            "same_class": sum(a["class_id"] == b["class_id"] for a, b in pairs) / len(pairs),
            "mean_difference_of_scores": sum(abs(a["score"] - b["score"]) for a, b in pairs) / len(pairs),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the generated images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=["memory", "speed"])
    parser.add_argument("--count", type=int, default=192, help="JPEG files of the comparison of speeds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    results |= {"torch": torch.__version__, "processor": platform.machine(), "processors": os.cpu_count()}

    def write() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")

    if given.only != "memory":
        for network in ("resnet", "elsewhere"):
            found = speed(given.work, given.count, given.rounds, network)
            results[f"speed, {network}"] = {"threads": given.threads, **found}
            write()
    if given.only != "speed":
        results["memory"] = memory(given.work, [], SIZES)
        write()
        adapting = ["--ttt", "--ttt-method", "bn", "--ttt-reset", "online", "--ttt-batch-size", "64"]
        results["memory, adapting online"] = memory(given.work, adapting, (SIZES[0], SIZES[-1]))
        write()


if __name__ == "__main__":
    main()

"""Cost and correctness on a GPU: sections that are written as they end, so that an interrupted run is worth something.

    python benchmarks/gpu/run.py --out benchmarks/gpu/results/CARD.json
    python benchmarks/gpu/run.py --small --device cpu --out /tmp/small.json

A section that fails is recorded and the next one runs. After an error that leaves the GPU unusable the program ends
with status 75; started again with the same ``--out``, it goes on with the sections that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch

AGAIN = 75


def sections(device: torch.device, results: dict[str, Any], *, small: bool) -> dict[str, Callable[[], Any]]:
    """Return the sections by name, those that matter most first."""
    import correctness
    import limits

    import language
    import vision

    def known() -> dict[str, Any]:
        return results["sections"].get("limits", {}).get("result") or {}

    def costs(which: str, batch: int, formats: list[str]) -> Callable[[], Any]:
        return lambda: vision.measured(device, known(), which=which, batch=batch, formats=formats, small=small)

    every = list(vision.FORMATS)
    found: dict[str, Callable[[], Any]] = {
        "limits": lambda: limits.measured(device, small=small),
        "correctness of methods": lambda: correctness.methods(device),
        "correctness of precision": lambda: correctness.precision(device),
        "correctness of adapters and answers": lambda: correctness.language(device),
        "correctness of exports": lambda: correctness.exported(device),
        "resnet, batch 64": costs("resnet", 64, every),
        "training of adapters": lambda: language.training(device, known(), small=small),
        "loops with peft": lambda: language.peft(device, small=small),
        "vit, batch 64": costs("vit", 64, every),
        "answers": lambda: language.answering(device, known(), small=small),
        "torch.compile": lambda: vision.compiled(device, small=small),
        "resnet, batch 256": costs("resnet", 256, [every[0], every[3]]),
        "vit, batch 256": costs("vit", 256, [every[0], every[2]]),
    }
    return found


def _is_lost(error: BaseException) -> bool:
    """Say whether the GPU cannot be used any more by this process."""
    accelerator = getattr(torch, "AcceleratorError", RuntimeError)
    text = str(error)
    return isinstance(error, accelerator) and "CUDA error" in text and "out of memory" not in text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small networks and few repetitions, for a processor")
    parser.add_argument("--limit-s", type=float, default=440.0, help="no section is begun after so many seconds")
    parser.add_argument("--only", nargs="*", help="sections whose names contain one of these")
    given = parser.parse_args()
    began = time.time()
    if given.device == "cuda":
        given.device = f"cuda:{torch.cuda.current_device()}"
    device = torch.device(given.device)
    import limits

    results: dict[str, Any] = {"sections": {}}
    if given.out.exists():
        results = json.loads(given.out.read_text())
    results.setdefault("began", began)
    results["device"], results["small"] = limits.described(device), given.small

    def write() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n")

    write()
    for name, measure in sections(device, results, small=given.small).items():
        if name in results["sections"] or (given.only and not any(part in name for part in given.only)):
            continue
        if time.time() - results["began"] > given.limit_s:
            print(f"{name}: not begun, the time is used up", flush=True)
            continue
        start = time.perf_counter()
        entry: dict[str, Any] = {}
        results["sections"][name] = entry
        try:
            entry["result"] = measure()
        except Exception as error:  # noqa: BLE001 - recorded
            entry["failed"] = traceback.format_exc(limit=-6)[-3000:]
            if _is_lost(error):
                entry["seconds"] = round(time.perf_counter() - start, 1)
                write()
                return AGAIN
        entry["seconds"] = round(time.perf_counter() - start, 1)
        write()
        print(f"== {name}: {entry['seconds']} s", flush=True)
        print(json.dumps(entry.get("result", entry), indent=1)[:6000], flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    results["finished"] = True
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())

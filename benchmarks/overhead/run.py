"""What a session costs beside the method: snapshots, guards, report; on a Tent step on ResNet-20 at batch 64.

    python benchmarks/overhead/run.py --out benchmarks/overhead/results/overhead.json

Weights and images are random: time does not depend on them. Passes over a probe batch are counted apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "cifar"))
from network import ResNet20

from acclimate.core import Session, default_guards
from acclimate.methods import Cotta, Tent

STEPS = 60


def measure(method: object, *, guards: bool, probe: bool) -> dict[str, float]:
    torch.manual_seed(0)
    model, batches = ResNet20().eval(), torch.rand((4, 64, 3, 32, 32))
    with Session(
        model, method, guards=default_guards() if guards else (), probe=batches[0] if probe else None
    ) as session:
        for step in range(STEPS):
            session.adapt(batches[step % 4])
        report = session.report()
    steps = report.steps[5:]
    # Medians of wall-clock times within one run: a busy machine disturbs single steps, not the ratio.
    own = median(step.seconds - step.method_seconds for step in steps)
    method_seconds = median(step.method_seconds for step in steps)
    return {
        "method_ms": round(1e3 * method_seconds, 3),
        "session_ms": round(1e3 * own, 3),
        "session_percent_of_step": round(100 * own / method_seconds, 2),
        "probe_ms_per_step": round(1e3 * report.probe_seconds / STEPS, 3),
        "source_ms_per_step": round(1e3 * report.source_seconds / STEPS, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "tent, guards off": measure(Tent(), guards=False, probe=False),
        "tent, default guards": measure(Tent(), guards=True, probe=False),
        "tent, default guards, probe batch": measure(Tent(), guards=True, probe=True),
        "cotta without views, default guards": measure(Cotta(anchor_threshold=0.0), guards=True, probe=False),
    }
    for name, values in results.items():
        print(f"{name:36s} " + "  ".join(f"{key} {value}" for key, value in values.items()))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

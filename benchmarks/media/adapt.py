"""Training the encoder's norm parameters (``--adapt norm``) against the frozen encoder, on few episodes: it takes long.

    python benchmarks/media/adapt.py --data DATA --out benchmarks/media/results/adapt.json

Both see the same episodes: the trained encoder without the gate, and what the gate makes of it. Queries are clean and
noisy.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "guards"))
sys.path.insert(0, str(Path(__file__).parent))
import pools
from damage import damaged
from paired import difference, percent
from run import PER_CLASS, Episode, episodes

from acclimate.media import load_encoder
from acclimate.media.adaptation import ADAPTATION_MARGIN, NormTraining, compared, with_trained_encoder
from acclimate.media.embeddings import Embeddings
from acclimate.media.heads.catalogue import head_named
from acclimate.media.heads.protocol import Labels
from acclimate.media.held_out import fit
from acclimate.media.selection import Candidates, Choice, choose, clearly_best, scores
from acclimate.media.views.recipes import views_named

CONDITIONS: Final = ("clean", "noise")
POOLS: Final = ("cifar10",)


def wrong(choice: Choice, episode: Episode, labels: Labels, embeddings: Embeddings) -> dict[str, np.ndarray[Any, Any]]:
    """Return for each condition 1 for each query that is not recognised, else 0."""
    classes = list(dict.fromkeys(example.output for example in episode.examples))
    head = fit(head_named(choice.head, size=choice.unchanged.shape[1]), choice.vectors, labels, len(classes))
    truth = np.array([classes.index(query.output) for query in episode.queries])
    found = {}
    for condition in CONDITIONS:
        items = [q.item if condition == "clean" else damaged(q.item, condition) for q in episode.queries]
        vectors = choice.span.rotated(embeddings.of(choice.encoder, items))
        found[condition] = (head.log_probabilities(vectors).argmax(1) != truth).astype(float)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=6)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine(), "pools": {}}
    encoder = load_encoder("efficientnet_lite0", "image")
    candidates = Candidates((encoder,), (views_named("image", "damaged"),), ("logistic",))
    training = NormTraining()
    for name in POOLS:
        pool = pools.limited(pools.REPORT[name](given.data), PER_CLASS)
        ways: dict[str, list[dict[str, np.ndarray[Any, Any]]]] = {"frozen": [], "trained": [], "gate": []}
        kept, seconds = [], []
        for episode in episodes(pool, given.episodes, seed=1):
            embeddings = Embeddings()
            items = [example.item for example in episode.examples]
            classes = list(dict.fromkeys(example.output for example in episode.examples))
            labels = np.array([classes.index(example.output) for example in episode.examples])
            choice = choose(items, labels, candidates, embeddings)
            began = time.process_time()
            before, after = compared(choice, items, labels, embeddings, training)
            trained = with_trained_encoder(choice, items, labels, embeddings, training)
            seconds.append(time.process_time() - began)
            kept.append(clearly_best([before, after], scores, ADAPTATION_MARGIN) is after)
            ways["frozen"].append(wrong(choice, episode, labels, embeddings))
            ways["trained"].append(wrong(trained, episode, labels, embeddings))
            ways["gate"].append(ways["trained" if kept[-1] else "frozen"][-1])
            print(
                name,
                before.accuracy,
                after.accuracy,
                kept[-1],
                *(round(1 - w[-1]["clean"].mean(), 2) for w in ways.values()),
                flush=True,
            )
            of = {way: {c: [one[c] for one in found] for c in CONDITIONS} for way, found in ways.items()}
            lost = [a["clean"].mean() > b["clean"].mean() for a, b in zip(ways["gate"], ways["frozen"], strict=True)]
            results["pools"][name] = {
                "episodes": len(kept),
                "kept": sum(kept),
                "cpu_s": round(float(np.median(seconds)), 1),
                "accuracy": {way: {c: round(100 - percent(v[c]), 2) for c in CONDITIONS} for way, v in of.items()},
                "trained_minus_frozen": {c: difference(of["frozen"][c], of["trained"][c]) for c in CONDITIONS},
                "clean_episodes_where_the_gate_loses": round(100 * float(np.mean(lost)), 1),
            }
            given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

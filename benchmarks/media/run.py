"""Few labelled images or sounds, and queries: accuracy, calibration, refusal and cost, over episodes.

    python benchmarks/media/run.py --data DATA --half tune --out tune.json      # to choose settings
    python benchmarks/media/run.py --data DATA --half report --out report.json  # to write results down

An episode is five classes with five examples each (street parts and voices: the same classes every time), and up to
five queries of each class, clean and under three kinds of damage; then up to 25 queries of other classes, and 25 of
another pool. Intervals are over episodes, from 2,000 resamples. Every way to answer sees the same episodes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "guards"))
sys.path.insert(0, str(Path(__file__).parent))
import pools
from damage import DAMAGES, damaged
from kept import KeptEncoder
from paired import difference, percent

from acclimate.media import DEFAULTS, Encoder, Item, MediaEngine, MediaExample, load_encoder
from acclimate.media.embeddings import Embeddings
from acclimate.media.heads.catalogue import head_named
from acclimate.media.held_out import fit
from acclimate.media.span import Span
from acclimate.media.views.recipes import Views, views_named

SHOTS: Final = 5
QUERIES: Final = 5
OTHERS: Final = 25
PER_CLASS: Final = 24
LEVELS: Final = (0.05, 0.1)
#: Ways without a choice, on every encoder: head and views. The first is what a plain prototype classifier does.
FIXED: Final = {
    "class_means": ("class_means", "none"),
    "lda": ("lda", "none"),
    "logistic": ("logistic", "none"),
    "logistic, 4 views": ("logistic", "crops or shifts"),
    "logistic, damaged views": ("logistic", "damaged"),
}
UNDAMAGED: Final = {"image": "crops", "audio": "shifts"}
CHOSEN: Final = "chosen"


@dataclass(frozen=True)
class Episode:
    """Examples, queries with their labels, and queries of other classes."""

    examples: list[MediaExample]
    queries: list[MediaExample]
    others: list[Item]


def episodes(pool: pools.Pool, count: int, *, seed: int) -> Iterator[Episode]:
    """Yield ``count`` episodes; where the pool has groups, queries are of other groups than the examples."""
    labels = np.array(pool.labels)
    groups = np.arange(len(labels)).astype(str) if pool.groups is None else np.array(pool.groups)
    classes = sorted(set(pool.labels))
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        ways = rng.choice(classes, min(pool.ways, len(classes)), replace=False)
        known = set(rng.permutation(np.unique(groups))[: round(0.6 * len(np.unique(groups)))])
        examples, queries = [], []
        for label in ways:
            order = rng.permutation(np.flatnonzero(labels == label))
            if pool.groups is None:
                examples.append(order[:SHOTS])
                queries.append(order[SHOTS : SHOTS + QUERIES])
            else:
                examples.append([i for i in order if groups[i] in known][:SHOTS])
                queries.append([i for i in order if groups[i] not in known][:QUERIES])
        if min(map(len, examples)) < SHOTS or min(map(len, queries)) < 2:
            continue
        made += 1
        others = rng.permutation(np.flatnonzero(~np.isin(labels, ways)))[:OTHERS]
        yield Episode(
            [MediaExample(pool.items[i], pool.labels[i]) for part in examples for i in part],
            [MediaExample(pool.items[i], pool.labels[i]) for part in queries for i in part],
            [pool.items[i] for i in others],
        )


def conditions(episode: Episode) -> dict[str, list[Item]]:
    """Return the queries of an episode, clean and under each kind of damage."""
    items = [query.item for query in episode.queries]
    return {"clean": items} | {name: [damaged(item, name) for item in items] for name in DAMAGES[items[0].kind]}


class Measured:
    """What one way to answer did, episode by episode."""

    def __init__(self) -> None:
        self.wrong: dict[str, list[np.ndarray[Any, Any]]] = {}
        self.probability: dict[str, list[float]] = {}
        self.typicality: dict[str, list[float]] = {}
        self.combinations: list[str] = []
        self.other_cpu_s: list[float] = []
        self.held_out: list[float] = []

    def ask(self, engine: MediaEngine, episode: Episode, others: Mapping[str, Sequence[Item]]) -> None:
        """Answer the queries of an episode as a user's request is answered."""
        classifier = engine.fit(episode.examples)
        chosen = classifier.choice.chosen
        self.combinations.append(f"{chosen.encoder}, {chosen.head}, {chosen.views}")
        self.held_out.append(chosen.accuracy or 0.0)
        for condition, queries in conditions(episode).items():
            reports = [classifier.ask(item) for item in queries]
            wrong = [float(r.label != q.output) for r, q in zip(reports, episode.queries, strict=True)]
            self.wrong.setdefault(condition, []).append(np.array(wrong))
            self.probability.setdefault(condition, []).extend(r.probability for r in reports)
            self.typicality.setdefault(condition, []).extend(r.typicality or 0.0 for r in reports)
        self.other_cpu_s.append(reports[-1].other_cpu_seconds)
        for name, items in others.items():
            found = [classifier.ask(item).typicality or 0.0 for item in items]
            self.typicality.setdefault(name, []).extend(found)

    def ask_fixed(self, encoder: Encoder, head: str, views: Views, episode: Episode, embeddings: Embeddings) -> None:
        """Answer with one encoder, head and recipe of views, without holding anything out."""
        names = list(dict.fromkeys(example.output for example in episode.examples))
        labels = np.array([names.index(example.output) for example in episode.examples])
        truth = np.array([names.index(query.output) for query in episode.queries])
        vectors = embeddings.of(encoder, [example.item for example in episode.examples], views)
        span = Span.of(vectors)
        fitted = fit(head_named(head, size=vectors.shape[2]), span.rotated(vectors), labels, len(names))
        for condition, queries in conditions(episode).items():
            found = fitted.log_probabilities(span.rotated(embeddings.of(encoder, queries))).argmax(1)
            self.wrong.setdefault(condition, []).append((found != truth).astype(float))

    def row(self, reference: Measured | None) -> dict[str, Any]:
        found: dict[str, Any] = {
            "accuracy": {name: round(100 - percent(wrong), 2) for name, wrong in self.wrong.items()}
        }
        if self.combinations:
            found |= self.evidence()
        if reference is not None:
            # Errors: theirs minus ours is what ours gains.
            found["gain_of_chosen"] = {
                name: difference(wrong, reference.wrong[name]) for name, wrong in self.wrong.items()
            }
            ours = np.array([wrong.mean() for wrong in reference.wrong["clean"]])
            theirs = np.array([wrong.mean() for wrong in self.wrong["clean"]])
            found["clean_episodes_where_chosen_is_worse"] = round(100 * float((ours > theirs + 1e-9).mean()), 1)
        return found

    def evidence(self) -> dict[str, Any]:
        """Return what only a request has: held-out accuracy, calibration, refusal, cost, and what was chosen."""
        names, counts = np.unique(self.combinations, return_counts=True)
        return {
            "held_out_accuracy": round(100 * float(np.mean(self.held_out)), 2),
            "calibration_error": {name: self.calibration_error(name) for name in self.wrong},
            "refused": {
                name: {f"{level:g}": round(100 * float((np.array(values) < level).mean()), 2) for level in LEVELS}
                for name, values in self.typicality.items()
                if values
            },
            "cpu_s_beyond_encoding": {
                "median": round(float(np.median(self.other_cpu_s)), 3),
                "largest": round(max(self.other_cpu_s), 3),
            },
            "combinations": {str(n): int(c) for c, n in sorted(zip(counts, names, strict=True), reverse=True)},
        }

    def calibration_error(self, condition: str, bins: int = 10) -> float:
        p = np.array(self.probability[condition])
        right = 1 - np.concatenate(self.wrong[condition])
        place = np.minimum((p * bins).astype(int), bins - 1)
        parts = [(place == k) for k in np.unique(place)]
        return round(100 * float(sum(abs(p[k].mean() - right[k].mean()) * k.mean() for k in parts)), 2)


def measure(pool: pools.Pool, strangers: Sequence[Item], count: int, *, seed: int) -> dict[str, Any]:
    """Return what every way to answer does with the same episodes of a pool."""
    kind = pool.items[0].kind
    encoders = [KeptEncoder(load_encoder(info.name, kind)) for info in DEFAULTS[kind]]
    embeddings = Embeddings(max_vectors=1_000_000)
    engine = MediaEngine(encoders=encoders, embeddings=embeddings)
    found: dict[str, Measured] = {CHOSEN: Measured()}
    for number, episode in enumerate(episodes(pool, count, seed=seed), 1):
        found[CHOSEN].ask(engine, episode, {"other classes": episode.others, "another pool": strangers})
        for encoder in encoders:
            for name, (head, recipe) in FIXED.items():
                views = views_named(kind, UNDAMAGED[kind] if recipe == "crops or shifts" else recipe)
                way = found.setdefault(f"{encoder.info.name}, {name}", Measured())
                way.ask_fixed(encoder, head, views, episode, embeddings)
        if number in (1, 25, count):
            for encoder in encoders:
                encoder.save()
        if number % 20 == 0:
            print(f"  {number} episodes", flush=True)
    rows = {name: one.row(None if name == CHOSEN else found[CHOSEN]) for name, one in found.items()}
    return {
        "title": pool.title,
        "kind": kind,
        "items": len(pool.items),
        "classes": len(set(pool.labels)),
        "seen_by_the_encoder": pool.seen,
        "episodes": count,
        "cpu_ms_of_encoding": {e.info.name: round(1000 * e.cpu_s / max(1, e.count), 2) for e in encoders},
        "ways": rows,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, camvid/, ...")
    parser.add_argument("--half", choices=("tune", "report"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="write the results as JSON; what is in it is kept")
    parser.add_argument("--pools", nargs="+", help="measure these only")
    parser.add_argument("--episodes", type=int, default=100)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    makers = pools.TUNE if given.half == "tune" else pools.REPORT
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {"pools": {}}
    results |= {"torch": torch.__version__, "machine": platform.machine()}
    made = {name: pools.limited(make(given.data), PER_CLASS) for name, make in makers.items()}
    for name in given.pools or makers:
        # Strangers: queries from the next pool of the same kind.
        of_kind = [other for other in made if made[other].items[0].kind == made[name].items[0].kind]
        other = made[of_kind[(of_kind.index(name) + 1) % len(of_kind)]]
        print(name, flush=True)
        results["pools"][name] = measure(made[name], other.items[:OTHERS], given.episodes, seed=len(name))
        given.out.write_text(json.dumps(results, indent=1) + "\n")
        for way, row in results["pools"][name]["ways"].items():
            print(f"  {way:44s}", *(f"{value:6.2f}" for value in row["accuracy"].values()), flush=True)


if __name__ == "__main__":
    main()

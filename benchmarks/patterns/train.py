"""Fit the scorer of readings and the classifier of kinds on the tuning prompts, and write both.

    python benchmarks/patterns/train.py

Prints precision, recall, exact parses and wrongly acted-on prompts from cross-validation in which no layout is both
fitted and predicted; the test half of the corpus and ``unseen_layouts.jsonl`` are not read. ``--also`` takes further
files of labelled prompts, which count more: they are closest to what people type.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from generate import generated
from prompts import Labelled, load, same
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from acclimate.language.patterns import KINDS
from acclimate.language.patterns.candidates import candidates
from acclimate.language.patterns.classifier import Classifier
from acclimate.language.patterns.detection import LEAST_ODDS_RATIO
from acclimate.language.patterns.kinds import kind_features
from acclimate.language.patterns.scoring import Trees, features
from acclimate.language.patterns.text import Reading

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "src/acclimate/language/patterns"
SETTINGS: dict[str, Any] = {
    "max_iter": 220, "learning_rate": 0.07, "max_leaf_nodes": 12, "min_samples_leaf": 15, "l2_regularization": 3.0,
    "max_bins": 128, "early_stopping": False, "random_state": 0,
}  # fmt: skip
WEIGHTS = {"also": 6.0, "generated": 2.0, "corpus": 1.0}
LEAST_WEIGHT = 0.02
WORD_WEIGHT = 0.4
NONE_WEIGHT = 2.0


@dataclass
class Prompt:
    """A labelled prompt, its readings, and which of them are exactly right."""

    row: Labelled
    source: str
    found: list[Reading]
    right: list[bool]
    at: slice = field(default_factory=lambda: slice(0, 0))

    @classmethod
    def read(cls, row: Labelled, source: str) -> Prompt:
        """Read a prompt with all parsers."""
        found = candidates(row.prompt)
        right = [row.few_shot and same(row, reading) for reading in found]
        return cls(row, source, found, right)


def outcomes(prompts: Sequence[Prompt], odds: npt.NDArray[np.float64], threshold: float) -> dict[str, float]:
    """Return precision, recall, exact parses and wrongly acted-on share at a threshold of the log-odds."""
    hits = seen = exact = wrong = 0
    positives = sum(p.row.few_shot for p in prompts)
    for p in prompts:
        scores = odds[p.at]
        if not len(scores):
            continue
        best = int(scores.argmax())
        others = [s for i, s in enumerate(scores) if i != best and p.found[i].query is not None]
        if scores[best] <= threshold or (others and scores[best] - max(others) < np.log(LEAST_ODDS_RATIO)):
            continue
        seen += 1
        hits += p.row.few_shot
        exact += p.right[best]
        acts = p.found[best].query is not None and len(p.found[best].pairs) >= 2
        wrong += acts and not p.right[best]
    return {
        "precision": hits / max(1, seen),
        "recall": hits / positives,
        "exact": exact / positives,
        "wrong": wrong / len(prompts),
    }


def assumed_kind(prompt: Prompt) -> str:
    """Return the kind of a prompt whose kind is not labelled, by the layout of the right reading."""
    reading = next((r for r, right in zip(prompt.found, prompt.right, strict=True) if right), None)
    if reading is None or reading.labels != ("", "") or reading.form in {"json", "tuples", "delimited", "table"}:
        return "io_pairs"
    return "numbered_sequences" if dict(reading.facts).get("numbered") else "explicit_examples"


def as_trees(model: HistGradientBoostingClassifier, names: Sequence[str], shift: float) -> Trees:
    """Return the trees of a fitted model as arrays."""
    grown = [stage[0].nodes for stage in model._predictors]
    size = max(len(nodes) for nodes in grown)
    shape = len(grown), size
    split = np.full(shape, -1, np.int16)
    limit, value = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    left, right = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    for tree, nodes in enumerate(grown):
        for at, node in enumerate(nodes):
            if node["is_leaf"]:
                value[tree, at] = node["value"]
            else:
                split[tree, at], limit[tree, at] = node["feature_idx"], node["num_threshold"]
                left[tree, at], right[tree, at] = node["left"], node["right"]
    return Trees(tuple(names), float(model._baseline_prediction[0, 0]) + shift, split, limit, left, right, value)


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT / "tests/data/patterns.jsonl")
    parser.add_argument("--more", type=Path, default=Path(__file__).parent / "more_prompts.jsonl")
    parser.add_argument("--typed", type=Path, default=Path(__file__).parent / "typed_prompts.jsonl")
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--layouts", type=int, default=400, help="number of generated layouts")
    parser.add_argument("--shift", type=float, default=0.0, help="added to the log-odds: above 0, more is accepted")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument(
        "--errors", action="store_true", help="show the prompts of --also that cross-validation gets wrong"
    )
    parser.add_argument("--no-fit", action="store_true", help="only cross-validate")
    given = parser.parse_args()
    corpus = [row for path in (given.corpus, given.more) for row in load(path) if row.split == "tuning"]
    raw = [
        r
        for path in (given.corpus, given.more)
        for r in map(json.loads, path.open(encoding="utf-8"))
        if r["split"] == "tuning"
    ]
    made = [Labelled.from_row(row) for row in generated(raw, given.layouts)]
    also = [row for path in (given.typed, *given.also) for row in load(path)]
    # A complete list of examples is labelled as a pattern, and is none to act on.
    corpus = [row for row in corpus if not row.few_shot or row.query is not None]
    prompts = [
        Prompt.read(row, source)
        for source, rows in (("corpus", corpus), ("generated", made), ("also", also))
        for row in rows
    ]
    rows, right, groups, weights = [], [], [], []
    layouts: dict[str, int] = {}
    for p in prompts:
        start = len(rows)
        rows += features(p.row.prompt, p.found)
        right += p.right
        p.at = slice(start, len(rows))
        count = len(rows) - start
        groups += [layouts.setdefault(f"{p.source}:{p.row.layout}", len(layouts))] * count
        weights += [WEIGHTS[p.source] * (1.0 if p.row.few_shot else NONE_WEIGHT)] * count
    names = sorted({name for row in rows for name in row})
    column = {name: index for index, name in enumerate(names)}
    matrix = np.zeros((len(rows), len(names)), np.float32)
    for index, row in enumerate(rows):
        for name, value in row.items():
            matrix[index, column[name]] = value
    truth, group, weight = np.array(right), np.array(groups), np.array(weights)
    for p in prompts:
        if p.row.few_shot and p.row.kind is None:
            p.row = replace(p.row, kind=assumed_kind(p))
    print(f"{len(prompts)} prompts, {matrix.shape[0]} readings, {matrix.shape[1]} features", flush=True)
    odds = np.zeros(len(rows))
    for fit, predict in GroupKFold(6).split(matrix, truth, group):
        model = HistGradientBoostingClassifier(**SETTINGS).fit(matrix[fit], truth[fit], sample_weight=weight[fit])
        odds[predict] = model.decision_function(matrix[predict])
    for source in ("corpus", "generated", "also"):
        chosen = [p for p in prompts if p.source == source]
        for shift in (0.0, 0.3, 0.6, 0.9) if chosen else ():
            result = outcomes(chosen, odds, -shift)
            print(source, f"shift {shift}", *(f"{name} {value:.3f}" for name, value in result.items()), flush=True)
    if given.errors:
        for p in prompts:
            scores = odds[p.at]
            best = int(scores.argmax()) if len(scores) else -1
            said = best >= 0 and scores[best] > -given.shift
            if p.source == "also" and (said != p.row.few_shot or (said and not p.right[best])):
                print(
                    p.row.layout,
                    "said" if said else "silent",
                    round(float(scores.max()), 2) if len(scores) else None,
                    any(p.right),
                )
    if given.no_fit:
        return
    model = HistGradientBoostingClassifier(**SETTINGS).fit(matrix, truth, sample_weight=weight)
    trees = as_trees(model, names, given.shift)
    assert np.allclose(trees.log_odds(rows[:200]), model.decision_function(matrix[:200]) + given.shift, atol=1e-3)
    trees.save(given.out / "readings.npz")
    _fit_kinds(prompts, odds, given.shift, given.out / "kinds.npz", show=given.errors)


def _fit_kinds(prompts: list[Prompt], odds: npt.NDArray[np.float64], shift: float, path: Path, *, show: bool) -> None:
    """Fit the classifier of kinds, "none" among them, on the best readings and the odds of the cross-validation."""
    seen, labels, groups = [], [], []
    for p in prompts:
        scores = odds[p.at]
        best = int(scores.argmax()) if len(scores) else -1
        seen.append(
            kind_features(p.row.prompt, p.found[best] if best >= 0 else None, float(scores[best]) if best >= 0 else 0.0)
        )
        labels.append(p.row.kind or "none")
        groups.append(p.row.layout)
    where: dict[str, set[str]] = defaultdict(set)
    for p, found in zip(prompts, seen, strict=True):
        for name in found:
            where[name].add(p.row.layout)
    common = {name for name, layouts in where.items() if len(layouts) >= 4}
    lexical = ("word:", "words:", "outside:")
    scaled = [
        {n: v * (WORD_WEIGHT if n.startswith(lexical) else 1) for n, v in found.items() if n in common}
        for found in seen
    ]
    vectorizer = DictVectorizer()
    matrix = vectorizer.fit_transform(scaled)
    truth = np.array(labels)
    classes = sorted(set(labels))
    # More positives were written than negatives; what people ask is mostly no pattern.
    weight = np.where(truth == "none", NONE_WEIGHT, 1.0) * np.array([WEIGHTS[p.source] for p in prompts])
    guessed = np.zeros((len(truth), len(classes)))
    for fit, predict in GroupKFold(6).split(matrix, truth, groups):
        model = LogisticRegression(C=1.0, max_iter=2000).fit(matrix[fit], truth[fit], sample_weight=weight[fit])
        guessed[predict] = model.predict_proba(matrix[predict])
    none = guessed[:, classes.index("none")]
    kinds = [k for k in classes if k != "none"]
    named = np.array(kinds)[guessed[:, [classes.index(k) for k in kinds]].argmax(axis=1)]
    positive = truth != "none"
    print("kinds", round(float(np.mean(named[positive] == truth[positive])), 3))
    for kind in KINDS:
        hit = ((named == kind) & (truth == kind)).sum()
        precision, recall = hit / ((named == kind) & positive).sum(), hit / (truth == kind).sum()
        print(f"{kind:22s} precision {precision:.3f}  recall {recall:.3f}")
    best = np.array([odds[p.at].max() if p.found else -9.0 for p in prompts])
    few = np.array([p.row.few_shot for p in prompts])
    for source in ("corpus", "generated", "also"):
        of = np.array([p.source == source for p in prompts])
        for least in (0.5, 0.6, 0.7, 0.8, 0.9):
            said = of & ((best > -shift) | (1 - none > least))
            precision, recall = (said & few).sum() / said.sum(), (said & few).sum() / (of & few).sum()
            print(source, f"pattern above {least}: precision {precision:.3f} recall {recall:.3f}")
    if show:
        for p, b, n in zip(prompts, best, none, strict=True):
            if p.source == "also" and not p.row.few_shot and (b > -shift or n < 0.4):
                print("false alarm", p.row.layout, round(float(b), 2), round(float(n), 2))
    model = LogisticRegression(C=1.0, max_iter=2000).fit(matrix, truth, sample_weight=weight)
    names = vectorizer.get_feature_names_out()
    scale = np.array([WORD_WEIGHT if name.startswith(lexical) else 1.0 for name in names])
    weights = np.where(abs(model.coef_) > LEAST_WEIGHT, (model.coef_ * scale).round(3), 0.0)
    used = weights.any(axis=0)
    Classifier(
        tuple(model.classes_.tolist()), tuple(names[used].tolist()), weights[:, used], model.intercept_.round(4)
    ).save(path)


if __name__ == "__main__":
    main()

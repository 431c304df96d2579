"""Fit the prompt classifier on the tuning half of the corpus, and write its weights.

    python benchmarks/patterns/train.py

Prints precision and recall from ten-fold cross-validation grouped by layout; the test half is not read.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from acclimate.language import patterns
from acclimate.language.patterns.classifier import Classifier
from acclimate.language.patterns.features import features

ROOT = Path(__file__).parents[2]
LEAST_LAYOUTS = 4
LEAST_WEIGHT = 0.02
LEXICAL = ("word:", "words:", "shape:")


def main() -> None:
    """Fit and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT / "tests/data/patterns.jsonl")
    parser.add_argument("--more", type=Path, default=Path(__file__).parent / "more_prompts.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "src/acclimate/language/patterns/weights.npz")
    parser.add_argument("--strength", type=float, default=3.0, help="C of the logistic regression")
    parser.add_argument("--word-weight", type=float, default=0.4)
    parser.add_argument("--errors", action="store_true", help="show the prompts that cross-validation gets wrong")
    given = parser.parse_args()
    lines = [
        *given.corpus.read_text(encoding="utf-8").splitlines(),
        *given.more.read_text(encoding="utf-8").splitlines(),
    ]
    rows = [row for line in lines if (row := json.loads(line))["split"] == "tuning"]
    seen = [features(row["prompt"], patterns.readings(row["prompt"])) for row in rows]
    layouts: dict[str, set[str]] = defaultdict(set)
    for row, found in zip(rows, seen, strict=True):
        for name in found:
            layouts[name].add(row["layout"])
    common = {name for name, where in layouts.items() if len(where) >= LEAST_LAYOUTS}
    scaled = [
        {n: v * (given.word_weight if n.startswith(LEXICAL) else 1) for n, v in found.items() if n in common}
        for found in seen
    ]
    vectorizer = DictVectorizer()
    matrix = vectorizer.fit_transform(scaled)
    labels = np.array([row["kind"] or "none" for row in rows])
    # More positives were written than negatives; what people ask is mostly no pattern.
    model = LogisticRegression(C=given.strength, max_iter=3000, class_weight={"none": 2.0})
    guessed = cross_val_predict(model, matrix, labels, groups=[row["layout"] for row in rows], cv=GroupKFold(10))
    for kind in patterns.KINDS:
        right = int(((guessed == kind) & (labels == kind)).sum())
        print(
            f"{kind:22s} precision {right / (guessed == kind).sum():.3f}  recall {right / (labels == kind).sum():.3f}"
        )
    print(
        f"pattern or not: {np.mean((guessed == 'none') == (labels == 'none')):.3f}   "
        f"kind: {np.mean(guessed == labels):.3f}"
    )
    if given.errors:
        for row, label, guess in zip(rows, labels, guessed, strict=True):
            if label != guess:
                print(f"--- {label} taken for {guess} [{row['layout']}]\n{row['prompt'][:300]}")
        print(Counter(zip(labels.tolist(), guessed.tolist(), strict=True)))
    model.fit(matrix, labels)
    names = vectorizer.get_feature_names_out()
    scale = np.array([given.word_weight if name.startswith(LEXICAL) else 1.0 for name in names])
    weights = np.where(abs(model.coef_) > LEAST_WEIGHT, (model.coef_ * scale).round(3), 0.0)
    used = weights.any(axis=0)
    classifier = Classifier(
        classes=tuple(model.classes_.tolist()),
        features=tuple(names[used].tolist()),
        weights=weights[:, used],
        bias=model.intercept_.round(4),
    )
    classifier.save(given.out)
    print(f"{len(classifier.features)} features -> {given.out}")


if __name__ == "__main__":
    main()

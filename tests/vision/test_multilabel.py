from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from acclimate.cli.main import main
from acclimate.errors import ConfigError, DataError, TTTNotSupportedError
from acclimate.registry import METHODS
from acclimate.vision.data.records import load_dataset
from acclimate.vision.evaluation.evaluate import difference, make_scorer
from acclimate.vision.evaluation.multilabel import MultilabelScorer, load_label_sets
from acclimate.vision.models.torch_adapter import TorchAdapter
from acclimate.vision.run.config import TTTConfig, methods_for, preset_values, safe_method
from acclimate.vision.run.settings import settings_for
from acclimate.vision.run.ttt import TTTRun
from tests.networks import assert_identical, tensors_of, write_images


def entry(image: str, scores: dict[int, float]) -> dict[str, Any]:
    best = max(scores, key=lambda label: scores[label])
    listed = [[label, score] for label, score in scores.items()]
    return {"image": image, "classification": {"class_id": best, "score": scores[best], "scores": listed}}


def test_methods_that_need_one_class_are_left_out_and_presets_are_a_classifiers() -> None:
    assert set(methods_for("classifier")) - set(methods_for("multilabel")) == {
        "memo", "lame", "rotta", "deyo", "neo", "foa_shift",
    }  # fmt: skip
    assert set(methods_for("detector")) == set(methods_for("multilabel"))
    assert preset_values("safe", "multilabel") == preset_values("safe", "classifier")
    assert safe_method("multilabel", knows_source=False, has_batch_norm=True) == "tent"
    assert METHODS.info("blend").trials("multilabel") == METHODS.info("blend").trials("classifier")
    with pytest.raises(TTTNotSupportedError, match="memo is for classifiers, and this model is a model with several"):
        TTTConfig.resolve({"method": "memo"}, kind="multilabel")
    for given in ({"collapse_share": 0.9}, {"guard_values": {"collapse": True}}):
        with pytest.raises(ConfigError, match="several labels or none; leave it out"):
            TTTConfig.resolve(given, kind="multilabel")


@pytest.mark.parametrize("method", [*methods_for("multilabel"), "auto"])
def test_every_method_adapts_to_images_with_several_labels(tmp_path: Path, method: str) -> None:
    write_images(tmp_path / "images", 6, side=16)
    records = load_dataset(tmp_path / "images").records
    adapter = TorchAdapter("tests.vision.factories:multilabel")
    before = tensors_of(adapter.get_model())
    source = records if method == "auto" or METHODS.info(method).uses_source_images else ()
    config, choice = settings_for(adapter, {"method": method}, None, records, source_records=source, goes_on=False)
    if choice is not None:
        assert choice.reasons[0].startswith("the model is a classifier of several labels with 1 BatchNorm")
        assert not any("most accurate" in reason for reason in choice.reasons)
        return
    assert config is not None
    with TTTRun(adapter, config, source_records=source) as run:
        entries = [one for batch in run.predictions(records) for one in batch]
        report = run.report()
    assert all(len(one["classification"]["scores"]) == 5 for one in entries)
    assert report.session.counts.get("rolled_back", 0) < len(report.session.steps)
    assert_identical(adapter.get_model(), before)


def test_mean_average_precision_is_the_standard_one(tmp_path: Path) -> None:
    truth = tmp_path / "labels.json"
    truth.write_text(json.dumps({"a.png": [0, 1], "b.png": [0], "c.png": [], "d.png": [1]}))
    entries = [
        entry("x/a.png", {0: 0.9, 1: 0.2, 2: 0.1}),
        entry("x/b.png", {0: 0.3, 1: 0.6, 2: 0.9}),
        entry("x/c.png", {0: 0.5, 1: 0.1, 2: 0.9}),
        entry("x/d.png", {0: 0.1, 1: 0.6, 2: 0.0}),
    ]
    scorer = make_scorer(truth, entries)
    score = scorer.score(entries)
    # Class 0: ranks 1 and 3 of a, c, b, d: (1/1 + 2/3) / 2. Class 1: d shares the first rank with b, a is third:
    # (1/2 + 2/3) / 2. No image has class 2.
    assert score.metrics["mAP"] == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert scorer.resampled(score, np.arange(4)) == pytest.approx(score.metrics["mAP"])
    assert scorer.resampled(score, np.array([0, 0, 0, 0])) == 1.0
    assert difference(scorer, score, score, resamples=5).value == 0


def test_methods_are_compared_on_images_with_several_labels(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 5, side=16)
    truth = {path.name: [number % 5, 2 * number % 5] for number, path in enumerate(paths)}
    (tmp_path / "labels.json").write_text(json.dumps(truth))
    result = CliRunner().invoke(
        main,
        ["compare", str(tmp_path / "images"), "--ground-truth", str(tmp_path / "labels.json"), "--adapter", "torch",
         "--model", "tests.vision.factories:multilabel", "--methods", "bn,tent,memo",
         "--output", str(tmp_path / "out")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]}
    assert 0 < rows["none"]["metrics"]["mAP"] < 1
    assert rows["tent"]["error"] is None
    assert "several labels" in rows["memo"]["error"]
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a.png": [0, "cat"]}))
    with pytest.raises(DataError, match="integers"):
        load_label_sets(path)
    path.write_text(json.dumps({"a.png": 1}))
    assert load_label_sets(path) is None
    with pytest.raises(DataError, match="no labels"):
        MultilabelScorer({"a.png": frozenset({0})}, ["b.png"])
    with pytest.raises(DataError, match="longer paths"):
        MultilabelScorer({"a.png": frozenset({0})}, ["x/a.png", "y/a.png"])
    scorer = MultilabelScorer({"a.png": frozenset({4})}, ["a.png"])
    with pytest.raises(DataError, match="the class 4"):
        scorer.score([entry("a.png", {0: 0.5})])
    with pytest.raises(DataError, match="kind multilabel"):
        scorer.score([{"image": "a.png", "classification": {"class_id": 4, "score": 1.0}}])


def test_mirrored_images_of_several_labels_are_merged(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3, side=16)
    found = []
    for flags in ((), ("--tta", "--tta-flip-prob", "1.0")):
        result = CliRunner().invoke(
            main,
            ["export", str(tmp_path / "images"), "--adapter", "torch", "--model", "tests.vision.factories:multilabel",
             "--output", str(tmp_path / "p.json"), *flags],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / "p.json").read_text()))
    plain, merged = ([one["classification"]["scores"] for one in entries] for entries in found)
    assert plain != merged
    assert all(len(scores) == 5 for scores in merged)

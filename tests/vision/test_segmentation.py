"""Segmenters from the adapter to the score: predictions, label images, mean IoU, comparison."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from acclimate.cli.main import main
from acclimate.errors import ConfigError, DataError, TTTNotSupportedError
from acclimate.registry import METHODS
from acclimate.vision.data.masks import NO_CLASS, class_map_of, read_label_image, segments
from acclimate.vision.data.predictions import read_coco_results, read_predictions, to_coco
from acclimate.vision.data.records import load_dataset
from acclimate.vision.evaluation.evaluate import difference, make_scorer
from acclimate.vision.evaluation.segmentation import SegmentationScorer, confusion
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.models.torch_adapter import TorchAdapter
from acclimate.vision.run.config import TTTConfig, methods_for, safe_method
from acclimate.vision.run.export import ExportJob, export
from acclimate.vision.run.settings import settings_for
from acclimate.vision.run.tta import TTAConfig
from acclimate.vision.run.ttt import TTTRun
from tests.networks import assert_identical, tensors_of, write_images

FACTORIES = "tests.vision.factories"
MODEL = ("--adapter", "torch", "--model", f"{FACTORIES}:segmenter")


def job(folder: Path, model: str = "segmenter", **changes: Any) -> ExportJob:
    values: dict[str, Any] = {
        "source": folder / "images",
        "output": folder / "out" / "predictions.json",
        "adapter": AdapterOptions(adapter="torch", model=f"{FACTORIES}:{model}"),
    }
    return ExportJob(**{**values, **changes})


def entry_of(image: str, found: np.ndarray[Any, Any]) -> dict[str, Any]:
    height, width = found.shape
    parts = segments(found.astype(np.int32), np.ones(found.shape, np.float32))
    return {"image": image, "image_id": 1, "width": width, "height": height, "segments": parts}


def write_labels(folder: Path, entries: list[dict[str, Any]], *, ignored: int = 255, seed: int = 0) -> None:
    """Write label images that agree with predictions in most pixels."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for entry in entries:
        labels = class_map_of(entry)
        other = rng.random(labels.shape) < 0.2
        labels[other] = rng.integers(0, 5, int(other.sum()))
        labels[:2] = ignored
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"{Path(entry['image']).stem}.png")


def test_what_is_chosen_for_segmenters() -> None:
    assert set(methods_for("segmenter")) == set(methods_for("multilabel"))
    with pytest.raises(
        TTTNotSupportedError, match="memo is for classifiers, and this model is a segmenter; use one of"
    ):
        TTTConfig.resolve({"method": "memo"}, kind="segmenter")
    for source in (True, False):
        for norm in (True, False):
            method = safe_method("segmenter", knows_source=source, has_batch_norm=norm)
            assert METHODS.info(method).applies_to("segmenter", batch_norm=norm, source_images=source)
    assert TTTConfig.resolve({}, kind="segmenter").batch_size == 8


@pytest.mark.parametrize("model", ["segmenter", "letterboxed_segmenter", "foreground"])
def test_predictions_have_the_size_of_the_images(tmp_path: Path, model: str) -> None:
    write_images(tmp_path / "images", 2, side=24)
    Image.new("RGB", (40, 12), (200, 10, 90)).save(tmp_path / "images" / "wide.png")
    adapter = TorchAdapter(f"{FACTORIES}:{model}")
    for entry in adapter.predict(load_dataset(tmp_path / "images").records):
        found = class_map_of(entry)
        assert found.shape == (entry["height"], entry["width"])
        assert found.min() >= 0
        assert found.max() < (2 if model == "foreground" else 5)
        assert sum(segment["area"] for segment in entry["segments"]) == found.size


def test_classes_of_a_data_set_are_matched_by_name_and_others_left_out(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2, side=16)
    adapter = TorchAdapter(f"{FACTORIES}:segmenter", categories={300: "B", 7: "d"})
    for entry in adapter.predict(load_dataset(tmp_path / "images").records):
        assert set(np.unique(class_map_of(entry)).tolist()) <= {300, 7}
    result = export(job(tmp_path, masks=tmp_path / "masks"))
    assert len(result.entries) == 2


@pytest.mark.parametrize("method", [*methods_for("segmenter"), "auto"])
def test_every_method_adapts_a_segmenter(tmp_path: Path, method: str) -> None:
    write_images(tmp_path / "images", 6, side=16)
    records = load_dataset(tmp_path / "images").records
    adapter = TorchAdapter(f"{FACTORIES}:segmenter")
    before = tensors_of(adapter.get_model())
    source = records if method == "auto" or METHODS.info(method).uses_source_images else ()
    given = {"method": method, "reset": "online", "batch_size": 3}
    config, choice = settings_for(adapter, given, None, records, source_records=source, goes_on=False)
    if choice is not None:
        assert choice.reasons[0].startswith("the model is a segmenter with 1 BatchNorm layers")
        assert {trial.refused for trial in choice.trials} == {None}
        return
    assert config is not None
    with TTTRun(adapter, config, source_records=source) as run:
        entries = [one for batch in run.predictions(records) for one in batch]
        report = run.report()
    assert [class_map_of(one).shape for one in entries] == [(16, 16)] * 6
    assert report.session.counts.get("rolled_back", 0) < len(report.session.steps)
    assert_identical(adapter.get_model(), before)


def test_the_export_writes_run_lengths_label_images_and_coco_results(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "a", 2, side=24)
    write_images(tmp_path / "images" / "b", 2, side=24, seed=3)
    export(job(tmp_path, masks=tmp_path / "masks", wrap=True))
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["meta"]["masks"] == str(tmp_path / "masks")
    entries = read_predictions(tmp_path / "out" / "predictions.json")
    assert sorted(str(path.relative_to(tmp_path / "masks")) for path in (tmp_path / "masks").rglob("*.*")) == [
        f"{folder}/image_00{number}.png" for folder in "ab" for number in range(2)
    ]
    for entry in entries:
        image = Path(entry["image"])
        labels = read_label_image(tmp_path / "masks" / image.parent.name / image.name)
        assert np.array_equal(labels, class_map_of(entry))
        for segment in entry["segments"]:
            assert np.array_equal(coco.decode(segment["segmentation"]), labels == segment["class_id"])
    export(job(tmp_path, format="coco", output=tmp_path / "coco.json"))
    results = json.loads((tmp_path / "coco.json").read_text())
    assert results == to_coco(entries)
    assert {key for result in results for key in result} == {"image_id", "category_id", "segmentation", "score"}


def test_an_interrupted_run_resumes_to_the_same_predictions_and_label_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", 7, side=24)
    given = {"method": "tent", "batch_size": 2}
    whole = job(tmp_path, ttt=given, masks=tmp_path / "whole", output=tmp_path / "whole.json")
    expected = export(whole)
    run = TTTRun.outputs

    def interrupted(self: TTTRun, *args: Any, **kwargs: Any) -> Iterator[Any]:
        batches = run(self, *args, **kwargs)
        yield next(batches)
        yield next(batches)
        raise KeyboardInterrupt

    again = dataclasses.replace(whole, masks=tmp_path / "again", output=tmp_path / "again.json")
    with monkeypatch.context() as patch:
        patch.setattr(TTTRun, "outputs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(again)
    assert not (tmp_path / "again").exists()
    resumed = export(dataclasses.replace(again, resume=True))
    assert resumed.entries == expected.entries
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_label_images_replace_no_image_and_belong_to_segmenters(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2, side=24)
    before = (tmp_path / "images" / "image_000.png").read_bytes()
    with pytest.raises(ConfigError, match=r"would replace the image .*image_000\.png; name another folder"):
        export(job(tmp_path, masks=tmp_path / "images"))
    with pytest.raises(ConfigError, match="no segmenter but a classifier; leave it out"):
        export(job(tmp_path, "classifier", masks=tmp_path / "masks"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="it is a file; name a folder"):
        export(job(tmp_path, masks=tmp_path / "file"))
    assert (tmp_path / "images" / "image_000.png").read_bytes() == before


def test_mirrored_images_are_merged_pixel_by_pixel(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3, side=16)
    adapter = TorchAdapter(f"{FACTORIES}:segmenter")
    plain = export(job(tmp_path)).entries
    augmented = export(job(tmp_path, tta=TTAConfig(enabled=True, flip_prob=1.0))).entries
    model = adapter.get_model()
    (batch,) = adapter.build_loader(load_dataset(tmp_path / "images").records, batch_size=8)
    with torch.no_grad():
        merged = (model(batch.inputs) + model(batch.inputs.flip(-1)).flip(-1)) / 2
    for ours, theirs, before in zip(augmented, adapter.entries(merged, batch), plain, strict=True):
        assert np.array_equal(class_map_of(ours), class_map_of(theirs))
        assert not np.array_equal(class_map_of(ours), class_map_of(before))


def numpy_mean_iou(truth: list[Any], found: list[Any], ignored: int) -> float:
    """Mean IoU from a confusion matrix that is filled pixel by pixel."""
    matrix = np.zeros((6, 6), dtype=np.int64)
    for labels, predicted in zip(truth, found, strict=True):
        for label, prediction in zip(labels.ravel(), predicted.ravel(), strict=True):
            if label != ignored:
                matrix[label, prediction] += 1
    present = matrix.sum(1) > 0
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float((np.diag(matrix)[present] / union[present]).mean())


@given(data=st.data())
def test_mean_iou_is_that_of_a_confusion_matrix(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    count, ignored = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([4, 255]))
    folder = tmp_path_factory.mktemp("labels")
    truth = [rng.integers(0, 5, (4, 6)) for _ in range(count)]
    found = [np.where(rng.random((4, 6)) < 0.5, labels % 5, rng.integers(0, 6, (4, 6))) for labels in truth]
    for number, labels in enumerate(truth):
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"{number}.png")
    entries = [entry_of(f"photos/{number}.jpg", values) for number, values in enumerate(found)]
    scorer = make_scorer(folder, entries, ignore_value=ignored)
    score = scorer.score(entries)
    assert score.metrics["mIoU"] == pytest.approx(numpy_mean_iou(truth, found, ignored))
    labelled = [labels != ignored for labels in truth]
    right = sum(int((a == b)[m].sum()) for a, b, m in zip(truth, found, labelled, strict=True))
    assert score.metrics["accuracy"] == pytest.approx(right / sum(int(m.sum()) for m in labelled))
    drawn = rng.integers(0, count, count)
    expected = numpy_mean_iou([truth[i] for i in drawn], [found[i] for i in drawn], ignored)
    assert scorer.resampled(score, drawn) == pytest.approx(expected)
    assert difference(scorer, score, score, resamples=3).value == 0


def test_pixels_and_images_without_prediction_are_wrong(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).save(tmp_path / f"{name}.png")
    scorer = SegmentationScorer(tmp_path, ["x/a.jpg", "x/b.jpg"])
    score = scorer.score([entry_of("x/a.jpg", np.array([[0, NO_CLASS]]))])
    assert scorer.by_class(score) == {0: 0.5, 1: 0.0}
    assert scorer.never_predicted(score) == (1,)
    assert confusion(np.array([[NO_CLASS]], dtype=np.int32), np.array([[3]], dtype=np.int32)).sum() == 0


def test_ground_truth_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    Image.fromarray(np.full((2, 3), 255, np.uint8)).save(folder / "a.png")
    entry = entry_of("a.jpg", np.zeros((2, 3)))
    with pytest.raises(DataError, match="no pixel of the label images has another value than 255"):
        make_scorer(folder, [entry]).score([entry])
    with pytest.raises(DataError, match="no images called 'b'"):
        make_scorer(folder, [entry_of("b.jpg", np.zeros((2, 3)))])
    turned = entry_of("a.jpg", np.zeros((3, 2)))
    with pytest.raises(DataError, match="width and height are exchanged"):
        make_scorer(folder, [turned]).score([turned])
    classified = {"image": "a.jpg", "classification": {"class_id": 1}}
    with pytest.raises(DataError, match="these predictions have no segments"):
        make_scorer(folder, [classified]).score([classified])
    (tmp_path / "labels.json").write_text('{"a.jpg": 1}')
    with pytest.raises(DataError, match="is no folder; give a folder of label images"):
        make_scorer(tmp_path / "labels.json", [entry])
    with pytest.raises(ConfigError, match="the ground truth is no folder of them; leave it out"):
        make_scorer(tmp_path / "labels.json", [entry], ignore_value=3)


def test_the_commands_from_images_to_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", 5, side=24)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Any:
        found = CliRunner().invoke(main, list(arguments))
        assert found.exit_code == 0, found.output
        return found

    done = run("export", "images", *MODEL, "-o", "p.json", "--masks", "masks", "--ttt", "--ttt-reset", "online")
    assert "5 images predicted, written to p.json, label images to masks" in done.stderr
    write_labels(tmp_path / "labels", json.loads(Path("p.json").read_text()), ignored=9)
    scored = run("evaluate", "p.json", "--ground-truth", "labels", "--ignore-value", "9")
    assert scored.stdout.splitlines()[0] == "5 images"
    assert "mIoU" in scored.stdout
    assert "class 0" in scored.stdout
    found = json.loads(run("evaluate", "p.json", "--ground-truth", "labels", "--ignore-value", "9", "--json").stdout)
    assert found["mIoU"] == pytest.approx(np.mean(list(found["IoU"].values())))
    assert 0.5 < found["accuracy"] < 1
    # The masks of the export are ground truth with which it agrees in full.
    assert json.loads(run("evaluate", "p.json", "--ground-truth", "masks", "--json").stdout)["mIoU"] == 1.0
    unignored = run("evaluate", "p.json", "--ground-truth", "labels")
    assert "no pixel was predicted to have class 9; if that value means 'no label', give it as --ignore-value" in (
        unignored.stderr
    )
    run("compare", "images", *MODEL, "--methods", "bn,tent,memo", "--ground-truth", "labels", "--ignore-value", "9",
        "-o", "out")  # fmt: skip
    rows = {row["method"]: row for row in json.loads(Path("out/comparison.json").read_text())["rows"]}
    assert 0 < rows["none"]["metrics"]["mIoU"] < 1
    assert rows["tent"]["change"]["low"] <= rows["tent"]["change"]["value"] <= rows["tent"]["change"]["high"]
    assert rows["memo"]["error"].startswith("memo is for classifiers, and this model is a segmenter; use one of")
    with Image.open("out/comparison.png") as picture:
        # Three rows: without and with adaptation, and the ground truth.
        assert picture.height > 700
    run("compare", "images", *MODEL, "--methods", "bn", "-o", "unlabelled")
    rows = {row["method"]: row for row in json.loads(Path("unlabelled/comparison.json").read_text())["rows"]}
    assert rows["none"]["metrics"]["agreement"] == 1.0
    assert 0 < rows["bn"]["metrics"]["agreement"] < 1.0
    with Image.open("unlabelled/comparison.png") as picture:
        assert picture.height < 700


@pytest.mark.parametrize(
    "change",
    [
        {"class_id": -1},
        {"class_id": 70_000},
        {"score": "high"},
        {"segmentation": {"size": [4, 6], "counts": [24]}},
        {"segmentation": {"size": ["a", 6], "counts": "h0"}},
        {"segmentation": None},
    ],
)
def test_malformed_segments_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    entry = entry_of("a.png", np.zeros((4, 6)))
    path = tmp_path / "p.json"
    path.write_text(json.dumps([entry]))
    assert read_predictions(path) == [entry]
    path.write_text(json.dumps([{**entry, "segments": [{**entry["segments"][0], **change}]}]))
    with pytest.raises(DataError, match="is no predictions file: each entry needs image"):
        read_predictions(path)
    path.write_text(json.dumps([{**entry, "width": None}]))
    with pytest.raises(DataError, match="is no predictions file: each entry needs image"):
        read_predictions(path)
    path.write_text(json.dumps(to_coco([entry])))
    with pytest.raises(DataError, match="COCO results with masks, which do not name their images"):
        read_coco_results(path)


def test_an_ignored_value_without_label_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", 1, side=24)
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("image_000.png,1\n")
    for arguments in (
        ["compare", "images", *MODEL, "--ignore-value", "3"],
        ["compare", "images", *MODEL, "--ignore-value", "3", "--ground-truth", "labels.csv"],
        ["evaluate", "labels.csv", "--ignore-value", "3", "--ground-truth", "labels.csv"],
    ):
        found = CliRunner().invoke(main, arguments)
        assert found.exit_code == 2
        assert "--ignore-value is a value in label images" in found.stderr

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acclimate.errors import ConfigError, DataError
from acclimate.vision.data.predictions import read_coco_results, read_predictions
from acclimate.vision.evaluation.compare import Comparison, compare
from acclimate.vision.evaluation.evaluate import AccuracyScorer, CocoScorer, difference, load_labels, make_scorer
from acclimate.vision.models.loading import AdapterOptions
from tests.networks import write_images

FACTORIES = "tests.vision.factories"


def classified(answers: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {"image": f"/somewhere/{name}", "image_id": n, "classification": {"class_id": label, "score": 1.0, "topk": []}}
        for n, (name, label) in enumerate(answers.items())
    ]


def accuracy_scorer(labels: dict[str, int]) -> AccuracyScorer:
    return AccuracyScorer(labels, [entry["image"] for entry in classified(labels)])


def test_accuracy_is_over_the_predicted_images() -> None:
    labels = {"a.png": 1, "b.png": 2, "c.png": 3, "d.png": 4}
    entries = classified({"a.png": 1, "b.png": 2, "c.png": 0})
    scorer = AccuracyScorer(labels, [entry["image"] for entry in entries])
    assert scorer.score(entries).metrics == {"accuracy": pytest.approx(2 / 3)}
    with pytest.raises(DataError, match="1 of 1 predicted images have no label"):
        AccuracyScorer(labels, ["/somewhere/z.png"])
    with pytest.raises(DataError, match="share one label"):
        AccuracyScorer(labels, ["/one/a.png", "/two/a.png"])
    with pytest.raises(DataError, match="COCO json"):
        scorer.score([{"image": "a.png", "detections": []}])


def test_labels_may_name_files_by_the_end_of_their_path() -> None:
    scorer = AccuracyScorer({"one/a.png": 1, "two/a.png": 2}, ["/data/one/a.png", "/data/two/a.png"])
    answers = [
        {"image": f"/data/{folder}/a.png", "classification": {"class_id": label}}
        for folder, label in (("one", 1), ("two", 1))
    ]
    assert scorer.score(answers).metrics == {"accuracy": 0.5}


def test_the_interval_is_that_of_a_paired_difference() -> None:
    rng = np.random.default_rng(0)
    labels = {f"{n}.png": int(label) for n, label in enumerate(rng.integers(0, 5, 400))}
    scorer = accuracy_scorer(labels)
    names = list(labels)
    wrong = {**labels, **dict.fromkeys(names[:100], 9)}
    less_wrong = {**labels, **dict.fromkeys(names[:60], 9)}
    first, second = scorer.score(classified(wrong)), scorer.score(classified(less_wrong))
    found = difference(scorer, first, second)
    assert found.value == pytest.approx(0.1)
    # 40 of 400 pairs differ, all in one direction: the standard error of the mean of a Bernoulli(0.1) is 0.015.
    assert found.low == pytest.approx(0.1 - 1.96 * 0.015, abs=0.005)
    assert found.high == pytest.approx(0.1 + 1.96 * 0.015, abs=0.005)
    same = difference(scorer, first, first)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def truth(path: Path) -> Path:
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 50} for n in (1, 2)],
        "categories": [{"id": 3, "name": "x"}, {"id": 4, "name": "y"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 4, "bbox": [50, 5, 40, 40], "area": 1600, "iscrowd": 0},
        ],
    }
    path.write_text(json.dumps(content))
    return path


def detected(image: int, category: int, box: list[float], score: float = 0.9) -> dict[str, Any]:
    x, y, w, h = box
    bbox = {"cx": (x + w / 2) / 100, "cy": (y + h / 2) / 50, "w": w / 100, "h": h / 50}
    detection = {"class_id": category, "score": score, "bbox": bbox}
    return {"image": f"{image}.png", "image_id": image, "width": 100, "height": 50, "detections": [detection]}


def test_map_equals_that_of_coco(tmp_path: Path) -> None:
    scorer = CocoScorer(truth(tmp_path / "gt.json"))
    perfect = scorer.score([detected(1, 3, [10, 10, 20, 20]), detected(2, 4, [50, 5, 40, 40])])
    assert perfect.metrics == pytest.approx({"mAP": 1, "mAP50": 1, "mAP75": 1, "AR100": 1})
    half = scorer.score([detected(1, 3, [10, 10, 20, 20]), detected(2, 3, [50, 5, 40, 40], 0.5)])
    assert half.metrics["mAP"] == pytest.approx(0.5)
    # An IoU of 18/22 = 0.818 is a match at the thresholds 0.5 to 0.8, seven of ten.
    loose = scorer.score([detected(1, 3, [12, 10, 20, 20]), detected(2, 4, [50, 5, 40, 40])])
    assert loose.metrics["mAP"] == pytest.approx((0.7 + 1) / 2)
    nothing = scorer.score([{**detected(1, 3, [0, 0, 1, 1]), "detections": []}])
    assert nothing.metrics["mAP"] == 0
    change = difference(scorer, half, perfect, resamples=50)
    assert change.value == pytest.approx(0.5)
    assert 0 <= change.low <= 0.5 <= change.high <= 1
    assert difference(scorer, nothing, perfect, resamples=5).low > 0
    # A bootstrap must not change the score it resamples.
    assert scorer.resampled(perfect, np.array([0, 1])) == pytest.approx(1)


def test_images_from_a_folder_are_matched_by_name_and_not_by_id(tmp_path: Path) -> None:
    path = truth(tmp_path / "gt.json")
    # Ids of images from a folder are counted from 1: here the only image, 2.png, has the id 1.
    entry = {**detected(2, 4, [50, 5, 40, 40]), "image": "folder/2.png", "image_id": 1}
    scorer = make_scorer(path, [entry])
    assert scorer.image_count == 1
    assert scorer.score([entry]).metrics["mAP"] == pytest.approx(1)
    with pytest.raises(DataError, match=r"no images called .7\.png."):
        make_scorer(path, [{**entry, "image": "7.png"}])
    with pytest.raises(DataError, match="no category_id 9"):
        scorer.score([{**detected(2, 9, [1, 1, 2, 2])}])


def two_folders(path: Path, names: tuple[str, str]) -> Path:
    content = json.loads(truth(path).read_text())
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    path.write_text(json.dumps(content))
    return path


def in_folders(first: str, second: str) -> list[dict[str, Any]]:
    """Perfect predictions of the two images, with ids counted in the opposite order."""
    return [
        {**detected(1, 3, [10, 10, 20, 20]), "image": first, "image_id": 2},
        {**detected(2, 4, [50, 5, 40, 40]), "image": second, "image_id": 1},
    ]


@pytest.mark.parametrize(
    ("names", "predicted"),
    [
        (("train/1.png", "val/1.png"), ("/data/train/1.png", "/data/val/1.png")),
        (("train/1.png", "val/1.png"), ("train/1.png", "val/1.png")),
        (("set/images/train/1.png", "set/images/val/1.png"), ("copy/train/1.png", "copy/val/1.png")),
        (("1.png", "val/1.png"), ("/data/1.png", "/data/val/1.png")),
        (("1.png", "other/val/1.png"), ("/val/1.png", "/data/other/val/1.png")),
    ],
)
def test_images_with_one_name_are_matched_by_their_folders(
    tmp_path: Path, names: tuple[str, str], predicted: tuple[str, str]
) -> None:
    path = two_folders(tmp_path / "gt.json", names)
    for entries in (in_folders(*predicted), in_folders(*predicted)[::-1]):
        assert make_scorer(path, entries).score(entries).metrics["mAP"] == pytest.approx(1)
    alone = in_folders(*predicted)[1:]
    assert make_scorer(path, alone).score(alone).metrics["mAP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("names", "predicted", "message"),
    [
        (("train/1.png", "val/1.png"), ("a/1.png", "b/1.png"), "matches 2 images of the ground truth equally well"),
        (("1.png", "1.png"), ("a/1.png", "b/1.png"), "equally well"),
        (("train/1.png", "2.png"), ("a/1.png", "b/1.png"), "match the same image"),
        (("train/1.png", "2.png"), ("1.png", "1.png"), "predicted twice"),
    ],
)
def test_an_ambiguous_match_is_refused(
    tmp_path: Path, names: tuple[str, str], predicted: tuple[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_scorer(two_folders(tmp_path / "gt.json", names), in_folders(*predicted))


def test_predictions_on_images_of_another_size_than_annotated_are_refused(tmp_path: Path) -> None:
    scorer = CocoScorer(truth(tmp_path / "gt.json"))
    for size, message in (
        ((50, 100), "exchanged.*--no-exif-orientation"),
        ((200, 100), "resized"),
        ((90, 80), "90 x 80"),
    ):
        entry = {**detected(1, 3, [10, 10, 20, 20]), "width": size[0], "height": size[1]}
        with pytest.raises(DataError, match=message):
            scorer.score([entry])


def test_a_pictures_true_boxes_are_those_of_the_image_and_not_of_a_counted_id(tmp_path: Path) -> None:
    from acclimate.vision.evaluation.pictures import _truth

    boxes = _truth(two_folders(tmp_path / "gt.json", ("train/1.png", "val/1.png")))
    assert boxes("/data/val/1.png") == [[50, 5, 40, 40]]
    (tmp_path / "labels.csv").write_text("a/1.png,3\n1.png,4\n")
    labels = _truth(tmp_path / "labels.csv")
    assert [labels(image) for image in ("/x/a/1.png", "/x/1.png", "/x/2.png")] == [3, 4, None]
    assert _truth(None)("any") is None


def test_ground_truth_with_omitted_fields(tmp_path: Path) -> None:
    path = truth(tmp_path / "gt.json")
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        for key in ("iscrowd", "area", "id"):
            del annotation[key]
    path.write_text(json.dumps(content))
    bare = {key: value for key, value in detected(1, 3, [10, 10, 20, 20]).items() if key in ("image", "detections")}
    assert make_scorer(path, [bare]).score([bare]).metrics["mAP"] == pytest.approx(1)
    del content["categories"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no COCO ground truth"):
        CocoScorer(path)
    path.write_text("3")
    with pytest.raises(DataError, match="one object"):
        make_scorer(path, [bare])


def four_images(path: Path, ids: list[Any]) -> Path:
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 50} for n in range(1, 5)],
        "categories": [{"id": 3, "name": "x"}],
        "annotations": [
            {"id": ids[n - 1], "image_id": n, "category_id": 3, "bbox": [10 * n, 10, 20, 20]} for n in range(1, 5)
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "ids", [[1, 2, 3, 4], [0, 1, 2, 3], [1, 1, 1, 1], ["a", "b", "c", "d"], [None] * 4, [-1, 7, 0, 7]]
)
def test_the_ids_of_annotations_do_not_change_the_score(tmp_path: Path, ids: list[Any]) -> None:
    scorer = CocoScorer(four_images(tmp_path / "gt.json", ids))
    perfect = [detected(n, 3, [10 * n, 10, 20, 20]) for n in range(1, 5)]
    score = scorer.score(perfect)
    assert score.metrics == pytest.approx({"mAP": 1, "mAP50": 1, "mAP75": 1, "AR100": 1})
    assert scorer.resampled(score, np.array([0, 0, 2, 3])) == pytest.approx(1)


def test_whole_numbers_in_other_types_are_ids_and_all_else_is_refused(tmp_path: Path) -> None:
    path = four_images(tmp_path / "gt.json", [1, 2, 3, 4])
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["id"] = str(image["id"])
    content["categories"][0]["id"] = 3.0
    for annotation in content["annotations"]:
        annotation |= {"iscrowd": "0", "area": None, "image_id": float(annotation["image_id"]), "category_id": "3"}
    path.write_text(json.dumps(content))
    perfect = [detected(n, 3, [10 * n, 10, 20, 20]) for n in range(1, 5)]
    assert CocoScorer(path).score(perfect).metrics["mAP"] == pytest.approx(1)
    for part, change in (
        ("images", {"id": "a"}),
        ("images", {"id": 1.5}),
        ("images", {"id": True}),
        ("images", {"id": 2}),
        ("annotations", {"bbox": [1, 2, 3]}),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}),
        ("annotations", {"bbox": "abcd"}),
        ("annotations", {"category_id": 4}),
        ("annotations", {"area": "large"}),
        ("categories", {"id": [1]}),
    ):
        changed = {**content, part: [{**content[part][0], **change}, *content[part][1:]]}
        path.write_text(json.dumps(changed))
        with pytest.raises(DataError):
            CocoScorer(path)


@pytest.mark.parametrize(
    "change",
    [{"image_id": "x"}, {"category_id": [1]}, {"bbox": [1, 2]}, {"score": None}, {"bbox": 3}, {"score": float("inf")}],
)
def test_malformed_coco_results_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    result = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "score": 0.5}
    (tmp_path / "r.json").write_text(json.dumps([result, {**result, **change}]))
    with pytest.raises(DataError, match="no COCO results"):
        read_coco_results(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(json.dumps([{**result, "image_id": "1"}]))
    read = read_coco_results(tmp_path / "r.json")
    assert read is not None
    assert read[0]["image_id"] == 1


@pytest.mark.parametrize(
    "entry",
    [
        {"image": ""}, {"image": 3, "detections": []}, {"image": "a"}, {"image": "a", "detections": 3},
        {"image": "a", "detections": [3]}, {"image": "a", "detections": [], "width": -1},
        {"image": "a", "detections": [{"class_id": 1, "score": 1, "bbox": [1, 2, 3, 4]}]},
        {"image": "a", "classification": 3}, {"image": "a", "classification": {"class_id": "x"}},
    ],
)  # fmt: skip
def test_malformed_entries_are_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "p.json").write_text(json.dumps([entry]))
    with pytest.raises(DataError, match="no predictions file"):
        read_predictions(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('[{"image": "a", "detections": null}]')
    assert read_predictions(tmp_path / "p.json")[0]["detections"] == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1]", "one object"),
        ("b.json", '{"a.png": "cat"}', "integers"),
        ("c.csv", "a.png,1,2\n", "two columns"),
        ("d.csv", "image,label\n", "is empty"),
        ("e.json", '{"images": [], "annotations": []}', "no annotations"),
    ],
)
def test_bad_ground_truth(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        make_scorer(tmp_path / name, [])


def test_labels_as_json_and_csv(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x.png": 3}')
    (tmp_path / "a.csv").write_text("image,label\nx.png,3\n")
    assert load_labels(tmp_path / "a.json") == load_labels(tmp_path / "a.csv") == {"x.png": 3}
    for header in ("image,class", "Image, Class", "\ufeffimage,class"):
        (tmp_path / "a.csv").write_text(f"{header}\nx.png,3\n", encoding="utf-8")
        assert load_labels(tmp_path / "a.csv") == {"x.png": 3}
    for name, content in (("a.csv", "\ufeffx.png,3\n"), ("a.json", '\ufeff{"x.png": "3"}')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert load_labels(tmp_path / name) == {"x.png": 3}
    with pytest.raises(DataError, match="cannot be read"):
        load_labels(tmp_path / "gone.csv")


def test_ground_truth_of_crowds_alone_is_nothing_to_score(tmp_path: Path) -> None:
    path = truth(tmp_path / "gt.json")
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    entry = detected(2, 4, [50, 5, 40, 40])
    assert make_scorer(path, [entry]).score([entry]).metrics["mAP"] == pytest.approx(1)
    with pytest.raises(DataError, match="nothing to score"):
        make_scorer(path, [detected(1, 3, [10, 10, 20, 20])])
    content["annotations"][1]["iscrowd"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="nothing to score"):
        CocoScorer(path)


def comparison(folder: Path, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "source": folder / "images",
        "output": folder / "out",
        "adapter": AdapterOptions(adapter="torch", model=f"{FACTORIES}:classifier"),
        "given": {"batch_size": 4, "method_options": {}},
    }
    return Comparison(**{**values, **changes})


def test_all_methods_are_compared(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 12, side=16)
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({path.name: n % 5 for n, path in enumerate(paths)}))
    heard: list[str] = []
    methods = ("bn", "tent", "eata", "sar", "mim")
    result = compare(comparison(tmp_path, ground_truth=labels, methods=methods), progress=heard.append)
    assert heard == ["none", *methods]
    assert [row.method for row in result.rows] == heard
    assert result.metric == "accuracy"
    assert result.rows[0].cost == 1
    for row in result.rows[1:]:
        assert row.error is None
        assert row.change is not None
        assert row.change.low <= row.change.value <= row.change.high
        assert row.metrics["accuracy"] - result.rows[0].metrics["accuracy"] == pytest.approx(row.change.value)
        assert sum(row.steps.values()) == 3
    saved = json.loads(result.table.read_text())
    assert [row["method"] for row in saved["rows"]] == heard
    with Image.open(result.picture) as picture:
        assert picture.width > 600
        assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 20
    assert (tmp_path / "out" / "predictions_tent.json").exists()


def test_detectors_are_compared_by_map(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4, side=32)
    content = {
        "images": [{"id": n + 1, "file_name": f"image_{n:03d}.png", "width": 32, "height": 32} for n in range(4)],
        "categories": [{"id": n, "name": name} for n, name in enumerate("xyz")],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n % 3, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
            for n in range(1, 5)
        ],
    }
    annotations = tmp_path / "instances.json"
    annotations.write_text(json.dumps(content))
    adapter = AdapterOptions(adapter="torch", model=f"{FACTORIES}:detector")
    result = compare(
        comparison(tmp_path, source=annotations, ground_truth=annotations, methods=("bn", "tent"), adapter=adapter)
    )
    assert result.metric == "mAP"
    assert set(result.rows[1].metrics) == {"mAP", "mAP50", "mAP75", "AR100"}
    assert result.picture.exists()


def test_an_unsupported_method_is_a_row_with_an_error(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3, side=16)
    adapter = AdapterOptions(adapter="torch", model=f"{FACTORIES}:normalised")
    result = compare(comparison(tmp_path, methods=("bn", "tent"), adapter=adapter))
    assert result.metric == "agreement"
    assert "no BatchNorm" in (result.rows[1].error or "")
    assert result.rows[2].error is None


def test_a_failing_method_does_not_lose_the_results_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from acclimate.methods import Tent

    def out_of_memory(self: Any, *values: Any, **named: Any) -> Any:
        raise RuntimeError("not enough memory\nhere")

    monkeypatch.setattr(Tent, "step", out_of_memory)
    write_images(tmp_path / "images", 3, side=16)
    result = compare(comparison(tmp_path, methods=("tent", "bn")))
    assert result.rows[1].error == "failed: not enough memory"
    assert result.rows[2].error is None


def test_unknown_methods_and_empty_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown method 'magic'"):
        comparison(tmp_path, methods=("magic",))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no image")
    with pytest.raises(DataError, match="none of the 1 images"):
        compare(comparison(tmp_path))

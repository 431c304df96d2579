"""The real loading and post-processing code of transformers, on tiny models saved to a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from acclimate.core.precision import parse_dtype
from acclimate.errors import CheckpointError, ConfigError, DataError, TTTNotSupportedError
from acclimate.registry import METHODS
from acclimate.vision.data.masks import class_map_of
from acclimate.vision.data.records import load_dataset
from acclimate.vision.models.transformers_adapter import TransformersAdapter
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt import TTTRun
from tests.networks import assert_identical, tensors_of, write_images
from tests.vision.tiny_transformers import CLASSIFIERS, DETECTORS, LABELS, SEGMENTERS, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_images(root / "images", 5, side=40)
    write_images(root / "wide", 1, side=48, seed=7)
    for family in (*DETECTORS, *CLASSIFIERS, *SEGMENTERS):
        save(family, root / family)
    return root


def by_transformers(folder: Path, family: str, models: Any, adapter: TransformersAdapter) -> tuple[Any, Any, Any]:
    """Return transformers' processor, its model's outputs on the images, and the sizes of these."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder / family, backend="pil")
    pixels = [adapter.reader.read(record) for record in load_dataset(folder / "images").records]
    with torch.no_grad():
        outputs = models.from_pretrained(folder / family)(**processor(images=pixels, return_tensors="pt"))
    return processor, outputs, [image.shape[:2] for image in pixels]


@pytest.mark.parametrize("family", DETECTORS)
def test_detectors_predict_what_transformers_predicts(folder: Path, family: str) -> None:
    from transformers import AutoModelForObjectDetection

    adapter = TransformersAdapter(str(folder / family), score_threshold=0.2)
    entries = adapter.predict(load_dataset(folder / "images").records)
    processor, outputs, sizes = by_transformers(folder, family, AutoModelForObjectDetection, adapter)
    expected = processor.post_process_object_detection(outputs, threshold=0.2, target_sizes=sizes)
    for entry, image, (height, width) in zip(entries, expected, sizes, strict=True):
        assert len(entry["detections"]) == len(image["scores"]) > 0
        order = torch.argsort(image["scores"], descending=True, stable=True)
        for detection, row in zip(entry["detections"], order.tolist(), strict=True):
            assert detection["score"] == pytest.approx(float(image["scores"][row]), abs=1e-4)
            box = detection["bbox"]
            x0, y0, x1, y1 = image["boxes"][row].tolist()
            clipped = [min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)]
            ours = [
                (box["cx"] - box["w"] / 2) * width,
                (box["cy"] - box["h"] / 2) * height,
                (box["cx"] + box["w"] / 2) * width,
                (box["cy"] + box["h"] / 2) * height,
            ]
            assert ours == pytest.approx(clipped, abs=0.05)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_classifiers_rank_all_classes(folder: Path, family: str) -> None:
    entries = TransformersAdapter(str(folder / family)).predict(load_dataset(folder / "images").records)
    for entry in entries:
        classification = entry["classification"]
        assert [classification["class_id"], classification["score"]] == classification["topk"][0]
        assert sum(score for _, score in classification["topk"]) == pytest.approx(1, abs=1e-5)
        assert sorted(entry) == ["classification", "height", "image", "image_id", "width"]


@pytest.mark.parametrize("family", SEGMENTERS)
def test_segmenters_predict_what_transformers_predicts(folder: Path, family: str) -> None:
    from transformers import AutoModelForSemanticSegmentation

    adapter = TransformersAdapter(str(folder / family))
    assert adapter.kind == "segmenter"
    entries = adapter.predict(load_dataset(folder / "images").records)
    processor, outputs, sizes = by_transformers(folder, family, AutoModelForSemanticSegmentation, adapter)
    for entry, expected in zip(
        entries, processor.post_process_semantic_segmentation(outputs, target_sizes=sizes), strict=True
    ):
        assert np.array_equal(class_map_of(entry), expected.numpy())


@pytest.mark.parametrize("method", ["tent", "bn", "spectrum", "cotta"])
@pytest.mark.parametrize("family", SEGMENTERS)
def test_segmenters_are_adapted_and_restored(folder: Path, family: str, method: str) -> None:
    records = load_dataset(folder / "images").records
    adapter = TransformersAdapter(str(folder / family), dtype="bfloat16" if method == "tent" else None)
    before = tensors_of(adapter.get_model())
    options = {"method_options": {"view_count": 2}} if method == "cotta" else {}
    config = TTTConfig.resolve({"method": method, "reset": "online", "batch_size": 5, **options}, kind=adapter.kind)
    source = records if METHODS.info(method).uses_source_images else ()
    with TTTRun(adapter, config, source_records=source) as run:
        assert sum(len(part) for part in run.online(records)) == 5
    assert_identical(adapter.get_model(), before)


def test_image_processors_of_segmenters_that_cut_or_pad(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "segformer", tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    path = path if path.exists() else tmp_path / "model" / "processor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}))
    adapter = TransformersAdapter(str(tmp_path / "model"))
    assert any("whole images are segmented" in warning for warning in adapter.warnings)
    (batch,) = adapter.build_loader(load_dataset(folder / "images").records, batch_size=8)
    assert batch.inputs.shape[-2:] == (64, 64)
    path.write_text(json.dumps({**settings, "do_pad": True}))
    with pytest.raises(ConfigError, match=r"pads images \(do_pad\), so its masks do not fit them"):
        TransformersAdapter(str(tmp_path / "model"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("family", ["rt_detr", "yolos", "resnet"])
def test_a_model_can_be_converted_to_another_number_format(folder: Path, family: str, dtype: str) -> None:
    records = load_dataset(folder / "images").records
    adapter = TransformersAdapter(str(folder / family), dtype=dtype, score_threshold=0.0)
    (batch,) = adapter.build_loader(records, batch_size=8)
    images = batch.inputs if adapter.kind == "classifier" else batch.inputs["pixel_values"]
    assert images.dtype == parse_dtype(dtype)
    assert len(adapter.predict(records)) == 5
    config = TTTConfig.resolve({"method": "tent", "reset": "online", "batch_size": 5}, kind=adapter.kind)
    with TTTRun(adapter, config) as run:
        assert sum(len(part) for part in run.online(records)) == 5


@pytest.mark.parametrize(
    ("problem", "count", "kind"),
    [
        ("multi_label_classification", 3, "multilabel"),
        ("multi_label_classification", 1, "multilabel"),
        ("single_label_classification", 3, "classifier"),
        ("regression", 3, None),
        (None, 1, None),
    ],
)
def test_the_problem_type_of_a_configuration_is_read(
    folder: Path, tmp_path: Path, problem: str | None, count: int, kind: str | None
) -> None:
    from transformers import AutoImageProcessor, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig.from_pretrained(folder / "resnet")
    config.num_labels, config.problem_type = count, problem
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(folder / "resnet").save_pretrained(tmp_path)
    if kind is None:
        with pytest.raises(ConfigError, match=r"predicts numbers \(regression\)"):
            TransformersAdapter(str(tmp_path))
        return
    adapter = TransformersAdapter(str(tmp_path))
    assert adapter.kind == kind
    for entry in adapter.predict(load_dataset(folder / "images").records):
        assert len(entry["classification"].get("scores", [])) == (count if kind == "multilabel" else 0)


# Decoders that are built as rt_detr's is: methods of each sort show that they are adapted, and all do in test-all.
ALIKE, SORTS = ("rt_detr_v2", "d_fine"), ("tent", "bn", "cotta", "blend", "lame")
RUNS = [
    pytest.param(family, method, id=f"{family}-{method}", marks=marks)
    for family in (*DETECTORS, *CLASSIFIERS)
    for method in METHODS.names()
    for marks in [pytest.mark.slow if family in ALIKE and method not in SORTS else ()]
]


@pytest.mark.parametrize(("family", "method"), RUNS)
def test_every_method_runs_on_every_family_and_restores_the_model(folder: Path, family: str, method: str) -> None:
    adapter = TransformersAdapter(str(folder / family))
    if method in ("bn", "align") and family in ("yolos", "vit"):
        pytest.skip("has no BatchNorm")
    if adapter.kind not in METHODS.info(method).kinds:
        with pytest.raises(TTTNotSupportedError, match=f"{method} is for classifiers"):
            TTTConfig.resolve({"method": method}, kind="detector")
        return
    if adapter.kind == "detector":
        # Scores of random weights are low, so that the threshold for candidates is lowered.
        object.__setattr__(adapter.task, "min_foreground", 0.05)
        object.__setattr__(adapter.task, "match_iou", 0.1)
    before = tensors_of(adapter.get_model())
    options = {
        "cotta": {"view_count": 2},
        "eata": {"entropy_margin": 2.0, "redundancy_margin": 1.1},
        "sar": {"entropy_margin": 2.0},
        "deyo": {"entropy_margin": 2.0, "min_difference": -1.0},
        "rotta": {"update_every": 2},
        "memo": {"view_count": 2},
    }
    config = TTTConfig.resolve(
        {
            "method": method,
            "reset": "online",
            "batch_size": 3,
            "method_options": options.get(method, {}),
            # Random weights have a low certainty under any statistics.
            "guards": False,
        },
        kind=adapter.kind,
    )
    needs_source = method == "blend" or METHODS.info(method).needs_one_of == ("source_images",)
    source = load_dataset(folder / "images").records if needs_source else ()
    with TTTRun(adapter, config, source_records=source) as run:
        entries = [entry for batch in run.online(load_dataset(folder / "images").records) for entry in batch]
        report = run.report()
    assert len(entries) == 5
    assert set(report.session.counts) <= {"kept", "recovered"}, report.session.steps
    if method == "memo":
        assert report.changed_param_count == 0
    if METHODS.info(method).needs_gradient:
        assert report.losses[0] is not None
        assert report.updated_param_count > 0
    assert_identical(adapter.get_model(), before)


def test_images_of_different_size_are_padded_and_boxes_stay_those_of_the_image(folder: Path, tmp_path: Path) -> None:
    adapter = TransformersAdapter(str(folder / "detr"), score_threshold=0.0)
    from PIL import Image

    for number, size in enumerate([(40, 40), (40, 60)]):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    records = load_dataset(tmp_path).records
    (batch,) = adapter.build_loader(records, batch_size=2)
    assert "pixel_mask" in batch.inputs
    together, alone = adapter.predict(records), [adapter.predict([record])[0] for record in records]
    for entry, single in zip(together, alone, strict=True):
        best, expected = entry["detections"][0], single["detections"][0]
        assert best["score"] == pytest.approx(expected["score"], abs=0.02)
        assert list(best["bbox"].values()) == pytest.approx(list(expected["bbox"].values()), abs=0.02)


@pytest.mark.parametrize("family", [*DETECTORS, *CLASSIFIERS])
def test_images_of_one_row_or_column_are_predicted_or_skipped_one_by_one(
    folder: Path, tmp_path: Path, family: str
) -> None:
    (usual,) = write_images(tmp_path, 1, side=40)
    sizes = {"row": (50, 1), "column": (1, 50), "rows": (50, 3), "columns": (3, 50), "dot": (1, 1)}
    for name, size in sizes.items():
        Image.new("RGB", size, (200, 90, 40)).save(tmp_path / f"{name}.png")
    adapter = TransformersAdapter(str(folder / family))
    entries = adapter.predict(load_dataset(tmp_path).records)
    # The image processor of yolos gives these a side of 0 pixels, which it refuses.
    refused = {"row", "column", "rows", "columns"} if family == "yolos" else set()
    assert {Path(image).stem for image in adapter.reader.skipped} == refused
    assert all("image processor fails on it" in reason for reason in adapter.reader.skipped.values())
    expected = {usual.stem: (40, 40), **{name: size for name, size in sizes.items() if name not in refused}}
    assert {Path(entry["image"]).stem: (entry["width"], entry["height"]) for entry in entries} == expected


def test_category_ids_are_matched_by_name(folder: Path) -> None:
    records = load_dataset(folder / "images").records
    categories = {7: "Dog", 9: "cat"}
    adapter = TransformersAdapter(str(folder / "vit"), categories=categories)
    assert {entry["classification"]["class_id"] for entry in adapter.predict(records)} <= {7, 9}
    assert adapter.warnings[:1] == ("1 of the model's labels are not in the data set and are not written",)
    assert "category ids (7 to 9)" in adapter.warnings[1]
    with pytest.raises(DataError, match="'horse'"):
        TransformersAdapter(str(folder / "vit"), categories={1: "horse"})
    detector = TransformersAdapter(str(folder / "rt_detr"), categories=categories, score_threshold=0.0)
    found = {detection["class_id"] for entry in detector.predict(records) for detection in entry["detections"]}
    assert found <= {7, 9}


def test_models_that_cannot_be_loaded_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot load a model"):
        TransformersAdapter(str(tmp_path))
    from transformers import GPT2Config, GPT2Model, ViTImageProcessorPil, ViTModel

    GPT2Model(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8)).save_pretrained(tmp_path / "gpt2")
    ViTImageProcessorPil().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="neither an object detector nor an image classifier"):
        TransformersAdapter(str(tmp_path / "gpt2"))
    assert ViTModel is not None


def test_a_pickle_needs_permission(folder: Path, tmp_path: Path) -> None:
    pickled = save("vit", tmp_path / "vit")
    from safetensors.torch import load_file

    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="--trust-pickle"):
        TransformersAdapter(str(pickled))
    adapter: Any = TransformersAdapter(str(pickled), trust_pickle=True)
    assert adapter.labels.ids is None
    assert len(LABELS) == adapter.get_model().config.num_labels


def test_missing_weights_are_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save("vit", tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors of the checkpoint are not used (first: extra)" in TransformersAdapter(str(folder)).warnings
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        TransformersAdapter(str(folder))
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot load weights"):
        TransformersAdapter(str(folder))


def test_a_detector_with_an_unknown_head_predicts_and_refuses_ttt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acclimate.errors import TTTNotSupportedError
    from acclimate.vision.models import transformers_adapter
    from acclimate.vision.models.adapter import require_ttt

    monkeypatch.setattr(transformers_adapter, "_HEADS", {"rt_detr": "sigmoid"})
    adapter = TransformersAdapter(str(folder / "detr"))
    assert len(adapter.predict(load_dataset(folder / "images").records)) == 5
    with pytest.raises(TTTNotSupportedError, match="'detr'"):
        require_ttt(adapter)


def test_the_pixel_range_is_that_of_the_image_processor(folder: Path) -> None:
    assert TransformersAdapter(str(folder / "rt_detr")).task.pixel_range == (0.0, 1.0)  # type: ignore[attr-defined]
    low, high = TransformersAdapter(str(folder / "vit")).task.pixel_range  # type: ignore[attr-defined]
    assert low == pytest.approx((-1, -1, -1))
    assert high == pytest.approx((1, 1, 1))

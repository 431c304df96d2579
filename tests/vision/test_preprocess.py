from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from acclimate.errors import ConfigError
from acclimate.vision.data import boxes as box_ops
from acclimate.vision.data.records import load_dataset
from acclimate.vision.models.dense import NonMaximumSuppression, objectness_logits
from acclimate.vision.models.preprocess import (
    BoxMap,
    Preprocess,
    crop,
    letterbox,
    of_module,
    processor_range,
    resize,
)
from acclimate.vision.models.torch_adapter import TorchAdapter, TorchModel
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt import TTTRun
from tests import networks

FACTORIES = "tests.vision.factories"
# A marked rectangle in images of several shapes, as fractions of the image.
MARK = (0.4, 0.3, 0.7, 0.6)


def marked(width: int, height: int) -> np.ndarray:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = (round(side * value) for side, value in zip((width, height) * 2, MARK, strict=True))
    pixels[y0:y1, x0:x1] = (255, 128, 0)
    return pixels


@pytest.mark.parametrize("shape", [(64, 64), (100, 60), (60, 100), (31, 47), (640, 40)])
@pytest.mark.parametrize(
    "preprocess", [Preprocess(), resize((48, 64)), letterbox((64, 48), fill=0), crop((60, 60), shorter=64)]
)
def test_boxes_are_mapped_back_to_the_image(shape: tuple[int, int], preprocess: Preprocess) -> None:
    pixels = marked(*shape)
    prepared = preprocess(pixels)
    if preprocess.size is not None:
        assert prepared.tensor.shape == (3, preprocess.size[1], preprocess.size[0])
    rows, columns = (prepared.tensor[0] > 0.5).any(1).nonzero().flatten(), (prepared.tensor[0] > 0.5).any(0).nonzero()
    if len(rows) == 0:
        assert preprocess.fit == "crop", "only a crop may lose the mark"
        return
    height, width = prepared.tensor.shape[1:]
    found = torch.tensor(
        [int(columns.min()) / width, int(rows.min()) / height, (int(columns.max()) + 1) / width,
         (int(rows.max()) + 1) / height]
    )  # fmt: skip
    mapped = prepared.boxes.corners(found)
    # Within the rounding of pixels on both sides, and cut off where the crop cuts it off.
    visible = prepared.boxes.corners(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    expected = [max(float(visible[0]), MARK[0]), max(float(visible[1]), MARK[1]),
                min(float(visible[2]), MARK[2]), min(float(visible[3]), MARK[3])]  # fmt: skip
    scale = max(prepared.boxes.scale)
    slack = 1.5 * scale / min(width, height) + 1 / min(shape)
    assert mapped.tolist() == pytest.approx(expected, abs=slack)


def test_a_crop_is_the_centre_of_the_resized_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    prepared = crop((32, 32), shorter=40)(pixels)
    resized = np.asarray(Image.fromarray(pixels).resize((64, 40), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(resized[4:36, 16:48].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(prepared.tensor, expected)
    assert prepared.boxes == BoxMap((32 / 64, 32 / 40), (16 / 64, 4 / 40))


def test_a_letterbox_keeps_the_shape_and_fills_the_borders() -> None:
    pixels = np.full((20, 40, 3), 255, dtype=np.uint8)
    found = letterbox((32, 32), highest=255.0)(pixels)
    assert (found.tensor[:, 8:24] == 255).all()
    assert (found.tensor[:, :8] == 114).all()
    assert (found.tensor[:, 24:] == 114).all()
    assert found.boxes.corners(torch.tensor([0.0, 0.25, 1.0, 0.75])).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "expected", "pixel_range"),
    [
        ({}, [1, 128 / 255, 0], (0.0, 1.0)),
        ({"channels": "bgr", "highest": 255.0}, [0, 128, 255], (0.0, 255.0)),
        (
            {"highest": 255.0, "mean": (100.0, 28.0, 0.0), "std": (1.0, 2.0, 5.0)},
            [155, 50, 0],
            ((-100.0, -14.0, 0.0), (155.0, 113.5, 51.0)),
        ),
    ],
)
def test_channels_range_and_normalisation(settings: dict[str, Any], expected: list[float], pixel_range: Any) -> None:
    preprocess = Preprocess(**settings)
    pixels = np.full((2, 2, 3), (255, 128, 0), dtype=np.uint8)
    assert preprocess(pixels).tensor[:, 0, 0].tolist() == pytest.approx(expected)
    assert preprocess.pixel_range == pixel_range


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit": "stretch"}, "keep, resize, crop or letterbox"),
        ({"fit": "resize"}, "needs a size"),
        ({"size": (2, 2)}, "takes no size"),
        ({"fit": "resize", "size": (0, 2)}, "at least 1 pixel"),
        ({"fit": "crop", "size": (2, 2)}, "shorter"),
        ({"fit": "resize", "size": (2, 2), "shorter": 4}, "shorter"),
        ({"channels": "gray"}, "rgb or bgr"),
        ({"highest": 100.0}, "1 or 255"),
        ({"mean": (0, 0, 0)}, "together"),
        ({"mean": (0.0,), "std": (1.0,)}, "three channels"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "positive"),
        ({"interpolation": "cubic"}, "bilinear, bicubic"),
        ({"fill": 300}, "between 0 and 255"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess(**settings)


def test_settings_of_timm_are_read() -> None:
    module = nn.Identity()
    assert of_module(module) is None
    module.default_cfg = {"input_size": (3, 224, 192), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.95}
    found = of_module(module)
    assert found is not None
    assert found[1] == "the model's default_cfg"
    assert found[0] == crop((192, 224), shorter=202, mean=(0.5,) * 3, std=(0.5,) * 3)
    module.pretrained_cfg = {"input_size": (3, 32, 32), "crop_mode": "squash", "interpolation": "bicubic"}
    assert of_module(module) == (resize((32, 32), interpolation="bicubic"), "the model's pretrained_cfg")
    module.pretrained_cfg = {"input_size": (3, 32, 32), "crop_mode": "border"}
    assert of_module(module) == (letterbox((32, 32)), "the model's pretrained_cfg")


def test_a_module_with_settings_of_timm_predicts_with_them(tmp_path: Path) -> None:
    networks.write_images(tmp_path, 2, side=30)
    networks.write_images(tmp_path / "more", 1, side=50, seed=3)
    adapter = TorchAdapter(f"{FACTORIES}:timm_like")
    (batch,) = adapter.build_loader(load_dataset(tmp_path).records, batch_size=8)
    assert batch.inputs.shape == (3, 3, 16, 16)
    assert float(batch.inputs.min()) < 0
    assert adapter.warnings == ("images are prepared as the model's pretrained_cfg says",)
    assert adapter.task.pixel_range == ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))


def test_an_image_processor_of_transformers_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import DetrImageProcessorPil, ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    module = networks.classifier()
    pixels = marked(40, 20)
    expected = processor(images=[pixels], return_tensors="pt")["pixel_values"][0]
    Image.fromarray(pixels).save(tmp_path / "image.png")
    module.image_processor = processor
    for model, said in (
        (TorchModel(module=networks.classifier(), preprocess=processor), ()),
        (TorchModel(module=module), ("images are prepared as the model's image_processor says",)),
    ):
        monkeypatch.setattr("tests.vision.factories.bare", lambda model=model: model)
        adapter = TorchAdapter(f"{FACTORIES}:bare")
        (batch,) = adapter.build_loader(load_dataset(tmp_path).records, batch_size=1)
        torch.testing.assert_close(batch.inputs[0], expected)
        assert adapter.task.pixel_range == processor_range(processor) == ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
        assert adapter.warnings == said
    with pytest.raises(ConfigError, match="letterbox"):
        TorchModel(module=module, kind="detector", preprocess=DetrImageProcessorPil())


def test_a_function_prepares_images_and_adapts(tmp_path: Path) -> None:
    networks.write_images(tmp_path, 4, side=20)
    records = load_dataset(tmp_path).records
    adapter = TorchAdapter(f"{FACTORIES}:own_function")
    (batch,) = adapter.build_loader(records, batch_size=8)
    assert -1 <= float(batch.inputs.min()) < 0
    with TTTRun(adapter, TTTConfig.resolve({"method": "cotta", "batch_size": 4}, kind="classifier")) as run:
        assert sum(len(part) for part in run.predictions(records)) == 4
    with pytest.raises(ConfigError, match=r"must return a tensor \(C, H, W\).*ndarray"):
        TorchAdapter(f"{FACTORIES}:wrong_function").predict(records)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preprocess": Preprocess(), "image_size": (2, 2)}, "replaces image_size"),
        ({"preprocess": Preprocess(), "mean": (0, 0, 0), "std": (1, 1, 1)}, "replaces image_size"),
        ({"preprocess": Preprocess(), "pixel_range": (0.0, 1.0)}, "is a function"),
        ({"pixel_range": (0.0, 1.0)}, "is a function"),
        ({"postprocess": NonMaximumSuppression()}, "for detectors"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchModel(module=networks.classifier(), **settings)


def test_a_dense_detectors_boxes_are_those_of_the_image_and_duplicates_are_removed(tmp_path: Path) -> None:
    Image.fromarray(marked(80, 40)).save(tmp_path / "wide.png")
    adapter = TorchAdapter(f"{FACTORIES}:dense", score_threshold=0.3)
    records = load_dataset(tmp_path).records
    (batch,) = adapter.build_loader(records, batch_size=1)
    assert float(batch.inputs.max()) == 255
    assert float(batch.inputs[0, 2, 8:24].max()) == 255, "red is the last channel"
    assert float(batch.inputs[0, 0, 8:24].max()) < 1
    (entry,) = adapter.predict(records)
    # The upper left quarter of a letterbox is the upper left quarter of the image; the whole one reaches beyond it.
    found = [(one["class_id"], round(one["score"], 3), *one["bbox"].values()) for one in entry["detections"]]
    assert found == [
        (1, 0.982, 0.5, 0.5, 1.0, 1.0),
        (0, 0.953, 0.25, 0.25, 0.5, 0.5),
        (1, 0.731, pytest.approx(0.26), 0.25, 0.5, 0.5),
    ]
    before = networks.tensors_of(adapter.get_model())
    with TTTRun(adapter, TTTConfig.resolve({"method": "tent", "reset": "online"}, kind="detector")) as run:
        (adapted,) = next(iter(run.online(records)))
    assert len(adapted["detections"]) == 3
    networks.assert_identical(adapter.get_model(), before)


def test_suppression_keeps_the_highest_score_of_each_class() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.52, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
    scores, labels = torch.tensor([0.5, 0.9, 0.8, 0.1]), torch.tensor([0, 0, 1, 0])
    assert NonMaximumSuppression()(scores, labels, boxes).tolist() == [1, 2, 3]
    assert NonMaximumSuppression(class_wise=False)(scores, labels, boxes).tolist() == [1, 3]
    assert NonMaximumSuppression(candidates=2)(scores, labels, boxes).tolist() == [1, 2]
    assert NonMaximumSuppression(iou=1.0)(scores, labels, boxes).tolist() == [1, 2, 0, 3]
    assert NonMaximumSuppression()(scores[:0], labels[:0], boxes[:0]).tolist() == []
    for wrong in ({"iou": 0.0}, {"iou": 1.1}, {"candidates": 0}):
        with pytest.raises(ConfigError, match="must"):
            NonMaximumSuppression(**wrong)  # type: ignore[arg-type]


def test_suppression_is_that_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(60, 4, generator=generator) * 0.3 + 0.2
    scores, labels = torch.rand(60, generator=generator), torch.randint(3, (60,), generator=generator)
    kept: list[int] = []
    for position in scores.argsort(descending=True).tolist():
        rivals = [other for other in kept if labels[other] == labels[position]]
        overlap = box_ops.pairwise_iou(boxes[[position]], boxes[rivals]) if rivals else torch.zeros(1, 1)
        if float(overlap.max()) <= 0.5:
            kept.append(position)
    assert NonMaximumSuppression(iou=0.5)(scores, labels, boxes).tolist() == kept


def test_the_logit_of_objectness_times_class_score() -> None:
    objectness, classes = torch.linspace(-8, 8, 9), torch.linspace(-8, 8, 9)[:, None].expand(9, 4).clone()
    found = objectness_logits(objectness, classes)
    product = objectness.double().sigmoid()[:, None] * classes.double().sigmoid()
    torch.testing.assert_close(found.double(), torch.logit(product), atol=2e-3, rtol=1e-3)
    assert torch.equal(objectness_logits(objectness[:, None], classes), found)
    extreme = torch.tensor([[-200.0], [200.0]], requires_grad=True)
    logits = objectness_logits(extreme, extreme)
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()

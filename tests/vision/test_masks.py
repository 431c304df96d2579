"""Class maps: run-length encoding beside pycocotools, label images, and classes at the size of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco

from acclimate.errors import DataError
from acclimate.vision.data import masks
from acclimate.vision.models.class_maps import class_map
from acclimate.vision.models.preprocess import BoxMap

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)


@given(mask=arrays.arrays(bool, SHAPES))
def test_masks_are_encoded_and_decoded_as_by_pycocotools(mask: masks.Mask) -> None:
    ours = masks.encode(mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (ours["size"], ours["counts"]) == (list(theirs["size"]), theirs["counts"].decode())
    assert np.array_equal(masks.decode(ours), mask)
    assert np.array_equal(coco.decode(ours).astype(bool), mask)


@given(
    runs=st.lists(st.integers(0, 70_000), min_size=1, max_size=12),
    width=st.integers(1, 5),
)
def test_long_runs_survive(runs: list[int], width: int) -> None:
    total = max(width, -(-sum(runs) // width) * width)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask = np.pad(flat, (0, total - len(flat))).reshape(width, -1).T
    assert np.array_equal(masks.decode(masks.encode(mask)), mask)
    assert masks.encode(mask)["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


@given(counts=st.text(max_size=12), size=st.lists(st.integers(-1, 9), max_size=3))
def test_what_is_no_encoding_is_an_error_and_never_a_wrong_mask(counts: str, size: list[int]) -> None:
    try:
        found = masks.decode({"size": size, "counts": counts})
    except (ValueError, TypeError):
        return
    assert list(found.shape) == size


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "3"},
        {"size": [2, 2], "counts": "5"},
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": "oooooooo0"},
        {"size": [2, 2], "counts": "\x00"},
        {"size": [2, 2], "counts": "O4"},
        {"size": [10**6, 10**6], "counts": "4"},
        {"size": [0, 4], "counts": "0"},
        {"size": [2], "counts": "4"},
        {"size": "22", "counts": 4},
    ],
)
def test_malformed_segments_of_a_prediction_are_one_line(rle: dict[str, Any]) -> None:
    entry = {"image": "a.png", "width": 2, "height": 2, "segments": [{"class_id": 1, "score": 1, "segmentation": rle}]}
    with pytest.raises(DataError, match=r"the segments of a.png cannot be decoded \("):
        masks.class_map_of(entry)


@given(found=arrays.arrays(np.int32, SHAPES, elements=st.integers(-1, 4)))
def test_segments_hold_the_whole_class_map(found: masks.ClassMap) -> None:
    probabilities = np.random.default_rng(0).random(found.shape, dtype=np.float32)
    segments = masks.segments(found, probabilities)
    height, width = found.shape
    entry = {"image": "a", "width": width, "height": height, "segments": segments}
    assert np.array_equal(masks.class_map_of(entry), found)
    for segment in segments:
        of_class = found == segment["class_id"]
        assert segment["area"] == of_class.sum() > 0
        assert segment["score"] == pytest.approx(probabilities[of_class].mean(), abs=1e-5)


@pytest.mark.parametrize(("label", "mode", "void"), [(7, "L", 255), (254, "L", 255), (255, "I;16", 65535)])
def test_label_images_hold_class_ids(tmp_path: Path, label: int, mode: str, void: int) -> None:
    found = np.array([[0, label], [masks.NO_CLASS, 1]], dtype=np.int32)
    segments = masks.segments(found, np.ones((2, 2), np.float32))
    entry = {"image": "photos/a.jpg", "width": 2, "height": 2, "segments": segments}
    (path,) = masks.write_label_images(tmp_path / "out", [entry])
    assert path == tmp_path / "out" / "a.png"
    assert Image.open(path).mode == mode
    assert np.array_equal(masks.read_label_image(path), np.where(found == masks.NO_CLASS, void, found))


def test_a_palette_is_read_as_class_ids_and_colours_are_refused(tmp_path: Path) -> None:
    values = np.array([[0, 3], [11, 1]], dtype=np.uint8)
    image = Image.fromarray(values, mode="P")
    image.putpalette([value for number in range(12) for value in (number * 20, 255 - number, 3)])
    image.save(tmp_path / "palette.png")
    assert np.array_equal(masks.read_label_image(tmp_path / "palette.png"), values)
    image.convert("RGB").save(tmp_path / "colours.png")
    with pytest.raises(DataError, match=r"colours\.png is no label image: its pixels are colours"):
        masks.read_label_image(tmp_path / "colours.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        masks.read_label_image(tmp_path / "broken.png")


def test_label_images_have_names_of_their_own_inside_the_folder() -> None:
    assert masks.mask_names(["set/a/x.jpg", "set/b/x.jpg"]) == {"set/a/x.jpg": "a/x.png", "set/b/x.jpg": "b/x.png"}
    assert masks.mask_names(["x.jpg", "x.png"]) == {"x.jpg": "x.jpg.png", "x.png": "x.png.png"}
    assert set(masks.mask_names(["a/../../q/x.png", "a/y.png"]).values()) == {"q/x.png", f"{Path.cwd().name}/a/y.png"}
    assert masks.mask_names([]) == {}


@given(
    channels=st.integers(2, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    inner=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_classes_at_the_size_of_the_image_are_those_of_interpolated_logits(
    channels: int, size: tuple[int, int], inner: tuple[int, int]
) -> None:
    logits = torch.randn(channels, *inner, generator=torch.Generator().manual_seed(channels))
    found, probability = class_map(logits, size=size, classes=range(channels))
    full = F.interpolate(logits[None], size=size[::-1], mode="bilinear")[0]
    assert torch.equal(found, full.argmax(0))
    torch.testing.assert_close(probability, full.softmax(0).amax(0))
    # The part of the code for borders agrees where there are none.
    again, _ = class_map(logits, size=size, classes=range(channels), placed=BoxMap(offset=(1e-12, 0.0)))
    assert (again == found).float().mean() > 0.9


def test_large_images_are_resampled_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    whole, _ = class_map(logits, size=(20, 30), classes=range(3))
    monkeypatch.setattr("acclimate.vision.models.class_maps._MOST_VALUES", 200)
    found, probability = class_map(logits, size=(20, 30), classes=range(3))
    assert (found == whole).float().mean() > 0.99
    assert probability.shape == (30, 20)


def test_pixels_outside_of_the_networks_input_have_no_class_and_borders_are_left_out() -> None:
    logits = torch.zeros(2, 4, 4)
    logits[0, :, :2] = logits[1, :, 2:] = 9.0
    # The input is the right half of the image.
    found, _ = class_map(logits, size=(8, 2), classes=range(2), placed=BoxMap(scale=(0.5, 1.0), offset=(0.5, 0.0)))
    assert found.tolist() == [[-1, -1, -1, -1, 0, 0, 1, 1]] * 2
    # The image is the middle half of the input: the left and the right quarter are borders.
    found, _ = class_map(logits, size=(4, 1), classes=range(2), placed=BoxMap(scale=(2.0, 1.0), offset=(-0.5, 0.0)))
    assert found.tolist() == [[0, 0, 1, 1]]


def test_only_classes_that_are_written_are_chosen() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0])[:, None, None].expand(3, 2, 2)
    found, probability = class_map(logits, size=(2, 2), classes=(1, 2))
    assert found.eq(1).all()
    assert float(probability[0, 0]) == pytest.approx(float(torch.tensor([3.0, 1.0, 2.0]).softmax(0)[2]))

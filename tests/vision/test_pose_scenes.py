"""Synthetic scenes: the drawn images agree with the labels."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from acclimate.errors import ConfigError, DataError
from acclimate.vision.demos.pose_scenes import CLASSES, SPLITS, Intrinsics, make_scene, split_digits
from acclimate.vision.demos.pose_scenes.backgrounds import draw_background
from acclimate.vision.demos.pose_scenes.camera import draw_intrinsics, draw_pose, perturbed
from acclimate.vision.demos.pose_scenes.dataset import write_dataset
from acclimate.vision.demos.pose_scenes.photos import load_photos, sample_photos
from acclimate.vision.demos.pose_scenes.tensors import as_tensors


def test_scenes_are_reproducible_and_depend_on_the_arguments() -> None:
    first, again = make_scene(3, split="val", seed=5), make_scene(3, split="val", seed=5)
    assert np.array_equal(first.image, again.image)
    assert first.plates[0].box == again.plates[0].box
    others = [
        make_scene(4, split="val", seed=5),
        make_scene(3, split="val", seed=6),
        make_scene(3, split="test", seed=5),
    ]
    assert not any(np.array_equal(first.image, other.image) for other in others)


@pytest.mark.slow
def test_splits_are_disjoint_and_complete() -> None:
    pools = [set(split_digits(split).tolist()) for split in SPLITS]
    assert set.union(*pools) == set(range(1797))
    assert sum(map(len, pools)) == 1797
    for split, pool in zip(SPLITS, pools, strict=True):
        drawn = {plate.digit_image for k in range(60) for plate in make_scene(k, split=split).plates}
        assert drawn <= pool
        # Every class is in every split.
        assert {int(load_digits().target[digit]) for digit in pool} == set(range(10))


def test_plates_are_where_their_poses_project() -> None:
    """The image contains the plate's printed square, warped by the labelled pose."""
    for index in range(40):
        scene = make_scene(index, split="train")
        for plate in scene.plates:
            corners = scene.intrinsics.project(plate.pose.corners_m()).clip(0, 96)
            assert np.allclose([*corners.min(0), *corners.max(0)], plate.box)
            centre = scene.intrinsics.project(plate.pose.translation[None])[0]
            assert -1 < centre.min() < centre.max() < 97
            assert np.allclose(plate.pose.rotation @ plate.pose.rotation.T, np.eye(3))
            assert np.linalg.det(plate.pose.rotation) == pytest.approx(1)
            # The printed side faces the camera.
            assert plate.pose.normal() @ plate.pose.translation < 0
            assert CLASSES[plate.digit] == str(load_digits().target[plate.digit_image])
            assert 0.69 < plate.visible_fraction <= 1.001


def test_a_plate_changes_only_its_own_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from acclimate.vision.demos.pose_scenes import scenes

    scene = make_scene(11, split="train")
    draw = scenes._draw_plate
    # Draw the same random numbers, on a canvas that is not used.
    monkeypatch.setattr(scenes, "_draw_plate", lambda rng, canvas, *rest: draw(rng, canvas.copy(), *rest))
    empty = make_scene(11, split="train")
    inside = np.zeros((96, 96), bool)
    for plate in scene.plates:
        polygon = scene.intrinsics.project(plate.pose.corners_m()).round().astype(np.int32)
        mask = np.zeros((96, 96), np.uint8)
        cv2.fillConvexPoly(mask, polygon, 1)
        inside |= mask.astype(bool)
    difference = np.abs(scene.image.astype(int) - empty.image.astype(int)).mean(-1)
    assert difference[inside].mean() > 20 * difference[~inside].mean()


def test_a_facing_plate_has_the_size_that_pinhole_geometry_gives() -> None:
    camera = Intrinsics(100.0, 100.0, 48.0, 48.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        pose = draw_pose(rng, camera, (48.0, 48.0), size_pixels=25.0)
        assert pose.translation[2] == pytest.approx(100 * 0.1 / 25)
        assert camera.project(pose.translation[None])[0] == pytest.approx([48, 48])


def test_intrinsics_are_off_by_at_most_a_tenth_and_the_correction_undoes_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        true = draw_intrinsics(rng, 96)
        given = perturbed(rng, true)
        correction = np.array(true.as_tuple()) / np.array(given.as_tuple()) - 1
        assert np.abs(correction).max() <= 0.1 + 1e-9
        assert np.abs(correction).max() > 0.001


def test_backgrounds_are_nearly_in_the_unit_range() -> None:
    for seed in range(40):
        background = draw_background(np.random.default_rng(seed), 64, sample_photos())
        assert background.shape == (64, 64, 3)
        assert -0.2 < background.min() <= background.max() < 1.2


def test_photos_are_cut_for_backgrounds(tmp_path: Path) -> None:
    red = np.zeros((80, 120, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    photos = load_photos(tmp_path)
    found = [make_scene(k, split="train", photos=photos).image for k in range(20)]
    reddish = [image for image in found if np.median(image[..., 0]) > 100 and np.median(image[..., 1:]) < 20]
    assert 4 <= len(reddish) <= 16


def test_small_photos_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="no photo of at least 32 x 32"):
        load_photos(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"split": "training"}, "unknown split 'training'"), ({"split": "test", "side": 16}, "at least 32 pixels")],
)
def test_bad_scenes_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scene(0, **arguments)  # type: ignore[arg-type]


def test_a_data_set_is_coco_with_poses(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", images=5, split="test", seed=2)
    content = json.loads(path.read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4, 5]
    coco = COCO(str(path))
    assert len(coco.anns) == len(content["annotations"])
    for number, image in enumerate(content["images"]):
        scene = make_scene(number, split="test", seed=2)
        pixels = np.asarray(Image.open(tmp_path / "set" / "images" / image["file_name"]))
        assert np.array_equal(pixels, scene.image)
        assert image["true_intrinsics"] == list(scene.intrinsics.as_tuple())
        annotations = coco.imgToAnns[image["id"]]
        assert len(annotations) == len(scene.plates)
        for annotation, plate in zip(annotations, scene.plates, strict=True):
            assert annotation["pose"]["rotation"] == plate.pose.rotation.tolist()
            assert annotation["pose"]["depth_m"] == plate.pose.translation[2]
    with pytest.raises(DataError, match="already there"):
        write_dataset(tmp_path / "set", images=5)
    with pytest.raises(ConfigError, match="images must be at least 1"):
        write_dataset(tmp_path / "other", images=0)


def test_tensors_equal_the_annotations_of_the_scene() -> None:
    scenes = [make_scene(k, split="train") for k in range(3)]
    images, given, labels = as_tensors(scenes)
    assert images.shape == (3, 3, 96, 96)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    for scene, intrinsics, label in zip(scenes, given, labels, strict=True):
        assert torch.allclose(intrinsics * 96, torch.tensor(scene.given_intrinsics.as_tuple(), dtype=torch.float32))
        boxes = label["boxes"] * 96
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        assert torch.allclose(corners, torch.tensor([plate.box for plate in scene.plates]), atol=1e-3)

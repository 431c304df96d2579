"""Scenes written out as a COCO data set whose annotations also carry the pose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from acclimate.errors import ConfigError, DataError
from acclimate.output_files import check_folder_writable, make_folder, open_output
from acclimate.vision.data.corruptions import Uint8Image
from acclimate.vision.data.predictions import write_json
from acclimate.vision.demos.pose_scenes.scenes import CLASSES, HALF_TURN_SYMMETRIC, Scene, make_scene
from acclimate.vision.demos.pose_scenes.splits import IMAGE_SIDE, Split


def write_dataset(
    folder: Path,
    *,
    images: int,
    split: Split = "test",
    seed: int = 0,
    side: int = IMAGE_SIDE,
    photos: Sequence[Uint8Image] = (),
    on_image: Callable[[int], None] | None = None,
) -> Path:
    """Write ``images/*.png`` and ``annotations.json``; return the latter's path.

    Each image has ``intrinsics`` ``[fx, fy, cx, cy]`` in pixels, as a bad calibration gives them, and
    ``true_intrinsics``. Each annotation has, besides COCO's own fields, ``pose``: ``rotation`` (3 x 3, from plate to
    camera), ``translation`` (of the plate's centre in metres), ``depth_m`` and ``half_turn_symmetric``;
    ``visible_fraction``, and the ``digit_image`` it carries.

    Raises:
        ConfigError: no image is wanted, or the scenes cannot be made (see :func:`make_scene`).
        DataError: there is a data set in the folder already, or it cannot be written to.
    """
    if images < 1:
        raise ConfigError(f"images must be at least 1, got {images}")
    check_folder_writable(folder)
    target = folder / "annotations.json"
    if target.exists():
        raise DataError(f"{target} is already there; nothing is overwritten: give another folder")
    first = make_scene(0, split=split, seed=seed, side=side, photos=photos)
    make_folder(folder / "images")
    content: dict[str, Any] = {
        "info": {"description": "acclimate pose-scenes", "split": split, "seed": seed},
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES)],
    }
    for index in range(images):
        scene = first if index == 0 else make_scene(index, split=split, seed=seed, side=side, photos=photos)
        name = f"{split}_{seed}_{index:05d}.png"
        with open_output(folder / "images" / name) as file:
            Image.fromarray(scene.image).save(file, "PNG")
        content["images"].append(_image(scene, index + 1, name))
        content["annotations"] += [
            {"id": len(content["annotations"]) + number, **annotation}
            for number, annotation in enumerate(_annotations(scene, index + 1), start=1)
        ]
        if on_image is not None:
            on_image(index + 1)
    write_json(target, content)
    return target


def _image(scene: Scene, number: int, name: str) -> dict[str, Any]:
    height, width = scene.image.shape[:2]
    return {
        "id": number,
        "file_name": name,
        "width": width,
        "height": height,
        "intrinsics": list(scene.given_intrinsics.as_tuple()),
        "true_intrinsics": list(scene.intrinsics.as_tuple()),
    }


def _annotations(scene: Scene, number: int) -> list[dict[str, Any]]:
    return [
        {
            "image_id": number,
            "category_id": plate.digit,
            "bbox": [plate.box[0], plate.box[1], plate.box[2] - plate.box[0], plate.box[3] - plate.box[1]],
            "area": (plate.box[2] - plate.box[0]) * (plate.box[3] - plate.box[1]),
            "iscrowd": 0,
            "pose": {
                "rotation": plate.pose.rotation.tolist(),
                "translation": plate.pose.translation.tolist(),
                "depth_m": float(plate.pose.translation[2]),
                "half_turn_symmetric": plate.digit in HALF_TURN_SYMMETRIC,
            },
            "visible_fraction": plate.visible_fraction,
            "digit_image": plate.digit_image,
        }
        for plate in scene.plates
    ]

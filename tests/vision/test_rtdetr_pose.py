"""The detector with pose heads: conventions, losses, loading, adapting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from acclimate.core import Session
from acclimate.core.selection import TensorFilter
from acclimate.errors import CheckpointError, ConfigError, DataError
from acclimate.methods import Mim, Tent
from acclimate.vision.data.records import load_dataset
from acclimate.vision.demos.pose_scenes import CLASSES, PLATE_SIDE_M, make_scene
from acclimate.vision.demos.pose_scenes.dataset import write_dataset
from acclimate.vision.demos.pose_scenes.tensors import as_tensors
from acclimate.vision.models.adapter import Adapter
from acclimate.vision.models.detection import Detection
from acclimate.vision.models.rtdetr_pose import (
    RTDETRPose,
    RTDETRPoseConfig,
    decode_pose,
    encode_pose,
    rotation_angle,
    rotation_from_6d,
    small_config,
)
from acclimate.vision.models.rtdetr_pose.adapter import POSE_OUTPUTS, RTDETRPoseAdapter
from acclimate.vision.models.rtdetr_pose.losses import rotation_loss
from acclimate.vision.models.rtdetr_pose.pose import rotation_to_6d
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt import TTTRun
from tests.networks import assert_identical, tensors_of


@pytest.fixture(scope="module")
def model() -> RTDETRPose:
    torch.manual_seed(0)
    return RTDETRPose(small_config(CLASSES, num_queries=10)).eval()


@pytest.fixture(scope="module")
def folder(model: RTDETRPose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("plates"), images=6, split="test")


def heads_that_are_right(label: dict[str, Tensor]) -> dict[str, Tensor]:
    truth = encode_pose(label["rotation"], label["translation"], label["boxes"], label["intrinsics"])
    return {"pred_boxes": label["boxes"][None], **{key: value[None] for key, value in truth.items()}}


def test_decoded_poses_project_onto_the_ground_truth() -> None:
    """With the target outputs of the heads, the decoded pose projects the corners of every plate to where they are."""
    scenes = [make_scene(k, split="test") for k in range(30)]
    _, given, labels = as_tensors(scenes)
    for scene, intrinsics, label in zip(scenes, given, labels, strict=True):
        outputs = {**heads_that_are_right(label), "k_delta": (label["intrinsics"] / intrinsics - 1)[None]}
        rotations, translations = decode_pose(outputs, intrinsics[None])
        for plate, rotation, translation in zip(scene.plates, rotations[0], translations[0], strict=True):
            corners = PLATE_SIDE_M / 2 * torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
            points = (corners @ rotation.T + translation).double().numpy()
            seen = scene.intrinsics.project(points)
            drawn = scene.intrinsics.project(plate.pose.corners_m())
            assert np.abs(seen - drawn).max() < 0.01  # pixels
            assert torch.allclose(translation, torch.tensor(plate.pose.translation, dtype=torch.float32), atol=1e-4)


def test_wrong_intrinsics_move_the_pose_and_the_correction_moves_it_back() -> None:
    scene = make_scene(0, split="test")
    _, given, labels = as_tensors([scene])
    heads = heads_that_are_right(labels[0])
    right = labels[0]["translation"]
    uncorrected = decode_pose({**heads, "k_delta": torch.zeros(1, 4)}, given)[1][0]
    corrected = decode_pose({**heads, "k_delta": labels[0]["intrinsics"][None] / given - 1}, given)[1][0]
    assert float((uncorrected - right).norm(dim=1).min()) > 1e-3
    assert torch.allclose(corrected, right, atol=1e-4)


def test_rotations_survive_a_round_trip_through_six_numbers() -> None:
    numbers = torch.randn(50, 6)
    rotations = rotation_from_6d(numbers)
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3).expand(50, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(50), atol=1e-5)
    assert torch.allclose(rotation_from_6d(rotation_to_6d(rotations)), rotations, atol=1e-5)
    # Columns of another length, and not orthogonal, give the same rotation.
    bent = torch.cat([3 * numbers[:, :3], numbers[:, 3:] + 2 * numbers[:, :3]], dim=1)
    assert torch.allclose(rotation_from_6d(bent), rotations, atol=1e-4)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 120.0])
def test_the_angle_between_rotations(degrees: float) -> None:
    turn = np.radians(degrees)
    rotation = torch.tensor(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]], dtype=torch.float32
    )
    assert float(rotation_angle(torch.eye(3), rotation)) == pytest.approx(turn, abs=1e-3)


def test_half_a_turn_of_a_symmetric_object_has_no_loss() -> None:
    rotation = rotation_from_6d(torch.randn(4, 6))
    turned = rotation @ torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    losses = [float(rotation_loss(rotation_to_6d(turned), rotation, torch.full((4,), flag))) for flag in (True, False)]
    assert losses[0] == pytest.approx(0, abs=1e-4)
    assert losses[1] > 1


def test_shapes_and_parameters(model: RTDETRPose) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) <= 2_500_000
    with torch.no_grad():
        outputs = model(torch.rand(2, 3, 96, 96), torch.rand(2, 4) + 0.5)
        rebuilt = model.reconstruct(torch.rand(2, 3, 96, 96))
    shapes = {key: tuple(value.shape) for key, value in outputs.items()}
    assert shapes == {
        "logits": (2, 10, 10),
        "pred_boxes": (2, 10, 4),
        "log_z": (2, 10, 1),
        "rot6d": (2, 10, 6),
        "offsets": (2, 10, 2),
        "k_delta": (2, 4),
    }
    assert rebuilt.shape == (2, 3, 96, 96)


def test_the_camera_head_depends_on_the_given_intrinsics(model: RTDETRPose) -> None:
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        default, same, other = (
            model(images, intrinsics)["k_delta"]
            for intrinsics in (None, torch.tensor([model.config.default_intrinsics]), torch.full((1, 4), 0.9))
        )
    assert torch.equal(default, same)
    assert not torch.equal(default, other)


def test_training_lowers_the_losses_of_boxes_poses_and_pixels() -> None:
    torch.manual_seed(0)
    network = RTDETRPose(small_config(CLASSES)).train()
    images, given, labels = as_tensors([make_scene(k, split="train") for k in range(4)])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    first: dict[str, float] = {}
    for step in range(12):
        outputs = network(images, given, labels)
        (outputs.loss + 10 * (network.reconstruct(images) - images).square().mean()).backward()
        if step == 0:
            first = {key: float(value.detach()) for key, value in outputs.loss_dict.items()}
            untouched = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
            assert not untouched
        optimizer.step()
        optimizer.zero_grad()
    last = {key: float(value.detach()) for key, value in outputs.loss_dict.items()}
    for name in ("loss_log_z", "loss_bbox", "loss_giou"):
        assert last[name] < first[name]
    # The outputs do not contain denoising queries.
    assert outputs.logits.shape[1] == network.config.num_queries == outputs.rot6d.shape[1]


def test_images_without_plates_can_be_trained_on() -> None:
    torch.manual_seed(0)
    network = RTDETRPose(small_config(CLASSES)).train()
    images, given, labels = as_tensors([make_scene(k, split="train") for k in range(2)])
    labels[0] = {key: value[:0] if key != "intrinsics" else value for key, value in labels[0].items()}
    loss = network(images, given, labels).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_a_saved_model_loads_and_gives_the_same_outputs(model: RTDETRPose, folder: Path) -> None:
    again = RTDETRPose.from_pretrained(folder).eval()
    assert isinstance(again.config, RTDETRPoseConfig)
    adapter = RTDETRPoseAdapter(str(folder))
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = model(images)
        for other in (again, adapter.get_model()):
            found = other(images)
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_half_precision_weights_are_loaded_as_float32(model: RTDETRPose, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(str(folder / "model.safetensors"))
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(half, str(tmp_path / "model.safetensors"))
    loaded = RTDETRPoseAdapter(str(tmp_path)).get_model()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, value in loaded.state_dict().items():
        assert torch.allclose(value.float(), weights[name].float(), atol=1e-2, rtol=1e-2), name


def test_missing_folders_and_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder with a config\.json"):
        RTDETRPoseAdapter(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="cannot load an RTDETRPose"):
        RTDETRPoseAdapter(str(tmp_path))
    weights = load_file(str(folder / "model.safetensors"))
    weights.pop("pose_head.0.weight")
    save_file(weights, str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"Missing key.*pose_head\.0\.weight"):
        RTDETRPoseAdapter(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "rtdetr_pose", "d_model": "many"}')
    with pytest.raises(CheckpointError, match="cannot load an RTDETRPose"):
        RTDETRPoseAdapter(str(tmp_path))


def test_entries_contain_poses_and_the_outputs_of_the_heads(folder: Path, plates: Path) -> None:
    dataset = load_dataset(plates)
    adapter = RTDETRPoseAdapter(str(folder), categories=dataset.categories, score_threshold=0.0)
    assert isinstance(adapter, Adapter)
    (batch,) = adapter.build_loader(dataset.records, batch_size=8)
    truth = json.loads(plates.read_text())["images"]
    for given, image in zip(batch.inputs["intrinsics"], truth, strict=True):
        assert torch.allclose(given * 96, torch.tensor(image["intrinsics"]), atol=1e-3)
    entries = adapter.predict(dataset.records)
    assert len(entries) == 6
    detection = entries[0]["detections"][0]
    assert {key: np.shape(value) for key, value in detection.items() if key not in ("bbox", "pose")} == {
        "class_id": (),
        "score": (),
        "log_z": (),
        "rot6d": (6,),
        "offsets": (2,),
        "k_delta": (4,),
    }
    box = detection["bbox"]
    rotation, translation = decode_pose(
        {
            "pred_boxes": torch.tensor([[[box["cx"], box["cy"], box["w"], box["h"]]]]),
            **{key: torch.tensor(detection[key]).reshape(1, 1, -1) for key in ("log_z", "rot6d", "offsets")},
            "k_delta": torch.tensor([detection["k_delta"]]),
        },
        batch.inputs["intrinsics"][:1],
    )
    assert np.allclose(detection["pose"]["rotation"], rotation[0, 0], atol=1e-4)
    # The written box is clipped at the image's edge, which shifts its centre.
    if min(box["cx"] - box["w"] / 2, box["cy"] - box["h"] / 2) > 0 and box["cx"] + box["w"] / 2 < 1:
        assert np.allclose(detection["pose"]["translation"][2], translation[0, 0, 2], atol=1e-4)


def test_images_of_another_size_and_without_intrinsics(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(make_scene(0, split="test", side=192).image).save(tmp_path / "large.png")
    adapter = RTDETRPoseAdapter(str(folder), score_threshold=0.0)
    (batch,) = adapter.build_loader(load_dataset(tmp_path).records, batch_size=4)
    assert batch.inputs["pixel_values"].shape == (1, 3, 96, 96)
    assert batch.inputs["intrinsics"][0].tolist() == pytest.approx(list(adapter.get_model().config.default_intrinsics))
    (entry,) = adapter.predict(load_dataset(tmp_path).records)
    assert (entry["width"], entry["height"]) == (192, 192)


def test_bad_intrinsics_in_a_coco_file_are_refused(plates: Path, tmp_path: Path) -> None:
    content = json.loads(plates.read_text())
    content["images"][0]["intrinsics"] = [1, 2, 3]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="intrinsics, where given, four numbers"):
        load_dataset(tmp_path / "annotations.json")


@pytest.mark.parametrize("target", ["pixels", "auto"])
def test_mim_reconstructs_pixels_and_restores_the_model(
    model: RTDETRPose, plates: Path, folder: Path, target: str
) -> None:
    adapter = RTDETRPoseAdapter(str(folder))
    (batch,) = adapter.build_loader(load_dataset(plates).records, batch_size=8)
    network = adapter.get_model()
    before = tensors_of(network)
    method = Mim(target=target, lr=1e-3)  # type: ignore[arg-type]
    with Session(network, method, task=adapter.task, guards=(), restore=True) as session:
        losses = [session.adapt(batch.inputs).loss for _ in range(6)]
        assert session.report().notes == ("mim: the target is pixels",)
    assert losses[-1] < losses[0]  # type: ignore[operator]
    assert_identical(network, before)


@pytest.mark.parametrize("kind", ["lora_only", "adapter_only", "lora_norm_only"])
def test_low_rank_weights_can_be_attached(folder: Path, plates: Path, kind: Any) -> None:
    adapter = RTDETRPoseAdapter(str(folder))
    (batch,) = adapter.build_loader(load_dataset(plates).records, batch_size=8)
    network = adapter.get_model()
    before = tensors_of(network)
    task = Detection(head="sigmoid", min_foreground=0.0, flips=False, extra_outputs=POSE_OUTPUTS)
    method = Tent(update=TensorFilter(kind=kind, lora_rank=2))
    with Session(network, method, task=task, guards=(), restore=True) as session:
        names = set(session.selection.parameters)
        assert session.adapt(batch.inputs).verdict == "kept"
        assert session.changed_param_count > 0
    assert any("pose_head" in name for name in names)
    assert any("backbone" in name for name in names)
    assert_identical(network, before)


@pytest.mark.parametrize("reset", ["online", "stream", "sample"])
def test_every_reset_policy_predicts_every_image(folder: Path, plates: Path, reset: Any) -> None:
    dataset = load_dataset(plates)
    adapter = RTDETRPoseAdapter(str(folder), categories=dataset.categories, score_threshold=0.0)
    plain = adapter.predict(dataset.records)
    with TTTRun(adapter, TTTConfig(method="bn", reset=reset, batch_size=3)) as run:
        entries = [entry for part in run.predictions(dataset.records) for entry in part]
    assert [entry["image"] for entry in entries] == [record.image for record in dataset.records]
    assert entries != plain
    assert adapter.predict(dataset.records) == plain

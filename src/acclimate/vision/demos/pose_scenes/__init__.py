"""Scenes of plates with handwritten digits, each with a known pose in front of a known camera."""

from acclimate.vision.demos.pose_scenes.camera import PLATE_SIDE_M, Intrinsics, PlatePose
from acclimate.vision.demos.pose_scenes.scenes import (
    CLASSES,
    HALF_TURN_SYMMETRIC,
    IMAGE_SIDE,
    SPLITS,
    Plate,
    Scene,
    Split,
    make_scene,
    split_digits,
)

__all__ = [
    "CLASSES",
    "HALF_TURN_SYMMETRIC",
    "IMAGE_SIDE",
    "PLATE_SIDE_M",
    "SPLITS",
    "Intrinsics",
    "Plate",
    "PlatePose",
    "Scene",
    "Split",
    "make_scene",
    "split_digits",
]

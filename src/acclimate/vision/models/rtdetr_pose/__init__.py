"""RT-DETR with pose heads: the model, its pose convention, and its adapter."""

from acclimate.vision.models.rtdetr_pose.configuration import RTDETRPoseConfig, small_config
from acclimate.vision.models.rtdetr_pose.model import RTDETRPose, RTDETRPoseOutput
from acclimate.vision.models.rtdetr_pose.pose import decode_pose, encode_pose, rotation_angle, rotation_from_6d

__all__ = [
    "RTDETRPose",
    "RTDETRPoseConfig",
    "RTDETRPoseOutput",
    "decode_pose",
    "encode_pose",
    "rotation_angle",
    "rotation_from_6d",
    "small_config",
]

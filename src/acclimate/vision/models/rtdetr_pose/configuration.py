"""The configuration of ``RTDETRPose``: that of RT-DETR, with settings of the pose heads."""

from __future__ import annotations

from typing import Any

from transformers import RTDetrConfig, RTDetrResNetConfig


class RTDETRPoseConfig(RTDetrConfig):  # type: ignore[misc]
    """Settings of an RT-DETR with pose heads, in addition to those of :class:`transformers.RTDetrConfig`.

    Args:
        image_side: side of the square images that the model was trained on, in pixels.
        reconstruction_stride: side in pixels of the patch that is reconstructed from one cell of the finest feature
            map.
        default_intrinsics: ``(fx / W, fy / H, cx / W, cy / H)`` of an unknown camera.
        pose_loss_weight: weight of the pose losses; that of the detector's own losses is 1.
        object_side_m: side of the square objects in metres, for drawing and for pose errors in metres.
    """

    model_type = "rtdetr_pose"
    image_side: int = 96
    reconstruction_stride: int = 8
    default_intrinsics: tuple[float, float, float, float] | list[float] = (1.175, 1.175, 0.5, 0.5)
    pose_loss_weight: float = 2.0
    object_side_m: float = 0.1


def small_config(class_names: tuple[str, ...], **changes: Any) -> RTDETRPoseConfig:
    """Return the configuration of this package's model: a ResNet of basic blocks and a two-layer decoder."""
    backbone = RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    settings: dict[str, Any] = {
        "backbone_config": backbone,
        "encoder_in_channels": [64, 96, 128],
        "encoder_hidden_dim": 64,
        "encoder_ffn_dim": 128,
        "encoder_attention_heads": 4,
        "encode_proj_layers": [2],
        "d_model": 64,
        "decoder_in_channels": [64, 64, 64],
        "decoder_ffn_dim": 128,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "num_queries": 20,
        "num_denoising": 12,
        "num_feature_levels": 3,
        "freeze_backbone_batch_norms": False,
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    return RTDETRPoseConfig(**{**settings, **changes})

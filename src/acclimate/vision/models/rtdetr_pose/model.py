"""RT-DETR (Zhao et al., CVPR 2024, arXiv 2304.08069) with heads for 6-DoF pose, intrinsics and reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import RTDetrForObjectDetection
from transformers.modeling_outputs import ModelOutput

from acclimate.vision.models.rtdetr_pose.configuration import RTDETRPoseConfig
from acclimate.vision.models.rtdetr_pose.losses import denoising_count, pose_losses


@dataclass
class RTDETRPoseOutput(ModelOutput):  # type: ignore[misc]
    """The outputs of the model.

    Attributes:
        loss: the weighted sum of all losses, where labels were given; ``loss_dict``: its parts.
        logits: ``(B, Q, K)``; the sigmoid of each is the score of a class.
        pred_boxes: ``(B, Q, 4)`` centre boxes ``(cx, cy, w, h)``, as fractions of the image.
        log_z: ``(B, Q, 1)`` logarithm of the virtual depth in metres, see :func:`decode_pose`.
        rot6d: ``(B, Q, 6)`` the first two columns of the rotation from object to camera.
        offsets: ``(B, Q, 2)`` from the box's centre to the projection of the object's centre, in box sizes.
        k_delta: ``(B, 4)`` relative correction of the given intrinsics ``(fx, fy, cx, cy)``.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    log_z: Tensor | None = None
    rot6d: Tensor | None = None
    offsets: Tensor | None = None
    k_delta: Tensor | None = None


class RTDETRPose(RTDetrForObjectDetection):  # type: ignore[misc]
    """An RT-DETR that also predicts the 6-DoF pose of each object.

    ``from_pretrained`` and ``save_pretrained`` read and write a folder of ``config.json`` and ``model.safetensors``.
    """

    config_class = RTDETRPoseConfig

    def __init__(self, config: RTDETRPoseConfig) -> None:
        super().__init__(config)
        self.loss_type = "RTDetrForObjectDetection"
        width, stride = config.d_model, config.reconstruction_stride
        self.pose_head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 9)
        )
        self.camera_head = nn.Sequential(nn.Linear(2 * width + 4, width), nn.ReLU(), nn.Linear(width, 4))
        self.reconstruction_head = nn.Sequential(
            nn.Conv2d(config.encoder_hidden_dim, 2 * width, 1), nn.ReLU(), nn.Conv2d(2 * width, 3 * stride**2, 1)
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        intrinsics: Tensor | None = None,
        labels: Sequence[dict[str, Tensor]] | None = None,
        **_: Any,
    ) -> RTDETRPoseOutput:
        """Detect objects and their poses.

        Args:
            pixel_values: ``(B, 3, H, W)`` in [0, 1].
            intrinsics: the assumed ones, ``(B, 4)``: ``(fx / W, fy / H, cx / W, cy / H)``; None uses the
                configuration's default.
            labels: for training: for each image ``class_labels`` ``(N,)``, ``boxes`` ``(N, 4)``, ``rotation``
                ``(N, 3, 3)``, ``translation`` ``(N, 3)``, ``symmetric`` ``(N,)`` (whether the object looks the same
                after half a turn about its z axis) and the true ``intrinsics`` ``(4,)``.
        """
        if intrinsics is None:
            default = torch.tensor(self.config.default_intrinsics, dtype=pixel_values.dtype, device=pixel_values.device)
            intrinsics = default.expand(len(pixel_values), 4)
        found = super().forward(pixel_values, labels=None if labels is None else list(labels))
        hidden = found.last_hidden_state
        pose = self.pose_head(hidden)
        k_delta = self._intrinsics_correction(found.encoder_last_hidden_state, intrinsics)
        heads = {"log_z": pose[..., :1], "rot6d": pose[..., 1:7], "offsets": pose[..., 7:]}
        if labels is not None:
            split = denoising_count(found)
            extra = pose_losses(self.config, found, heads, k_delta, intrinsics, labels)
            return RTDETRPoseOutput(
                loss=found.loss + self.config.pose_loss_weight * sum(extra.values()),
                loss_dict={**found.loss_dict, **extra},
                logits=found.logits[:, split:],
                pred_boxes=found.pred_boxes[:, split:],
                k_delta=k_delta,
                **{name: values[:, split:] for name, values in heads.items()},
            )
        return RTDETRPoseOutput(logits=found.logits, pred_boxes=found.pred_boxes, k_delta=k_delta, **heads)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the reconstruction ``(B, 3, H, W)`` of partly masked images; H and W are multiples of 32."""
        features = [feature for feature, _ in self.model.backbone(images, self._no_padding(images))]
        projected = [layer(feature) for layer, feature in zip(self.model.encoder_input_proj, features, strict=True)]
        finest = self.model.encoder(projected).last_hidden_state[0]
        return F.pixel_shuffle(self.reconstruction_head(finest), self.config.reconstruction_stride)

    def _intrinsics_correction(self, feature_maps: Sequence[Tensor], intrinsics: Tensor) -> Tensor:
        # Both the finest and the coarsest map, because vignetting is a change of brightness over the whole image.
        pooled = torch.cat([feature_maps[0].mean((2, 3)), feature_maps[-1].mean((2, 3))], dim=-1)
        return self.camera_head(torch.cat([pooled, intrinsics], dim=-1))  # type: ignore[no-any-return]

    @staticmethod
    def _no_padding(images: Tensor) -> Tensor:
        return images.new_ones(len(images), *images.shape[-2:])

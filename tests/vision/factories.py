"""Factories for the torch adapter, as users write them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from acclimate.vision.models.dense import NonMaximumSuppression
from acclimate.vision.models.preprocess import letterbox
from acclimate.vision.models.torch_adapter import TorchModel
from tests import networks


def classifier() -> TorchModel:
    return TorchModel(module=networks.classifier(), image_size=(16, 16), class_names=("a", "b", "c", "d", "e"))


def normalised() -> TorchModel:
    return TorchModel(module=networks.classifier("gn"), image_size=(16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


def detector() -> TorchModel:
    return TorchModel(module=networks.detector(), kind="detector", image_size=(32, 32), class_names=("x", "y", "z"))


def softmax_detector() -> TorchModel:
    return TorchModel(
        module=networks.detector(head="softmax"), kind="detector", head="softmax", image_size=(32, 32),
        class_names=("x", "y", "z"),
    )  # fmt: skip


def bare() -> nn.Module:
    return networks.classifier()


def scripted() -> TorchModel:
    return dataclasses.replace(classifier(), module=torch.jit.script(networks.classifier()))


def exported() -> TorchModel:
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(networks.classifier(), (networks.images(2),), dynamic_shapes=shapes)
    return dataclasses.replace(classifier(), module=program)


def exported_for_two() -> Any:
    return torch.export.export(
        nn.Sequential(nn.AdaptiveAvgPool2d(16), networks.classifier()), (torch.rand(2, 3, 20, 20),)
    )


def parallel() -> TorchModel:
    return dataclasses.replace(classifier(), module=nn.DataParallel(networks.classifier()))


def half() -> TorchModel:
    return dataclasses.replace(classifier(), module=networks.classifier().bfloat16())


class Dense(nn.Module):
    """A detector whose first box is always the upper left quarter of its input, found by two cells, and whose third is
    the whole input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        nothing = self.stem(images).mean() * 0
        boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.26, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
        logits = torch.tensor([[3.0, -6.0], [2.0, 1.0], [-6.0, 4.0]])
        return {
            "logits": (logits + nothing).expand(len(images), -1, -1),
            "pred_boxes": (boxes + nothing).expand(len(images), -1, -1),
        }


def dense() -> TorchModel:
    return TorchModel(
        module=Dense(),
        kind="detector",
        preprocess=letterbox((32, 32), channels="bgr", highest=255.0),
        postprocess=NonMaximumSuppression(iou=0.6),
        class_names=("x", "y"),
    )


def timm_like() -> nn.Module:
    module = networks.classifier()
    module.pretrained_cfg = {
        "input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 0.8,
        "interpolation": "bicubic", "num_classes": 5,
    }  # fmt: skip
    return module


def own_function() -> TorchModel:
    def prepare(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels[:16, :16].copy()).permute(2, 0, 1) / 127.5 - 1

    return TorchModel(module=networks.classifier(), preprocess=prepare, pixel_range=(-1.0, 1.0))


def wrong_function() -> TorchModel:
    return TorchModel(module=networks.classifier(), preprocess=lambda pixels: pixels)


def multilabel() -> TorchModel:
    return TorchModel(
        module=networks.classifier(), kind="multilabel", image_size=(16, 16), class_names=("a", "b", "c", "d", "e")
    )


def one_label() -> TorchModel:
    """One logit for each image."""
    return TorchModel(module=networks.classifier(classes=1), kind="multilabel", image_size=(16, 16), flips=False)


def one_logit() -> TorchModel:
    return TorchModel(module=networks.classifier(classes=1), image_size=(16, 16))


def probabilities() -> TorchModel:
    return TorchModel(module=nn.Sequential(networks.classifier(), nn.Softmax(-1)), image_size=(16, 16))


def scored_detector() -> TorchModel:
    class Scored(networks.Detector):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            found = super().forward(images)
            return {**found, "logits": found["logits"].sigmoid()}

    return TorchModel(module=Scored(), kind="detector", image_size=(32, 32))


def linear() -> TorchModel:
    """Return a model without normalisation layers."""
    return TorchModel(module=nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)), image_size=(8, 8))


def wrong() -> Any:
    return {"no": "model"}


def fails() -> Any:
    raise ImportError("a library of the model is missing")


def undeclared_detector() -> TorchModel:
    return TorchModel(module=networks.detector(), image_size=(32, 32))


def broken() -> TorchModel:
    model = networks.classifier()
    with torch.no_grad():
        model[5].weight.fill_(float("nan"))
    return TorchModel(module=model, image_size=(16, 16))


def sibling() -> TorchModel:
    """Return a model from a module in the current folder, which is imported when this is called."""
    import a_neighbour

    return TorchModel(module=a_neighbour.network(), image_size=(16, 16))


not_callable = 3


def segmenter() -> TorchModel:
    return TorchModel(
        module=networks.segmenter(), kind="segmenter", image_size=(16, 16), class_names=("a", "b", "c", "d", "e")
    )


def letterboxed_segmenter() -> TorchModel:
    return TorchModel(module=networks.segmenter(), kind="segmenter", preprocess=letterbox((16, 16)))


def foreground() -> TorchModel:
    """One logit for each pixel, in the form in which torchvision's segmenters return it."""

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = networks.segmenter(classes=1)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.network(images)}

    return TorchModel(module=Out(), kind="segmenter", image_size=(16, 16))

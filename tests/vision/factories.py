"""What users write for the torch adapter."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

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
    """No normalisation layer."""
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
    """Imports a neighbour of the current folder when it is called."""
    import a_neighbour

    return TorchModel(module=a_neighbour.network(), image_size=(16, 16))


not_callable = 3

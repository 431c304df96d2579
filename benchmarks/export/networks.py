"""Networks for this benchmark, with random weights: time and memory do not depend on them."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from acclimate.vision.models.preprocess import Preprocess
from acclimate.vision.models.torch_adapter import TorchModel

SECONDS_ELSEWHERE = 0.05


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, as in a ResNet."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inside, out, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return (self.second(self.first(images)) + self.shortcut(images)).relu()


def resnet() -> TorchModel:
    """A classifier of the size of ResNet-18 for images of 224 x 224."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inside, out, stride), Block(out, out, 1)]
        inside = out
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()
    return TorchModel(
        module=network,
        preprocess=Preprocess(
            fit="crop", size=(224, 224), shorter=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
    )


def tiny() -> TorchModel:
    """A classifier that costs hardly anything."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    ).eval()
    return TorchModel(module=network, image_size=(32, 32))


class Elsewhere(nn.Module):
    """Takes its time without the processor, as a network on a GPU does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1000)

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(SECONDS_ELSEWHERE * len(images))
        return self.head(images.mean((2, 3)))


def elsewhere() -> TorchModel:
    """A classifier that needs 50 ms for each image, and no processor."""
    torch.manual_seed(0)
    made = resnet()
    return TorchModel(module=Elsewhere().eval(), preprocess=made.preprocess)

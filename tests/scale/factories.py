"""Models for workers of their own."""

from __future__ import annotations

import time

from acclimate.vision.models.torch_adapter import TorchModel
from tests.vision.factories import classifier


def slow_classifier() -> TorchModel:
    """The classifier of the other tests, each pass of which takes at least a tenth of a second."""
    made = classifier()
    made.module.register_forward_pre_hook(lambda _module, _inputs: time.sleep(0.1))
    return made

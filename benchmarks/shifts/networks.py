"""Networks without BatchNorm for ``benchmarks/shifts``: the ResNet-20 of ``benchmarks/cifar`` with GroupNorm.

``train.py`` trains it; its weights are in ``weights/``. The folder of that benchmark has to be on the module path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from network import ResNet20
from safetensors.torch import load_file
from torch import nn

GROUP_CHANNELS: Final = 4
WEIGHTS: Final = Path(__file__).parent / "weights"


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


NETWORKS: Final = {"group_norm": lambda: ResNet20(_group_norm)}


def load_without_batch_norm(name: str) -> nn.Module:
    """Return one of ``NETWORKS`` with its trained weights, in eval mode."""
    model = NETWORKS[name]()
    stored = load_file(str(WEIGHTS / f"{name}.safetensors"))
    model.load_state_dict({key: value.float() for key, value in stored.items()})
    return model.eval()

"""Low-rank weights that were learned over many tasks, for the training on one task to begin with.

A folder ``start`` beside a model has them, in PEFT's format. Those of spark were learned with
``benchmarks/learned_start/train.py``: first-order meta-learning (Finn, Abbeel and Levine 2017, arXiv 1703.03400,
section 5.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from acclimate.core import lora

START_FOLDER: Final = "start"


@dataclass(frozen=True, slots=True)
class LearnedStart:
    """Initial values of low-rank weights, learned for one model.

    Attributes:
        weights: by layer name, ``(rank, in)`` and ``(out, rank)``, float32; their product is added unscaled.
    """

    weights: Mapping[str, tuple[Tensor, Tensor]]

    def of_rank(self, name: str, rank: int) -> tuple[Tensor, Tensor] | None:
        """Return the weights of a layer with at most ``rank`` directions, or None where the layer has none.

        Of more directions than ``rank``, the nearest product of that rank is returned; of fewer, those that there are.
        """
        found = self.weights.get(name)
        if found is None or len(found[0]) <= rank:
            return found
        return lora.nearest_of_rank(rank, *found)[0]

    @classmethod
    def beside(cls, folder: Path, network: Any) -> LearnedStart | None:
        """Return what the folder of a model has for ``network``, or None where it has nothing.

        Raises:
            CheckpointError: the files cannot be read, or do not fit the network.
        """
        if not (folder / START_FOLDER / "adapter_config.json").is_file():
            return None
        return cls.read(folder / START_FOLDER, network)

    @classmethod
    def read(cls, folder: Path, network: Any) -> LearnedStart:
        """Return what ``folder`` has for ``network``.

        Raises:
            CheckpointError: the files cannot be read, or do not fit the network.
        """
        with lora.loaded(network, folder) as pairs:
            return cls({n: (p.lora_A.detach().clone(), p.lora_B.detach() * p.scale) for n, p in pairs.items()})

"""Make a trained model better on the data in front of it, at test time, and prove that it did."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from acclimate.core import Budget, Classification, Session, SessionReport, TensorFilter
    from acclimate.methods import BatchNormStats, Cotta, Eata, Mim, Sar, Tent
    from acclimate.vision import TTTConfig, TTTRun, run_ttt

__version__ = "0.1.0"

__all__ = [
    "BatchNormStats",
    "Budget",
    "Classification",
    "Cotta",
    "Eata",
    "Mim",
    "Sar",
    "Session",
    "SessionReport",
    "TTTConfig",
    "TTTRun",
    "TensorFilter",
    "Tent",
    "run_ttt",
]

_ROOMS: Final = ("acclimate.core", "acclimate.methods", "acclimate.vision")


def __getattr__(name: str) -> Any:
    # Loaded when first used: torch takes seconds, and acclimate --help should not.
    if name in __all__:
        for room in _ROOMS:
            module = importlib.import_module(room)
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'acclimate' has no attribute {name!r}")

"""Make a trained model better on the data in front of it, at test time, and prove that it did."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from acclimate.extras import naming_missing_extra

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

_PUBLIC_PACKAGES: Final = ("acclimate.core", "acclimate.methods", "acclimate.vision")


def __getattr__(name: str) -> Any:
    # Loaded when first used: torch takes seconds, and acclimate --help should not.
    if name in __all__:
        for package in _PUBLIC_PACKAGES:
            with naming_missing_extra(f"acclimate.{name}"):
                module = importlib.import_module(package)
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'acclimate' has no attribute {name!r}")

"""Adaptation methods, one module for each. :mod:`acclimate.registry` finds every module that is added here."""

from __future__ import annotations

import importlib
from typing import Any

from acclimate.registry import METHODS

__all__ = sorted(entry.target.rpartition(":")[2] for entry in METHODS.shipped().values())


def __getattr__(name: str) -> Any:
    # A method is imported when it is first used. The stub beside this file, which "make docs" writes, is for type
    # checkers.
    for entry in METHODS.shipped().values():
        module, _, cls = entry.target.partition(":")
        if cls == name:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

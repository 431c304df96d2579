"""Adaptation methods: one paper, one file. :mod:`acclimate.registry` finds whatever file is added here."""

from __future__ import annotations

import importlib
from typing import Any

from acclimate.registry import METHODS

__all__ = sorted(entry.target.rpartition(":")[2] for entry in METHODS.shipped().values())


def __getattr__(name: str) -> Any:
    # Imported when it is first used. The stub beside this file is for type checkers; make docs writes it.
    for entry in METHODS.shipped().values():
        module, _, cls = entry.target.partition(":")
        if cls == name:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

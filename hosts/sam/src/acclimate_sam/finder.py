"""Finds modules below ``sam`` that no other finder has found.

A host may have a package ``sam`` of its own, so this one is not installed under that name: a finder at the end of
``sys.meta_path`` provides those of its modules that the host does not have. It is loaded at every start of Python, so
it imports only what it needs.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TREE = Path(__file__).parent / "sam"


class Finder:
    """Finds modules of :data:`TREE` under the name ``sam``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a module below ``sam``, or None."""
        first, *rest = fullname.split(".")
        if first != "sam":
            return None
        place = TREE.joinpath(*rest)
        if (package := place / "__init__.py").is_file():
            return importlib.util.spec_from_file_location(fullname, package, submodule_search_locations=[str(place)])
        module = place.with_suffix(".py")
        return importlib.util.spec_from_file_location(fullname, module) if rest and module.is_file() else None


def install() -> None:
    """Append the finder to ``sys.meta_path``, once."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())

"""Which changed copies of the examples a head is trained on: recipes by name, one list for each kind of input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from acclimate.errors import ConfigError
from acclimate.media.items import Item, Kind, Values
from acclimate.media.views import images, sounds

_Change = Callable[[Any, np.random.Generator], Any]


@dataclass(frozen=True, slots=True)
class Views:
    """A recipe: what is done for each copy.

    Attributes:
        name: as it is chosen.
        title: in words.
        copies: for each copy the changes, in order; the unchanged example is always used as well.
    """

    name: str
    title: str
    copies: tuple[tuple[_Change, ...], ...] = ()

    @property
    def count(self) -> int:
        """Copies of an example, the unchanged one included."""
        return 1 + len(self.copies)

    def of(self, item: Item) -> tuple[Values, ...]:
        """Return the copies of an item; the random numbers depend on the item alone, so that vectors can be kept."""
        found = []
        for number, changes in enumerate(self.copies):
            rng = np.random.default_rng([int(item.digest[:15], 16), number, len(self.name)])
            values: Any = item.values
            for change in changes:
                values = change(values, rng)
            found.append(np.ascontiguousarray(values))
        return tuple(found)


_NONE: Final = Views("none", "the examples alone")
_CROPS: Final = (images.crop, images.light)
_MIRRORED: Final = (images.crop, images.flip, images.light)
_SHIFTS: Final = (sounds.shift, sounds.speed, sounds.gain)

RECIPES: Final[Mapping[Kind, tuple[Views, ...]]] = {
    "image": (
        _NONE,
        Views("crops", "parts of the image in other light", (_CROPS,) * 4),
        Views(
            "damaged",
            "parts of the image, with noise or blurred",
            ((*_CROPS, images.noise), (*_CROPS, images.noise), (*_CROPS, images.blur), _CROPS),
        ),
        Views(
            "mirrored",
            "as damaged, and mirrored in half of the copies; wrong for characters",
            ((*_MIRRORED, images.noise), (*_MIRRORED, images.noise), (*_MIRRORED, images.blur), _MIRRORED),
        ),
    ),
    "audio": (
        _NONE,
        Views("shifts", "earlier or later, faster or slower, louder or quieter", (_SHIFTS,) * 4),
        Views(
            "damaged",
            "as shifts, with noise or reverberation",
            (
                (*_SHIFTS, sounds.noise),
                (*_SHIFTS, sounds.noise),
                (*_SHIFTS, sounds.reverberation),
                (*_SHIFTS, sounds.reverberation, sounds.noise),
            ),
        ),
    ),
}


DEFAULT_VIEWS: Final[Mapping[Kind, tuple[str, ...]]] = {"image": ("damaged", "none"), "audio": ("damaged", "none")}
"""Those that are compared by default; the first is taken unless the other is better on held-out examples.

Mirrored copies gained nothing on photos and are wrong for characters. Crops and shifts without damage were not better
than the examples alone on undamaged queries, and worse than ``damaged`` on damaged ones.
"""


def views_named(kind: Kind, name: str) -> Views:
    """Return a recipe by its name.

    Raises:
        ConfigError: there is none with this name for this kind of input.
    """
    for views in RECIPES[kind]:
        if views.name == name:
            return views
    known = ", ".join(views.name for views in RECIPES[kind])
    raise ConfigError(f"unknown views {name!r} for inputs of kind {kind}; choose one of {known}")

"""Which scenes there are: three series that share no digit image."""

from __future__ import annotations

from typing import Final, Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
IMAGE_SIDE: Final = 96
"""Of a scene, in pixels, unless told otherwise."""

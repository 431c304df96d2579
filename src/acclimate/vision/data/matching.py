"""Matching of predicted images to the images of a ground truth file, by their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from acclimate.errors import DataError


class ImageNames:
    """Finds the image of a ground truth file that a path belongs to.

    That is the one with the longest common end of the path. Where one of two paths is the end of the other, they match
    better than paths that differ in a folder: ``set/1.png`` is ``1.png`` rather than ``other/1.png``.

    Args:
        names: file names, with or without folders, by the id in the file.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._by_name: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
        for number, name in names.items():
            parts = PurePath(name).parts
            self._by_name.setdefault(parts[-1] if parts else "", []).append((number, parts))

    def match(self, image: str) -> int:
        """Return the id of the image at a path.

        Raises:
            DataError: no image has this name, or several match equally well.
        """
        parts = PurePath(image).parts
        name = parts[-1] if parts else ""
        candidates = self._by_name.get(name, [])
        ranked = [(_likeness(parts, own), number) for number, own in candidates]
        best = max((likeness for likeness, _ in ranked), default=None)
        found = [number for likeness, number in ranked if likeness == best]
        if not found:
            raise DataError(
                f"the ground truth has no images called {name!r}, so {image} cannot be scored; each predicted image "
                "must match exactly one"
            )
        if len(found) > 1:
            raise DataError(
                f"{image} matches {len(found)} images of the ground truth equally well (their ids are "
                f"{', '.join(map(str, found[:3]))}{', ...' if len(found) > 3 else ''}); give file names with folders "
                "in the ground truth, so that each predicted image matches exactly one"
            )
        return found[0]

    def match_all(self, images: Sequence[str]) -> dict[str, int]:
        """Return the ids of several images by their paths.

        Raises:
            DataError: an image matches none or several images of the ground truth, or two images match the same one.
        """
        found: dict[str, int] = {}
        taken: dict[int, str] = {}
        for image in images:
            number = self.match(image)
            if number in taken:
                raise DataError(
                    f"{image} and {taken[number]} match the same image of the ground truth (id {number}); predict each "
                    "image once, and give file names with folders in the ground truth"
                    if image != taken[number]
                    else f"{image} is predicted twice and cannot be scored; predict each image once"
                )
            found[image] = number
            taken[number] = image
        return found


def _likeness(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[bool, int]:
    """Return whether one path is the end of the other, and the number of their common last parts."""
    common = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        common += 1
    return common == min(len(first), len(second)), common

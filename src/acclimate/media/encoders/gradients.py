"""Histograms of gradients and coarse colours: an encoder without weights, for drawings, characters and small images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from acclimate.media.encoders.protocol import EncoderInfo, Vectors
from acclimate.media.items import Values


@dataclass(frozen=True, slots=True)
class Gradients:
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of the grey image, and a small copy in colour.

    Attributes:
        side: images are scaled to this square.
        cell: side of a cell, in pixels; a block is 2 x 2 cells, and blocks overlap by half, as in the paper.
        orientations: bins of the histogram of one cell, over 180 degrees, as in the paper.
        largest_share: entries of a normalised block are cut to this before it is normalised again, as in the paper.
        colour_side: of the small copy.
        colour_weight: length of the small copy relative to that of the histograms.
    """

    side: int = 32
    cell: int = 4
    orientations: int = 9
    largest_share: float = 0.2
    colour_side: int = 4
    colour_weight: float = 0.5
    info: ClassVar[EncoderInfo] = EncoderInfo(
        name="gradients",
        kind="image",
        title="Histograms of oriented gradients and coarse colours",
        licence="-",
        source="a formula",
        cost_ms=0.3,
    )

    @property
    def identity(self) -> str:
        """The settings."""
        return repr(self)

    def encode(self, values: Sequence[Values]) -> Vectors:
        """Return vectors of 1,812 numbers (with the default settings)."""
        return np.stack([self._one(cast("NDArray[np.uint8]", image)) for image in values])

    def _one(self, image: NDArray[np.uint8]) -> Vectors:
        small = cv2.resize(image, (self.side, self.side), interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        colours = cv2.resize(small, (self.colour_side, self.colour_side), interpolation=cv2.INTER_AREA)
        colour = colours.astype(np.float32).ravel() / 255 - 0.5
        return np.concatenate([_unit(self._blocks(grey).ravel()), self.colour_weight * _unit(colour)])

    def _blocks(self, grey: Vectors) -> Vectors:
        """Return the histograms of blocks of 2 x 2 cells, each of length 1."""
        down, right = np.gradient(grey)
        strength = np.hypot(down, right)
        # Each gradient counts for the two nearest orientations; opposite directions are one orientation.
        place = np.arctan2(down, right) / np.pi % 1 * self.orientations
        lower = np.floor(place).astype(int)
        share = place - lower
        cells = self.side // self.cell
        rows, columns = np.indices(grey.shape) // self.cell
        histograms = np.zeros((cells, cells, self.orientations), np.float32)
        np.add.at(histograms, (rows, columns, lower % self.orientations), strength * (1 - share))
        np.add.at(histograms, (rows, columns, (lower + 1) % self.orientations), strength * share)
        corners = (histograms[:-1, :-1], histograms[:-1, 1:], histograms[1:, :-1], histograms[1:, 1:])
        blocks = np.concatenate(corners, axis=2)
        # As in the paper: normalised, large entries cut, normalised again.
        blocks = blocks / np.sqrt((blocks**2).sum(2, keepdims=True) + 1.0)
        blocks = np.minimum(blocks, self.largest_share)
        return np.asarray(blocks / np.sqrt((blocks**2).sum(2, keepdims=True) + 1e-4), np.float32)


def _unit(vector: Vectors) -> Vectors:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)

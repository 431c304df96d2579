"""The keys and values of the rows of a batch, which join and leave at any time.

Each row's token number t lies in column t. Rows of different lengths need no shifting then, and a row that joins or
leaves moves no other but the last: a mask says how many columns of each row count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

#: Columns are added and given back in steps of this many, so that few tokens cause a copy.
_COLUMN_STEP: Final = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """The keys and values of the beginning of a row.

    Attributes:
        layers: keys and values of each layer, ``(heads, tokens, width)``.
        token_count: that they are of.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    token_count: int

    @property
    def held_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer)


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, ``(rows, heads, columns, width)``; a pass writes some rows and reads them back."""

    def __init__(self, place: _Place) -> None:
        super().__init__()
        self._place = place

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self._place.rows, key_states.shape[1], self._place.columns)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self._place
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            kept[place.row_index, :, place.column_index] = new.transpose(1, 2).to(kept.dtype)
        return self.keys[place.first : place.last], self.values[place.first : place.last]

    def resized(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Return keys and values in another size; those that have room are kept."""
        found = []
        for old in (self.keys, self.values):
            new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
            kept_rows, kept_columns = min(rows, old.shape[0]), min(columns, old.shape[2])
            new[:kept_rows, :, :kept_columns] = old[:kept_rows, :, :kept_columns]
            found.append(new)
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._place.columns, 0

    def get_seq_length(self) -> int:
        # Positions and masks are given with every pass: what a model would derive from the length is not used.
        return 0

    def get_max_length(self) -> int:
        return -1


class _Place:
    """Which rows and columns the pass that is running writes."""

    def __init__(self) -> None:
        self.rows = self.columns = 0
        self.first = self.last = 0
        self.row_index = self.column_index = torch.empty(0, dtype=torch.long)


class KeyValues:
    """Keys and values of the rows of one network; for the thread that owns it.

    Args:
        layer_count: of the network.
        device: of the network.
    """

    def __init__(self, layer_count: int, device: torch.device) -> None:
        self._place = _Place()
        self._layers = [_Layer(self._place) for _ in range(layer_count)]
        self.cache = Cache(layers=self._layers)
        self._device = device

    @property
    def columns(self) -> int:
        """Tokens that a row can have now."""
        return self._place.columns

    @property
    def held_bytes(self) -> int:
        """Bytes of all rows, whether they are in use or not."""
        parts = (part for layer in self._layers if layer.is_initialized for part in (layer.keys, layer.values))
        return sum(part.numel() * part.element_size() for part in parts)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one row; 0 before the first pass."""
        return self.held_bytes // max(1, self._place.rows * self._place.columns)

    def fit(self, rows: int, columns: int) -> None:
        """Make room for ``rows`` of ``columns`` tokens, and give back what is far more than that."""
        place = self._place
        columns = -(-columns // _COLUMN_STEP) * _COLUMN_STEP
        wanted_rows = place.rows if rows <= place.rows <= 4 * rows else 1 << max(0, rows - 1).bit_length()
        wanted_columns = place.columns if columns <= place.columns <= 2 * columns else columns
        if (wanted_rows, wanted_columns) == (place.rows, place.columns):
            return
        # All of it is allocated before anything is replaced: a failure in between would leave layers that disagree.
        ready = [layer for layer in self._layers if layer.is_initialized]
        resized = [layer.resized(wanted_rows, wanted_columns) for layer in ready]
        for layer, (keys, values) in zip(ready, resized, strict=True):
            layer.keys, layer.values = keys, values
        place.rows, place.columns = wanted_rows, wanted_columns

    def aim(self, first: int, starts: Sequence[int], tokens: int) -> tuple[Tensor, Tensor]:
        """Say where the next pass writes; return its positions, ``(rows, tokens)``, and which columns each token sees.

        Args:
            first: number of its first row; the others follow.
            starts: for each row, the position of its first token.
            tokens: of each row.

        Returns:
            Positions, and a mask of the shape ``(rows, 1, tokens, columns)``, true where a column is seen.
        """
        place = self._place
        place.first, place.last = first, first + len(starts)
        positions = torch.tensor(starts, device=self._device)[:, None] + torch.arange(tokens, device=self._device)
        place.row_index = torch.arange(place.first, place.last, device=self._device)[:, None]
        place.column_index = positions
        seen = torch.arange(place.columns, device=self._device) <= positions[..., None]
        return positions, seen[:, None]

    def put(self, row: int, stored: Stored) -> None:
        """Let ``row`` begin with what was stored."""
        for layer, (keys, values) in zip(self._layers, stored.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[row, :, : stored.token_count] = keys
            layer.values[row, :, : stored.token_count] = values

    def take(self, row: int, tokens: int) -> Stored:
        """Return a copy of the first ``tokens`` tokens of ``row``."""
        layers = [
            (layer.keys[row, :, :tokens].clone(), layer.values[row, :, :tokens].clone()) for layer in self._layers
        ]
        return Stored(layers, tokens)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` tokens of one row over another row."""
        for layer in self._layers:
            for part in (layer.keys, layer.values):
                part[target, :, :tokens] = part[source, :, :tokens]

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first ``tokens`` tokens of two rows."""
        for layer in self._layers:
            for part in (layer.keys, layer.values):
                kept = part[one, :, :tokens].clone()
                part[one, :, :tokens] = part[other, :, :tokens]
                part[other, :, :tokens] = kept

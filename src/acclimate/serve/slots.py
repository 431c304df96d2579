"""Adapters in use, stacked by layer, so that the rows of one pass can use different ones.

A hook on each linear layer adds to the output of every row the low-rank product of the adapter in that row's slot. The
hooks are attached once, when the model is taken into service; without adapters in a pass they return at once. Slot 0 is
no adapter: its weights are zero for good.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from acclimate.core.lora import target_layers
from acclimate.errors import CheckpointError, TTTNotSupportedError
from acclimate.language import Adapter, LanguageModel

#: One product with the weights of all slots side by side reads each weight once and computes products that are thrown
#: away; gathering the weights of each row copies them first. Measured on a processor, the first is faster as long as
#: the tokens of a row times the slots stay below this.
_MOST_PRODUCTS: Final = 24


class OutOfSlotsError(Exception):
    """Every slot is in use by a row."""


class _Layer:
    """The stacked weights of one layer: ``down`` is ``(slots, rank, in)``, ``up`` is ``(slots, rank, out)``.

    ``up`` holds the scale of each adapter as well.
    """

    def __init__(self, sizes: tuple[int, int], slots: int, rank: int, like: Tensor) -> None:
        self.sizes = sizes
        self.down = like.new_zeros(slots, rank, sizes[0])
        self.up = like.new_zeros(slots, rank, sizes[1])

    def grown(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return both blocks with room for ranks of up to ``rank``; the weights that are added are zero."""
        more = rank - self.down.shape[1]
        return nn.functional.pad(self.down, (0, 0, 0, more)), nn.functional.pad(self.up, (0, 0, 0, more))


class AdapterSlots:
    """The adapters of one network that rows use or used last.

    It belongs to the thread that owns the network.

    Args:
        model: its network gets the hooks; :meth:`close` removes them.
        count: adapters that can be used in one pass.

    Attributes:
        loads: adapters copied into a slot so far.
    """

    def __init__(self, model: LanguageModel, count: int) -> None:
        self._network = model.network
        self._fingerprint = model.fingerprint
        self.count = count
        self._rank = 1
        names = target_layers(self._network, lambda _name: True)
        head = self._network.get_output_embeddings()
        self._layers: dict[str, _Layer] = {}
        self._handles = []
        self._rows: _Rows | None = None
        self._last_rows: _Rows | None = None
        #: Tests break the index on purpose, to prove that the tests of isolation would notice.
        self.index_of_row: Any = lambda slots: slots
        for name in names:
            layer = self._network.get_submodule(name)
            weight = layer.weight
            if layer is head or isinstance(layer, nn.Conv2d):
                continue
            transposed = type(layer).__name__ == "Conv1D"
            sizes = tuple(weight.shape) if transposed else tuple(reversed(weight.shape))
            self._layers[name] = stacked = _Layer(sizes, count + 1, self._rank, weight.detach())
            self._handles.append(layer.register_forward_hook(self._hook(stacked)))
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._uses: dict[str, int] = {}
        self._free = list(range(count, 0, -1))
        self.loads = 0

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def held_bytes(self) -> int:
        """Bytes of the stacked weights."""
        parts = (part for layer in self._layers.values() for part in (layer.down, layer.up))
        return sum(part.numel() * part.element_size() for part in parts)

    @property
    def in_use(self) -> int:
        """Slots that rows use now."""
        return len(self._uses)

    def check(self, adapter: Adapter) -> None:
        """Refuse an adapter that this network cannot use.

        Raises:
            CheckpointError: it belongs to another model, or changes layers that cannot be addressed by row.
        """
        if adapter.fingerprint != self._fingerprint:
            raise CheckpointError("the adapter was trained for another model; train it again")
        for name, (down, up) in adapter.weights.items():
            layer = self._layers.get(name)
            if layer is None:
                raise CheckpointError(f"the adapter changes the layer {name!r}, which cannot be addressed by row")
            if adapter.copies != 1 or (down.shape[-1], up.shape[0]) != layer.sizes:
                raise CheckpointError(f"the adapter does not fit the layer {name!r}")
        # One that is not finite would reach the rows of others: their share of it is zero times infinity.
        finite = [
            part.to(self._layers[name].down.dtype).isfinite().all()
            for name, pair in adapter.weights.items()
            for part in pair
        ]
        # One transfer from a GPU for all layers.
        if finite and not bool(torch.stack(finite).all()):
            raise CheckpointError("the adapter has weights that are not finite; train it again")

    def random_adapter(self, *, seed: int, size: float = 1.0) -> Adapter:
        """Return an adapter with random weights in every layer, to try the slots with.

        Args:
            seed: of the weights.
            size: by how much it changes outputs, as a share of how large they are.
        """
        rng = torch.Generator().manual_seed(seed)
        weights = {}
        for name, layer in self._layers.items():
            width = layer.sizes[0]
            scale = float(self._network.get_submodule(name).weight.detach().float().std()) * width**0.5 * size
            weights[name] = (
                torch.randn(2, width, generator=rng) / width**0.5,
                torch.randn(layer.sizes[1], 2, generator=rng) * scale,
            )
        return Adapter.of_weights(weights, rank=2, fingerprint=self._fingerprint)

    def acquire(self, identity: str, adapter: Adapter) -> int:
        """Return the slot of ``adapter``, in use by one row more.

        Args:
            identity: unlike that of every other adapter that was ever served, whatever its name.
            adapter: is copied into a slot unless it is there already.

        Raises:
            CheckpointError: see :meth:`check`.
            OutOfSlotsError: every slot is in use.
        """
        slot = self._slot_of.get(identity)
        if slot is None:
            self.check(adapter)
            slot = self._free_slot()
            try:
                self._write(slot, adapter)
            except BaseException:
                self._free.append(slot)
                raise
            self._slot_of[identity] = slot
        self._slot_of.move_to_end(identity)
        self._uses[identity] = self._uses.get(identity, 0) + 1
        return slot

    def release(self, identity: str) -> None:
        """Say that a row no longer uses the adapter; it stays in its slot until that is needed."""
        self._uses[identity] -= 1
        if not self._uses[identity]:
            del self._uses[identity]

    def drop(self, identity: str) -> None:
        """Free the slot of an adapter that no row uses and none will use again."""
        if identity not in self._uses and (slot := self._slot_of.pop(identity, None)) is not None:
            self._free.append(slot)

    @contextmanager
    def rows(self, slots: Sequence[int]) -> Iterator[None]:
        """Let the rows of the passes inside the block use the adapters in ``slots``, one for each row."""
        given = tuple(self.index_of_row(list(slots)))
        if any(given):
            if self._last_rows is None or self._last_rows.key != (given, self._rank):
                self._last_rows = _Rows(given, next(iter(self._layers.values())).down, self._rank)
            self._rows = self._last_rows
        try:
            yield
        finally:
            self._rows = None

    def _free_slot(self) -> int:
        if self._free:
            # The lowest ones, so that those in use lie side by side.
            self._free.sort(reverse=True)
            return self._free.pop()
        for identity, slot in self._slot_of.items():
            if identity not in self._uses:
                del self._slot_of[identity]
                return slot
        raise OutOfSlotsError

    def _write(self, slot: int, adapter: Adapter) -> None:
        if adapter.rank > self._rank:
            # All of it is allocated before anything is replaced: a failure in between would leave layers that disagree.
            grown = [layer.grown(adapter.rank) for layer in self._layers.values()]
            for layer, (down, up) in zip(self._layers.values(), grown, strict=True):
                layer.down, layer.up = down, up
            self._rank = adapter.rank
        scale = adapter.alpha / adapter.rank
        for name, layer in self._layers.items():
            layer.down[slot].zero_()
            layer.up[slot].zero_()
            if name in adapter.weights:
                down, up = adapter.weights[name]
                layer.down[slot, : adapter.rank] = down
                layer.up[slot, : adapter.rank] = up.T * scale
        self.loads += 1

    def _hook(self, layer: _Layer) -> Any:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            rows = self._rows
            return None if rows is None else rows.added(layer, inputs[0], output)

        return add


class _Rows:
    """Which row of a pass uses which slot; kept as long as the next passes have the same rows.

    Args:
        slots: one for each row, at least one of them not 0.
        like: a stacked weight, for device and number format.
        rank: of the stacked weights.
    """

    def __init__(self, slots: tuple[int, ...], like: Tensor, rank: int) -> None:
        used = sorted({slot for slot in slots if slot})
        self.key = (slots, rank)
        self._count = len(slots)
        self._first, self._last = used[0], used[-1] + 1
        self._span = self._last - self._first
        self._everybody = len(used) == 1 and all(slots)
        self._index = torch.tensor(slots, device=like.device)
        columns = torch.arange(self._span, device=like.device).repeat_interleave(rank)
        self._mine = ((self._index[:, None] - self._first) == columns[None])[:, None]
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def added(self, layer: _Layer, inputs: Tensor, output: Tensor) -> Tensor:
        """Return ``output``, ``(rows, tokens, out)``, with the low-rank products added."""
        if inputs.dim() != 3 or len(inputs) != self._count:
            # Experts, for example, are given the tokens of all rows mixed.
            raise TTTNotSupportedError("a layer is not given its rows one after the other; this model runs alone")
        tokens = inputs.shape[1]
        if not self._everybody and tokens * self._span > _MOST_PRODUCTS:
            down, up = layer.down[self._index], layer.up[self._index]
            return output.baddbmm_(torch.bmm(inputs, down.transpose(1, 2)), up)
        # Every row is multiplied by every adapter, and of each row only what is its own adapter's is kept.
        views = self._views.get(id(layer))
        if views is None:
            down = layer.down[self._first : self._last].flatten(0, 1)
            views = self._views[id(layer)] = (down.T, layer.up[self._first : self._last].flatten(0, 1))
        hidden = torch.mm(inputs.reshape(-1, inputs.shape[-1]), views[0])
        if not self._everybody:
            # A product can become infinite, and infinity times zero would reach other rows.
            hidden = torch.where(self._mine, hidden.view(self._count, tokens, -1), 0.0).view_as(hidden)
        output.view(-1, output.shape[-1]).addmm_(hidden, views[1])
        return output

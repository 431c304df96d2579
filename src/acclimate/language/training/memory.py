"""Bytes that one request holds beyond the loaded model, counted from what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn


class RequestMemory:
    """An account of the tensors that one request holds.

    Requests run side by side, so neither the resident size of the process nor the statistics of a GPU's allocator say
    what one of them takes. The parts of a request enter their tensors here instead.

    Counted: low-rank weights, their gradients and the optimizer's state; the activations below the first adapted layer
    that are kept between steps; the activations that the backward pass needs, measured as autograd saves them; hidden
    states and logits of held-out examples; the key-value caches of generated answers.

    Not counted: the model itself; adapters in an :class:`~acclimate.language.training.adapter_cache.AdapterManager`,
    which has a limit of its own; temporaries inside one operation; what torch and the system's allocator keep
    for reuse.

    For one thread: a request has its own.

    Attributes:
        held_bytes: now.
        peak_bytes: the most so far.
    """

    def __init__(self) -> None:
        self._parts: dict[str, int] = {}
        self.held_bytes = 0
        self.peak_bytes = 0

    def set(self, part: str, held_bytes: int) -> None:
        """Say that ``part`` of the request holds ``held_bytes`` from now on; 0 when it lets go."""
        self.held_bytes += held_bytes - self._parts.get(part, 0)
        self._parts[part] = held_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def part_bytes(self, part: str) -> int:
        """Return what ``part`` holds now."""
        return self._parts.get(part, 0)

    @contextmanager
    def holding(self, part: str, held_bytes: int) -> Iterator[None]:
        """Count ``held_bytes`` inside the block."""
        self.set(part, self._parts.get(part, 0) + held_bytes)
        try:
            yield
        finally:
            self.set(part, self._parts[part] - held_bytes)


class OverLimitError(Exception):
    """The activations of a forward pass would take the request over its limit."""


class Activations:
    """Measures what autograd saves in a forward pass for the backward pass.

    Every storage counts once and in full, however many views of it are saved. Storages that the request holds anyway
    (the model's weights, low-rank weights) do not count.

    Args:
        memory: to enter the measurement in, as ``activations``.
        max_bytes: that the request may hold; None for no limit.
    """

    PART: Final = "activations"

    def __init__(self, memory: RequestMemory, max_bytes: int | None) -> None:
        self._memory, self._max_bytes = memory, max_bytes
        self._measured: set[tuple[int, ...]] = set()

    @contextmanager
    def measured(self, network: nn.Module, shape: tuple[int, ...]) -> Iterator[None]:
        """Measure the forward passes inside the block, unless input of this ``shape`` was measured before.

        Raises:
            OverLimitError: inside the forward pass, when the request would hold more than its limit.
        """
        if shape in self._measured:
            yield
            return
        known = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
        self._memory.set(self.PART, 0)
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                total += storage.nbytes()
                self._memory.set(self.PART, total)
                if self._max_bytes is not None and self._memory.held_bytes > self._max_bytes:
                    raise OverLimitError
            return tensor

        # Hooks on saved tensors belong to the thread that sets them.
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self._measured.add(shape)


def training_bytes(weights: int, dtype: torch.dtype) -> int:
    """Return the bytes that training ``weights`` low-rank weights holds between steps.

    Learned values, their gradients and two moments of AdamW in float32, and the gradients of the layers; in another
    number format than float32 also the copies that the layers compute with.
    """
    learned, used = 4, dtype.itemsize
    return weights * (5 * learned if dtype == torch.float32 else 4 * learned + 3 * used)


def cache_bytes(key_values: Any) -> int:
    """Return the bytes of a transformers key-value cache."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in getattr(key_values, "layers", ())
        for tensor in vars(layer).values()
        if isinstance(tensor, Tensor)
    )


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def out_of_memory(error: Exception) -> bool:
    """Say whether an exception means that memory ran out."""
    # torch's allocator for processors raises a bare RuntimeError: its text is all there is to know it by.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

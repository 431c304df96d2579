"""Functions on the inputs and outputs of models: a tensor, or mappings, sequences and dataclasses of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor in ``tree``, depth first; values other than tensors and containers are ignored."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from tensors(getattr(tree, field.name))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return ``tree`` with ``function`` applied to every tensor; containers keep their types."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(function, value) for key, value in tree.items()}
        # transformers' ModelOutput is a dict that is also a dataclass: its constructor takes keywords.
        return type(tree)(**mapped) if dataclasses.is_dataclass(tree) else type(tree)(mapped)  # type: ignore[call-arg]
    if isinstance(tree, list | tuple):
        items = [map_tensors(function, value) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: map_tensors(function, getattr(tree, f.name)) for f in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **fields)
    return tree


def detach(tree: Any) -> Any:
    """Return ``tree`` with every tensor cut from the autograd graph."""
    return map_tensors(Tensor.detach, tree)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor of half precision as float32, and any other tensor itself."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def all_finite(tree: Any) -> bool:
    """Return whether every floating-point tensor in ``tree`` is free of NaN and infinity."""
    # A sum is finite only if all its terms are, and one reduction is cheaper than isfinite().all(). Finite network
    # outputs are too small for their sum to overflow in float64.
    for tensor in tensors(tree):
        if tensor.is_floating_point() and not torch.isfinite(tensor.detach().sum(dtype=torch.float64)):
            return False
    return True


def nbytes(tree: Any) -> int:
    """Return the number of bytes that the tensors in ``tree`` occupy; a tensor that occurs twice counts once."""
    distinct = {id(tensor): tensor for tensor in tensors(tree)}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def sample_count(batch: Any) -> int:
    """Return the length of the first dimension of the first tensor in ``batch``."""
    for tensor in tensors(batch):
        return int(tensor.shape[0])
    return 0

"""Copies of trainable parameters, buffers and optimizer moments, from which they can be restored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acclimate.core.method import Selection
from acclimate.core.outputs import nbytes
from acclimate.core.precision import AnyOptimizer, MasterCopies, precise


class Snapshot:
    """The values of a selection and of an optimizer's moments at one point in time.

    :meth:`capture` overwrites the previous copy in place, without allocating memory, except once for the moments that
    the optimizer creates in its first step.
    """

    def __init__(self, selection: Selection, optimizer: AnyOptimizer | None) -> None:
        self._parameters: list[Tensor] = [parameter.data for parameter in selection.parameters.values()]
        masters = optimizer.copies if isinstance(optimizer, MasterCopies) else []
        self._tensors = [*self._parameters, *selection.buffers.values(), *masters]
        self._copies = [torch.empty_like(tensor) for tensor in self._tensors]
        self._optimizer = optimizer
        self._moments: list[tuple[Any, str, Tensor]] = []
        self._other_state: list[tuple[Any, str, Any]] = []
        self._settings: list[dict[str, Any]] = []
        self.capture()

    @torch.no_grad()
    def capture(self) -> None:
        """Copy the present values over the previous ones."""
        _copy(self._copies, self._tensors)
        if self._optimizer is None:
            return
        live = [(p, key, value) for p, values in self._optimizer.state.items() for key, value in values.items()]
        moments = [(p, key, value) for p, key, value in live if isinstance(value, Tensor)]
        if [(id(p), key) for p, key, _ in moments] != [(id(p), key) for p, key, _ in self._moments]:
            self._moments = [(p, key, torch.empty_like(value)) for p, key, value in moments]
        _copy([copy for _, _, copy in self._moments], [value for _, _, value in moments])
        self._other_state = [entry for entry in live if not isinstance(entry[2], Tensor)]
        self._settings = [
            {key: value for key, value in group.items() if key != "params"} for group in self._optimizer.param_groups
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore every tensor, every moment and every optimizer setting exactly."""
        _copy(self._tensors, self._copies)
        if self._optimizer is None:
            return
        live = {(id(p), key): value for p, values in self._optimizer.state.items() for key, value in values.items()}
        self._optimizer.state.clear()
        targets, sources = [], []
        for parameter, key, copy in self._moments:
            moment = live.get((id(parameter), key))
            # Reuse the existing tensor, so that the optimizer keeps its memory.
            if not isinstance(moment, Tensor) or moment.shape != copy.shape:
                moment = torch.empty_like(copy)
            self._optimizer.state[parameter][key] = moment
            targets.append(moment)
            sources.append(copy)
        _copy(targets, sources)
        for parameter, key, value in self._other_state:
            self._optimizer.state[parameter][key] = value
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group.update(settings)

    @torch.no_grad()
    def distance(self) -> float:
        """Return the L2 distance of the selected parameters from this copy; NaN or infinity if they are not finite."""
        if not self._parameters:
            return 0.0
        differences = torch._foreach_sub(precise(self._parameters), precise(self.parameters))
        return _norm(list(differences))

    @torch.no_grad()
    def parameter_norm(self) -> float:
        """Return the L2 norm of the copied parameters."""
        return _norm(self.parameters) if self._parameters else 0.0

    @torch.no_grad()
    def changed_count(self) -> int:
        """Return how many elements of the selected parameters differ from this copy."""
        pairs = zip(self._parameters, self._copies, strict=False)
        changed = [(parameter != copy).sum() for parameter, copy in pairs]
        # One transfer from a GPU for all of them.
        return int(torch.stack(changed).sum()) if changed else 0

    @property
    def parameters(self) -> list[Tensor]:
        """The copied values of the selected parameters, in order."""
        return self._copies[: len(self._parameters)]

    @property
    def nbytes(self) -> int:
        """The bytes that the copies occupy."""
        return nbytes(self._copies) + nbytes([copy for _, _, copy in self._moments])


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    # Adam's step counts are on the CPU where its moments are on a GPU, and in a mixed list each tensor is copied by a
    # call of its own.
    by_device: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        pair = by_device.setdefault(target.device, ([], []))
        pair[0].append(target)
        pair[1].append(source)
    for some_targets, some_sources in by_device.values():
        torch._foreach_copy_(some_targets, some_sources)


def _norm(values: list[Tensor]) -> float:
    norms = torch._foreach_norm(precise(values))
    # In float64: the square of a large float32 norm would overflow and look like a non-finite update.
    return float(torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms])))

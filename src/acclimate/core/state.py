"""What a session has learned, in one safetensors file: weights, the method's state, optimizer moments, report.

A camera's adapted state survives a restart: a session that loads it goes on as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from acclimate.core.method import HasStateTypes, Method, Selection, settings_of
from acclimate.core.outputs import map_tensors
from acclimate.core.report import SessionReport, to_jsonable
from acclimate.errors import CheckpointError, first_line
from acclimate.registry import METHODS

FORMAT: Final = "acclimate session state 2"
_FORMAT_1: Final = "acclimate session state 1"
"""Named the classes of a method's state by their Python paths; of these only the last part is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """What a file holds.

    Attributes:
        method, settings: of the session that was saved; ``method_version``: of the method's state, see
            :class:`acclimate.registry.MethodInfo`.
        source_sha256: of the source model's weights and buffers: a state is of one model.
        weights: the selected parameters by name.
        method_state: the method's state, as it was. None where the file is of a method that is not installed.
        optimizer: its ``state_dict``, or None.
        rng: the state of the session's generator.
        optimizer_name: of its class.
        stream: what the comparison with the unadapted model, and pacing, know of the stream.
        report: of the session.
    """

    method: str
    method_version: int
    settings: Mapping[str, Any]
    source_sha256: str
    weights: Mapping[str, Tensor]
    method_state: Any
    optimizer: Any
    optimizer_name: str
    rng: Tensor
    stream: Any
    report: SessionReport

    @classmethod
    def of(
        cls,
        method: Method,
        report: SessionReport,
        *,
        source: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        method_state: Any,
        optimizer: torch.optim.Optimizer | None,
        rng: torch.Generator,
        stream: Any,
    ) -> SavedState:
        """Return the state of a session; ``source`` is every weight and buffer of the unadapted model."""
        return cls(
            method=method.info.name,
            method_version=method.info.state_version,
            settings=settings_of(method),
            source_sha256=fingerprint(source),
            weights=weights,
            method_state=method_state,
            optimizer=None if optimizer is None else optimizer.state_dict(),
            optimizer_name=type(optimizer).__name__,
            rng=rng.get_state(),
            stream=stream,
            report=report,
        )

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            CheckpointError: it cannot be written, or the method's state holds what files have no form for.
        """
        tensors: dict[str, Tensor] = {f"weights.{name}": value for name, value in self.weights.items()}
        described = {
            "format": FORMAT,
            "method": self.method,
            "method_version": str(self.method_version),
            "settings": json.dumps(self.settings),
            "source_sha256": self.source_sha256,
            "method_state": json.dumps(_described(self.method_state, "state", tensors)),
            "optimizer": json.dumps(_described(self.optimizer, "optimizer", tensors)),
            "optimizer_name": self.optimizer_name,
            "stream": json.dumps(_described(self.stream, "stream", tensors)),
        }
        tensors["rng"] = self.rng
        # A long report would not fit into the header.
        tensors["report"] = torch.frombuffer(bytearray(self.report.to_json(indent=None).encode()), dtype=torch.uint8)
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Copies: tensors that share memory are refused.
            save_file({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, partial, described)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise CheckpointError(f"state file {path} cannot be written: {reason}") from error

    @classmethod
    def read(cls, path: Path, *, method: Method | None = None) -> SavedState:
        """Read a file.

        Args:
            path: of the file.
            method: that goes on from it; None takes the registered method of the name in the file.

        Raises:
            CheckpointError: there is none, or it is no session's state.
        """
        if not path.exists():
            raise CheckpointError(f"state file {path} does not exist")
        try:
            with safe_open(str(path), framework="pt") as file:
                described = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"state file {path} cannot be read: {first_line(error)}") from error
        if described.get("format") not in (FORMAT, _FORMAT_1):
            raise CheckpointError(
                f"{path} is no state that acclimate saved (its format is {described.get('format')!r}); "
                "give a file that --ttt-save-state wrote"
            )
        name = described["method"]
        types = _state_types(name) if method is None else _types_of(method)
        state = json.loads(described["method_state"])
        return cls(
            method=name,
            method_version=int(described.get("method_version", 1)),
            settings=json.loads(described["settings"]),
            source_sha256=described["source_sha256"],
            weights={name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")},
            method_state=None if types is None else _restored(state, tensors, types),
            optimizer=_restored(json.loads(described["optimizer"]), tensors),
            optimizer_name=described["optimizer_name"],
            rng=tensors["rng"],
            stream=_stream_of(_restored(json.loads(described.get("stream") or described["memory"]), tensors)),
            report=SessionReport.from_json(bytes(tensors["report"].tolist()).decode()),
        )

    def on(self, device: torch.device) -> SavedState:
        """Return this state with what a session computes with on ``device``."""

        def moved(tree: Any) -> Any:
            return map_tensors(lambda tensor: tensor.to(device), tree)

        return dataclasses.replace(
            self, weights=moved(self.weights), method_state=moved(self.method_state), stream=moved(self.stream)
        )

    def put_back(self, optimizer: torch.optim.Optimizer | None, rng: torch.Generator) -> None:
        """Give an optimizer its moments back, but not its settings, and a generator its position.

        A generator of another kind of device keeps its own: their states have nothing in common.
        """
        if optimizer is not None:
            own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(self.optimizer)
            for group, settings in zip(optimizer.param_groups, own, strict=True):
                group.update(settings)
        if len(self.rng) == len(rng.get_state()):
            rng.set_state(self.rng)


def read_fitting(
    path: Path,
    method: Method,
    optimizer: torch.optim.Optimizer | None,
    selection: Selection,
    *,
    source: Mapping[str, Tensor],
) -> SavedState:
    """Read a file that a session of this method, selection and source model can go on from.

    Raises:
        CheckpointError: the file is no state, or of another model, method, optimizer or selection.
    """
    name, version = method.info.name, method.info.state_version
    saved = SavedState.read(path, method=method)
    if saved.method != name:
        raise CheckpointError(f"{path} is a state of {saved.method}, and this session's method is {name}")
    if saved.method_version != version:
        raise CheckpointError(
            f"{path} holds version {saved.method_version} of the state of {name}, and here it has version {version}; "
            "adapt anew, or use the version that saved it"
        )
    other = saved.weights.keys() ^ selection.parameters.keys()
    if other:
        raise CheckpointError(
            f"in {path} other parameters are trainable ({len(saved.weights)}, here {len(selection.parameters)}; first "
            f"{min(other)}); load it with the filter and the low-rank settings that it was saved with"
        )
    if saved.source_sha256 != fingerprint(source):
        raise CheckpointError(f"{path} is a state of another model; load it with the weights that it was saved with")
    if saved.optimizer_name != type(optimizer).__name__:
        raise CheckpointError(
            f"{path} holds the moments of {saved.optimizer_name}, and this session's optimizer is "
            f"{type(optimizer).__name__}; load it with the options that it was saved with"
        )
    return saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How one tensor differs between two states.

    Attributes:
        name: of the tensor.
        changed: elements that differ; ``elements``: all of them.
        distance: L2 norm of the difference; ``relative``: over the norm of the first; ``largest``: of one element.
    """

    name: str
    changed: int
    elements: int
    distance: float
    relative: float
    largest: float


def difference(first: SavedState, second: SavedState) -> tuple[Moved, ...]:
    """Return what moved between two states of one model, farthest first; a tensor that only one has is left out.

    Raises:
        CheckpointError: the states are of different models.
    """
    if first.source_sha256 != second.source_sha256:
        raise CheckpointError("the two states are of different models: their source weights differ")
    found = []
    for name in first.weights.keys() & second.weights.keys():
        a, b = first.weights[name].double(), second.weights[name].double()
        gap = b - a
        distance, norm = float(gap.norm()), float(a.norm())
        found.append(
            Moved(
                name=name,
                changed=int((gap != 0).sum()),
                elements=gap.numel(),
                distance=distance,
                relative=distance / norm if norm > 0 else math.inf if distance > 0 else 0.0,
                largest=float(gap.abs().max()) if gap.numel() else 0.0,
            )
        )
    return tuple(sorted(found, key=lambda moved: (-moved.relative, moved.name)))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _described(tree: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``tree`` as JSON; its tensors are put into ``tensors`` under names that begin with ``prefix``."""
    if isinstance(tree, Tensor):
        name = f"{prefix}.{len(tensors)}"
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"pairs": [[key, _described(value, prefix, tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple | list):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [_described(value, prefix, tensors) for value in tree]}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        cls = type(tree)
        fields = {f.name: _described(getattr(tree, f.name), prefix, tensors) for f in dataclasses.fields(tree)}
        return {"record": cls.__qualname__, "fields": fields}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": to_jsonable(tree)}
    raise CheckpointError(
        f"an object of type {type(tree).__name__} in a state cannot be saved; use tensors, numbers, text, or "
        "dataclasses of them that the method lists as its state_types"
    )


def _restored(described: Any, tensors: Mapping[str, Tensor], types: Mapping[str, type] | None = None) -> Any:
    """Return what :func:`_described` described; ``types`` are the dataclasses that may be in it, by name."""
    types = types or {}
    (kind, content), *rest = described.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "pairs":
        return {key: _restored(value, tensors, types) for key, value in content}
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_restored(value, tensors, types) for value in content)
    if kind in ("record", "class"):
        fields = {name: _restored(value, tensors, types) for name, value in dict(rest)["fields"].items()}
        name = content.rpartition(":")[2]
        if name not in types:
            # A file must not choose which code is called.
            raise CheckpointError(
                f"the state holds a record {name!r}, which is none of the method's state types "
                f"({', '.join(types) or 'it has none'}); was the file changed?"
            )
        return types[name](**fields)
    return content


def _types_of(method: Method | type) -> dict[str, type]:
    return {cls.__qualname__: cls for cls in method.state_types} if isinstance(method, HasStateTypes) else {}


def _state_types(name: str) -> dict[str, type] | None:
    """Return the state types of a registered method; None where no method of that name is installed."""
    return _types_of(METHODS.load(name)) if name in METHODS.names() else None


_RENAMED: Final = {
    "distrusted": "falling_back",
    "convinced": "sticky_fallback",
    "trips_in_a_row": "consecutive_failures",
    "judgements": "failures",
}
"""Keys of format 1."""


def _stream_of(stream: Any) -> Any:
    compared, paced = stream
    return {_RENAMED.get(key, key): value for key, value in compared.items()}, paced

"""State files: the adapted weights, the method's state, optimizer moments and report of a session, as safetensors.

A session that loads a state file continues as if it had not been interrupted, for example after a restart.
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
from safetensors.torch import save
from torch import Tensor

from acclimate.core.method import HasStateTypes, Method, Selection, settings_of
from acclimate.core.outputs import map_tensors
from acclimate.core.precision import AnyOptimizer, name_of
from acclimate.core.report import SessionReport
from acclimate.errors import CheckpointError, InputError, first_line
from acclimate.json_values import from_json, to_jsonable
from acclimate.output_files import is_regular, write_output
from acclimate.registry import METHODS

FORMAT: Final = "acclimate session state 2"
_FORMAT_1: Final = "acclimate session state 1"
"""The older format, which stores classes of a method's state by Python path; only the class name is read from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """The contents of a state file.

    Attributes:
        method, settings: name and hyper-parameters of the saved session's method; ``method_version``: the version of
            the method's state, see :class:`acclimate.registry.MethodInfo`.
        source_sha256: of the source model's weights and buffers; a state fits only the model it was saved with.
        weights: the trainable parameters by name.
        method_state: the method's state. None where the file is of a method that is not installed.
        optimizer: the optimizer's ``state_dict``, or None.
        rng: the state of the session's random generator.
        optimizer_name: the name of the optimizer's class.
        stream: the state of the comparison with the unadapted model, and of pacing.
        report: the report of the session.
        history: what the guards have seen of the stream, see :mod:`acclimate.core.history`; None if it was not saved.
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
    history: Any = None

    @classmethod
    def of(
        cls,
        method: Method,
        report: SessionReport,
        *,
        source: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        method_state: Any,
        optimizer: AnyOptimizer | None,
        rng: torch.Generator,
        stream: Any,
        history: Any = None,
    ) -> SavedState:
        """Return the state of a session; ``source`` contains every weight and buffer of the unadapted model."""
        return cls(
            method=method.info.name,
            method_version=method.info.state_version,
            settings=settings_of(method),
            source_sha256=fingerprint(source),
            weights=weights,
            method_state=method_state,
            optimizer=None if optimizer is None else optimizer.state_dict(),
            optimizer_name=name_of(optimizer),
            rng=rng.get_state(),
            stream=stream,
            report=report,
            history=history,
        )

    def write(self, path: Path) -> None:
        """Write the file atomically: on an error, an existing file is left unchanged.

        Raises:
            CheckpointError: the file cannot be written, or the method's state contains an object of another type than
                files can represent.
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
        if self.history is not None:
            described["history"] = json.dumps(_described(self.history, "history", tensors))
        tensors["rng"] = self.rng
        # As a tensor, because a long report would not fit into the header.
        tensors["report"] = torch.frombuffer(bytearray(self.report.to_json(indent=None).encode()), dtype=torch.uint8)
        # Clones, because safetensors rejects tensors that share memory.
        content = save({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, described)
        write_output(path, content, error=CheckpointError)

    @classmethod
    def read(cls, path: Path, *, method: Method | None = None) -> SavedState:
        """Read a file.

        Args:
            path: the file.
            method: the method that will use it; None takes the registered method that the file names.

        Raises:
            CheckpointError: the file does not exist, cannot be read, or is no session's state.
        """
        if not is_regular(path):
            raise CheckpointError(f"state file {path} does not exist; give a file that --ttt-save-state wrote")
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
        try:
            return cls._of(described, tensors, method)
        except InputError:
            raise
        except Exception as error:  # Readers of damaged files raise whatever the first use of a wrong value raises.
            raise CheckpointError(
                f"state file {path} is damaged ({type(error).__name__}: {first_line(error)}); save the state again"
            ) from error

    @classmethod
    def _of(cls, described: Mapping[str, str], tensors: Mapping[str, Tensor], method: Any) -> SavedState:
        name = described["method"]
        types = _state_types(name) if method is None else _types_of(method)
        state = from_json(described["method_state"])
        return cls(
            method=name,
            method_version=int(described.get("method_version", 1)),
            settings=from_json(described["settings"]),
            source_sha256=described["source_sha256"],
            weights={name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")},
            method_state=None if types is None else _restored(state, tensors, types),
            optimizer=_restored(from_json(described["optimizer"]), tensors),
            optimizer_name=described["optimizer_name"],
            rng=tensors["rng"],
            stream=_stream_of(_restored(from_json(described.get("stream") or described["memory"]), tensors)),
            report=SessionReport.from_json(bytes(tensors["report"].tolist()).decode()),
            history=_restored(from_json(described["history"]), tensors) if "history" in described else None,
        )

    def on(self, device: torch.device) -> SavedState:
        """Return this state with weights, method state and stream statistics on ``device``."""

        def moved(tree: Any) -> Any:
            return map_tensors(lambda tensor: tensor.to(device), tree)

        history = self.history
        if history is not None:
            # The states of generators are always on the CPU.
            history = {**history, "comparison": moved(history["comparison"])}
        return dataclasses.replace(
            self,
            history=history,
            weights=moved(self.weights),
            method_state=moved(self.method_state),
            stream=moved(self.stream),
        )

    def restore(self, optimizer: AnyOptimizer | None, rng: torch.Generator) -> None:
        """Restore the optimizer's moments, but not its settings, and the generator's state.

        A generator on another type of device than the saved one is not changed, because their states are incompatible.
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
    optimizer: AnyOptimizer | None,
    selection: Selection,
    *,
    source: Mapping[str, Tensor],
) -> SavedState:
    """Read a file and check that it fits a session of this method, optimizer, selection and source model.

    Raises:
        CheckpointError: the file is no state, or that of another model, method, optimizer or selection.
    """
    name, version = method.info.name, method.info.state_version
    saved = SavedState.read(path, method=method)
    if saved.method != name:
        raise CheckpointError(
            f"{path} is a state of {saved.method}, and this session's method is {name}; load it with {saved.method}"
        )
    if saved.method_version != version:
        raise CheckpointError(
            f"{path} holds version {saved.method_version} of the state of {name}, and the installed version of {name} "
            f"reads version {version}; adapt again without the file, or install the version that saved it"
        )
    other = saved.weights.keys() ^ selection.parameters.keys()
    if other:
        raise CheckpointError(
            f"in {path} other parameters are trainable than in this session ({len(saved.weights)}, here "
            f"{len(selection.parameters)}; the first difference is {min(other)}); load it with the filter and the "
            "low-rank settings that it was saved with"
        )
    if saved.source_sha256 != fingerprint(source):
        raise CheckpointError(f"{path} is a state of another model; load it with the weights that it was saved with")
    if saved.optimizer_name != name_of(optimizer):
        raise CheckpointError(
            f"{path} holds the moments of {saved.optimizer_name}, and this session's optimizer is "
            f"{name_of(optimizer)}; load it with the options that it was saved with"
        )
    return saved


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """How one tensor differs between two states.

    Attributes:
        name: of the tensor.
        changed: number of elements that differ; ``elements``: number of all elements.
        distance: L2 norm of the difference; ``relative``: the same over the norm of the first tensor; ``largest``: the
            largest difference of one element.
    """

    name: str
    changed: int
    elements: int
    distance: float
    relative: float
    largest: float


def difference(first: SavedState, second: SavedState) -> tuple[TensorDifference, ...]:
    """Return the differences between two states of one model, the largest relative one first.

    Tensors that only one of the states contains are left out.

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
            TensorDifference(
                name=name,
                changed=int((gap != 0).sum()),
                elements=gap.numel(),
                distance=distance,
                relative=distance / norm if norm > 0 else math.inf if distance > 0 else 0.0,
                largest=float(gap.abs().max()) if gap.numel() else 0.0,
            )
        )
    return tuple(sorted(found, key=lambda entry: (-entry.relative, entry.name)))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, number formats and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _described(tree: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``tree`` as JSON; its tensors are added to ``tensors`` under names that begin with ``prefix``."""
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
    """Return the object that :func:`_described` described; ``types``: the dataclasses that may occur in it, by name."""
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
            # Only listed classes are constructed, so that a file cannot choose which code is called.
            raise CheckpointError(
                f"the state holds a record {name!r}, which is none of the method's state types "
                f"({', '.join(types) or 'it has none'}); use an unmodified file that --ttt-save-state wrote"
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
"""Keys of format 1, and their present names."""


def _stream_of(stream: Any) -> Any:
    compared, paced = stream
    return {_RENAMED.get(key, key): value for key, value in compared.items()}, paced

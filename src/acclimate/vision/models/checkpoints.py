"""Loading weights from files as they are found: safetensors or pickles, wrapped by training code or not."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from acclimate.errors import CheckpointError, first_line

# Averaged weights come first: where a file has them, they are those that its training code evaluates.
_WRAPPERS: Final = (
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.")
_GLOBAL: Final = re.compile(r"GLOBAL ([\w.]+)")
_MOST_LEVELS: Final = 4
_UNREADABLE: Final = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, OSError)


def load_checkpoint(module: nn.Module, path: Path, *, trust_pickle: bool) -> tuple[str, ...]:
    """Load weights into a module; they must fit exactly. Return what was done to make them fit.

    A file that is not safetensors is read as a pickle of tensors, which executes nothing. Weights may lie under a key
    such as ``state_dict``, ``model`` or ``ema``, and their names may have a prefix such as ``module.``.

    Args:
        module: gets the weights.
        path: the file.
        trust_pickle: whether to load a pickle that contains other objects than tensors, which executes its code.

    Raises:
        CheckpointError: the file is missing, is not readable without executing code and ``trust_pickle`` is false, or
            does not fit the module.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} {'is a folder; name a file' if path.is_dir() else 'does not exist'}")
    content = _safetensors(path) if path.suffix == ".safetensors" else _unpickled(path, trust_pickle=trust_pickle)
    wanted = set(module.state_dict())
    found = list(_state_dicts(content, ()))
    if not found:
        raise CheckpointError(f"checkpoint {path} has no weights: {_shown(content)}; give a file with a state_dict")
    readings = [(keys, *renamed) for keys, state in found for renamed in _without_prefixes(state)]
    # Of equally good readings the first one is taken.
    keys, prefix, tensors = min(readings, key=lambda reading: len(reading[2].keys() ^ wanted))
    try:
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        # torch lists the tensors that do not fit on the lines after the first one.
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"checkpoint {path} cannot be loaded: {reason}") from error
    notes = []
    if keys:
        others = sorted({".".join(other) for other, _ in found if other != keys})
        rest = f" (it also has weights under {', '.join(map(repr, others))})" if others else ""
        notes.append(f"checkpoint: the weights under {'.'.join(keys)!r} were loaded{rest}")
    if prefix:
        notes.append(f"checkpoint: the prefix {prefix!r} of the weights' names was removed")
    return tuple(notes)


def _safetensors(path: Path) -> Any:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be loaded: {first_line(error)}") from error


def _unpickled(path: Path, *, trust_pickle: bool) -> Any:
    if _is_torchscript(path):
        raise CheckpointError(
            f"checkpoint {path} is a TorchScript program and no weights; return torch.jit.load({path.name!r}) from the "
            "factory instead"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if not isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"checkpoint {path} cannot be loaded: {first_line(error)[:300]}") from error
        if not trust_pickle:
            named = _GLOBAL.search(str(error))
            what = f"objects of other types than tensors (the first: {named[1]})" if named else "more than tensors"
            raise CheckpointError(
                f"checkpoint {path} is a pickle with {what}, and loading it executes code; save only the state_dict of "
                "the model, or pass --trust-pickle if you trust its source"
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {path} names a class that cannot be imported ({first_line(error)}); install or add what it "
            "comes from, or save only the state_dict of the model where that is installed"
        ) from error
    except Exception as error:
        # Unpickling executes code of any kind, which may raise anything.
        raise CheckpointError(f"checkpoint {path} cannot be loaded: {first_line(error)[:300]}") from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _state_dicts(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the state dicts in a checkpoint with the keys that lead to them, the preferred one first."""
    if isinstance(content, nn.Module):
        yield keys, content.state_dict()
    if not isinstance(content, Mapping) or len(keys) > _MOST_LEVELS:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for key in _WRAPPERS:
        if not isinstance(content.get(key), Tensor):
            yield from _state_dicts(content.get(key), (*keys, key))
    if tensors:
        yield keys, tensors


def _without_prefixes(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of a state dict under their own names and without common prefixes, with the removed prefix."""
    prefix, names = "", dict(state)
    for _ in range(_MOST_LEVELS):
        yield prefix, names
        known = next((known for known in _PREFIXES if names and all(name.startswith(known) for name in names)), None)
        if known is None:
            return
        prefix, names = prefix + known, {name.removeprefix(known): value for name, value in names.items()}


def _shown(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [str(key) for key in content]
        return f"its keys are {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}" if keys else "it is empty"
    return f"it is an object of type {type(content).__name__}"

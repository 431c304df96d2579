"""From settings to a method: which class, and which of its fields."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from acclimate.core.guards import Collapse, Guard, MaxDrift, MaxUpdate, NonFinite, ProbeLoss, WorseThanSource
from acclimate.core.method import Method
from acclimate.core.selection import TensorFilter
from acclimate.core.spectrum import PowerSpectrum
from acclimate.errors import ConfigError
from acclimate.methods import (
    Align,
    BatchNormStats,
    Blend,
    Cotta,
    Deyo,
    Eata,
    Lame,
    Memo,
    Mim,
    Roid,
    Rotta,
    Sar,
    SpectrumFilter,
    Tent,
)
from acclimate.vision.run.config import WITHOUT_GRADIENT, TTTConfig

METHODS: Final[dict[str, Any]] = {
    "tent": Tent,
    "mim": Mim,
    "cotta": Cotta,
    "eata": Eata,
    "sar": Sar,
    "bn": BatchNormStats,
    "spectrum": SpectrumFilter,
    "blend": Blend,
    "align": Align,
    "lame": Lame,
    "deyo": Deyo,
    "roid": Roid,
    "rotta": Rotta,
    "memo": Memo,
}

# What each paper moves; anything else is allowed and reported.
PAPER_FILTERS: Final[dict[str, str]] = {
    "tent": "norm_only",
    "eata": "norm_only",
    "sar": "norm_only",
    "deyo": "norm_only",
    "roid": "norm_only",
    "rotta": "norm_only",
    "cotta": "all",
    "align": "all",
    "memo": "all",
}
# Set through flags of their own.
_NOT_OPTIONS: Final = frozenset(
    {"update", "fisher", "source", "spectrum", "lr", "mask_probability", "patch_size", "mask_value"}
)


def make_method(
    config: TTTConfig, *, fisher: Mapping[str, Tensor] | None = None, source: PowerSpectrum | None = None
) -> Method:
    """Return the method that ``config`` describes.

    Raises:
        ConfigError: a method option is unknown or has the wrong type.
    """
    cls = METHODS[config.method]
    values = {name: parse_option(config.method, name, value) for name, value in config.method_options.items()}
    if config.method not in WITHOUT_GRADIENT:
        values["lr"] = config.lr
        values["update"] = tensor_filter(config)
    if config.method == "mim":
        values |= {
            "mask_probability": config.mask_prob,
            "patch_size": config.patch_size,
            "mask_value": config.mask_value,
        }
    if config.method == "eata" and fisher is not None:
        values["fisher"] = fisher
    if config.method == "spectrum":
        values["source"] = source
    if config.method in ("align", "blend") and source is not None:
        values["spectrum"] = SpectrumFilter(source=source)
    return typing.cast(Method, cls(**values))


def tensor_filter(config: TTTConfig) -> TensorFilter:
    """Return the filter that ``config`` describes."""
    return TensorFilter(
        kind=config.update_filter,
        include=config.include,
        exclude=config.exclude,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_targets=config.lora_targets,
        lora_seed=config.seed,
    )


def make_guards(config: TTTConfig) -> tuple[Guard, ...]:
    """Return the guards that ``config`` describes; none if they are turned off."""
    if not config.guards:
        return ()
    guards: list[Guard] = [NonFinite(), MaxUpdate(config.max_update), MaxDrift(config.max_drift)]
    if config.probe:
        guards.append(ProbeLoss())
    if config.collapse_share is not None:
        guards.append(Collapse(config.collapse_share))
    # The last, because it may cost a prediction.
    return (*guards, WorseThanSource())


def option_names(method: str) -> tuple[str, ...]:
    """Return the names of the fields of ``method`` that have no flag of their own."""
    return tuple(f.name for f in dataclasses.fields(METHODS[method]) if f.name not in _NOT_OPTIONS)


def parse_option(method: str, name: str, value: Any) -> Any:
    """Return ``value`` (text from the command line, or a Python value) as the type of the method's field.

    Raises:
        ConfigError: there is no such field, or the value does not fit it.
    """
    if name not in option_names(method):
        raise ConfigError(f"{method} has no option {name!r}; it has {', '.join(option_names(method)) or 'none'}")
    if not isinstance(value, str):
        return value
    wanted = typing.get_type_hints(METHODS[method])[name]
    try:
        return _converted(value, wanted)
    except ValueError as error:
        raise ConfigError(f"{method} option {name} cannot be {value!r}: {error}") from error


def _converted(text: str, wanted: Any) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return _converted(text, next(argument for argument in arguments if argument is not type(None)))
    if origin is typing.Literal:
        if text not in arguments:
            raise ValueError(f"choose one of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if Ellipsis not in arguments and len(parts) != len(arguments):
            raise ValueError(f"give {len(arguments)} values with commas between")
        return tuple(_converted(part, arguments[0]) for part in parts)
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("say true or false")
        return text.lower() == "true"
    return wanted(text)


def paper_note(config: TTTConfig) -> str | None:
    """Return a warning if what may move is not the paper's choice, else None."""
    usual = PAPER_FILTERS.get(config.method)
    if usual is None or usual == config.update_filter:
        return None
    return f"{config.method} with update filter {config.update_filter!r}: the paper moves {usual!r}"

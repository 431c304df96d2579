"""Constructing the method and the guards from the settings of a run."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from acclimate.core.guards import Guard
from acclimate.core.method import Method
from acclimate.core.selection import TensorFilter
from acclimate.errors import ConfigError
from acclimate.registry import GUARDS, METHODS, GuardInfo
from acclimate.vision.run.config import TTTConfig


def make_method(config: TTTConfig) -> Method:
    """Return the method that ``config`` describes, without statistics of source images.

    Raises:
        ConfigError: a method option is unknown or has the wrong type, or the method is a plug-in that cannot be loaded.
    """
    cls, info = METHODS.load(config.method), METHODS.info(config.method)
    values = {name: parse_option(config.method, name, value) for name, value in config.method_options.items()}
    if info.needs_gradient:
        own = {field.name for field in dataclasses.fields(cls)}
        values |= {"lr": config.lr} if "lr" in own else {}
        values |= {"update": tensor_filter(config)} if "update" in own else {}
    values |= {name: getattr(config, setting) for name, setting in info.own_settings.items()}
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
    """Return the guards that ``config`` describes; none if they are turned off.

    Raises:
        ConfigError: a value is out of a guard's range or given to a guard that takes none, or a guard is a plug-in that
            cannot be loaded.
    """
    if not config.guards:
        return ()
    made = [
        (info.costs_prediction, guard)
        for name, info in _guard_infos(config).items()
        if (guard := _guard(name, info, config)) is not None
    ]
    # Guards that may cost a prediction come last, so that they are called only if no cheaper one has fired.
    return tuple(guard for _, guard in sorted(made, key=lambda pair: pair[0]))


def needs_probe(config: TTTConfig) -> bool:
    """Return whether a guard needs a probe batch."""
    return config.guards and any(
        info.needs_probe and _value(name, info, config) is not False for name, info in _guard_infos(config).items()
    )


def _guard_infos(config: TTTConfig) -> dict[str, GuardInfo]:
    """Return the properties of this package's guards, and of the plug-ins that ``config`` names."""
    named = {name: GUARDS.info(name) for name in config.guard_values}
    return {name: entry.info for name, entry in GUARDS.shipped().items() if entry.info is not None} | named


def _value(name: str, info: GuardInfo, config: TTTConfig) -> Any:
    """Return the setting of a guard: a number, True for its default, False where it is off."""
    if name in config.guard_values:
        return config.guard_values[name]
    given = None if info.setting is None else getattr(config, info.setting)
    return info.on_by_default if given is None else given


def _guard(name: str, info: GuardInfo, config: TTTConfig) -> Guard | None:
    value = _value(name, info, config)
    if value is False:
        return None
    cls = GUARDS.load(name)
    if value is True:
        return typing.cast(Guard, cls())
    if info.value is None:
        raise ConfigError(f"the guard {name} takes no value, got {value!r}; write --ttt-guard {name}")
    wanted = typing.get_type_hints(cls)[info.value]
    try:
        parsed = _converted(value, wanted) if isinstance(value, str) else value
    except ValueError as error:
        raise ConfigError(f"the guard {name} cannot be set to {value!r}: {error}") from error
    return typing.cast(Guard, cls(**{info.value: parsed}))


def option_names(method: str) -> tuple[str, ...]:
    """Return the names of the method's fields that have no flag of their own."""
    flagged = {"lr", "update", *METHODS.info(method).own_settings}
    return tuple(
        field.name
        for field in dataclasses.fields(METHODS.load(method))
        if field.name not in flagged and not field.metadata.get("from_source_images")
    )


def parse_option(method: str, name: str, value: Any) -> Any:
    """Return ``value``, converted to the type of the method's field if it is text from the command line.

    Raises:
        ConfigError: there is no such field, or the value does not fit it.
    """
    if name not in option_names(method):
        raise ConfigError(f"{method} has no option {name!r}; it has {', '.join(option_names(method)) or 'none'}")
    if not isinstance(value, str):
        return value
    wanted = typing.get_type_hints(METHODS.load(method))[name]
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
            raise ValueError(f"give {len(arguments)} values separated by commas")
        return tuple(_converted(part, arguments[0]) for part in parts)
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("use true or false")
        return text.lower() == "true"
    return wanted(text)


def paper_note(config: TTTConfig) -> str | None:
    """Return a warning if the trainable parameters are not the paper's choice, else None."""
    usual = METHODS.info(config.method).parameters_of_paper
    if usual is None or usual == config.update_filter:
        return None
    return f"{config.method} with update filter {config.update_filter!r}: the paper updates {usual!r}"

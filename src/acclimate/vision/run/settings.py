"""Completing the settings that a user gave: presets, the default method, ``auto``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from acclimate.core.norm import batch_norms
from acclimate.errors import ConfigError
from acclimate.registry import METHODS
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Adapter, require_ttt
from acclimate.vision.run.auto import Choice, choose
from acclimate.vision.run.config import AUTO, TTTConfig, safe_method


def settings_for(
    adapter: Adapter,
    given: Mapping[str, Any] | None,
    preset: str | None,
    records: Sequence[Record],
    *,
    source_records: Sequence[Record],
    goes_on: bool,
) -> tuple[TTTConfig | None, Choice | None]:
    """Return the settings of a run (None without TTT), and the choice of ``auto`` (None where it was not used).

    Args:
        adapter: the adapter with the model.
        given: the settings that were given; None without TTT.
        preset: its name, if one was given.
        records: the stream.
        source_records: unlabelled source images.
        goes_on: whether the run continues from a saved state.

    Raises:
        ConfigError: ``auto`` is given together with a preset or a state, which belong to one method.
    """
    if given is None:
        return None, None
    if given.get("method") != AUTO:
        return resolve_config(adapter, given, preset, source_records=source_records), None
    if preset is not None or goes_on:
        raise ConfigError(
            "a preset or a saved state is of one method, and auto chooses the method; name the method, or leave the "
            "preset and the state out"
        )
    choice = choose(adapter, given, records, source_records=source_records)
    return choice.config, choice


def resolve_config(
    adapter: Adapter, given: Mapping[str, Any], preset: str | None, *, source_records: Sequence[Record] = ()
) -> TTTConfig:
    """Return the settings for an adapter's kind of model.

    Raises:
        TTTNotSupportedError: the adapter cannot be adapted.
        ConfigError: source images are given and the method does not use them.
    """
    require_ttt(adapter)
    chosen = safe_method(
        adapter.kind,
        knows_source=adapter.source_spectrum is not None or bool(source_records),
        has_batch_norm=bool(batch_norms(adapter.get_model())),
    )
    config = TTTConfig.resolve(given, kind=adapter.kind, preset=preset, safe_method=chosen)
    if source_records and not METHODS.info(config.method).uses_source_images:
        users = ", ".join(name for name, info in METHODS.infos().items() if info.uses_source_images)
        raise ConfigError(
            f"source images (--ttt-source) have no effect with {config.method}; leave them out, or use "
            f"--ttt-method {users} or auto"
        )
    return config

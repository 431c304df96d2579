"""From what a user gave to the settings that a run has: presets, the safe method, ``auto``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from acclimate.core.norm import batch_norms
from acclimate.errors import ConfigError
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import AdaptableAdapter, Adapter, require_ttt
from acclimate.vision.run.auto import AUTO, Choice, choose
from acclimate.vision.run.config import Kind, TTTConfig, safe_method


def settings_for(
    adapter: Adapter,
    given: Mapping[str, Any] | None,
    preset: str | None,
    records: Sequence[Record],
    *,
    source_records: Sequence[Record],
    goes_on: bool,
) -> tuple[TTTConfig | None, Choice | None]:
    """Return the settings that a run has, None without TTT, and how ``auto`` chose them where it was asked to.

    Args:
        adapter: with the model.
        given: the settings that were given, None without TTT.
        preset: its name, if one was given.
        records: the stream.
        source_records: unlabelled source images.
        goes_on: whether the run goes on from a saved state.

    Raises:
        ConfigError: ``auto`` is given together with a preset or a state, which are one method's.
    """
    if given is None:
        return None, None
    if given.get("method") != AUTO:
        return resolve_config(adapter, given, preset), None
    if preset is not None or goes_on:
        raise ConfigError("a preset or a saved state is of one method; name it, or leave them out with auto")
    choice = choose(
        cast(AdaptableAdapter, adapter), given, records, kind=kind_of(adapter), source_records=source_records
    )
    return choice.config, choice


def resolve_config(adapter: Adapter, given: Mapping[str, Any], preset: str | None) -> TTTConfig:
    """Return the settings for an adapter's kind of model.

    Raises:
        TTTNotSupportedError: the adapter cannot be adapted.
    """
    require_ttt(adapter)
    kind = kind_of(adapter)
    chosen = safe_method(
        kind,
        knows_source=getattr(adapter, "source_spectrum", None) is not None,
        has_batch_norm=bool(batch_norms(cast(AdaptableAdapter, adapter).get_model())),
    )
    return TTTConfig.resolve(given, kind=kind, preset=preset, safe_method=chosen)


def kind_of(adapter: Adapter) -> Kind:
    """Say whether an adapter's model is a classifier or a detector."""
    return "classifier" if getattr(adapter, "is_classifier", False) else "detector"

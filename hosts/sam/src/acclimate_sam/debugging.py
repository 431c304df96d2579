"""The debug switches of the deployment guidelines (section 4.2), over acclimate's debug log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from acclimate.errors import ConfigError
from acclimate.language import DebugLog

DEBUG_FILE: Final = Path("logs/ttt_debug.jsonl")
#: As the guidelines give it. The artifacts are the lines of :data:`DEBUG_FILE`; weights are never among them.
TTT_DEBUG_CONFIG: Final[Mapping[str, bool]] = {
    "log_training_steps": True,
    "log_adapter_weights": False,
    "log_pattern_detection": True,
    "log_confidence_calculation": True,
    "save_debug_artifacts": True,
}


def debug_log(config: Mapping[str, bool] = TTT_DEBUG_CONFIG, path: Path = DEBUG_FILE) -> DebugLog | None:
    """Return the log that the switches ask for, without any text of the requests; None without artifacts.

    Args:
        config: switches as in :data:`TTT_DEBUG_CONFIG`; one that is missing has its value there.
        path: of the file.

    Raises:
        ConfigError: a switch is not known, or weights are asked for: they are never logged.
    """
    if unknown := sorted(set(config) - set(TTT_DEBUG_CONFIG)):
        raise ConfigError(f"unknown debug switch {unknown[0]!r}; known are {', '.join(TTT_DEBUG_CONFIG)}")
    if config.get("log_adapter_weights"):
        raise ConfigError("log_adapter_weights cannot be switched on: an adapter holds what its examples say")
    switches = {**TTT_DEBUG_CONFIG, **config}
    if not switches["save_debug_artifacts"]:
        return None
    return DebugLog(
        path,
        losses=switches["log_training_steps"],
        detection=switches["log_pattern_detection"],
        evidence=switches["log_confidence_calculation"],
    )

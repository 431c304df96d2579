"""What a session remembers of its stream beyond weights and the method's state, as plain values and tensors.

A session that goes on from a state file begins its comparisons with the unadapted model anew, which is right for
another day's images. One that goes on in the middle of a stream, in another process, needs all of it to make the same
decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from acclimate.core.guarded_step import Stepper
from acclimate.core.signals import SignalPair, Signals


def history_of(stepper: Stepper) -> dict[str, Any]:
    """Return what the guards of a session have seen, for a state file."""
    comparison = stepper.comparison.history()
    return {
        "recent_classes": _numbers(tuple(stepper.recent_classes)),
        "examined": stepper.examined,
        "remarks": tuple(stepper.output_remarks),
        "draws": stepper.draws.states,
        "comparison": {
            **comparison,
            "pairs": tuple(_pair(pair) for pair in comparison["pairs"]),
            "last": None if comparison["last"] is None else _pair(comparison["last"]),
            "verified": None if comparison["verified"] is None else _signals(comparison["verified"]),
        },
    }


def restore_history(stepper: Stepper, history: Mapping[str, Any]) -> None:
    """Go on as the session did whose :func:`history_of` this is."""
    stepper.recent_classes.clear()
    stepper.recent_classes.extend(history["recent_classes"].tolist())
    stepper.examined = history["examined"]
    stepper.output_remarks = tuple(history["remarks"])
    stepper.draws.states = history["draws"]
    comparison = history["comparison"]
    stepper.comparison.restore_history(
        {
            **comparison,
            "pairs": [_pair_of(pair) for pair in comparison["pairs"]],
            "last": None if comparison["last"] is None else _pair_of(comparison["last"]),
            "verified": None if comparison["verified"] is None else _signals_of(comparison["verified"]),
        }
    )


def _numbers(values: tuple[int, ...]) -> torch.Tensor:
    # As JSON, the decisions of a segmenter on hundreds of batches would take megabytes.
    return torch.tensor(values, dtype=torch.int32)


def _signals(signals: Signals) -> dict[str, Any]:
    fields = {name: getattr(signals, name) for name in Signals.__dataclass_fields__}
    return {**fields, "decided": _numbers(signals.decided)}


def _signals_of(fields: Mapping[str, Any]) -> Signals:
    return Signals(**{**fields, "decided": tuple(fields["decided"].tolist())})


def _pair(pair: SignalPair) -> tuple[dict[str, Any], dict[str, Any]]:
    return _signals(pair.adapted), _signals(pair.source)


def _pair_of(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> SignalPair:
    return SignalPair(_signals_of(pair[0]), _signals_of(pair[1]))

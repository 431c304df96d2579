"""The metadata that an export writes: what was predicted, how, and the report of the adaptation."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from acclimate.json_values import to_jsonable
from acclimate.registry import METHODS
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt_report import TTTReport

_MIM_SETTINGS: Final = ("mask_prob", "patch_size", "mask_value")


def ttt_meta(config: TTTConfig | None, report: TTTReport | None) -> dict[str, Any]:
    """Return the ``ttt`` block of meta and of the TTT log, with the keys and types of the vision integration plan.

    All keys are always there. Where a setting has no meaning (the learning rate of a method without gradient, a run
    without TTT), its key holds the plan's default, and ``max_batches`` is 0 where there is no limit; ``effective``
    holds what is true: null for a setting that has no effect.
    """
    shown = TTTConfig(enabled=False) if config is None or report is None else config
    info = METHODS.info(shown.method)
    plan = TTTConfig()
    unused = () if info.needs_gradient else ("steps", "lr", "update_filter")
    values = {
        field.name: to_jsonable(getattr(plan if field.name in unused else shown, field.name))
        for field in dataclasses.fields(shown)
        if field.name not in _MIM_SETTINGS
    }
    # The integration plan puts the settings of mim into a block of their own.
    mim = {name: to_jsonable(getattr(shown, name)) for name in _MIM_SETTINGS}
    block = {**values, "max_batches": shown.max_batches or 0, "mim": mim, "report": None, "effective": None}
    if config is None or report is None:
        return block
    reported = to_jsonable(report)
    # The steps are in step_metrics already.
    reported["session"]["steps"] = None
    effective = {
        "steps": config.steps,
        "lr": config.lr,
        "update_filter": config.update_filter,
        "batch_size": 1 if config.reset == "sample" else config.batch_size,
        "max_batches": config.max_batches,
        "mim": mim if set(info.own_settings.values()) & set(_MIM_SETTINGS) else None,
    }
    return {**block, "report": reported, "effective": {**effective, **dict.fromkeys(unused)}}

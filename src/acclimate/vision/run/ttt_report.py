"""What a run did, and what its user should be told about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from acclimate.core.report import SessionReport, StepReport
from acclimate.registry import GUARDS, MethodInfo
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.construct import paper_note

# Statistics of fewer images are mostly those of the images, not of the stream: see benchmarks/bn_strength.
FEW_IMAGES: Final = 4
_FALLBACKS: Final = frozenset(
    code
    for entry in GUARDS.shipped().values()
    if entry.info and entry.info.costs_prediction
    for code in entry.info.codes
)
"""Codes with which the unadapted model predicts instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TTTReport:
    """What a run did, for ``meta.ttt.report`` and the TTT log.

    Attributes:
        losses: of every step, in order; None where there was none.
        mask_ratio: the probability of hiding a patch (mim), else None.
        updated_param_count: elements that were selected; ``changed_param_count``: those that differ from the source.
        warnings: whatever differs from what was asked or from the paper.
        stopped_early, stop_reason: whether a budget ended the adaptation.
        batches: batches that were adapted on.
        step_metrics: one entry for each step.
        session: the whole report of the session; after a ``sample`` run, of all its images.
    """

    losses: tuple[float | None, ...]
    mask_ratio: float | None
    updated_param_count: int
    changed_param_count: int
    warnings: tuple[str, ...]
    stopped_early: bool
    stop_reason: str | None
    batches: int
    step_metrics: tuple[StepReport, ...]
    session: SessionReport


def step_warnings(session: SessionReport) -> list[str]:
    """Return, in words, what the verdicts on the steps of a session mean for who reads its predictions."""
    found = []
    for verdict, words in (
        ("rolled_back", "rolled back"),
        ("reset", "reset to the source weights"),
        ("recovered", "recovered"),
    ):
        steps = [step for step in session.steps if step.verdict == verdict]
        if steps:
            found.append(
                f"{len(steps)} of {len(session.steps)} steps were {words}; first, step {steps[0].index}: "
                f"{steps[0].reason}"
            )
    fallbacks = sum(step.code in _FALLBACKS for step in session.steps)
    if fallbacks:
        found.append(
            f"{fallbacks} of {len(session.steps)} batches were predicted by the unadapted model, which was surer of "
            "them: the stream may be of one class, in small batches, or not what the model is for; blend tolerates more"
        )
    count = len(session.steps)
    if session.counts.get("recovered", 0) > count / 2:
        found.append(
            f"{session.method} recovered on most steps: for few classes or a low loss, lower its threshold (of sar, "
            "reset_below_nats)"
        )
    if count / 2 < session.counts.get("skipped", 0) < count:
        found.append(f"{session.counts['skipped']} of {count} batches were skipped: little was worth learning from")
    if session.steps and all(step.verdict == "skipped" for step in session.steps):
        found.append(
            "every batch was skipped: nothing was worth learning from and no weight moved (with BatchNorm, "
            "predictions still use the statistics of their batch)"
        )
    return found


def differences(config: TTTConfig, info: MethodInfo) -> list[str]:
    """Return what a preset filled in, and what of the settings has no effect or is not the paper's choice."""
    found = []
    if config.preset is not None:
        unused = set() if info.needs_gradient else {"lr", "update_filter"}
        unused |= {"batch_size"} if config.reset == "sample" else set()
        filled = ", ".join(f"{name} {getattr(config, name)}" for name in config.filled if name not in unused)
        found.append(f"preset {config.preset!r} filled in what was not given: {filled or 'nothing'}")
    if (note := paper_note(config)) is not None:
        found.append(note)
    if not info.needs_gradient:
        found.append(f"{config.method} has no gradient: steps, lr and update filter have no effect")
    if config.max_batches is not None:
        found.append(f"adapts on the first {config.max_batches} batches only (max_batches)")
    if config.reset == "sample" and config.batch_size != 1 and "batch_size" not in config.filled:
        found.append(f"reset 'sample' adapts to one image at a time; batch size {config.batch_size} is not used")
    return found


def few_images_warning(smallest: int) -> str:
    """Return the warning that BatchNorm took the statistics of so few images."""
    return (
        f"BatchNorm took the statistics of as few as {smallest} images, which can be worse than no adaptation: use "
        "larger batches, bn, or --ttt-option batch_statistics=false"
    )


def not_left_behind(config: TTTConfig, info: MethodInfo, *, batch_statistics: bool) -> list[str]:
    """Return what predicts inside a run and cannot be left in the model after it."""
    found = []
    if config.lora_rank is not None:
        found.append("the low-rank weights are detached after the run; predict inside TTTRun to have them")
    what = info.also_predicts_with or ("batch statistics" if batch_statistics else None)
    if what is not None:
        found.append(
            f"{config.method} adapts with {what}, which adapter.predict() does not use; predict inside TTTRun to have "
            "them"
        )
    return found

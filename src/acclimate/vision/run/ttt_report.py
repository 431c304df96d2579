"""The report of a run, and its warnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from acclimate.core.report import SessionReport, StepReport
from acclimate.registry import GUARDS, MethodInfo
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.construct import paper_note

# Statistics of fewer images are no good estimate of the stream's: see benchmarks/bn_strength.
FEW_IMAGES: Final = 4
_FALLBACKS: Final = frozenset(
    code
    for entry in GUARDS.shipped().values()
    if entry.info and entry.info.costs_prediction
    for code in entry.info.codes
)
"""Codes of rejections after which the unadapted model predicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TTTReport:
    """The results of a run, as in ``meta.ttt.report`` and the TTT log.

    Attributes:
        losses: the loss of every step, in order; None where the method computed none.
        mask_ratio: the probability of masking a patch (mim); None for other methods.
        updated_param_count: number of trainable elements; ``changed_param_count``: those that differ from the source.
        warnings: notes of the method, settings that had no effect, and differences from the paper.
        stopped_early, stop_reason: whether a budget ended the adaptation, and which.
        batches: number of batches that were adapted on.
        step_metrics: one entry for each step.
        session: the session's report; after a ``sample`` run, that of all images.
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
    """Return warnings about a session's steps that were undone, skipped, or predicted by the unadapted model."""
    found = []
    for verdict, words in (
        ("rolled_back", "rolled back"),
        ("reset", "reset to the source weights"),
        ("recovered", "recovered"),
    ):
        steps = [step for step in session.steps if step.verdict == verdict]
        if steps:
            found.append(
                f"{len(steps)} of {len(session.steps)} steps were {words}; the first was step {steps[0].index}: "
                f"{steps[0].reason}"
            )
    fallbacks = sum(step.code in _FALLBACKS for step in session.steps)
    if fallbacks:
        found.append(
            f"{fallbacks} of {len(session.steps)} batches were predicted by the unadapted model, because the adapted "
            "one looked worse: the stream may contain only one class, come in small batches, or differ too much from "
            "the model's training images; try the method blend"
        )
    count = len(session.steps)
    if session.counts.get("recovered", 0) > count / 2:
        found.append(
            f"{session.method} was reset to the source weights on most steps: for few classes or a low loss, lower its "
            "threshold (reset_below_nats of sar)"
        )
    if count / 2 < session.counts.get("skipped", 0) < count:
        found.append(
            f"{session.counts['skipped']} of {count} batches were skipped: the method used none of their decisions"
        )
    if session.steps and all(step.verdict == "skipped" for step in session.steps):
        found.append(
            "every batch was skipped: the method used none of their decisions, and no weight was updated (with "
            "BatchNorm, predictions still use the statistics of their batch)"
        )
    return found


def differences(config: TTTConfig, info: MethodInfo) -> list[str]:
    """Return notes on values from a preset, on settings without effect, and on differences from the paper."""
    found = []
    if config.preset is not None:
        unused = set() if info.needs_gradient else {"lr", "update_filter"}
        unused |= {"batch_size"} if config.reset == "sample" else set()
        filled = ", ".join(f"{name} {getattr(config, name)}" for name in config.filled if name not in unused)
        found.append(f"preset {config.preset!r} filled in what was not given: {filled or 'nothing'}")
    if (note := paper_note(config)) is not None:
        found.append(note)
    if not info.needs_gradient:
        found.append(f"{config.method} computes no gradient: steps, lr and update filter have no effect")
    if config.max_batches is not None:
        found.append(f"adapts on the first {config.max_batches} batches only (max_batches)")
    if config.reset == "sample" and config.batch_size != 1 and "batch_size" not in config.filled:
        found.append(f"reset 'sample' adapts to one image at a time; batch size {config.batch_size} is not used")
    return found


def few_images_warning(smallest: int) -> str:
    """Return the warning about BatchNorm statistics of small batches; ``smallest``: the smallest batch size."""
    return (
        f"BatchNorm used the statistics of batches of only {smallest} images, which can be worse than no adaptation: "
        "use larger batches, the method bn, or --ttt-option batch_statistics=false"
    )


def lost_effects(config: TTTConfig, info: MethodInfo, *, batch_statistics: bool) -> list[str]:
    """Return warnings about effects on predictions that end with the run, because they are not part of the weights."""
    found = []
    if config.lora_rank is not None:
        found.append("the low-rank weights are detached after the run; predict inside TTTRun to use them")
    what = info.also_predicts_with or ("batch statistics" if batch_statistics else None)
    if what is not None:
        found.append(
            f"{config.method} adapts with {what}, which adapter.predict() does not use after the run; predict inside "
            "TTTRun to use them"
        )
    return found

"""``--ttt-method auto``: chooses a method for a model and a stream without labels, and gives the reasons.

The candidates are the methods that the model's layers allow; each is tried on the stream's first images. The rules come
from measurements on ``benchmarks/cifar``, ``benchmarks/shifts`` and ``benchmarks/pose_scenes``. On classifiers, `blend`
is the most accurate method on every kind of stream; without BatchNorm and source images `neo` is. The first one in this
order is taken that passes the checks: it does not make the model less certain, unless images and their mirror images
show that it recognises them, and the unadapted model is not the more consistent one. On detectors, the best method
depends on the camera. Among the methods that do not minimise entropy themselves, the one with the lowest mean entropy
of detections is the most accurate, or close to it.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acclimate.core.guards import WorseThanSource
from acclimate.core.norm import batch_norms
from acclimate.core.outputs import all_finite
from acclimate.core.signals import Certainty, SignalPair, Signals
from acclimate.core.task import second_view
from acclimate.core.view_agreement import ViewDecisions
from acclimate.errors import ConfigError, DataError, EmptySelectionError, TTTNotSupportedError
from acclimate.registry import METHODS, Kind
from acclimate.vision.data.records import Record
from acclimate.vision.models.adapter import Adapter, as_adapter, require_ttt
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.ttt import TTTRun

logger = logging.getLogger(__name__)

UNADAPTED: Final = "none"
"""The name of the unadapted model among the trials."""
TRIAL_IMAGES: Final[Mapping[Kind, int]] = {
    "classifier": 256,
    "multilabel": 256,
    "segmenter": 32,
    "detector": 64,
}
"""How many of the stream's first images each candidate is tried on."""

_NOUNS: Final[Mapping[Kind, str]] = {
    "classifier": "classifier",
    "multilabel": "classifier of several labels",
    "segmenter": "segmenter",
    "detector": "detector",
}
# Methods whose entropies differ by less than this fraction count as equal, and the cheapest of them is taken. Under
# leaves before the camera and under snow, align lowered it by 4 % and was one to two points of mAP worse
# (benchmarks/shifts/README.md, "The detector that ships").
_SAME_ENTROPY: Final = 0.05
_LEAST_VARIETY: Final = 0.5
_LEAST_FOUND: Final = 0.5
_AGREEMENT: Final = WorseThanSource().agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The results of one candidate on the stream's first images.

    Attributes:
        method: its name; ``none`` is the unadapted model. ``lr``: its learning rate; None for a method without one.
        entropy_nats, effective_classes, detections_per_image, mean_score: of its decisions, see
            :class:`acclimate.core.Signals`.
        degradation_score: compares it with the unadapted model, see :class:`acclimate.core.Certainty`; divided by the
            method's ``certainty_allowance``.
        disagreements, unadapted_disagreements: on how many of the images it, and the unadapted model, gave the mirror
            image another class; None where that was not compared. ``credible``: whether these say that it recognises
            images whatever its certainty; ``less_consistent``: that the unadapted model is better.
        refused: why it cannot be used on this model or stream; None where it can.
    """

    method: str
    lr: float | None = None
    entropy_nats: float = 0.0
    effective_classes: float = 0.0
    detections_per_image: float = 0.0
    mean_score: float = 0.0
    degradation_score: float = 0.0
    disagreements: int | None = None
    unadapted_disagreements: int | None = None
    credible: bool = False
    less_consistent: bool = False
    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chosen method, and the reasons.

    Attributes:
        method: its name, or ``none``.
        config: the settings to run it with; None if the model should not be adapted.
        reasons: in words, in the order in which they were found.
        trials: the results of each candidate.
    """

    method: str
    config: TTTConfig | None
    reasons: tuple[str, ...]
    trials: tuple[Trial, ...]


def choose(
    adapter: Adapter,
    given: Mapping[str, Any],
    records: Sequence[Record],
    *,
    source_records: Sequence[Record] = (),
) -> Choice:
    """Choose method, update filter and learning rate for a model and a stream.

    Args:
        adapter: the adapter with the model.
        given: settings that the user gave, which apply to every candidate. ``method`` is ``auto``.
        records: the stream, on whose first images candidates are tried.
        source_records: unlabelled source images, if there are any.

    Raises:
        ConfigError: the stream is empty, method options were given, or reset is ``sample``.
        DataError: none of the first images can be used.
    """
    adapter = as_adapter(adapter)
    require_ttt(adapter)
    kind = adapter.kind
    if not records:
        raise ConfigError("auto tries methods on the stream's first images, and there are none; give at least one")
    if given.get("method_options"):
        names = ", ".join(sorted(given["method_options"]))
        raise ConfigError(
            f"auto chooses the method, so options of one ({names}) cannot be used; name the method, or leave them out"
        )
    if given.get("reset") == "sample":
        raise ConfigError(
            "auto chooses for a stream, and reset 'sample' adapts to each image alone; use reset 'stream' or 'online', "
            "or name the method"
        )
    rest = {name: value for name, value in given.items() if name != "method"}
    candidates, reasons = _candidates(adapter, knows_source=bool(source_records))
    first = records[: TRIAL_IMAGES[kind]]
    trials: list[Trial] = []
    configs: list[TTTConfig | None] = []
    for candidate in candidates:
        # Settings of the user replace those of the candidate, such as its learning rate.
        config = TTTConfig.resolve({**candidate, **rest}, kind=kind)
        try:
            both, views = _try(adapter, config, first, source_records)
        except (TTTNotSupportedError, EmptySelectionError) as error:
            if rest.get("include") or rest.get("exclude"):
                # The cause may be the user's patterns and not the method.
                raise
            trials.append(Trial(method=config.method, refused=str(error)))
            configs.append(None)
            continue
        if not any(trial.method == UNADAPTED for trial in trials):
            trials.append(_trial(UNADAPTED, None, SignalPair(both.source, both.source)))
            configs.append(None)
        lr = config.lr if METHODS.info(config.method).needs_gradient else None
        trials.append(_trial(config.method, lr, both, views))
        configs.append(config)
    position, why = _best(trials, kind)
    reasons += why
    for trial in trials:
        if trial.refused is not None:
            reasons.append(f"{trial.method} cannot be used here: {trial.refused}")
    method = trials[position].method if position is not None else UNADAPTED
    taken = configs[position] if position is not None else None
    logger.info("auto chose %s: %s", method, "; ".join(reasons))
    return Choice(method=method, config=taken, reasons=tuple(reasons), trials=tuple(trials))


def _candidates(adapter: Adapter, *, knows_source: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the settings to try on this model, cheapest method first, and the reasons for this selection."""
    kind, layers = adapter.kind, len(batch_norms(adapter.get_model()))
    source = knows_source or adapter.source_spectrum is not None
    reasons = [
        f"the model is a {_NOUNS[kind]} with " + (f"{layers} BatchNorm layers" if layers else "no BatchNorm"),
        "source images are known"
        if source
        else "no source images are known (--ttt-source): images are not filtered to be like them",
    ]
    fitting = [
        (name, info)
        for name, info in METHODS.infos().items()
        if info.trials(kind)
        and info.applies_to(kind, batch_norm=layers > 0, source_images=source)
        and not (info.auto_without_batch_norm and layers)
    ]
    chosen = [pair for pair in fitting if not pair[1].auto_last_resort]
    if all(info.auto_without_batch_norm for _, info in chosen):
        # Among classifiers, the last one that passes the checks is taken.
        chosen = sorted(fitting, key=lambda pair: not pair[1].auto_last_resort)
        reasons.append("without BatchNorm and source images, statistics and filters cannot be used")
    elif kind == "classifier":
        chosen.sort(key=lambda pair: not pair[1].auto_without_batch_norm)
    return [{"method": name, **settings} for name, info in chosen for settings in info.trials(kind)], reasons


def _try(
    adapter: Adapter, config: TTTConfig, records: Sequence[Record], source_records: Sequence[Record]
) -> tuple[SignalPair, tuple[ViewDecisions, ViewDecisions] | None]:
    """Return the signals of the adapted and the unadapted model on the first images, online and without guards.

    Also return the decisions of both on images and mirror images, where these can be compared.
    """
    compares = not METHODS.info(config.method).averages_views
    adapted, unadapted = ViewDecisions.none(), ViewDecisions.none()
    free = dataclasses.replace(config, guards=False, collapse_share=None, probe=False, reset="stream")
    pairs = []
    with TTTRun(adapter, free, source_records=source_records) as run:
        for batch in itertools.islice(adapter.build_loader(records, batch_size=free.batch_size), free.max_batches):
            inputs = batch.inputs
            source = run.session.predict_as_source(inputs)
            if not all_finite(source):
                # An image with NaN is no evidence for or against a method, and without guards it would end the trial.
                continue
            outputs, report = run.session.adapt_and_predict(inputs)
            pairs.append(SignalPair.of(run.task, outputs, source, samples=report.samples))
            if compares and run.task.aligned and run.task.exclusive:
                view = second_view(run.task, inputs)
                others = (run.session.predict(view.batch), run.session.predict_as_source(view.batch))
                logits = [run.task.decisions(found).logits for found in (outputs, source, *others)]
                adapted = adapted.plus(ViewDecisions.of(logits[0], logits[2]))
                unadapted = unadapted.plus(ViewDecisions.of(logits[1], logits[3]))
    if not pairs:
        raise DataError(f"none of the stream's first {len(records)} images can be used; check the files")
    both = SignalPair(Signals.total(pair.adapted for pair in pairs), Signals.total(pair.source for pair in pairs))
    return both, (adapted, unadapted) if len(adapted) else None


def _trial(
    method: str, lr: float | None, both: SignalPair, views: tuple[ViewDecisions, ViewDecisions] | None = None
) -> Trial:
    adapted = both.adapted
    compared: dict[str, Any] = {}
    if views is not None:
        compared = {
            "disagreements": int((~views[0].agreements).sum()),
            "unadapted_disagreements": int((~views[1].agreements).sum()),
            "credible": _AGREEMENT.is_credible(*views),
            "less_consistent": _AGREEMENT.favours(views[1], views[0]),
        }
    allowed = 1.0 if method == UNADAPTED else METHODS.info(method).certainty_allowance
    return Trial(
        method=method,
        lr=lr,
        entropy_nats=adapted.entropy_nats,
        effective_classes=adapted.effective_classes,
        detections_per_image=adapted.detections_per_image,
        mean_score=adapted.mean_score,
        degradation_score=Certainty().degradation_score(both) / allowed,
        **compared,
    )


def _best(trials: Sequence[Trial], kind: Kind) -> tuple[int | None, list[str]]:
    """Return the position of the candidate to take, None for the unadapted model, and the reasons."""
    unadapted = next((trial for trial in trials if trial.method == UNADAPTED), None)
    if unadapted is None:
        return None, ["no candidate can be used on this model, so the model is not adapted"]
    standing, reasons = [], []
    for position, trial in enumerate(trials):
        if trial.refused is not None or trial.method == UNADAPTED:
            continue
        collapsed = trial.effective_classes < _LEAST_VARIETY * unadapted.effective_classes
        finite = math.isfinite(trial.entropy_nats)
        uncertain = not trial.degradation_score <= 1 and not trial.credible
        if collapsed or not finite or trial.less_consistent or uncertain:
            rate = "" if trial.lr is None else f" at lr {trial.lr:g}"
            what = (
                "gives outputs that are not finite"
                if not finite
                else f"spreads its decisions over {trial.effective_classes:.1f} classes, the unadapted model over "
                f"{unadapted.effective_classes:.1f}"
                if collapsed
                else f"gives {trial.disagreements} images another class when they are mirrored or moved, the unadapted "
                f"model {trial.unadapted_disagreements}"
                if trial.less_consistent
                else f"makes the model less certain: mean entropy {trial.entropy_nats:.2f} nats per decision, "
                f"unadapted {unadapted.entropy_nats:.2f}"
            )
            reasons.append(f"{trial.method}{rate} {what}")
        else:
            standing.append(position)
    if not standing:
        return None, [*reasons, "the model is not adapted"]
    if kind != "detector":
        position = standing[-1]
        chosen = trials[position]
        rate = "" if chosen.lr is None else f", at lr {chosen.lr:g}"
        # The reason comes from measurements on classifiers with exclusive classes.
        known = METHODS.info(chosen.method).auto_reason if kind == "classifier" else None
        reasons.append(f"{chosen.method}: {known or 'all checks passed'}{rate}")
        return position, reasons
    # The unadapted model is a candidate too. Those with few detections are excluded: their entropy may be low only
    # because uncertain objects are missing.
    enough = _LEAST_FOUND * max(trial.detections_per_image for trial in (unadapted, *(trials[p] for p in standing)))
    places: list[int | None] = [p for p in standing if trials[p].detections_per_image >= enough]
    places += [None] if unadapted.detections_per_image >= enough else []
    of = {place: unadapted if place is None else trials[place] for place in places}
    most_certain = min(of.values(), key=lambda trial: trial.entropy_nats)
    equals = [place for place in places if of[place].entropy_nats <= most_certain.entropy_nats * (1 + _SAME_ENTROPY)]
    # Among equals prefer a method that does not change predictions until the stream differs from the source; then the
    # unadapted model; then the cheapest method.
    chosen_place = min(
        equals,
        key=lambda place: (
            place is None or not METHODS.info(of[place].method).unchanged_on_source,
            place is not None,
            -1 if place is None else place,
        ),
    )
    listed = ", ".join(f"{t.method} {t.entropy_nats:.2f}" for t in trials if t.refused is None)
    reasons.append(
        f"{of[chosen_place].method} has the lowest mean entropy of detections, or one within "
        f"{100 * _SAME_ENTROPY:g} % of it ({listed} nats)"
    )
    return chosen_place, reasons


def as_flags(choice: Choice, *, source: Path | None = None) -> str:
    """Return the flags of ``acclimate export`` that run the chosen method, in addition to those that were given."""
    if choice.config is None:
        return "(without --ttt)"
    flags = ["--ttt", "--ttt-method", choice.method]
    if METHODS.info(choice.method).needs_gradient:
        flags += ["--ttt-update-filter", choice.config.update_filter, "--ttt-lr", f"{choice.config.lr:g}"]
    if choice.config.reset != "stream":
        flags += ["--ttt-reset", choice.config.reset]
    if source is not None:
        flags += ["--ttt-source", str(source)]
    return " ".join([*flags, "--ttt-batch-size", str(choice.config.batch_size)])

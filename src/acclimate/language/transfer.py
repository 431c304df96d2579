"""Answering from, or training from, adapters in a library that were trained for similar tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from acclimate.errors import InputError, first_line
from acclimate.language.answers import LibraryUse
from acclimate.language.decision.evidence import Evidence, HeldOut
from acclimate.language.decision.gate import Gate
from acclimate.language.decision.side_by_side import compared
from acclimate.language.models.deadlines import Deadline, OutOfTimeError
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.training.adapter import Adapter
from acclimate.language.training.adapter_library import AdapterLibrary, HeldOutGain, LibraryEntry, Listing
from acclimate.language.training.recipes import Recipe
from acclimate.language.work import Work

#: Of the time that is left, for comparing adapters.
_SHARE_OF_TIME: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """When an adapter from a library is used; chosen on families of tasks that no result is reported on.

    Attributes:
        candidates: adapters of the nearest tasks that are compared on the examples.
        least_examples: that must all be answered exactly, for an adapter to answer without training.
        least_start_gain: by which share of the base model's mean negative log-likelihood an adapter must lower it, for
            training to start from it.
        start_steps: share of the recipe's steps that are made from there.
    """

    candidates: int = 4
    least_examples: int = 4
    least_start_gain: float = 0.7
    start_steps: float = 0.5


class Transfer:
    """Looks for a request's adapter in a library, and keeps there what was worth its training.

    Args:
        model: to ask; its lock is held whenever a method is called.
        gate: whose threshold an answer without training has to reach.
        library: of adapters.
        settings: when they are used.
    """

    def __init__(
        self, model: LanguageModel, gate: Gate, library: AdapterLibrary, settings: TransferSettings | None = None
    ) -> None:
        self._model, self._library, self._settings = model, library, settings or TransferSettings()
        # No calibration was fitted to adapters that were trained for other tasks: held-out examples speak.
        self._gate = replace(gate, calibration=None)

    def begin(self, work: Work, *, seconds: float | None, max_bytes: int | None) -> None:
        """Find an adapter that answers the examples of ``work``, or that its training starts from.

        Args:
            work: gets adapter, evidence and decision, or the adapter to start from; and notes for the report.
            seconds: that are left for adapting; None for no limit.
            max_bytes: that the request may hold; None for no limit.
        """
        work.library = LibraryUse()
        try:
            listing, _ = self._library.cleaned(self._library.read())
        except (OSError, InputError) as error:
            work.warnings.append(f"the library of adapters cannot be read: {first_line(error)}")
            return
        work.warnings += listing.problems
        if self._take_same(work, listing):
            return
        found = self._loaded(work, listing)
        held = work.memory.held_bytes + 4 * sum(adapter.held_bytes for _, adapter in found)
        if not found or (max_bytes is not None and held > max_bytes):
            return
        try:
            with Deadline(None if seconds is None else _SHARE_OF_TIME * seconds).inside(self._model.network):
                base, *scores = compared(
                    self._model,
                    work.examples,
                    [adapter for _, adapter in found],
                    seed=work.recipe.seed,
                    layout=work.request.layout,
                    memory=work.memory,
                )
        except OutOfTimeError:
            return
        work.library = LibraryUse(tried=len(found))
        self._choose(work, found, base, scores)

    def recipe(self, work: Work) -> Recipe:
        """Return the recipe of the training of ``work``: fewer steps where it starts from an adapter."""
        if work.start is None:
            return work.recipe
        steps = work.recipe.steps_or_most * self._settings.start_steps
        return replace(work.recipe, steps=max(1, math.ceil(steps)))

    def finish(self, work: Work) -> None:
        """Note in the library what the adapted model answered with, where held-out examples gained by it."""
        used, evidence, adapter = work.library, work.evidence, work.adapter
        if used is None or adapter is None or not work.adapted:
            return
        try:
            if used.entry is not None:
                self._library.note_use(used.entry)
            from_library = used.use in ("answered", "same_examples")
            if not from_library and evidence is not None and evidence.tried and evidence.gains and work.adapter_key:
                added = self._library.add(
                    adapter, key=work.adapter_key, examples=work.examples, gain=_gain(evidence), model=self._model
                )
                work.library = replace(used, added=added)
        except InputError as error:
            work.warnings.append(f"not kept in the library of adapters: {first_line(error)}")

    def _take_same(self, work: Work, listing: Listing) -> bool:
        """Take the adapter that was trained on the same examples, if there is one."""
        for entry in listing.entries:
            if entry.key == work.adapter_key and (adapter := self._load(work, entry)) is not None:
                gain, count = entry.gain, len(work.examples)
                before = HeldOut(gain.before_exact, gain.before_log_likelihood, gain.before_log_likelihood)
                after = HeldOut(gain.after_exact, gain.after_log_likelihood, gain.after_log_likelihood)
                work.evidence = Evidence(count, before, after, gain.fold_loss)
                work.adapter, work.cached = adapter, True
                work.library = LibraryUse(entry=entry.key, use="same_examples")
                return True
        return False

    def _loaded(self, work: Work, listing: Listing) -> list[tuple[LibraryEntry, Adapter]]:
        nearest = self._library.nearest(
            listing, self._model.fingerprint, work.examples, limit=self._settings.candidates
        )
        found = [(entry, self._load(work, entry)) for entry in nearest]
        return [(entry, adapter) for entry, adapter in found if adapter is not None]

    def _load(self, work: Work, entry: LibraryEntry) -> Adapter | None:
        try:
            return self._library.load(entry, self._model)
        except InputError as error:
            work.warnings.append(f"left out of the library: {first_line(error)}")
            return None

    def _choose(
        self, work: Work, found: Sequence[tuple[LibraryEntry, Adapter]], base: HeldOut, scores: Sequence[HeldOut]
    ) -> None:
        if base.exact == 1 and work.request.policy == "gate":
            # Nothing can be gained.
            work.evidence = Evidence(len(work.examples), base, base, 0.0, tried=False)
            return
        usable = [i for i, score in enumerate(scores) if math.isfinite(score.log_likelihood)]
        if not usable:
            return
        order = sorted(usable, key=lambda i: (-scores[i].exact, -scores[i].log_likelihood))
        best, (entry, adapter) = scores[order[0]], found[order[0]]
        evidence = Evidence(len(work.examples), base, best, 0.0)
        decision = self._gate.decide(evidence)
        sure = decision.confidence is not None and decision.confidence >= self._gate.confidence_threshold
        enough = best.exact == 1 and len(work.examples) >= self._settings.least_examples
        if enough and sure and (decision.adapt or work.request.policy == "always"):
            work.evidence, work.decision = evidence, decision
            work.adapter, work.cached = adapter, True
            work.library = LibraryUse(tried=len(found), entry=entry.key, use="answered")
            return
        starts = [i for i in order if self._fits(adapter=found[i][1], recipe=work.recipe)]
        if not starts:
            return
        first = max(starts, key=lambda i: scores[i].log_likelihood)
        if scores[first].log_likelihood >= base.log_likelihood * (1 - self._settings.least_start_gain):
            work.start = found[first][1]
            work.library = LibraryUse(tried=len(found), entry=found[first][0].key, use="start")

    def _fits(self, *, adapter: Adapter, recipe: Recipe) -> bool:
        """Say whether training with ``recipe`` can go on from ``adapter``: the same layers, rank and scale."""
        rank = recipe.rank_or_default
        alpha = rank if recipe.alpha is None else recipe.alpha
        same_shape = adapter.rank == rank and math.isclose(adapter.alpha, alpha)
        return same_shape and set(adapter.weights) == set(self._model.decoder(recipe.share_adapted).targets)


def _gain(evidence: Evidence) -> HeldOutGain:
    return HeldOutGain(
        before_exact=evidence.before.exact,
        after_exact=evidence.after.exact,
        before_log_likelihood=evidence.before.log_likelihood,
        after_log_likelihood=evidence.after.log_likelihood,
        fold_loss=evidence.fold_loss,
    )

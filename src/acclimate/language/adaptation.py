"""Adapting the model to the examples of a request, and deciding whether the adapted model answers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from acclimate.core.budget import Budget
from acclimate.errors import CancelledError, DataError
from acclimate.language.answering import Answering
from acclimate.language.decision.evidence import cross_fit_steps, empty_adapter
from acclimate.language.decision.gate import Gate
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.steps import Steps
from acclimate.language.training.adapter import Adapter, StopReason
from acclimate.language.training.adapter_cache import AdapterManager, adapter_key
from acclimate.language.training.parts import adapter_steps
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.trainer import TrainingJob
from acclimate.language.training.warm_start import warm_start
from acclimate.language.transfer import Transfer
from acclimate.language.work import ADAPTING_PARTS, RefusedError, Work, failure_reason

#: Passes take different times; what is expected is multiplied by this.
_SAFETY: Final = 1.25
_FAILURES = {
    StopReason.TIME_BUDGET: "the time budget (max_seconds) is spent",
    StopReason.MEMORY_BUDGET: "it takes more than the memory budget (max_bytes)",
    StopReason.NON_FINITE: "the loss is not finite",
}


class Adaptation:
    """Adapts one model, step by step; who makes the steps holds its lock.

    Args:
        model: to adapt; its own tensors are not changed.
        gate: decides on the evidence.
        budget: for the gate and training of one request; less where the request must be answered sooner.
        cache: of trained adapters; None keeps none.
        warm_start: start from a cached adapter where that answers the examples better than the base model.
        answering: generates the answers that the gate compares.
        transfer: looks for adapters in a library, and keeps them there; None without one.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        gate: Gate,
        budget: Budget,
        cache: AdapterManager | None,
        warm_start: bool,
        answering: Answering,
        transfer: Transfer | None = None,
    ) -> None:
        self._model, self._gate, self._budget, self._cache = model, gate, budget, cache
        self._warm_start, self._answering, self._transfer = warm_start, answering, transfer

    def adapt(self, work: Work) -> Steps[None]:
        """Train on the examples, answer with the adapter, and decide which answer is given.

        Raises:
            RefusedError: the base model should answer.
            CancelledError: the request was cancelled.
        """
        self._look_up(work)
        if self._transfer is None:
            yield from self._adapt(work)
            return
        if work.adapter is None and work.evidence is None:
            with work.timed("library"):
                left = self._remaining(work)
                self._transfer.begin(work, seconds=left.max_seconds, max_bytes=left.max_bytes)
        if work.library is not None and work.library.use == "answered" and work.adapter is not None:
            yield from self._answering.by_adapted_model(work, work.adapter, is_final=True)
        else:
            yield from self._adapt(work)
        with work.timed("library"):
            self._transfer.finish(work)

    def _adapt(self, work: Work) -> Steps[None]:
        gated = work.request.policy == "gate"
        if work.adapter is None and work.start is None and self._warm_start and self._cache is not None:
            with work.timed("training"):
                work.start = warm_start(self._cache, self._model, work.examples, work.recipe, work.request.layout)
        if gated:
            if work.evidence is None:
                yield from self._evaluate_held_out(work)
            self._decide(work)
        adapter = work.adapter or (yield from self._train(work))
        if not gated or work.evidence is None:
            yield from self._answering.by_adapted_model(work, adapter, is_final=True)
            return
        if work.request.compare:
            # One after the other, so that it is known what each of them takes.
            adapted = yield from self._answering.by_adapted_model(work, adapter)
            base = yield from self._answering.by_base_model(work)
        else:
            adapted, base = yield from self._answering.by_both(work, adapter)
        if work.deadline.is_over and not (adapted.complete and base.complete):
            # There was no time to compare them: what there is of the adapted answer is given.
            return
        work.evidence = work.evidence.answered(adapter, adapted=adapted, icl=base, agreement=work.agreement)
        self._decide(work)

    def answer_for_comparison(self, work: Work) -> Steps[None]:
        """Generate the adapted model's answer although the base model's is given, for the user to see."""
        with work.timed("comparison"):
            adapter = work.adapter or (
                yield from adapter_steps(self._job(work, self._remaining(work)), work.recipe, work.parts)
            )
        if adapter.stop in (StopReason.FINISHED, StopReason.EARLY_STOP):
            yield from self._answering.by_adapted_model(work, adapter)

    def train_for_reuse(self, work: Work) -> Steps[Adapter]:
        """Return an adapter trained on the examples, and keep it in the cache.

        Raises:
            DataError: training failed.
            CancelledError: it was cancelled.
        """
        adapter = yield from adapter_steps(self._job(work, self._remaining(work, keep_s=0.0)), work.recipe)
        if adapter.stop is StopReason.CANCELLED:
            raise CancelledError("training was cancelled")
        if adapter.stop in _FAILURES:
            raise DataError(
                f"training ended early: {_FAILURES[adapter.stop]}; raise the limit or give shorter examples"
            )
        self._keep(work, adapter)
        return adapter

    def key_of(self, work: Work) -> str:
        """Return the key of an adapter to the examples in a cache."""
        return adapter_key(self._model.fingerprint, work.examples, work.recipe, work.request.layout)

    def _look_up(self, work: Work) -> None:
        """Take adapter and evidence from the cache, if these examples were adapted to before."""
        work.adapter_key = self.key_of(work)
        known = self._cache.get(work.adapter_key) if self._cache is not None else None
        if known is not None:
            adapter, work.evidence = known
            # Where adapting was declined, the cache has evidence and an adapter without weights.
            work.adapter = adapter if adapter.weights else None
            work.cached = work.adapter is not None

    def _evaluate_held_out(self, work: Work) -> Steps[None]:
        """Measure how adapting changes the answers to held-out examples."""
        with work.timed("gate"):
            job = self._job(work, self._remaining(work, keep_s=0.0), start=work.start)
            work.evidence, parts = yield from cross_fit_steps(
                self._model, work.examples, self._recipe(work), job, reserve_s=lambda: self._reserve_s(work)
            )
        work.trained_tokens += parts.trained_tokens
        self._refuse_failure(parts.stop)
        if parts.weights and work.evidence.likelier:
            work.parts = parts
            work.memory.set("adapters of parts of the examples", parts.held_bytes)
        if work.start is None:
            self._keep(work, work.adapter or empty_adapter(self._model))

    def _decide(self, work: Work) -> None:
        if work.evidence is None:
            return
        work.decision = self._gate.decide(work.evidence)
        if not work.decision.adapt:
            raise RefusedError(work.decision.reason or "no_held_out_gain")

    def _train(self, work: Work) -> Steps[Adapter]:
        with work.timed("training"):
            work.warm_start = work.start is not None
            job = self._job(work, self._remaining(work), start=work.start)
            adapter = yield from adapter_steps(job, self._recipe(work), work.parts)
        work.adapter = adapter
        work.trained_tokens += adapter.trained_tokens - (work.parts.trained_tokens if work.parts is not None else 0)
        work.parts = None
        work.memory.set("adapters of parts of the examples", 0)
        work.memory.set("adapter", adapter.held_bytes)
        self._refuse_failure(adapter.stop)
        if not work.warm_start:
            # The key stands for what training on these examples alone leads to.
            self._keep(work, adapter)
        return adapter

    def _recipe(self, work: Work) -> Recipe:
        return work.recipe if self._transfer is None else self._transfer.recipe(work)

    def _job(self, work: Work, budget: Budget, start: Adapter | None = None) -> TrainingJob:
        return TrainingJob(
            sets=[work.examples],
            budget=budget,
            cancelled=work.request.cancelled,
            start=start,
            memory=work.memory,
            on_step=work.request.on_step,
            layout=work.request.layout,
        )

    def _refuse_failure(self, stop: StopReason) -> None:
        if stop is StopReason.CANCELLED:
            raise CancelledError("the request was cancelled while the model was adapted")
        reason = failure_reason(stop)
        if reason is not None:
            raise RefusedError(reason)

    def _remaining(self, work: Work, *, keep_s: float | None = None) -> Budget:
        """Return the budget that is left, ``keep_s`` seconds before the end of the request, or enough to answer it."""
        limit = math.inf if self._budget.max_seconds is None else self._budget.max_seconds
        spent = sum(work.seconds.get(part, 0.0) for part in ADAPTING_PARTS)
        kept = self._reserve_s(work) if keep_s is None else keep_s
        left = min(limit - spent, work.deadline.left_s - kept)
        return replace(self._budget, max_seconds=None if left == math.inf else max(0.0, left))

    def _reserve_s(self, work: Work) -> float:
        """Return how many seconds answering will take, from what passes took lately."""
        if work.deadline.left_s == math.inf:
            return 0.0
        rows = 3 if work.request.policy == "gate" else 2
        return _SAFETY * rows * self._answering.expected_s(work)

    def _keep(self, work: Work, adapter: Adapter) -> None:
        if self._cache is not None:
            self._cache.put(adapter, key=self.key_of(work), examples=work.examples, extra=work.evidence)

"""From a prompt to an answer: detect, train, decide, generate, and say what was done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from acclimate.core.budget import Budget
from acclimate.errors import CancelledError, ConfigError, DataError, TTTNotSupportedError, first_line
from acclimate.language import patterns
from acclimate.language.answers import AdaptationMetadata, AskReport, OnReport
from acclimate.language.debug_log import DebugLog
from acclimate.language.decision import calibration
from acclimate.language.decision.evidence import Evidence, cross_fit, empty_adapter
from acclimate.language.decision.gate import DECLINED, Gate, Reason
from acclimate.language.examples import (
    MAX_EXAMPLE_CHARACTERS,
    Augmentation,
    Example,
    as_examples,
    cleaned,
    orderings,
    validated,
)
from acclimate.language.models.generate import PERMUTED_PROMPTS, Answer, agreement, generate, majority
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.training.adapter_cache import AdapterManager, adapter_key
from acclimate.language.training.memory import PeakMemory, out_of_memory
from acclimate.language.training.recipes import Recipe, decided
from acclimate.language.training.trainer import Adapter, StopReason, train
from acclimate.language.training.warm_start import warm_start
from acclimate.language.work import FAILURES, RefusedError, Request, Work, report_of

_LOG = logging.getLogger(__name__)
Policy = Literal["gate", "always", "never"]
_STILL_COMPARED = (None, "low_confidence", "no_held_out_gain")


class Engine:
    """Answers prompts with one model, adapting it to the examples in them where that helps.

    The model's own tensors are never written to: what is learned lives beside them, for the time of one request.

    Args:
        model: as :func:`acclimate.language.models.language_model.load` returns it.
        recipe: of training; None takes the model's.
        gate: None takes the calibration that ships for the model, or compares left-out examples where none does.
        environment: for the gate made here: a key of ``CONFIDENCE_THRESHOLDS``, or None.
        cache: of trained adapters; None keeps none.
        votes: orders of the examples that each answer is asked in; the majority answers.
        min_examples, max_examples: how many are adapted to.
        max_seconds: for gate and training of one request; None for no limit.
        max_bytes: that training may take beyond the loaded model; None for no limit.
        max_answer_tokens: None allows twice the longest example answer and sixteen more.
        warm_start: begin at a cached adapter where that answers the examples better than the model as it is.
        augment: returns further examples for each.
        on_report: called with every report.
        debug: writes what happened to a file.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        recipe: Recipe | None = None,
        gate: Gate | None = None,
        environment: str | None = None,
        cache: AdapterManager | None = None,
        votes: int = 1,
        min_examples: int = 2,
        max_examples: int = 64,
        max_seconds: float | None = 20.0,
        max_bytes: int | None = None,
        max_answer_tokens: int | None = None,
        warm_start: bool = False,
        augment: Augmentation | None = None,
        on_report: OnReport | None = None,
        debug: DebugLog | None = None,
    ) -> None:
        if votes < 1:
            raise ConfigError(f"votes must be at least 1, got {votes}")
        if not 2 <= min_examples <= max_examples:
            raise ConfigError(f"2 <= min_examples <= max_examples must hold, got {min_examples} and {max_examples}")
        self.model, self.recipe = model, recipe or model.recipe
        if gate is None:
            fitted = calibration.shipped(model.name) if recipe is None else None
            gate = Gate(calibration=fitted, environment=environment)
        self.gate, self.cache, self.votes = gate, cache, votes
        self.min_examples, self.max_examples = min_examples, max_examples
        self.budget = Budget(max_seconds=max_seconds, max_bytes=max_bytes)
        self.max_answer_tokens, self.warm_start, self.augment = max_answer_tokens, warm_start, augment
        self._on_report, self._debug = on_report, debug

    def ask(
        self,
        prompt: str,
        *,
        domain: str | None = None,
        policy: Policy = "gate",
        compare: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> AskReport:
        """Return the answer to ``prompt``.

        Args:
            prompt: as typed; examples in it are found by :func:`acclimate.language.patterns.detect`.
            domain: see there.
            policy: ``gate`` decides; ``always`` adapts wherever that is possible; ``never`` does not.
            compare: make both answers, whatever is decided.
            cancelled: asked between steps and tokens.

        Raises:
            DataError: the prompt is empty, or longer than the model can read.
            CancelledError: ``cancelled`` said so.
        """
        prompt = cleaned(prompt)
        if not prompt:
            raise DataError("the prompt is empty")
        detected = patterns.detect(prompt, domain)
        if detected is None:
            return self._plain(prompt, None, None, cancelled)
        if detected.query is None:
            return self._plain(prompt, detected, "detection_failed", cancelled)
        if not detected.examples:
            return self._plain(prompt, detected, "insufficient_examples", cancelled)
        examples = detected.examples
        warnings: tuple[str, ...] = ()
        if any(len(part) > MAX_EXAMPLE_CHARACTERS for e in examples for part in (e.input, e.output)):
            return self._plain(prompt, detected, "detection_failed", cancelled)
        if len(examples) > self.max_examples:
            warnings = (f"{len(examples)} examples found, the last {self.max_examples} are used",)
            examples = examples[-self.max_examples :]
        request = Request(
            examples=examples,
            query=detected.query,
            pattern=detected.kind,
            pattern_confidence=detected.confidence,
            warnings=warnings,
        )
        return self._answer(request, policy=policy, compare=compare, cancelled=cancelled)

    def answer(
        self,
        examples: Iterable[Example | Mapping[str, Any] | Sequence[str]],
        query: str,
        *,
        policy: Policy = "gate",
        compare: bool = False,
        adapter: Adapter | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> AskReport:
        """Return the answer to ``query`` in the way of ``examples``; nothing is detected.

        Args:
            examples: worked ones.
            query: the open item.
            policy: as in :meth:`ask`.
            compare: make both answers, whatever is decided.
            adapter: trained before, on these examples; it answers, and nothing is trained or decided.
            cancelled: asked between steps and tokens.

        Raises:
            DataError: an example or the query is empty or too long, or there are too many.
            CancelledError: ``cancelled`` said so.
        """
        query = cleaned(query)
        if not query:
            raise DataError("the query is empty")
        if adapter is not None and adapter.fingerprint != self.model.fingerprint:
            raise DataError(f"the adapter was trained for another model than {self.model.name!r}; train it again")
        request = Request(examples=as_examples(examples), query=query)
        return self._answer(request, policy=policy, compare=compare, cancelled=cancelled, adapter=adapter)

    def prime(
        self,
        examples: Iterable[Example | Mapping[str, Any] | Sequence[str]],
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> Adapter:
        """Return an adapter trained on ``examples``, for reuse; it is kept in the cache too.

        Raises:
            DataError: there are fewer than two usable examples, or training failed.
        """
        checked = validated(as_examples(examples), max_count=self.max_examples, augment=self.augment)
        if len(checked.examples) < self.min_examples:
            raise DataError(f"{len(checked.examples)} usable examples; give at least {self.min_examples}")
        recipe = decided(self.recipe, checked.examples)
        with self.model.lock:
            adapter = train(self.model, [checked.examples], recipe, budget=self.budget, cancelled=cancelled)
        if adapter.stop == "cancelled":
            raise CancelledError("training was cancelled")
        if adapter.stop in FAILURES:
            raise DataError(f"training ended early: {adapter.stop}; raise the limit or give shorter examples")
        self._keep(checked.examples, recipe, adapter, None)
        return adapter

    def _answer(
        self,
        request: Request,
        *,
        policy: Policy,
        compare: bool,
        cancelled: Callable[[], bool] | None,
        adapter: Adapter | None = None,
    ) -> AskReport:
        work = Work(time.perf_counter(), PeakMemory(self.model.device), warnings=list(request.warnings))
        checked = validated(request.examples, max_count=self.max_examples, augment=self.augment)
        work.warnings += checked.warnings
        examples = checked.examples
        recipe = decided(self.recipe, examples)
        reason: Reason | None = None
        with self.model.lock:
            try:
                if len(examples) < self.min_examples:
                    raise RefusedError("contradictory_examples" if checked.contradictions else "insufficient_examples")
                if adapter is not None and policy != "never":
                    work.adapter, work.cached = adapter, True
                    self._ttt(work, adapter, examples, request.query, cancelled)
                elif policy != "never":
                    self._adapt(work, examples, request.query, recipe, policy, cancelled)
            except RefusedError as refused:
                reason = refused.reason
            except TTTNotSupportedError as error:
                work.warnings.append(first_line(error))
                reason = "unsupported_model"
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                work.warnings.append(first_line(error))
                reason = "memory"
            adapted = reason is None and work.ttt is not None
            if not adapted or compare:
                self._icl(work, examples, request.query, cancelled)
            if compare and work.ttt is None and policy != "never" and reason in _STILL_COMPARED:
                self._compare(work, examples, request.query, recipe, cancelled)
        report = report_of(
            work,
            request,
            examples,
            reason,
            adapted=adapted,
            model=self.model.name,
            votes=self.votes,
            rank=recipe.rank,
        )
        return self._emit(report, request.query, tuple(examples), work)

    def _compare(
        self,
        work: Work,
        examples: tuple[Example, ...],
        query: str,
        recipe: Recipe,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        """Ask the adapted model although it was decided not to use it, for the user to see."""
        with work.timed("comparison"):
            adapter = work.adapter or train(
                self.model, [examples], recipe, budget=self._remaining(work), cancelled=cancelled
            )
        if adapter.stop in ("finished", "early_stop"):
            self._ttt(work, adapter, examples, query, cancelled)

    def _adapt(
        self,
        work: Work,
        examples: tuple[Example, ...],
        query: str,
        recipe: Recipe,
        policy: Policy,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        """Train, ask the adapted model, and decide; raises :class:`RefusedError` where it should not answer."""
        key = adapter_key(self.model.fingerprint, examples, recipe)
        known = self.cache.get(key) if self.cache is not None else None
        if known is not None:
            # What was declined has evidence and no weights.
            work.adapter, work.evidence = known[0] if known[0].weights else None, known[1]
            work.cached = work.adapter is not None
        if policy == "gate" and work.evidence is None:
            with work.timed("gate"):
                work.evidence, trial = cross_fit(
                    self.model, examples, recipe, budget=self._remaining(work), cancelled=cancelled
                )
            work.peak_bytes = trial.peak_bytes
            self._refuse_failure(trial.stop)
            self._keep(examples, recipe, work.adapter or empty_adapter(self.model), work.evidence)
        if policy == "gate" and work.evidence is not None:
            work.decision = self.gate.decide(work.evidence)
            if not work.decision.adapt:
                raise RefusedError(work.decision.reason or "no_held_out_gain")
        if work.adapter is None:
            with work.timed("training"):
                start = warm_start(self.cache, self.model, examples, recipe) if self.warm_start and self.cache else None
                work.warm_start = start is not None
                work.adapter = train(
                    self.model, [examples], recipe, budget=self._remaining(work), cancelled=cancelled, start=start
                )
            work.peak_bytes = max(work.peak_bytes, work.adapter.peak_bytes)
            self._refuse_failure(work.adapter.stop)
            if not work.warm_start:
                # Under this key lies what these examples alone lead to.
                self._keep(examples, recipe, work.adapter, work.evidence)
        self._ttt(work, work.adapter, examples, query, cancelled)
        if policy == "gate" and work.evidence is not None and work.ttt is not None:
            icl = self._icl(work, examples, query, cancelled)
            work.evidence = work.evidence.answered(work.adapter, adapted=work.ttt, icl=icl, agreement=work.agreement)
            work.decision = self.gate.decide(work.evidence)
            if not work.decision.adapt:
                raise RefusedError(work.decision.reason or "no_held_out_gain")

    def _refuse_failure(self, stop: StopReason) -> None:
        if stop == "cancelled":
            raise CancelledError("the request was cancelled while the model was adapted")
        if stop in FAILURES:
            raise RefusedError(FAILURES[stop])

    def _remaining(self, work: Work) -> Budget:
        limit = self.budget.max_seconds
        spent = work.seconds.get("gate", 0.0) + work.seconds.get("training", 0.0)
        return replace(self.budget, max_seconds=None if limit is None else max(0.0, limit - spent))

    def _keep(self, examples: tuple[Example, ...], recipe: Recipe, adapter: Adapter, evidence: Evidence | None) -> None:
        if self.cache is not None:
            key = adapter_key(self.model.fingerprint, examples, recipe)
            self.cache.load_adapter(adapter, key=key, examples=examples, extra=evidence)

    def _icl(self, work: Work, examples: Sequence[Example], query: str, cancelled: Callable[[], bool] | None) -> Answer:
        if work.icl is None:
            with work.timed("icl"):
                work.icl, agreed = self._asked(examples, query, cancelled)
            if work.ttt is None:
                work.agreement = agreed
        return work.icl

    def _ttt(
        self,
        work: Work,
        adapter: Adapter,
        examples: Sequence[Example],
        query: str,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        with work.timed("answer"), adapter.installed(self.model.network):
            work.ttt, work.agreement = self._asked(examples, query, cancelled, least_orders=PERMUTED_PROMPTS)

    def _asked(
        self, examples: Sequence[Example], query: str, cancelled: Callable[[], bool] | None, *, least_orders: int = 1
    ) -> tuple[Answer, float | None]:
        encoder = self.model.encoder
        asked = max(self.votes, least_orders) if len(examples) > 1 else 1
        orders = orderings(len(examples), asked, seed=self.recipe.seed)
        rows = [encoder.row([examples[i] for i in order], query=query).tokens for order in orders]
        longest = max((encoder.answer_tokens(example) for example in examples), default=64)
        limit = self.max_answer_tokens or 2 * longest + 16
        limit = max(1, min(limit, encoder.max_tokens - len(rows[0])))
        answers = generate(self.model, rows, max_tokens=limit, cancelled=cancelled)
        if self.votes == 1:
            return answers[0], agreement(answers) if asked > 1 else None
        best = majority(answers)
        return best, sum(answer.text == best.text for answer in answers) / len(answers)

    def _plain(
        self,
        prompt: str,
        detected: patterns.Detection | None,
        reason: Reason | None,
        cancelled: Callable[[], bool] | None,
    ) -> AskReport:
        work = Work(time.perf_counter(), PeakMemory(self.model.device))
        with self.model.lock, work.timed("icl"):
            # The tokenizer keeps how it treats special tokens between calls: one request at a time.
            ids = self.model.encoder.plain(prompt)
            limit = max(1, min(self.max_answer_tokens or 256, self.model.encoder.max_tokens - len(ids)))
            work.icl = generate(self.model, [ids], max_tokens=limit, cancelled=cancelled, free=True)[0]
        report = AskReport(
            answer=work.icl.text,
            status="plain" if reason is None else "declined" if reason in DECLINED else "fallback",
            reason=reason,
            method="icl",
            model=self.model.name,
            pattern=detected.kind if detected else None,
            pattern_confidence=detected.confidence if detected else None,
            icl_answer=work.icl.text,
            complete=work.icl.complete,
            seconds=work.seconds | {"total": time.perf_counter() - work.began},
            peak_bytes=work.memory.peak,
            metadata=AdaptationMetadata(fallback_reason=reason),
        )
        return self._emit(report, prompt, ())

    def _emit(
        self, report: AskReport, query: str, examples: tuple[Example, ...], work: Work | None = None
    ) -> AskReport:
        if self._debug is not None:
            losses = work.adapter.losses if work and work.adapter else ()
            evidence = work.evidence if work else None
            self._debug.write(report, query=query, examples=examples, losses=losses, evidence=evidence)
        if self._on_report is not None:
            self._on_report(report)
        _LOG.debug("%s", report.status_line)
        return report

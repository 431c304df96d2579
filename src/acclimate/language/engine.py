"""From a prompt to an answer: detect, train, decide, generate, and report what was done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from acclimate.core.budget import Budget
from acclimate.errors import ConfigError, DataError, TTTNotSupportedError, first_line
from acclimate.language import patterns
from acclimate.language.adaptation import Adaptation
from acclimate.language.answering import Answering
from acclimate.language.answers import AskReport, OnReport
from acclimate.language.debug_log import DebugLog
from acclimate.language.decision import calibration
from acclimate.language.decision.gate import Gate, Reason
from acclimate.language.examples import (
    MAX_EXAMPLE_CHARACTERS,
    Augmentation,
    Example,
    as_examples,
    cleaned,
    validated,
)
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.training.adapter_cache import AdapterManager
from acclimate.language.training.memory import out_of_memory
from acclimate.language.training.recipes import Recipe, decided
from acclimate.language.training.trainer import Adapter
from acclimate.language.work import Policy, RefusedError, Request, Work, report_of

_LOG = logging.getLogger(__name__)
#: Reasons for which the base model answers and the adapted model's answer can still be shown.
_STILL_COMPARED = (None, "low_confidence", "no_held_out_gain")


class Engine:
    """Answers prompts with one model, adapting it to the examples in them where that helps.

    The model's own tensors are never changed: low-rank weights are attached to it for the time of one request. An
    engine may be used from several threads, and several engines may share a model: one request at a time runs it.

    Args:
        model: as :func:`acclimate.language.models.language_model.load` returns it.
        recipe: of training; None takes the model's.
        gate: None takes the calibration that ships for the model, or compares held-out examples where there is none.
        environment: for the gate made here: a key of ``CONFIDENCE_THRESHOLDS``, or None.
        cache: of trained adapters; None keeps none.
        votes: orders of the examples that each answer is asked in; the majority answers.
        min_examples, max_examples: that are adapted to.
        max_seconds: for gate and training of one request; None for no limit.
        max_bytes: that a request may hold beyond the loaded model while it is adapted, as
            :class:`acclimate.language.training.memory.RequestMemory` counts them; None for no limit.
        max_answer_tokens: None allows twice the longest example answer and sixteen more.
        warm_start: start from a cached adapter where that answers the examples better than the base model.
        augment: returns further examples for each.
        on_report: called with every report, in the thread of its request.
        debug: a file that what happened is appended to.

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
        self.min_examples, self.max_examples, self.augment = min_examples, max_examples, augment
        self._answering = Answering(model, votes=votes, max_answer_tokens=max_answer_tokens, seed=self.recipe.seed)
        self._adaptation = Adaptation(
            model,
            gate=gate,
            budget=Budget(max_seconds=max_seconds, max_bytes=max_bytes),
            cache=cache,
            warm_start=warm_start,
            answering=self._answering,
        )
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
            cancelled: called between steps and tokens; true ends the request.

        Raises:
            DataError: the prompt is empty, or longer than the model can read.
            CancelledError: ``cancelled`` returned true.
        """
        prompt = cleaned(prompt)
        if not prompt:
            raise DataError("the prompt is empty")
        detected = patterns.detect(prompt, domain)
        unusable = _unusable(detected)
        if detected is None or detected.query is None or unusable is not None:
            request = Request(
                query=prompt,
                cancelled=cancelled,
                open_ended=True,
                pattern=detected.kind if detected else None,
                pattern_confidence=detected.confidence if detected else None,
            )
            return self._continue(request, unusable)
        examples = detected.examples
        warnings: tuple[str, ...] = ()
        if len(examples) > self.max_examples:
            warnings = (f"{len(examples)} examples found, the last {self.max_examples} are used",)
            examples = examples[-self.max_examples :]
        return self._answer(
            Request(
                query=detected.query,
                examples=examples,
                policy=policy,
                compare=compare,
                cancelled=cancelled,
                pattern=detected.kind,
                pattern_confidence=detected.confidence,
                warnings=warnings,
            )
        )

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
        """Return the answer to ``query`` after ``examples``; nothing is detected.

        Args:
            examples: inputs with their answers.
            query: the input to answer.
            policy: as in :meth:`ask`.
            compare: make both answers, whatever is decided.
            adapter: trained before, on these examples; it answers, and nothing is trained or decided.
            cancelled: called between steps and tokens; true ends the request.

        Raises:
            DataError: an example or the query is empty or too long, or there are too many.
            CancelledError: ``cancelled`` returned true.
        """
        query = cleaned(query)
        if not query:
            raise DataError("the query is empty")
        if adapter is not None and adapter.fingerprint != self.model.fingerprint:
            raise DataError(f"the adapter was trained for another model than {self.model.name!r}; train it again")
        return self._answer(
            Request(
                query=query,
                examples=as_examples(examples),
                policy=policy,
                compare=compare,
                cancelled=cancelled,
                adapter=adapter,
            )
        )

    def prime(
        self,
        examples: Iterable[Example | Mapping[str, Any] | Sequence[str]],
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> Adapter:
        """Return an adapter trained on ``examples``, for reuse; it is kept in the cache too.

        Raises:
            DataError: there are fewer than two usable examples, or training failed.
            CancelledError: ``cancelled`` returned true.
        """
        work, _ = self._prepared(Request(query="", examples=as_examples(examples), cancelled=cancelled))
        if len(work.examples) < self.min_examples:
            raise DataError(f"{len(work.examples)} usable examples; give at least {self.min_examples}")
        with self.model.lock:
            return self._adaptation.train_for_reuse(work)

    def _prepared(self, request: Request) -> tuple[Work, bool]:
        """Return the work on a request with its examples checked, and whether any contradicted each other."""
        checked = validated(request.examples, max_count=self.max_examples, augment=self.augment)
        work = Work(
            request=request,
            examples=checked.examples,
            recipe=decided(self.recipe, checked.examples),
            warnings=[*request.warnings, *checked.warnings],
            votes=self.votes,
        )
        return work, bool(checked.contradictions)

    def _answer(self, request: Request) -> AskReport:
        """Return the report of a request with examples."""
        work, contradictory = self._prepared(request)
        with self.model.lock:
            if len(work.examples) < self.min_examples:
                work.reason = "contradictory_examples" if contradictory else "insufficient_examples"
            elif request.policy != "never":
                work.reason = self._adapt(work)
            if not work.adapted or request.compare:
                self._answering.by_base_model(work)
            missing = request.compare and work.adapted_answer is None and request.policy != "never"
            if missing and work.reason in _STILL_COMPARED:
                self._adaptation.answer_for_comparison(work)
        return self._report(work)

    def _adapt(self, work: Work) -> Reason | None:
        """Answer with the adapted model; return why its answer is not given, or None."""
        try:
            if work.request.adapter is not None:
                work.adapter, work.cached = work.request.adapter, True
                self._answering.by_adapted_model(work, work.adapter)
            else:
                self._adaptation.adapt(work)
        except RefusedError as refused:
            return refused.reason
        except TTTNotSupportedError as error:
            work.warnings.append(first_line(error))
            return "unsupported_model"
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            work.warnings.append(first_line(error))
            return "memory"
        return None

    def _continue(self, request: Request, reason: Reason | None) -> AskReport:
        """Return the report of a prompt without examples that can be adapted to, for ``reason``."""
        work = Work(request=request, examples=(), recipe=self.recipe, reason=reason)
        with self.model.lock:
            self._answering.open_ended(work)
        return self._report(work)

    def _report(self, work: Work) -> AskReport:
        report = report_of(work, self.model.name)
        if self._debug is not None:
            self._debug.write(
                report,
                query=work.request.query,
                examples=work.examples,
                losses=work.adapter.losses if work.adapter else (),
                evidence=work.evidence,
            )
        if self._on_report is not None:
            self._on_report(report)
        _LOG.debug("%s", report.status_line)
        return report


def _unusable(detected: patterns.Detection | None) -> Reason | None:
    """Return why the examples that were detected cannot be adapted to, or None."""
    if detected is None:
        return None
    if detected.query is None:
        return "detection_failed"
    if not detected.examples:
        return "insufficient_examples"
    too_long = any(len(part) > MAX_EXAMPLE_CHARACTERS for e in detected.examples for part in (e.input, e.output))
    return "detection_failed" if too_long else None

"""From a prompt to an answer: detect, train, decide, generate, and report what was done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from acclimate.core.budget import Budget
from acclimate.errors import ConfigError, DataError, TTTNotSupportedError, first_line
from acclimate.language import patterns
from acclimate.language.adaptation import Adaptation
from acclimate.language.answering import Answering
from acclimate.language.answers import AskReport, OnReport
from acclimate.language.conversations import examples_in_turns, read_turns
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
from acclimate.language.layouts import layout_of_prompt, layout_of_turns
from acclimate.language.models.deadlines import Deadline
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Message
from acclimate.language.steps import Steps, run_alone
from acclimate.language.training.adapter import Adapter
from acclimate.language.training.adapter_cache import AdapterManager
from acclimate.language.training.adapter_library import AdapterLibrary
from acclimate.language.training.memory import out_of_memory
from acclimate.language.training.recipes import Recipe, decided
from acclimate.language.transfer import Transfer
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
        max_seconds: for one request, from reading the prompt to its answer, waiting for other requests on the model
            aside; None for no limit. Adapting ends early enough that there is time to answer.
        max_adapting_seconds: for gate and training of one request; None for no further limit.
        max_bytes: that a request may hold beyond the loaded model while it is adapted, as
            :class:`acclimate.language.training.memory.RequestMemory` counts them; None for no limit.
        max_answer_tokens: None allows twice the longest example answer and sixteen more.
        warm_start: start from a cached adapter where that answers the examples better than the base model.
        library: of adapters that earlier requests were worth; None uses none. Where one of them answers the examples it
            answers without training, or training starts from it.
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
        max_adapting_seconds: float | None = None,
        max_bytes: int | None = None,
        max_answer_tokens: int | None = None,
        warm_start: bool = False,
        library: AdapterLibrary | None = None,
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
            budget=Budget(max_seconds=max_adapting_seconds, max_bytes=max_bytes),
            cache=cache,
            warm_start=warm_start,
            answering=self._answering,
            transfer=Transfer(model, gate, library) if library is not None else None,
        )
        self._on_report, self._debug, self._max_seconds = on_report, debug, max_seconds

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
        began = time.perf_counter()
        request = self.read_prompt(prompt, domain=domain)
        request = replace(request, policy=policy, compare=compare, cancelled=cancelled)
        return self._alone(replace(request, reading_s=time.perf_counter() - began))

    def chat(
        self,
        messages: Iterable[Message],
        *,
        policy: Policy = "gate",
        compare: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> AskReport:
        """Return the answer to a conversation.

        Args:
            messages: each with ``role`` (``system``, ``developer``, ``user`` or ``assistant``) and ``content``; the
                last one is the user's. Worked examples may be its earlier turns, or stand in the last message.
            policy: as in :meth:`ask`; with ``never`` the conversation is sent as it is.
            compare: make both answers, whatever is decided.
            cancelled: called between steps and tokens; true ends the request.

        Raises:
            DataError: there is no message, one is not text, or they are longer than the model can read.
            CancelledError: ``cancelled`` returned true.
        """
        began = time.perf_counter()
        request = self.read_messages(messages, policy=policy)
        request = replace(request, compare=compare, cancelled=cancelled)
        return self._alone(replace(request, reading_s=time.perf_counter() - began))

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
        request = self.read_examples(examples, query, adapter=adapter)
        return self._alone(replace(request, policy=policy, compare=compare, cancelled=cancelled))

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
        return run_alone(
            self.model, self.priming(Request(query="", examples=as_examples(examples), cancelled=cancelled))
        )

    def read_prompt(self, prompt: str, *, domain: str | None = None, head: str = "") -> Request:
        """Return the request that ``prompt`` makes: its examples and its question, or the prompt as it stands.

        The model is not asked. See :meth:`ask` for the arguments and errors.

        Args:
            prompt: as typed.
            domain: see :meth:`ask`.
            head: what was said before, which stands in front of the examples where the model is adapted.
        """
        # Half of a surrogate pair is no text and cannot be encoded.
        typed = "".join(c for c in prompt if not "\ud800" <= c <= "\udfff")
        prompt = cleaned(prompt)
        if not prompt:
            raise DataError("the prompt is empty")
        detected = patterns.detect(prompt, domain)
        unusable = _unusable(detected)
        found: dict[str, Any] = {
            "pattern": detected.kind if detected else None,
            "pattern_confidence": detected.confidence if detected else None,
        }
        if detected is None or detected.query is None or unusable is not None:
            return Request(query=typed, open_ended=True, unusable=unusable, **found)
        examples, dropped = detected.examples, max(0, len(detected.examples) - self.max_examples)
        layout = layout_of_prompt(self.model.encoder, prompt, detected, dropped=dropped, head=head)
        return Request(
            query=detected.query,
            examples=examples[dropped:],
            warnings=_dropped(dropped, len(examples)),
            typed=typed,
            layout=layout,
            **found,
        )

    def read_examples(
        self,
        examples: Iterable[Example | Mapping[str, Any] | Sequence[str]],
        query: str,
        *,
        adapter: Adapter | None = None,
    ) -> Request:
        """Return the request for an answer to ``query`` after ``examples``; the model is not asked.

        See :meth:`answer` for the arguments and errors.
        """
        query = cleaned(query)
        if not query:
            raise DataError("the query is empty")
        if adapter is not None and adapter.fingerprint != self.model.fingerprint:
            raise DataError(f"the adapter was trained for another model than {self.model.name!r}; train it again")
        return Request(query=query, examples=as_examples(examples), adapter=adapter)

    def read_messages(self, messages: Iterable[Message], *, policy: Policy = "gate") -> Request:
        """Return the request that a conversation makes; the model is not asked.

        See :meth:`chat` for the arguments and errors.
        """
        turns = read_turns(messages)
        query = turns[-1]["content"]
        if policy == "never":
            return Request(query=query, policy=policy, open_ended=True, pattern=None, messages=turns)
        examples = examples_in_turns(turns, even_if_unlike=policy == "always")
        if len(examples) >= self.min_examples:
            dropped = max(0, len(examples) - self.max_examples)
            return Request(
                query=cleaned(query),
                examples=examples[dropped:],
                policy=policy,
                pattern="conversation",
                messages=turns,
                warnings=_dropped(dropped, len(examples)),
                layout=layout_of_turns(self.model.encoder, turns),
            )
        request = self.read_prompt(query, head="".join(turn["content"] + "\n\n" for turn in turns[:-1]))
        if not request.open_ended or len(turns) == 1:
            return replace(request, policy=policy, messages=turns)
        return replace(request, query=query, policy=policy, messages=turns)

    def steps(self, request: Request) -> Steps[AskReport]:
        """Answer ``request``, step by step; who makes the steps holds the model's lock.

        Raises:
            DataError: an example is empty or too long, or there are too many.
            CancelledError: the request was cancelled.
        """
        if request.open_ended:
            work = Work(request=request, examples=(), recipe=self.recipe, reason=request.unusable)
            work.deadline = self._deadline(request)
            yield from self._answering.open_ended(work)
            return self._report(work)
        work, contradictory = self._prepared(request)
        if len(work.examples) < self.min_examples:
            work.reason = "contradictory_examples" if contradictory else "insufficient_examples"
        elif request.policy != "never":
            work.reason = yield from self._adapt(work)
        if not work.adapted or request.compare:
            yield from self._answering.unadapted(work)
        yield from self._answering.drawn(work)
        missing = request.compare and work.adapted_answer is None and request.policy != "never"
        if missing and work.reason in _STILL_COMPARED:
            yield from self._adaptation.answer_for_comparison(work)
        return self._report(work)

    def adapter_key(self, request: Request) -> str | None:
        """Return the key under which an adapter to the examples of ``request`` is kept in a cache.

        None where nothing would be trained: there are no examples, the adapter is given, or adapting is switched off.

        Raises:
            DataError: an example is empty or too long, or there are too many.
        """
        if request.open_ended or request.policy == "never" or request.adapter is not None:
            return None
        return self._adaptation.key_of(self._prepared(request)[0])

    def priming(self, request: Request) -> Steps[Adapter]:
        """Train an adapter on the examples of ``request``, step by step; see :meth:`prime`."""
        work, _ = self._prepared(request)
        if len(work.examples) < self.min_examples:
            raise DataError(f"{len(work.examples)} usable examples; give at least {self.min_examples}")
        return (yield from self._adaptation.train_for_reuse(work))

    def _alone(self, request: Request) -> AskReport:
        return run_alone(self.model, self.steps(request))

    def _prepared(self, request: Request) -> tuple[Work, bool]:
        """Return the work on a request with its examples checked, and whether any contradicted each other."""
        checked = validated(request.examples, max_count=self.max_examples, augment=self.augment)
        work = Work(
            request=request,
            examples=checked.examples,
            shown=checked.given,
            recipe=decided(self.recipe, checked.examples),
            warnings=[*request.warnings, *checked.warnings],
            votes=self.votes,
            deadline=self._deadline(request),
        )
        return work, bool(checked.contradictions)

    def _deadline(self, request: Request) -> Deadline:
        limit = self._max_seconds
        return Deadline(None if limit is None else limit - request.reading_s, request.clock)

    def _adapt(self, work: Work) -> Steps[Reason | None]:
        """Answer with the adapted model; return why its answer is not given, or None."""
        try:
            if work.request.adapter is not None:
                work.adapter, work.cached = work.request.adapter, True
                yield from self._answering.by_adapted_model(work, work.adapter, is_final=True)
            else:
                yield from self._adaptation.adapt(work)
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

    def _report(self, work: Work) -> AskReport:
        report = report_of(work, self.model.name, self.model.encoder.text(work.prompt))
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


def _dropped(dropped: int, there_are: int) -> tuple[str, ...]:
    """Return the warning that examples are left out, if any are."""
    return (f"{there_are} examples found, the last {there_are - dropped} are used",) if dropped else ()


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

"""One request on its way through the engine, and the report that it ends in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from acclimate.errors import SessionError
from acclimate.language.answers import AdaptationMetadata, AskReport, LibraryUse, Status
from acclimate.language.decision.evidence import Evidence
from acclimate.language.decision.gate import DECLINED, Decision, Reason
from acclimate.language.examples import Example
from acclimate.language.models.deadlines import Deadline
from acclimate.language.models.decoding import GREEDY, Answer, OnText, Sampling
from acclimate.language.prompts import Layout, Message
from acclimate.language.training.adapter import Adapter, StopReason
from acclimate.language.training.memory import RequestMemory
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.trainer import OnStep

#: The parts of a request's seconds that adapting takes before anything is answered.
ADAPTING_PARTS: Final = ("library", "gate", "training")
Policy = Literal["gate", "always", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A query with its examples, and how it is to be answered.

    Attributes:
        query: the input to answer; the whole prompt where there are no examples.
        examples: as given or detected.
        policy: whether the gate decides, or adapting is always or never done.
        compare: make both answers, whatever is decided.
        cancelled: called between steps and tokens; true ends the request.
        adapter: trained before, on these examples; nothing is trained or decided.
        open_ended: the query is a prompt without examples: the model continues it freely.
        unusable: why the examples that were found cannot be adapted to.
        pattern, pattern_confidence: how the examples were found; ``given`` where a program gave them.
        warnings: for the report.
        messages: of a conversation that the model continues, where the query is not all of it.
        as_text: continue the prompt as it stands, without the chat template.
        typed: the prompt as it was typed, where examples and query were found in it.
        layout: that examples and query are written in; None for the model's format.
        max_tokens: of the answer; None leaves it to the engine.
        sampling: how the tokens of the answer are chosen.
        on_text: called with each piece of the answer as soon as it is certain; not at all where the answer is only
            known in the end.
        on_step: called after every training step; see :class:`acclimate.language.training.trainer.TrainingJob`.
        clock: seconds that this request is charged with; they count for its budget.
        reading_s: seconds that finding its examples took; they count too.
    """

    query: str
    examples: tuple[Example, ...] = ()
    policy: Policy = "gate"
    compare: bool = False
    cancelled: Callable[[], bool] | None = None
    adapter: Adapter | None = None
    open_ended: bool = False
    unusable: Reason | None = None
    pattern: str | None = "given"
    pattern_confidence: float | None = None
    warnings: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    as_text: bool = False
    typed: str | None = None
    layout: Layout | None = None
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    on_text: OnText | None = None
    on_step: OnStep | None = None
    clock: Callable[[], float] = time.perf_counter
    reading_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Work:
    """A request and what is known about it so far; it belongs to the thread that answers the request.

    Attributes:
        request: as it came.
        examples: of the request, checked: those that are trained on.
        shown: of the request, cleaned: those in the prompt, contradictory and repeated ones included.
        recipe: of training, with rank and steps decided.
        warnings: for the report.
        reason: why the adapted model does not answer; None where it does, or where adapting was not asked for.
        adapter, evidence, decision: of this request, as soon as they are there.
        parts: adapters of parts of the examples, which the evidence comes from and the adapter is made of.
        base_answer, adapted_answer: as soon as they are generated.
        agreement: share of prompts in other orders of the examples that gave the same answer.
        cached: the adapter was not trained for this request.
        warm_start: training started from another adapter.
        start: an adapter from a library, which training is to start from.
        library: what the library did; None without one.
        votes: orders of the examples that each answer is a majority of.
        adapter_key: of the adapter to these examples in a cache.
        base_prompt, adapted_prompt: the tokens that those answers followed.
        is_as_typed: the base model's answer is to the prompt as it was typed.
        trained_tokens: of all training steps.
        memory: what the request holds.
        deadline: when the request has to be answered.
        seconds: by part, on the clock of the request.
        began: on :func:`time.perf_counter`.
    """

    request: Request
    examples: tuple[Example, ...]
    recipe: Recipe
    shown: tuple[Example, ...] = ()
    warnings: list[str] = field(default_factory=list)
    reason: Reason | None = None
    adapter: Adapter | None = None
    parts: Adapter | None = None
    evidence: Evidence | None = None
    decision: Decision | None = None
    base_answer: Answer | None = None
    adapted_answer: Answer | None = None
    agreement: float | None = None
    cached: bool = False
    warm_start: bool = False
    start: Adapter | None = None
    library: LibraryUse | None = None
    votes: int = 1
    base_prompt: tuple[int, ...] = ()
    adapted_prompt: tuple[int, ...] = ()
    is_as_typed: bool = False
    trained_tokens: int = 0
    adapter_key: str | None = None
    memory: RequestMemory = field(default_factory=RequestMemory)
    deadline: Deadline = field(default_factory=Deadline)
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def adapted(self) -> bool:
        """Whether the adapted model answers."""
        return self.reason is None and self.adapted_answer is not None

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens that the answer that is given followed."""
        return self.adapted_prompt if self.adapted else self.base_prompt

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds that the block takes to ``part``."""
        clock = self.request.clock
        start = clock()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + clock() - start


class RefusedError(Exception):
    """The adapted model should not answer, for a listed reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def failure_reason(stop: StopReason) -> Reason | None:
    """Return the reason to fall back for, where training ended in a failure."""
    reasons: dict[StopReason, Reason] = {
        StopReason.TIME_BUDGET: "timeout",
        StopReason.MEMORY_BUDGET: "memory",
        StopReason.NON_FINITE: "non_finite",
    }
    return reasons.get(stop)


def report_of(work: Work, model: str, prompt_sent: str) -> AskReport:
    """Return the report of a request that has been answered.

    Args:
        work: on the request.
        model: the name of the model that answered.
        prompt_sent: the text that its answer followed.

    Raises:
        SessionError: there is no answer.
    """
    chosen = work.adapted_answer if work.adapted else work.base_answer
    if chosen is None:
        raise SessionError("a request ended without an answer")
    status: Status = "adapted" if work.adapted else "plain"
    if work.reason is not None:
        status = "declined" if work.reason in DECLINED else "fallback"
    out_of_time = work.deadline.is_over and not chosen.complete
    if out_of_time:
        work.warnings.append("the time limit (max_seconds) was reached before the answer was complete")
    request, adapter, decision, evidence = work.request, work.adapter, work.decision, work.evidence
    rank = None if request.open_ended else work.recipe.rank
    return AskReport(
        answer=chosen.text,
        status=status,
        reason=work.reason,
        method="ttt" if work.adapted else "icl",
        model=model,
        pattern=request.pattern,
        pattern_confidence=request.pattern_confidence,
        icl_answer=work.base_answer.text if work.base_answer else None,
        ttt_answer=work.adapted_answer.text if work.adapted_answer else None,
        icl_confidence=decision.icl_confidence if decision else None,
        calibrated=bool(decision and decision.calibrated),
        held_out_before=evidence.before.exact if evidence else None,
        held_out_after=evidence.after.exact if evidence and evidence.tried else None,
        votes=work.votes,
        agreement=work.agreement,
        cached=work.cached,
        warm_start=work.warm_start,
        library=work.library,
        complete=chosen.complete,
        out_of_time=out_of_time,
        metadata=AdaptationMetadata(
            training_steps=len(adapter.losses) if adapter and not work.cached else 0,
            convergence_score=adapter.convergence if adapter else 0.0,
            confidence_score=decision.confidence if decision else None,
            adaptation_time=sum(work.seconds.get(part, 0.0) for part in ADAPTING_PARTS),
            examples_used=len(work.examples),
            lora_rank=adapter.rank if adapter else rank,
            final_loss=adapter.losses[-1] if adapter and adapter.losses else None,
            early_stopped=bool(adapter and adapter.stop is StopReason.EARLY_STOP),
            fallback_reason=work.reason,
        ),
        seconds=work.seconds | {"total": time.perf_counter() - work.began},
        peak_bytes=work.memory.peak_bytes,
        prompt_sent=prompt_sent,
        prompt_tokens=len(work.prompt),
        answer_tokens=chosen.tokens,
        trained_tokens=work.trained_tokens,
        chosen_tokens=chosen.chosen,
        adapter_key=work.adapter_key if work.adapted else None,
        warnings=tuple(work.warnings),
    )

"""The report of a request, as plain values and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from acclimate.language.decision.gate import Reason
from acclimate.language.models.decoding import ChosenToken

Status = Literal["adapted", "declined", "fallback", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationMetadata:
    """Numbers of one adaptation.

    Attributes:
        training_steps: made.
        convergence_score: by which share the training loss fell, 0 to 1.
        confidence_score: probability that the adapted model answers exactly right; None where it was not estimated.
        adaptation_time: seconds for gate and training.
        examples_used: trained on.
        lora_rank: of the low-rank weights.
        final_loss: nats per answer token; None where nothing was trained.
        early_stopped: training ended because the loss was low enough.
        fallback_reason: why the base model answered; None where the adapted model did.
    """

    training_steps: int = 0
    convergence_score: float = 0.0
    confidence_score: float | None = None
    adaptation_time: float = 0.0
    examples_used: int = 0
    lora_rank: int | None = None
    final_loss: float | None = None
    early_stopped: bool = False
    fallback_reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryUse:
    """What a library of adapters did for a request.

    Attributes:
        tried: adapters that were compared on its examples.
        entry: the key of the one that was used; None where none was.
        use: ``answered`` (nothing was trained), ``start`` (training started from it) or ``same_examples`` (it was
            trained on these examples by an earlier request).
        added: the adapter that was trained for this request was kept.
    """

    tried: int = 0
    entry: str | None = None
    use: Literal["answered", "start", "same_examples"] | None = None
    added: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AskReport:
    """An answer, and how it was found.

    Attributes:
        answer: to the user.
        status: ``adapted``; ``declined`` (adapting would not help); ``fallback`` (it failed); ``plain`` (the prompt
            shows no examples).
        reason: why not adapted; None with ``adapted`` and ``plain``.
        method: ``ttt`` (the adapted model answered) or ``icl`` (the base model, by in-context learning).
        model: its name.
        pattern: the kind that was detected; ``given`` where examples were given directly; None where there is none.
        pattern_confidence: of the detection.
        icl_answer, ttt_answer: of the base model and of the adapted model, as far as they were generated.
        icl_confidence: probability that the base model is exactly right.
        calibrated: whether the probabilities were fitted for this model.
        held_out_before, held_out_after: share of held-out examples that the base model, and adapters trained on the
            other examples, answer exactly; None where none were held out, or the adapter was trained before.
        votes, agreement: orders of the examples that were asked, and the share that gave this answer.
        cached: the adapter was not trained for this request.
        warm_start: training started from another adapter's weights.
        library: what the engine's library of adapters did; None without one, or where adapting was not tried.
        complete: the model ended the answer within the limits.
        out_of_time: the limit on seconds cut it off.
        metadata: of the adaptation.
        seconds: wall-clock time by part; ``total`` includes waiting for other requests on the model.
        peak_bytes: the most that this request held beyond the loaded model; see
            :class:`acclimate.language.training.memory.RequestMemory`.
        prompt_sent: the text that the answer followed, special tokens included. Votes and the gate ask in other orders
            of the examples too.
        prompt_tokens, answer_tokens, trained_tokens: of the prompt that led to this answer, of the answer, and of all
            training steps of the request.
        chosen_tokens: of the answer, where the request asked for them.
        adapter_key: of the adapter that answered, in the engine's cache; None where the base model did, or where the
            adapter was given.
        warnings: for the user.
    """

    answer: str
    status: Status
    reason: Reason | None
    method: Literal["ttt", "icl"]
    model: str
    pattern: str | None = None
    pattern_confidence: float | None = None
    icl_answer: str | None = None
    ttt_answer: str | None = None
    icl_confidence: float | None = None
    calibrated: bool = False
    held_out_before: float | None = None
    held_out_after: float | None = None
    votes: int = 1
    agreement: float | None = None
    cached: bool = False
    warm_start: bool = False
    library: LibraryUse | None = None
    complete: bool = True
    out_of_time: bool = False
    metadata: AdaptationMetadata = field(default_factory=AdaptationMetadata)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    prompt_sent: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    trained_tokens: int = 0
    chosen_tokens: tuple[ChosenToken, ...] = ()
    adapter_key: str | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the tokens."""
        values = asdict(self)
        final_loss = values["metadata"]["final_loss"]
        if final_loss is not None and not math.isfinite(final_loss):
            values["metadata"]["final_loss"] = None
        del values["chosen_tokens"]
        return values | {"seconds": dict(self.seconds), "warnings": list(self.warnings)}

    @property
    def status_line(self) -> str:
        """One line that says what was done."""
        meta, total = self.metadata, self.seconds.get("total", 0.0)
        confidence = "" if meta.confidence_score is None else f", confidence {meta.confidence_score:.0%}"
        if self.status == "adapted":
            how = "adapter from the cache" if self.cached else f"{meta.training_steps} steps, rank {meta.lora_rank}"
            if self.library is not None and self.library.entry is not None:
                known = f"adapter {self.library.entry[:12]} from the library"
                how = f"{known}, no steps" if self.cached else f"{how}, from {known}"
            return f"TTT active: adapted to {meta.examples_used} examples ({how}){confidence}, {total:.2f} s"
        if self.status == "declined":
            plain = "" if self.icl_confidence is None else f", confidence {self.icl_confidence:.0%}"
            return f"TTT declined ({self.reason}): answered from the prompt alone{plain}, {total:.2f} s"
        if self.status == "fallback":
            return f"TTT failed ({self.reason}): answered from the prompt alone, {total:.2f} s"
        why = "no worked examples in the prompt" if self.pattern is None else "switched off"
        return f"TTT not used: {why}, {total:.2f} s"

    @property
    def explanation(self) -> str:
        """What was done and why, in words for somebody who does not know the method."""
        if self.status == "plain" and self.pattern is not None:
            return "Adapting was switched off, so the model answered from the prompt alone."
        if self.status == "plain":
            return "Your prompt shows no worked examples, so the base model answered."
        if self.status == "adapted" and self.library is not None and self.library.use == "answered":
            return (
                f"An adapter from the library, trained for a similar task, answered all your "
                f"{self.metadata.examples_used} examples right before it saw their answers, so nothing was trained."
            )
        if self.status == "adapted":
            words = f"The model was fine-tuned on your {self.metadata.examples_used} examples before it answered"
            confidence = self.metadata.confidence_score
            if confidence is None or self.icl_confidence is None:
                return words + "."
            base = f"without fine-tuning, {self.icl_confidence:.0%}"
            return f"{words}. It is right with an estimated probability of {confidence:.0%}; {base}."
        return _WHY[self.reason] if self.reason else ""


_WHY: Mapping[str, str] = {
    "insufficient_examples": "There are too few examples to fine-tune on, so the base model answered from the prompt.",
    "contradictory_examples": "The examples contradict each other: one input has two answers. Without them too few are "
    "left to fine-tune on, so the base model answered from the prompt.",
    "low_confidence": "The model was fine-tuned on your examples, but the estimated probability that its answer is "
    "right is below the threshold of this environment, so the base model answered from the prompt.",
    "no_held_out_gain": "On examples that were held out, the fine-tuned model did no better than the base model, so "
    "the base model answered from the prompt.",
    "timeout": "Fine-tuning on your examples took longer than allowed, so the base model answered from the prompt.",
    "memory": "Fine-tuning on your examples took more memory than allowed, so the base model answered from the prompt.",
    "non_finite": "Fine-tuning on your examples failed numerically and was discarded, so the base model answered from "
    "the prompt.",
    "detection_failed": "Your prompt looks like worked examples, but the examples and the query could not be told "
    "apart, so the base model answered the prompt as it stands.",
    "unsupported_model": "This model cannot be adapted, so the base model answered from the prompt.",
}

OnReport = Callable[[AskReport], None]

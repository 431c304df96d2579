"""Evidence for the gate: how held-out examples are answered with and without adapting.

Examples are split in two. An adapter is trained on each half, both in the same forward passes, and asked for the half
that it was not trained on; so is the base model. Where one half is large enough to be evidence, the other half alone
gets an adapter. A training loss cannot say whether adapting helps on new inputs of this task; held-out examples can.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from acclimate.core.budget import Budget
from acclimate.language.examples import Example
from acclimate.language.models.deadlines import Deadline, OutOfTimeError
from acclimate.language.models.decoding import Answer
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Layout
from acclimate.language.steps import Steps, run_alone
from acclimate.language.training.adapter import Adapter, StopReason
from acclimate.language.training.memory import RequestMemory, tensor_bytes
from acclimate.language.training.parts import parts_training, splits_of
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.step_schedule import batch_of
from acclimate.language.training.trainer import Cancelled, TrainingJob


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How held-out examples are answered.

    Attributes:
        exact: share of them answered exactly as given, by greedy decoding.
        log_likelihood: mean log-likelihood of their answers, in nats per answer.
        lowest_log_likelihood: that of the least likely answer.
        exact_by_example: per example, whether it was exact.
    """

    exact: float
    log_likelihood: float
    lowest_log_likelihood: float
    exact_by_example: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about one request before it is decided.

    Attributes:
        count: examples.
        before, after: held-out examples, answered by the base model and with adapters trained on the others.
        fold_loss: last training loss of those adapters, nats per answer token.
        fold_peak_bytes: the most that the request held until their training ended.
        final_loss: last training loss of the adapter trained on all examples; None where it was not trained.
        answer_log_likelihood: of the adapted model's answer to the query, nats; None where there is none yet.
        icl_log_likelihood: of the base model's answer to the query, nats.
        answers_agree: whether both answers are the same.
        agreement: share of permuted prompts that the adapted model answers alike.
        tried: whether adapters were trained at all; they are not where nothing can be gained.
    """

    count: int
    before: HeldOut
    after: HeldOut
    fold_loss: float
    fold_peak_bytes: int = 0
    final_loss: float | None = None
    answer_log_likelihood: float | None = None
    icl_log_likelihood: float | None = None
    answers_agree: bool | None = None
    agreement: float | None = None
    tried: bool = True

    def answered(self, adapter: Adapter, *, adapted: Answer, icl: Answer, agreement: float | None) -> Evidence:
        """Return the evidence extended by the adapter trained on all examples and both answers to the query."""
        return replace(
            self,
            final_loss=adapter.losses[-1] if adapter.losses else math.nan,
            answer_log_likelihood=adapted.log_likelihood,
            icl_log_likelihood=icl.log_likelihood,
            answers_agree=adapted.text == icl.text,
            agreement=agreement,
        )

    @property
    def held_out_only(self) -> Evidence:
        """The evidence of held-out examples alone, as it was before the query was answered."""
        return replace(self, answer_log_likelihood=None)

    @property
    def asked(self) -> int:
        """How many examples were held out and asked: all of them, or one half."""
        return len(self.before.exact_by_example) or self.count

    @property
    def likelier(self) -> bool:
        """Whether the answers of held-out examples became likelier by adapting."""
        return self.after.log_likelihood > self.before.log_likelihood

    @property
    def gains(self) -> bool:
        """Whether adapting helped on held-out examples: more of them exact, or as many and a higher likelihood."""
        if self.after.exact != self.before.exact:
            return self.after.exact > self.before.exact
        return self.likelier


class HeldOutEvaluation:
    """The held-out examples of each split, answered after its other examples, with and without adapters.

    The held-out examples of a split follow each other behind those trained on: the answer of each is predicted before
    it is shown, all in one forward pass. The layers below the adapted ones run once for both.

    Args:
        model: whose lock the caller holds, here and in the methods.
        examples: all of them.
        splits: as :func:`acclimate.language.examples.folds` returns them.
        share_adapted: share of the layers that adapters are attached to.
        memory: what the request holds.
        layout: that the examples are written in; None for the model's format.
        deadline: of the pass that is made here.

    Raises:
        OutOfTimeError: it passed.
    """

    def __init__(
        self,
        model: LanguageModel,
        examples: Sequence[Example],
        splits: Sequence[tuple[Sequence[int], Sequence[int]]],
        share_adapted: float,
        memory: RequestMemory,
        layout: Layout | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        rows = []
        for kept, out in splits:
            shown, marks = [examples[i] for i in (*kept, *out)], [*[-1] * len(kept), *range(len(out))]
            rows.append([model.encoder.row(shown, answers=marks, layout=layout)])
        self._model, self._memory, self._sizes = model, memory, [len(out) for _, out in splits]
        self._targets = batch_of(rows, pad=model.pad, device=model.device)
        self._decoder = model.decoder(share_adapted)
        began = time.perf_counter()
        with (deadline or Deadline()).inside(model.network), self._decoder.quick_attention:
            self._recording, self._base_hidden = self._decoder.record_and_run(self._targets.tokens)
        model.pace.read(self._targets.tokens.numel(), time.perf_counter() - began)

    @property
    def held_bytes(self) -> int:
        """Bytes of the activations that are kept."""
        return self._recording.held_bytes + tensor_bytes(self._base_hidden)

    def before(self) -> HeldOut:
        """Return how the base model answers."""
        return self._scores(self._base_hidden)

    def after(self, adapter: Adapter) -> HeldOut:
        """Return how the model answers with ``adapter``: one copy for each split."""
        with (
            # The adapter's own weights, and the copy that is attached.
            self._memory.holding("adapters", 2 * adapter.held_bytes),
            adapter.installed(self._model.network),
            self._decoder.quick_attention,
            torch.no_grad(),
        ):
            return self._scores(self._decoder.hidden(self._recording))

    @torch.no_grad()
    def _scores(self, hidden: Tensor) -> HeldOut:
        targets, sizes, total = self._targets, self._sizes, sum(self._sizes)
        logits = self._decoder.logits(hidden[targets.row, targets.column])
        with self._memory.holding("logits of held-out examples", tensor_bytes(logits)):
            losses = nn.functional.cross_entropy(logits, targets.wanted, reduction="none")
            wrong = (logits.argmax(-1) != targets.wanted).float()
        starts = torch.tensor([sum(sizes[:k]) for k in range(len(sizes))], device=logits.device)
        at = starts[targets.owner] + targets.example
        likelihoods = torch.zeros(total, device=logits.device).index_add_(0, at, -losses)
        mistakes = torch.zeros(total, device=logits.device).index_add_(0, at, wrong)
        exact = tuple(bool(m == 0) for m in mistakes.tolist())
        return HeldOut(sum(exact) / total, float(likelihoods.mean()), float(likelihoods.min()), exact)


def held_out(
    model: LanguageModel,
    examples: Sequence[Example],
    splits: Sequence[tuple[Sequence[int], Sequence[int]]],
    adapter: Adapter | None = None,
    *,
    layout: Layout | None = None,
) -> HeldOut:
    """Return how the held-out examples of each split are answered, by the base model or with ``adapter``."""
    with model.lock:
        evaluation = HeldOutEvaluation(model, examples, splits, 1.0, RequestMemory(), layout)
        return evaluation.before() if adapter is None else evaluation.after(adapter)


def cross_fit(
    model: LanguageModel,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    cancelled: Cancelled | None = None,
    even_if_perfect: bool = False,
    memory: RequestMemory | None = None,
    layout: Layout | None = None,
) -> tuple[Evidence, Adapter]:
    """Return how adapting changes the answers to held-out examples, and the adapters of the parts that were trained.

    What is held out is chosen by :func:`acclimate.language.training.parts.splits_of`.

    Args:
        model: is not changed.
        examples: at least two.
        recipe: with rank and steps decided.
        budget: for all of it; waiting for the model's lock costs none.
        cancelled: called before every step.
        even_if_perfect: train although the base model answers every held-out example.
        memory: what the request holds, if this is a part of it; ``budget.max_bytes`` limits all of it.
        layout: that the examples are written in; None for the model's format.

    Raises:
        DataError: there are fewer than two examples.
    """
    job = TrainingJob(
        sets=(), budget=budget or Budget(), cancelled=cancelled, memory=memory or RequestMemory(), layout=layout
    )
    return run_alone(model, cross_fit_steps(model, examples, recipe, job, even_if_perfect=even_if_perfect))


def cross_fit_steps(
    model: LanguageModel,
    examples: Sequence[Example],
    recipe: Recipe,
    job: TrainingJob,
    *,
    even_if_perfect: bool = False,
    reserve_s: Callable[[], float] | None = None,
) -> Steps[tuple[Evidence, Adapter]]:
    """Do what :func:`cross_fit` does, step by step; who makes the steps holds the model's lock.

    Args:
        model: is not changed.
        examples: at least two.
        recipe: with rank and steps decided.
        job: its sets are replaced by those of the splits; its budget is for all of it. An adapter that it starts from
            must not have been trained on the examples.
        even_if_perfect: train although the base model answers every held-out example.
        reserve_s: called after the first pass; returns how many seconds of the budget are to be kept for answering.
    """
    began = time.perf_counter()
    count, memory = len(examples), job.memory
    splits = splits_of(examples, recipe)
    late = HeldOut(0.0, -math.inf, -math.inf)
    too_late = Evidence(count, late, late, math.nan), replace(empty_adapter(model), stop=StopReason.TIME_BUDGET)
    ends = Deadline(job.budget.max_seconds)
    if reserve_s is not None and ends.left_s < math.inf:
        # Nothing is known yet of how long answering takes: it must be possible to read the prompt after this pass.
        ends = ends.earlier(ends.left_s / 3)
    try:
        evaluation = HeldOutEvaluation(model, examples, splits, recipe.share_adapted, memory, job.layout, ends)
    except OutOfTimeError:
        return too_late
    with memory.holding("activations of held-out examples", evaluation.held_bytes):
        before = evaluation.before()
        if before.exact == 1 and not even_if_perfect:
            # Nothing can be gained by training.
            return Evidence(count, before, before, 0.0, tried=False), empty_adapter(model)
        # What the pass took says how long answering will: the caller may keep that much back.
        budget = job.budget
        if budget.max_seconds is not None:
            kept = reserve_s() if reserve_s is not None else 0.0
            spent = time.perf_counter() - began
            budget = replace(budget, max_seconds=max(0.0, budget.max_seconds - spent - kept))
        adapter: Adapter = yield parts_training(replace(job, sets=[examples], budget=budget), recipe)
        after = before
        if adapter.stop not in (StopReason.NON_FINITE, StopReason.TIME_BUDGET):
            left = None if budget.max_seconds is None else budget.max_seconds - adapter.seconds
            try:
                with Deadline(left).inside(model.network):
                    after = evaluation.after(adapter)
            except OutOfTimeError:
                adapter = replace(adapter, stop=StopReason.TIME_BUDGET)
    loss = adapter.losses[-1] if adapter.losses else math.nan
    return Evidence(count, before, after, loss, adapter.peak_bytes), adapter


def empty_adapter(model: LanguageModel) -> Adapter:
    """Return an adapter without weights."""
    return Adapter.of_weights({}, rank=1, fingerprint=model.fingerprint)

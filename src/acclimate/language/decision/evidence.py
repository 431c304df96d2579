"""What is known about a request before it is decided: how left-out examples fare with and without adapting.

Examples are split in two. An adapter is trained on each half, both in the same passes, and asked for the half it did
not see; so is the model without adapter. What comes out is evidence about this task that no training loss can give.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from acclimate.core.budget import Budget
from acclimate.language.examples import Example, folds
from acclimate.language.models.generate import Answer
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.training.recipes import Recipe
from acclimate.language.training.step_schedule import laid_out
from acclimate.language.training.trainer import Adapter, Cancelled, train

_LEAST_FOR_HALVES: Final = 4


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How examples that were left out are answered.

    Attributes:
        exact: share of them answered exactly as given, greedily.
        log_likelihood: mean log-likelihood of their answers, in nats per answer.
        worst: log-likelihood of the answer that was predicted worst.
        each: per example, whether it was exact.
    """

    exact: float
    log_likelihood: float
    worst: float
    each: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about one request before it is decided.

    Attributes:
        count: examples.
        before, after: left-out examples, by the model as it is and with adapters trained on the others.
        fold_loss: last training loss of those adapters, nats per answer token.
        fold_peak_bytes: memory that their training took.
        final_loss: last training loss of the adapter that would answer; None where it was not trained.
        answer_log_likelihood: of the adapted model's own answer, nats; None where there is none yet.
        icl_log_likelihood: of the unadapted model's own answer, nats.
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
        """Return the evidence with what the adapter that would answer, and both answers, add to it."""
        return replace(
            self,
            final_loss=adapter.losses[-1] if adapter.losses else math.nan,
            answer_log_likelihood=adapted.log_likelihood,
            icl_log_likelihood=icl.log_likelihood,
            answers_agree=adapted.text == icl.text,
            agreement=agreement,
        )

    @property
    def of_left_out(self) -> Evidence:
        """What left-out examples said alone, before the adapter that would answer was trained."""
        return replace(self, answer_log_likelihood=None)

    @property
    def gains(self) -> bool:
        """Whether adapting helped on examples that were left out: more of them exact, or as many and likelier."""
        if self.after.exact != self.before.exact:
            return self.after.exact > self.before.exact
        return self.after.log_likelihood > self.before.log_likelihood


class LeftOut:
    """The left-out part of each split, to be answered after its other part, with and without adapters.

    The left-out examples of a split stand one after the other behind the ones trained on: each is predicted before its
    answer is shown, all in one pass. What lies below the adapted layers is read once for both.

    Args:
        model: to ask.
        examples: all of them.
        splits: as :func:`acclimate.language.examples.folds` returns them.
        share_adapted: share of the layers that adapters lie in.
    """

    def __init__(
        self,
        model: LanguageModel,
        examples: Sequence[Example],
        splits: Sequence[tuple[Sequence[int], Sequence[int]]],
        share_adapted: float,
    ) -> None:
        rows = [
            [
                model.encoder.row(
                    [examples[i] for i in (*kept, *left_out)], answers=[*[-1] * len(kept), *range(len(left_out))]
                )
            ]
            for kept, left_out in splits
        ]
        self._model, self._sizes = model, [len(left_out) for _, left_out in splits]
        self._targets = laid_out(rows, pad=model.pad, device=model.device)
        self._decoder = model.decoder(share_adapted)
        self._recording, self._plain = self._decoder.read(self._targets.tokens)

    @property
    def before(self) -> HeldOut:
        """How the model as it is answers."""
        return self._scores(self._plain)

    def after(self, adapter: Adapter) -> HeldOut:
        """Return how the model answers with ``adapter``: one copy for each split."""
        with adapter.installed(self._model.network), torch.no_grad():
            return self._scores(self._decoder.hidden(self._recording))

    @torch.no_grad()
    def _scores(self, hidden: Tensor) -> HeldOut:
        targets, sizes, total = self._targets, self._sizes, sum(self._sizes)
        logits = self._decoder.logits(hidden[targets.row, targets.column])
        each = -nn.functional.cross_entropy(logits, targets.wanted, reduction="none")
        wrong = (logits.argmax(-1) != targets.wanted).float()
        starts = torch.tensor([sum(sizes[:k]) for k in range(len(sizes))], device=logits.device)
        at = starts[targets.owner] + targets.example
        likelihoods = torch.zeros(total, device=logits.device).index_add_(0, at, each)
        mistakes = torch.zeros(total, device=logits.device).index_add_(0, at, wrong)
        exact = tuple(bool(m == 0) for m in mistakes.tolist())
        return HeldOut(sum(exact) / total, float(likelihoods.mean()), float(likelihoods.min()), exact)


def held_out(
    model: LanguageModel,
    examples: Sequence[Example],
    splits: Sequence[tuple[Sequence[int], Sequence[int]]],
    adapter: Adapter | None = None,
) -> HeldOut:
    """Return how the left-out part of each split is answered, as it is or with ``adapter``; see :class:`LeftOut`."""
    left_out = LeftOut(model, examples, splits, 1.0)
    return left_out.before if adapter is None else left_out.after(adapter)


def cross_fit(
    model: LanguageModel,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    cancelled: Cancelled | None = None,
    even_if_perfect: bool = False,
) -> tuple[Evidence, Adapter]:
    """Return what adapting does to left-out examples, and the throw-away adapters that showed it.

    Two halves; with fewer than four examples each is left out once.

    Args:
        model: is not changed.
        examples: at least two.
        recipe: with rank and steps decided.
        budget: for the training.
        cancelled: asked before every step.
        even_if_perfect: train although the model as it is answers every left-out example.

    Raises:
        DataError: there are fewer than two examples.
    """
    began = time.perf_counter()
    count = len(examples)
    splits = folds(examples, 2 if count >= _LEAST_FOR_HALVES else count, seed=recipe.seed)
    left_out = LeftOut(model, examples, splits, recipe.share_adapted)
    before = left_out.before
    if before.exact == 1 and not even_if_perfect:
        # Nothing can be gained: the adapters would be trained for nothing.
        return Evidence(count, before, before, 0.0, tried=False), empty_adapter(model)
    sets = [[examples[i] for i in kept] for kept, _ in splits]
    if budget is not None and budget.max_seconds is not None:
        budget = replace(budget, max_seconds=max(0.0, budget.max_seconds - (time.perf_counter() - began)))
    adapter = train(model, sets, recipe, budget=budget, cancelled=cancelled)
    after = before if adapter.stop == "non_finite" else left_out.after(adapter)
    return Evidence(
        count, before, after, adapter.losses[-1] if adapter.losses else math.nan, adapter.peak_bytes
    ), adapter


def empty_adapter(model: LanguageModel) -> Adapter:
    """Return an adapter without weights."""
    return Adapter({}, 1, 1.0, 1, model.fingerprint, (), "finished", 0.0, 0.0, 0)

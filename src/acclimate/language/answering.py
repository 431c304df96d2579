"""Generating the answers of a request, by the base model and by the adapted one."""

from __future__ import annotations

from collections.abc import Sequence

from acclimate.language.examples import Example, orderings
from acclimate.language.models.generate import PERMUTED_PROMPTS, Answer, agreement, generate, majority
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.training.trainer import Adapter
from acclimate.language.work import Work

_OPEN_ENDED_TOKENS = 256


class Answering:
    """Asks one model; the caller holds its lock.

    Args:
        model: to ask.
        votes: orders of the examples that each answer is asked in; the majority answers.
        max_answer_tokens: None allows twice the longest example answer and sixteen more, or 256 without examples.
        seed: of the orders.
    """

    def __init__(self, model: LanguageModel, *, votes: int, max_answer_tokens: int | None, seed: int) -> None:
        self._model, self._votes, self._max_tokens, self._seed = model, votes, max_answer_tokens, seed

    def by_base_model(self, work: Work) -> Answer:
        """Return the base model's answer; generated once for each request."""
        if work.base_answer is None:
            with work.timed("icl"):
                work.base_answer, agreed = self._with_examples(work, least_orders=1)
            if work.adapted_answer is None:
                work.agreement = agreed
        return work.base_answer

    def by_adapted_model(self, work: Work, adapter: Adapter) -> Answer:
        """Return the answer with ``adapter``."""
        with (
            work.timed("answer"),
            work.memory.holding("attached adapter", adapter.held_bytes),
            adapter.installed(self._model.network),
        ):
            # Whether other orders lead to the same answer is evidence for the gate.
            work.adapted_answer, work.agreement = self._with_examples(work, least_orders=PERMUTED_PROMPTS)
        return work.adapted_answer

    def open_ended(self, work: Work) -> Answer:
        """Return the base model's continuation of a prompt without examples."""
        encoder = self._model.encoder
        with work.timed("icl"):
            ids = encoder.prompt_tokens(work.request.query)
            limit = max(1, min(self._max_tokens or _OPEN_ENDED_TOKENS, encoder.max_tokens - len(ids)))
            work.base_answer = generate(
                self._model,
                [ids],
                max_tokens=limit,
                cancelled=work.request.cancelled,
                open_ended=True,
                memory=work.memory,
            )[0]
        return work.base_answer

    def _with_examples(self, work: Work, *, least_orders: int) -> tuple[Answer, float | None]:
        """Return the answer to the query after the examples, and the share of their orders that agree on it."""
        encoder, examples = self._model.encoder, work.examples
        count = max(self._votes, least_orders) if len(examples) > 1 else 1
        orders = orderings(len(examples), count, seed=self._seed)
        rows = [encoder.row([examples[i] for i in order], query=work.request.query).tokens for order in orders]
        answers = generate(
            self._model,
            rows,
            max_tokens=self._limit(examples, len(rows[0])),
            cancelled=work.request.cancelled,
            memory=work.memory,
        )
        if self._votes == 1:
            return answers[0], agreement(answers) if count > 1 else None
        best = majority(answers)
        return best, sum(answer.text == best.text for answer in answers) / len(answers)

    def _limit(self, examples: Sequence[Example], prompt_tokens: int) -> int:
        """Return the most tokens that an answer may take."""
        encoder = self._model.encoder
        longest = max((encoder.answer_tokens(example) for example in examples), default=64)
        return max(1, min(self._max_tokens or 2 * longest + 16, encoder.max_tokens - prompt_tokens))

"""Generating the answers of a request, by the base model and by the adapted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from acclimate.language.decision.gate import Reason
from acclimate.language.examples import orderings
from acclimate.language.layouts import TurnLayout, TypedLayout
from acclimate.language.models.decoding import Answer, OnText, Sampling
from acclimate.language.models.generate import PERMUTED_PROMPTS, agreement, majority
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Ending
from acclimate.language.steps import Generate, Steps, Together
from acclimate.language.training.adapter import Adapter
from acclimate.language.work import Work

_OPEN_ENDED_TOKENS: Final = 256
#: Reasons not to adapt for which the base model was measured in the layout of the examples.
_MEASURED: Final[frozenset[Reason]] = frozenset({"no_held_out_gain", "low_confidence"})


class Answering:
    """Asks one model, step by step; who makes the steps holds its lock.

    Args:
        model: to ask.
        votes: orders of the examples that each answer is asked in; the majority answers.
        max_answer_tokens: None allows twice the longest example answer and sixteen more, or 256 without examples.
        seed: of the orders.
    """

    def __init__(self, model: LanguageModel, *, votes: int, max_answer_tokens: int | None, seed: int) -> None:
        self._model, self._votes, self._max_tokens, self._seed = model, votes, max_answer_tokens, seed

    def unadapted(self, work: Work) -> Steps[None]:
        """Make the answer that is given without adapting, where there is none yet.

        The prompt goes to the model as it was typed, by the chat template where the model has one. Only where the gate
        found the base model no worse in the user's own layout, that is what answers: the same text, to be continued.
        """
        if self._is_measured(work):
            yield from self.by_base_model(work, is_final=not work.adapted)
        else:
            yield from self._as_typed(work)

    def by_base_model(self, work: Work, *, is_final: bool = False) -> Steps[Answer]:
        """Return the base model's answer in the layout of the examples; generated once for each request.

        Args:
            work: on the request.
            is_final: it is known already that this answer will be given.
        """
        if work.base_answer is None:
            with work.timed("icl"):
                work.base_answer, agreed = yield from self._with_examples(
                    work, None, least_orders=1, on_text=self._certain_text(work, is_final)
                )
            if work.adapted_answer is None:
                work.agreement = agreed
        return work.base_answer

    def by_adapted_model(self, work: Work, adapter: Adapter, *, is_final: bool = False) -> Steps[Answer]:
        """Return the answer with ``adapter``; see :meth:`by_base_model`."""
        with work.timed("answer"):
            # Whether other orders lead to the same answer is evidence for the gate, if it has still to decide.
            least_orders = 1 if is_final else PERMUTED_PROMPTS
            work.adapted_answer, work.agreement = yield from self._with_examples(
                work, adapter, least_orders=least_orders, on_text=self._certain_text(work, is_final)
            )
        return work.adapted_answer

    def by_both(self, work: Work, adapter: Adapter) -> Steps[tuple[Answer, Answer]]:
        """Return the answers with ``adapter`` and of the base model, which do not wait for each other."""
        with work.timed("answer"):
            adapted = self._asked(work, adapter, least_orders=PERMUTED_PROMPTS, on_text=None)
            base = self._asked(work, None, least_orders=1, on_text=None)
            answers: list[list[Answer]] = yield Together((adapted, base))
        work.adapted_answer, work.agreement = self._chosen(answers[0])
        work.base_answer, _ = self._chosen(answers[1])
        return work.adapted_answer, work.base_answer

    def expected_s(self, work: Work) -> float:
        """Return how long reading the prompt once and generating an answer will take, from what passes took lately."""
        prompts, _ = self._prompts(work, 1)
        layout = work.request.layout
        longest = max((self._model.encoder.answer_tokens(example, layout) for example in work.shown), default=64)
        return self._model.pace.answer_s(len(prompts[0]), longest)

    def drawn(self, work: Work) -> Steps[None]:
        """Replace the chosen answer by one that is drawn, where the request asks for a temperature.

        What is decided is decided on the likeliest answers: it does not depend on chance.
        """
        request = work.request
        if request.sampling.temperature == 0 or request.open_ended or (work.is_as_typed and not work.adapted):
            return
        adapter = work.adapter if work.adapted else None
        with work.timed("answer" if work.adapted else "icl"):
            prompts, shared = self._prompts(work, 1)
            answers = yield self._generation(
                work, prompts, shared=shared, adapter=adapter, sampling=request.sampling, on_text=request.on_text
            )
        if work.adapted:
            work.adapted_answer = answers[0]
        else:
            work.base_answer = answers[0]

    def open_ended(self, work: Work) -> Steps[Answer]:
        """Return the base model's continuation of a prompt without examples."""
        request, encoder = work.request, self._model.encoder
        if request.as_text:
            ids = encoder.text_tokens(request.query)
        else:
            ids = encoder.chat_tokens(request.messages or ({"role": "user", "content": request.query},))
        return (yield from self._continued(work, ids))

    def _is_measured(self, work: Work) -> bool:
        """Say whether the prompt is to be sent in the layout that held-out examples were asked in."""
        request, encoder = work.request, self._model.encoder
        if request.typed is None and not request.messages:
            return True
        if encoder.format.is_only:
            return True
        if work.reason not in _MEASURED and not work.adapted:
            return False
        if isinstance(request.layout, TypedLayout) and request.typed is not None:
            return _visible(request.layout.text(work.shown, request.query)) == _visible(request.typed)
        return isinstance(request.layout, TurnLayout)

    def _as_typed(self, work: Work) -> Steps[Answer]:
        """Return the base model's answer to the prompt or conversation as it was typed."""
        request, encoder = work.request, self._model.encoder
        by_template = encoder.has_chat_template and not request.as_text
        # The gate's answer to the rewritten prompt makes room for it.
        if request.messages and not request.as_text:
            ids = encoder.chat_tokens(request.messages)
        elif by_template:
            ids = encoder.prompt_tokens(request.typed or request.query)
        else:
            ids = encoder.text_tokens(request.typed or request.query)
        ending = None if by_template or request.layout is None else request.layout.ending
        return (yield from self._continued(work, ids, ending))

    def _continued(self, work: Work, ids: tuple[int, ...], ending: Ending | None = None) -> Steps[Answer]:
        """Return the base model's continuation of ``ids``: up to ``ending``, or to the end of its text."""
        request, encoder = work.request, self._model.encoder
        wanted = request.max_tokens or self._max_tokens or _OPEN_ENDED_TOKENS
        with work.timed("icl"):
            answers = yield Generate(
                prompts=[ids],
                max_tokens=max(1, min(wanted, encoder.max_tokens - len(ids))),
                memory=work.memory,
                adapter=request.adapter if request.open_ended else None,
                open_ended=ending is None,
                ending=ending,
                sampling=request.sampling,
                cancelled=request.cancelled,
                on_text=request.on_text if not work.adapted else None,
                deadline=work.deadline,
            )
        work.base_prompt, work.base_answer, work.is_as_typed = ids, answers[0], True
        if work.adapted_answer is None:
            work.agreement = None
        return work.base_answer

    def _certain_text(self, work: Work, is_final: bool) -> OnText | None:
        """Return who wants the text while it is generated, if it will not be replaced by another."""
        can_change = not is_final or self._votes > 1 or work.request.sampling.temperature > 0
        return None if can_change else work.request.on_text

    def _with_examples(
        self, work: Work, adapter: Adapter | None, *, least_orders: int, on_text: OnText | None
    ) -> Steps[tuple[Answer, float | None]]:
        """Return the answer to the query after the examples, and the share of their orders that agree on it."""
        answers: list[Answer] = yield self._asked(work, adapter, least_orders=least_orders, on_text=on_text)
        return self._chosen(answers)

    def _asked(self, work: Work, adapter: Adapter | None, *, least_orders: int, on_text: OnText | None) -> Generate:
        """Return the step that asks in as many orders of the examples as are wanted."""
        count = max(self._votes, least_orders) if len(work.shown) > 1 else 1
        prompts, shared = self._prompts(work, count)
        greedy = replace(work.request.sampling, temperature=0.0)
        return self._generation(work, prompts, shared=shared, adapter=adapter, sampling=greedy, on_text=on_text)

    def _chosen(self, answers: Sequence[Answer]) -> tuple[Answer, float | None]:
        """Return the answer of several orders of the examples, and the share of them that agree on it."""
        if self._votes == 1:
            return answers[0], agreement(answers) if len(answers) > 1 else None
        best = majority(answers)
        return best, sum(answer.text == best.text for answer in answers) / len(answers)

    def _prompts(self, work: Work, count: int) -> tuple[list[tuple[int, ...]], int]:
        """Return the prompt in ``count`` orders of the examples, and how many tokens the examples take in each."""
        row, examples, layout = self._model.encoder.row, work.shown, work.request.layout
        orders = orderings(len(examples), count, seed=self._seed)
        prompts = [
            row([examples[i] for i in order], query=work.request.query, layout=layout).tokens for order in orders
        ]
        return prompts, len(row(examples, layout=layout).tokens)

    def _generation(
        self,
        work: Work,
        prompts: Sequence[tuple[int, ...]],
        *,
        shared: int,
        adapter: Adapter | None,
        sampling: Sampling,
        on_text: OnText | None,
    ) -> Generate:
        if adapter is None:
            work.base_prompt = prompts[0]
        else:
            work.adapted_prompt = prompts[0]
        layout = work.request.layout
        return Generate(
            prompts=prompts,
            max_tokens=self._limit(work, len(prompts[0])),
            memory=work.memory,
            adapter=adapter,
            shared_tokens=shared,
            sampling=sampling,
            cancelled=work.request.cancelled,
            on_text=on_text,
            ending=layout.ending if layout is not None else None,
            deadline=work.deadline,
        )

    def _limit(self, work: Work, prompt_tokens: int) -> int:
        """Return the most tokens that an answer may take."""
        encoder = self._model.encoder
        layout = work.request.layout
        longest = max((encoder.answer_tokens(example, layout) for example in work.shown), default=64)
        wanted = work.request.max_tokens or self._max_tokens or 2 * longest + 16
        return max(1, min(wanted, encoder.max_tokens - prompt_tokens))


def _visible(text: str) -> list[str]:
    """Return the lines of a text without white space at their ends."""
    return [line.rstrip() for line in text.strip().splitlines()]

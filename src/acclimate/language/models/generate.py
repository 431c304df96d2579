"""Greedy answers, several prompts of one length side by side, within a deadline."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from acclimate.errors import CancelledError
from acclimate.language.models.language_model import LanguageModel

#: Orders of the examples that the adapted model is asked in: whether it answers alike says how sure it may be.
PERMUTED_PROMPTS: Final = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model went on with.

    Attributes:
        text: up to where the answer ends.
        log_likelihood: of it, in nats, the end included.
        tokens: generated.
        complete: whether the model ended it, rather than the limit on tokens or time.
    """

    text: str
    log_likelihood: float
    tokens: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of prompts, read once.

    Attributes:
        length: tokens.
        cache: keys and values of the network's attention.
    """

    length: int
    cache: Any

    def copied(self, rows: int) -> Any:
        """Return a copy of the cache for ``rows`` prompts side by side, free to grow."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


@torch.no_grad()
def read_prefix(model: LanguageModel, tokens: Sequence[int]) -> Prefix:
    """Read what several prompts begin with, with whatever adapter is installed."""
    ids = torch.tensor([tokens], device=model.device)
    given = model.network(input_ids=ids, use_cache=True, logits_to_keep=1)
    return Prefix(len(tokens), given.past_key_values)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    deadline: float | None = None,
    cancelled: Callable[[], bool] | None = None,
    free: bool = False,
    read: Prefix | None = None,
) -> list[Answer]:
    """Return the likeliest continuation, token by token, of each prompt.

    Args:
        model: with whatever adapter is installed.
        prompts: token ids, all of one length.
        max_tokens: most tokens to generate.
        deadline: on :func:`time.perf_counter`; answers end there, incomplete.
        cancelled: asked before every token.
        free: the prompts hold no worked examples: only the model's own end of text ends an answer.
        read: what all prompts begin with, read already with the same adapter.

    Raises:
        CancelledError: ``cancelled`` said so.
    """
    stop = () if free else model.encoder.stop_ids
    ends = {model.tokenizer.eos_token_id} - {None}
    ids = torch.tensor(prompts, device=model.device)
    rows = len(prompts)
    found: list[list[int]] = [[] for _ in range(rows)]
    likelihoods, done = [0.0] * rows, [False] * rows
    if read is None:
        given = model.network(input_ids=ids, use_cache=True, logits_to_keep=1)
    else:
        given = model.network(
            input_ids=ids[:, read.length :], past_key_values=read.copied(rows), use_cache=True, logits_to_keep=1
        )
    for _ in range(max_tokens):
        if cancelled is not None and cancelled():
            raise CancelledError("the request was cancelled while its answer was generated")
        if deadline is not None and time.perf_counter() > deadline:
            break
        best = given.logits[:, -1].float().log_softmax(-1).max(-1)
        for row, (token, likelihood) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            if done[row]:
                continue
            found[row].append(token)
            likelihoods[row] += likelihood
            done[row] = token in ends or (len(stop) > 0 and tuple(found[row][-len(stop) :]) == stop)
        if all(done):
            break
        given = model.network(input_ids=best.indices[:, None], past_key_values=given.past_key_values, use_cache=True)
    return [
        Answer(model.encoder.answer_text(tokens, free=free), likelihood, len(tokens), complete)
        for tokens, likelihood, complete in zip(found, likelihoods, done, strict=True)
    ]


def majority(answers: Sequence[Answer]) -> Answer:
    """Return the answer that most prompts led to, the first among equals."""
    text, _ = Counter(answer.text for answer in answers).most_common(1)[0]
    return next(answer for answer in answers if answer.text == text)


def agreement(answers: Sequence[Answer]) -> float:
    """Return the share of answers that are the first one."""
    return sum(answer.text == answers[0].text for answer in answers) / len(answers)

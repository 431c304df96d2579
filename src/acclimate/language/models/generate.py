"""Generating the answers to several prompts of one length side by side, within a deadline."""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from acclimate.errors import CancelledError
from acclimate.language.models.deadlines import Deadline, OutOfTimeError
from acclimate.language.models.decoding import GREEDY, Answer, Continuation, OnText, Sampling, advance
from acclimate.language.models.language_model import LanguageModel
from acclimate.language.prompts import Ending
from acclimate.language.training.memory import RequestMemory, cache_bytes

_LOG = logging.getLogger(__name__)
#: Orders of the examples in which the adapted model is asked: whether its answers agree is evidence for the gate.
PERMUTED_PROMPTS: Final = 2


@dataclass(frozen=True, slots=True)
class Prefix:
    """The common beginning of several prompts, run through the network once.

    Attributes:
        token_count: its length.
        key_values: the network's key-value cache after it.
    """

    token_count: int
    key_values: Any

    def repeated(self, rows: int) -> Any:
        """Return a copy of the key-value cache for ``rows`` prompts side by side."""
        key_values = copy.deepcopy(self.key_values)
        key_values.batch_repeat_interleave(rows)
        return key_values


@torch.no_grad()
def run_prefix(model: LanguageModel, tokens: Sequence[int]) -> Prefix:
    """Run the common beginning of several prompts, with whatever adapter is installed."""
    with model.lock:
        ids = torch.tensor([tokens], device=model.device)
        output = model.network(input_ids=ids, use_cache=True, logits_to_keep=1)
    return Prefix(len(tokens), output.past_key_values)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    deadline: Deadline | None = None,
    cancelled: Callable[[], bool] | None = None,
    open_ended: bool = False,
    prefix: Prefix | None = None,
    memory: RequestMemory | None = None,
    sampling: Sampling = GREEDY,
    on_text: OnText | None = None,
    ending: Ending | None = None,
) -> list[Answer]:
    """Return the continuation of each prompt.

    Args:
        model: with whatever adapter is installed.
        prompts: token ids, all of one length.
        max_tokens: most tokens to generate.
        deadline: answers end there, incomplete; empty where it passes while the prompts are read.
        cancelled: called before every token.
        open_ended: the prompts have no worked examples: only the model's own end-of-text token ends an answer.
        prefix: the common beginning of all prompts, run with the same adapter.
        memory: of the request; the key-value cache is entered while it is held.
        sampling: how tokens are chosen.
        on_text: called with the text of the first prompt's answer, piece by piece.
        ending: where answers end; None means where they do in the model's format.

    Raises:
        CancelledError: ``cancelled`` returned true.
    """
    with model.lock:
        ids = torch.tensor(prompts, device=model.device)
        rows = continuations(
            model,
            len(prompts),
            max_tokens=max_tokens,
            open_ended=open_ended,
            sampling=sampling,
            on_text=on_text,
            ending=ending,
        )
        ends = deadline or Deadline()
        began = time.perf_counter()
        known = None if prefix is None else prefix.repeated(len(rows))
        new = ids if prefix is None else ids[:, prefix.token_count :]
        output: Any = None
        read, passes = began, 0
        try:
            ends.check()
            with ends.inside(model.network):
                output = model.network(input_ids=new, past_key_values=known, use_cache=True, logits_to_keep=1)
                read = time.perf_counter()
                model.pace.read(new.numel(), read - began)
                while not ends.is_over:
                    if cancelled is not None and cancelled():
                        raise CancelledError("the request was cancelled while its answer was generated")
                    tokens = advance(rows, output.logits[:, -1])
                    if all(row.done for row in rows):
                        break
                    new = torch.tensor(tokens, device=model.device)[:, None]
                    known = getattr(output, "past_key_values", None)
                    if known is None:
                        # A recurrent network keeps its state in a way of its own: the whole text is run again for
                        # every token.
                        ids = torch.cat([ids, new], 1)
                        output = model.network(input_ids=ids, use_cache=False, logits_to_keep=1)
                    else:
                        output = model.network(input_ids=new, past_key_values=known, use_cache=True)
                    passes += 1
        except OutOfTimeError:
            _LOG.info("the time for an answer is over after %d tokens", max(row.token_count for row in rows))
        model.pace.generated(passes, time.perf_counter() - read)
        if memory is not None:
            # The cache only grows: its size at the end is its largest.
            memory.set("key-value cache", cache_bytes(getattr(output, "past_key_values", None)))
            memory.set("key-value cache", 0)
        return [row.answer() for row in rows]


def continuations(
    model: LanguageModel,
    count: int,
    *,
    max_tokens: int,
    open_ended: bool,
    sampling: Sampling,
    on_text: OnText | None,
    ending: Ending | None = None,
) -> list[Continuation]:
    """Return ``count`` answers that are to be generated; the text of the first is told to ``on_text``."""
    return [
        Continuation(
            model.encoder,
            ends=model.end_tokens,
            max_tokens=max_tokens,
            open_ended=open_ended,
            sampling=sampling,
            on_text=on_text if number == 0 else None,
            ending=ending,
        )
        for number in range(count)
    ]


def majority(answers: Sequence[Answer]) -> Answer:
    """Return the answer that most prompts led to, the first among equals."""
    text, _ = Counter(answer.text for answer in answers).most_common(1)[0]
    return next(answer for answer in answers if answer.text == text)


def agreement(answers: Sequence[Answer]) -> float:
    """Return the share of answers that equal the first."""
    return sum(answer.text == answers[0].text for answer in answers) / len(answers)

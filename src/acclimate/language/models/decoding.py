"""Choosing the tokens of answers, one after the other, and knowing when an answer ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acclimate.errors import ConfigError, SessionError
from acclimate.language.prompts import Encoder, Ending

#: Ends a text that stops in the middle of a character of several bytes.
_REPLACEMENT = "\ufffd"
OnText = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above, logits are divided by it and a token is drawn.
        top_p: tokens are drawn from the smallest set of likeliest ones that has this probability.
        seed: of the draws; the same seed gives the same answer, whatever else the model is asked at the time.
        stop: texts that end the answer and are not a part of it.
        alternatives: likeliest tokens that are reported beside each one chosen; None reports nothing about tokens.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    alternatives: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be a finite number of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if any(not text for text in self.stop):
            raise ConfigError("a stop text is empty; leave it out")


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A token of an answer.

    Attributes:
        token: its number.
        log_probability: in nats.
        alternatives: the likeliest tokens at its place with their log-probabilities, the likeliest first.
    """

    token: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer.

    Attributes:
        text: up to the end of the answer.
        log_likelihood: of its tokens, in nats, the end included.
        tokens: number generated.
        complete: whether the model ended it, rather than the limit on tokens or time.
        chosen: its tokens, where the sampling asks for alternatives.
    """

    text: str
    log_likelihood: float
    tokens: int
    complete: bool
    chosen: tuple[ChosenToken, ...] = ()


class Continuation:
    """One answer while it is generated.

    Args:
        encoder: of the model.
        ends: tokens that end any text.
        max_tokens: most tokens; at least 1.
        open_ended: the prompt has no worked examples: their end does not end the answer.
        sampling: how tokens are chosen.
        on_text: called with each piece of text as soon as no later token can change it.
        ending: where the answer ends; None means where it does in the model's format.

    Attributes:
        done: whether it has ended.
        max_tokens: most tokens.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        ends: frozenset[int],
        max_tokens: int,
        open_ended: bool = False,
        sampling: Sampling = GREEDY,
        on_text: OnText | None = None,
        ending: Ending | None = None,
    ) -> None:
        self._encoder, self._ends, self.max_tokens = encoder, ends, max_tokens
        self._open_ended, self._sampling, self._on_text = open_ended, sampling, on_text
        self._ending = ending or encoder.format.ending
        self._stop_ids = () if open_ended or self._ending.by_text else encoder.stop_ids
        self._tokens: list[int] = []
        self._chosen: list[ChosenToken] = []
        self._log_likelihood = 0.0
        self._complete = False
        self._told = ""
        self._rng = torch.Generator().manual_seed(sampling.seed) if sampling.temperature > 0 else None
        self.done = False

    @property
    def token_count(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, and nothing else about the scores matters."""
        return self._rng is None and self._sampling.alternatives is None

    def take(
        self, token: int, log_probability: float, alternatives: tuple[tuple[int, float], ...] | None = None
    ) -> None:
        """Go on with ``token``.

        Args:
            token: that follows.
            log_probability: of it, in nats.
            alternatives: the likeliest tokens at its place, for the report; None reports nothing about it.
        """
        if alternatives is not None:
            self._chosen.append(ChosenToken(token, log_probability, alternatives))
        self._tokens.append(token)
        self._log_likelihood += log_probability
        ended = token in self._ends or (
            len(self._stop_ids) > 0 and tuple(self._tokens[-len(self._stop_ids) :]) == self._stop_ids
        )
        if not ended and not self._open_ended and self._ending.by_text:
            ended = self._ending.is_in(self._encoder.generated_text(self._tokens))
        if not ended and self._sampling.stop:
            text = self._text()
            ended = any(stop in text for stop in self._sampling.stop)
        self._complete = ended
        self.done = ended or len(self._tokens) >= self.max_tokens
        if self._on_text is not None:
            self._tell(self._on_text)

    def choose(self, log_probabilities: Tensor) -> int:
        """Return the next token, drawn or the likeliest, after going on with it.

        Args:
            log_probabilities: ``(vocabulary,)``, float32.
        """
        if self._rng is None:
            token = int(log_probabilities.argmax())
        else:
            token = self._drawn(log_probabilities.cpu(), self._rng)
        value, pairs = float(log_probabilities[token]), None
        if self._sampling.alternatives is not None:
            count = min(self._sampling.alternatives, len(log_probabilities))
            best = log_probabilities.topk(count)
            pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        self.take(token, value, pairs)
        return token

    def end(self, *, complete: bool) -> None:
        """End the answer after the tokens that were taken.

        Args:
            complete: whether the model ended it.
        """
        self._complete = self._complete or complete
        self.done = True
        if self._on_text is not None:
            self._tell(self._on_text)

    def answer(self) -> Answer:
        """Return the answer as far as it is generated."""
        return Answer(
            self._cut(self._text()), self._log_likelihood, len(self._tokens), self._complete, tuple(self._chosen)
        )

    def _drawn(self, log_probabilities: Tensor, rng: torch.Generator) -> int:
        # A very small temperature overflows without the subtraction.
        scaled = (log_probabilities.double() - log_probabilities.max()) / self._sampling.temperature
        probabilities = scaled.softmax(-1)
        if self._sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            before = ordered.cumsum(0) - ordered
            probabilities = torch.zeros_like(probabilities).scatter_(
                0, order, torch.where(before < self._sampling.top_p, ordered, 0.0)
            )
        return int(torch.multinomial(probabilities, 1, generator=rng))

    def _text(self) -> str:
        return self._encoder.answer_text(self._tokens, open_ended=self._open_ended, ending=self._ending)

    def _cut(self, text: str) -> str:
        found = [at for stop in self._sampling.stop if (at := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def _tell(self, on_text: OnText) -> None:
        """Hand on the text that is certain: not what may be the beginning of a stop text or of a character."""
        text = self._cut(self._text())
        if not self.done:
            text = text.rstrip(_REPLACEMENT)
            text = text[: len(text) - self._may_stop(text)]
        if text.startswith(self._told) and len(text) > len(self._told):
            on_text(text[len(self._told) :])
            self._told = text

    def _may_stop(self, text: str) -> int:
        """Return the length of the longest end of ``text`` with which a stop text begins."""
        stops = self._sampling.stop if self._open_ended else (*self._sampling.stop, self._ending.stop)
        lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(lengths, default=0)


def advance(
    continuations: Sequence[Continuation], logits: Tensor, *, on_error: Callable[[int, Exception], None] | None = None
) -> list[int]:
    """Let each continuation that is not done go on by a token; return the tokens, 0 for those that are done.

    Args:
        continuations: one for each row.
        logits: of the next tokens, ``(rows, vocabulary)``.
        on_error: called with the number of a row and its error, so that the other rows go on; None raises it.

    Raises:
        SessionError: the scores of a row are not finite.
    """
    log_probabilities = logits.float().log_softmax(-1)
    best = log_probabilities.max(-1)
    tokens, values = best.indices.tolist(), best.values.tolist()
    for row, continuation in enumerate(continuations):
        if continuation.done:
            tokens[row] = 0
            continue
        try:
            if not math.isfinite(values[row]):
                raise SessionError("the model's scores are not finite, so that no token can be chosen")
            if continuation.is_greedy:
                continuation.take(tokens[row], values[row])
            else:
                tokens[row] = continuation.choose(log_probabilities[row])
        except Exception as error:
            if on_error is None:
                raise
            tokens[row] = 0
            on_error(row, error)
    return tokens

"""A point in time that a request must not pass, also looked at inside the passes of the network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn

#: Fewer tokens take about as long as one: what they take says nothing about many.
_LEAST_TOKENS = 64


class OutOfTimeError(Exception):
    """The deadline passed inside a pass of the network, whose result is lost."""


class Deadline:
    """A point in time, on a clock of the request.

    Args:
        seconds: from now on; None for no limit.
        clock: in seconds.
    """

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._at = math.inf if seconds is None else clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left; infinite without a limit, negative when it has passed."""
        return math.inf if self._at == math.inf else self._at - self._clock()

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return self.left_s <= 0

    def earlier(self, seconds: float | None) -> Deadline:
        """Return this deadline, or the one in ``seconds`` from now where that is earlier."""
        if seconds is None or seconds >= self.left_s:
            return self
        return Deadline(seconds, self._clock)

    def check(self) -> None:
        """Raise an :class:`OutOfTimeError` if it has passed."""
        if self.is_over:
            raise OutOfTimeError

    @contextmanager
    def inside(self, network: Any) -> Iterator[Self]:
        """Check before every layer of ``network``, there and in the backward pass back, inside the block.

        Raises:
            OutOfTimeError: from the pass.
        """
        if self._at == math.inf:
            yield self
            return

        def before(*_: object) -> None:
            self.check()

        def after(_layer: nn.Module, _given: object, output: Any) -> None:
            state = output if isinstance(output, Tensor) else output[0]
            if isinstance(state, Tensor) and state.requires_grad:
                state.register_hook(before)

        _, layers = layers_of(network.base_model)
        handles = []
        try:
            for layer in layers if layers is not None else ():
                handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
            yield self
        finally:
            for handle in handles:
                handle.remove()


class Pace:
    """How long the network took lately for a token; whoever notes something holds the network's lock.

    Attributes:
        reading_s: seconds for a token of a long text without gradient; None where none was read.
        generating_s: seconds for a pass with one token for each row; None where there was none.
    """

    def __init__(self) -> None:
        self.reading_s: float | None = None
        self.generating_s: float | None = None

    def read(self, tokens: int, seconds: float) -> None:
        """Note that ``tokens`` were read in ``seconds``."""
        if tokens >= _LEAST_TOKENS:
            self.reading_s = seconds / tokens

    def generated(self, passes: int, seconds: float) -> None:
        """Note that ``passes``, of a token for each row, took ``seconds``."""
        if passes:
            self.generating_s = seconds / passes

    def answer_s(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return how long reading prompts and generating an answer will take; 0 where nothing is known."""
        reading = self.reading_s or 0.0
        # A pass with one token takes about as long as one with the tokens that a processor computes side by side.
        generating = self.generating_s if self.generating_s is not None else 16 * reading
        return prompt_tokens * reading + answer_tokens * generating


def layers_of(body: nn.Module) -> tuple[str, nn.ModuleList | None]:
    """Return the longest list of modules inside ``body`` and its name."""
    lists = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda pair: len(pair[1]), default=("", None))

"""The model as it was before it was adapted, without a second copy of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from acclimate.core import layout, norm
from acclimate.core.signals import SignalPair, Signals
from acclimate.core.task import Task

REMEMBERED_PAIRS: Final = 256
"""How many batches a comparison may reach back; batches of one fill it last."""
REMEMBERED_COMPARISONS: Final = 8
"""Over how many of the newest comparisons failures are counted."""
STICKY_SCORE: Final = 1.5
"""Two failed comparisons in a row with a mean degradation score above this begin a sticky fallback."""
STICKY_PASSES: Final = 3
"""How many passed comparisons in a row end it."""


class FunctionalModel:
    """Calls a model with other weights in place of some of its own."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self._model = model
        self._weights = dict(weights)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns with these weights."""
        return functional_call(self._model, self._weights, args, kwargs)


@torch.no_grad()
def source_outputs(model: nn.Module, inputs: Any, weights: Mapping[str, Tensor], *, task: Task) -> Any:
    """Return what the unadapted model says: ``weights`` for those that move, and the source's statistics."""
    with norm.source_statistics():
        return task.forward(FunctionalModel(model, weights), layout.for_prediction(inputs))


class SourceComparison:
    """Compares the adapted model with the unadapted one over a session, and remembers how it went.

    Attributes:
        images_checked, images_since_check: on how many images the unadapted model was asked, and how many came since.
        verified: signals of the adapted model on the newest batch that passed; None before the first.
        last: the newest comparison.
        consecutive_failures: how many of the newest comparisons failed in a row, that is, favoured the unadapted model.
        sticky_fallback: comparisons failed so clearly that several must pass, under a stricter limit, before the
            adapted model predicts again: a stream that is of one class stays so when its light changes.
        falling_back: the newest comparison failed, so the unadapted model predicts.
        seconds: wall-clock seconds that running the unadapted model took.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], *, task: Task) -> None:
        self._model, self._weights, self._task = model, weights, task
        self._pairs: deque[SignalPair] = deque(maxlen=REMEMBERED_PAIRS)
        # With batches of one a summary is of hundreds of pairs, and it is asked for more often than they change.
        self._summaries: dict[tuple[int, int], SignalPair] = {}
        self._failures: deque[bool] = deque(maxlen=REMEMBERED_COMPARISONS)
        self.seconds = 0.0
        self.reset()

    def reset(self) -> None:
        """Start again, as on a new stream."""
        self._pairs.clear()
        self._summaries.clear()
        self._failures.clear()
        self._latest: tuple[Any, Any] | None = None
        self._was_asked = False
        self.images_checked = self.images_since_check = 0
        self.verified: Signals | None = None
        self.last: SignalPair | None = None
        self.falling_back = False
        self.consecutive_failures = self._consecutive_passes = 0
        self.sticky_fallback = False
        self._scores: deque[float] = deque(maxlen=2)

    def source_tensors(self) -> dict[str, Tensor]:
        """Return every weight and buffer of the unadapted model by name."""
        return {**dict(self._model.named_buffers()), **dict(self._model.named_parameters()), **self._weights}

    @property
    def recent_failures(self) -> int:
        """How many of the newest comparisons failed."""
        return sum(self._failures)

    def outputs(self, batch: Any) -> Any:
        """Return what the unadapted model says about ``batch``; after :meth:`compare` on it, it is not run again."""
        if self._latest is not None and self._latest[0] is batch:
            return self._latest[1]
        started = time.perf_counter()
        outputs = source_outputs(self._model, batch, self._weights, task=self._task)
        self.seconds += time.perf_counter() - started
        return outputs

    def record_score(self, score: float) -> None:
        """Record the degradation score of the batch that was compared; 1 is the limit."""
        self._scores.append(score)

    def compare(self, batch: Any, adapted: Signals, *, decisions: int) -> SignalPair:
        """Ask the unadapted model about ``batch``, and return how both did on about the last so many decisions."""
        outputs = self.outputs(batch)
        self._latest, self._was_asked = (batch, outputs), True
        source = Signals.of(self._task, outputs, samples=adapted.samples)
        self._pairs.append(SignalPair(adapted, source))
        self._summaries.clear()
        self.images_checked += adapted.samples
        self.images_since_check = 0
        self.last = self.recent(decisions)
        return self.last

    def recent(self, decisions: int, *, images: int = 0) -> SignalPair:
        """Return how both did on about the last so many decisions, and images, that were compared."""
        key = (decisions, images)
        if key not in self._summaries:
            self._summaries[key] = SignalPair.recent(self._pairs, decisions=decisions, images=images)
        return self._summaries[key]

    def clear_history(self) -> None:
        """Forget how both did before weights and state went back to the source: those outputs judge nobody any more."""
        self._pairs.clear()
        self._summaries.clear()
        self.consecutive_failures = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what must outlive a restart, as plain values."""
        return {
            "falling_back": self.falling_back,
            "sticky_fallback": self.sticky_fallback,
            "consecutive_failures": self.consecutive_failures,
            "failures": tuple(self._failures),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start again with what :meth:`state_dict` returned."""
        self.reset()
        self.falling_back, self.sticky_fallback = state["falling_back"], state["sticky_fallback"]
        self.consecutive_failures = state["consecutive_failures"]
        self._failures.extend(state["failures"])

    def record(self, adapted: Signals, *, falling_back: bool) -> None:
        """Note how a batch was judged, whether or not the unadapted model was asked about it."""
        asked, self._was_asked = self._was_asked, False
        if not asked:
            self.images_since_check += adapted.samples
            return
        self._failures.append(falling_back)
        self.consecutive_failures = self.consecutive_failures + 1 if falling_back else 0
        self._consecutive_passes = 0 if falling_back else self._consecutive_passes + 1
        if self.consecutive_failures > 1 and sum(self._scores) > STICKY_SCORE * len(self._scores):
            self.sticky_fallback = True
        elif self._consecutive_passes >= STICKY_PASSES:
            self.sticky_fallback = False
        self.falling_back = falling_back
        if not falling_back:
            self.verified = adapted

    def release(self) -> None:
        """Let go of what was said about the newest batch: its tensor may hold other images the next time."""
        self._latest, self._was_asked = None, False

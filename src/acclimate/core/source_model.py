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
from acclimate.core.signals import Pair, Signals
from acclimate.core.task import Task

REMEMBERED_PAIRS: Final = 256
"""How many batches a comparison may reach back; batches of one fill it last."""
REMEMBERED_JUDGEMENTS: Final = 8
"""How many comparisons a suspicion rests on."""
CONVINCING_DOUBT: Final = 1.5
"""Two comparisons in a row that go against the adapted model with more doubt than this on average are no accident."""
CONVINCED_UNTIL: Final = 3
"""How many comparisons in a row must go well before that is forgotten."""


class With:
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
    with norm.plain():
        return task.forward(With(model, weights), layout.for_prediction(inputs))


class SourceWatch:
    """What a session knows about how the adapted model stands against the unadapted one.

    Attributes:
        images_checked, images_since_check: on how many images the unadapted model was asked, and how many came since.
        verified: signals of the adapted model on the newest batch on which nothing was wrong; None before the first.
        last: the newest comparison.
        trips_in_a_row: the newest comparisons that went against the adapted model, without one between that did not.
        convinced: whether comparisons went against the adapted model so clearly that it takes several good ones, and
            better ones, for it to be trusted again: a stream that is of one class stays so when its light changes.
        distrusted: whether the newest comparison went against the adapted model, so that the unadapted one predicts.
        seconds: wall-clock seconds that asking the unadapted model took.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], *, task: Task) -> None:
        self._model, self._weights, self._task = model, weights, task
        self._pairs: deque[Pair] = deque(maxlen=REMEMBERED_PAIRS)
        # With batches of one a summary is of hundreds of pairs, and it is asked for more often than they change.
        self._summaries: dict[tuple[int, int], Pair] = {}
        self._judgements: deque[bool] = deque(maxlen=REMEMBERED_JUDGEMENTS)
        self.seconds = 0.0
        self.forget()

    def forget(self) -> None:
        """Start again, as on a new stream."""
        self._pairs.clear()
        self._summaries.clear()
        self._judgements.clear()
        self._latest: tuple[Any, Any] | None = None
        self._was_asked = False
        self.images_checked = self.images_since_check = 0
        self.verified: Signals | None = None
        self.last: Pair | None = None
        self.distrusted = False
        self.trips_in_a_row = self._passes_in_a_row = 0
        self.convinced = False
        self._doubts: deque[float] = deque(maxlen=2)

    def source_tensors(self) -> dict[str, Tensor]:
        """Return every weight and buffer of the unadapted model by name."""
        return {**dict(self._model.named_buffers()), **dict(self._model.named_parameters()), **self._weights}

    @property
    def recent_trips(self) -> int:
        """How many of the newest comparisons went against the adapted model."""
        return sum(self._judgements)

    def outputs(self, batch: Any) -> Any:
        """Return what the unadapted model says about ``batch``; after :meth:`compare` on it, it is not run again."""
        if self._latest is not None and self._latest[0] is batch:
            return self._latest[1]
        started = time.perf_counter()
        outputs = source_outputs(self._model, batch, self._weights, task=self._task)
        self.seconds += time.perf_counter() - started
        return outputs

    def doubt(self, amount: float) -> None:
        """Note how much speaks against the adapted model on the batch that was compared, 1 being what is allowed."""
        self._doubts.append(amount)

    def compare(self, batch: Any, adapted: Signals, *, decisions: int) -> Pair:
        """Ask the unadapted model about ``batch``, and return how both did on about the last so many decisions."""
        outputs = self.outputs(batch)
        self._latest, self._was_asked = (batch, outputs), True
        source = Signals.of(self._task, outputs, samples=adapted.samples)
        self._pairs.append(Pair(adapted, source))
        self._summaries.clear()
        self.images_checked += adapted.samples
        self.images_since_check = 0
        self.last = self.recent(decisions)
        return self.last

    def recent(self, decisions: int, *, images: int = 0) -> Pair:
        """Return how both did on about the last so many decisions, and images, that were compared."""
        key = (decisions, images)
        if key not in self._summaries:
            self._summaries[key] = Pair.recent(self._pairs, decisions=decisions, images=images)
        return self._summaries[key]

    def begin_again(self) -> None:
        """Forget how both did before weights and state went back to the source: those outputs judge nobody any more."""
        self._pairs.clear()
        self._summaries.clear()
        self.trips_in_a_row = 0

    def memory(self) -> dict[str, Any]:
        """Return what must outlive a restart, as plain values."""
        return {
            "distrusted": self.distrusted,
            "convinced": self.convinced,
            "trips_in_a_row": self.trips_in_a_row,
            "judgements": tuple(self._judgements),
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Start again with what :meth:`memory` returned."""
        self.forget()
        self.distrusted, self.convinced = memory["distrusted"], memory["convinced"]
        self.trips_in_a_row = memory["trips_in_a_row"]
        self._judgements.extend(memory["judgements"])

    def settle(self, adapted: Signals, *, distrusted: bool) -> None:
        """Note how a batch was judged, whether or not the unadapted model was asked about it."""
        asked, self._was_asked = self._was_asked, False
        if not asked:
            self.images_since_check += adapted.samples
            return
        self._judgements.append(distrusted)
        self.trips_in_a_row = self.trips_in_a_row + 1 if distrusted else 0
        self._passes_in_a_row = 0 if distrusted else self._passes_in_a_row + 1
        if self.trips_in_a_row > 1 and sum(self._doubts) > CONVINCING_DOUBT * len(self._doubts):
            self.convinced = True
        elif self._passes_in_a_row >= CONVINCED_UNTIL:
            self.convinced = False
        self.distrusted = distrusted
        if not distrusted:
            self.verified = adapted

    def release(self) -> None:
        """Let go of what was said about the newest batch: its tensor may hold other images the next time."""
        self._latest, self._was_asked = None, False

"""Running the unadapted model without a second copy of it, and comparing it with the adapted model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from acclimate.core import layout, norm
from acclimate.core.outputs import map_tensors, sample_count
from acclimate.core.signals import SignalPair, Signals
from acclimate.core.task import Task
from acclimate.core.view_agreement import ThreeDecisions, ViewDecisions

REMEMBERED_PAIRS: Final = 256
"""Of how many of the newest compared batches the signals are kept."""
REMEMBERED_VIEWS: Final = 256
"""On how many of the newest images the decisions on mirror images are kept."""
REMEMBERED_COMPARISONS: Final = 8
"""Over how many of the newest comparisons failures are counted."""
_MOST_UNDONE_IMAGES: Final = 128
"""Images on which the first steps on a new stream were undone count as its own up to this number."""
_LARGE_BATCH: Final = 32
_MANY_DECISIONS: Final = 256
"""An image with so many decisions is a segmenter's."""
STICKY_SCORE: Final = 1.5
"""Two failed comparisons in a row with a mean degradation score above this begin a sticky fallback."""
_COUNTS: Final = ("images_checked", "images_since_check", "decisions_checked", "_consecutive_passes")
STICKY_PASSES: Final = 3
"""How many passed comparisons in a row end it."""


class FunctionalModel:
    """Calls a model with some of its weights replaced, without gradient to the replaced weights.

    Args:
        model: any module.
        weights: values by parameter name. A parameter that is registered under several names may be given under any of
            them, and is replaced wherever it is used.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self._model = model
        self._weights = dict(weights)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's outputs with the replaced weights."""
        with _replaced(self._model, self._weights):
            return self._model(*args, **kwargs)


@contextmanager
def _replaced(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, the named parameters have other values.

    Their contents are exchanged and not the parameter objects, as :func:`torch.func.functional_call` does: that leaves
    a module which is registered under two names with the replaced weights, and misses parameters that the model keeps
    in a list or that a recurrent layer has flattened.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    before = [(named[name], named[name].data) for name in weights]
    try:
        for name, value in weights.items():
            named[name].data = value.detach().to(named[name].dtype)
        # Inside torch.autocast, converted weights are cached by parameter.
        torch.clear_autocast_cache()
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
        torch.clear_autocast_cache()


@torch.no_grad()
def source_outputs(model: nn.Module, inputs: Any, weights: Mapping[str, Tensor], *, task: Task) -> Any:
    """Return the unadapted model's outputs, computed with its ``weights`` and the source's BatchNorm statistics.

    ``weights`` are the source's values of the trainable parameters, by name.
    """
    with norm.source_statistics():
        return task.forward(FunctionalModel(model, weights), layout.for_prediction(inputs))


@torch.no_grad()
def partly_adapted_outputs(
    model: nn.Module, inputs: Any, weights: Mapping[str, Tensor], *, share: float, task: Task
) -> Any | None:
    """Return the unadapted model's outputs with the batch's statistics in its first BatchNorm layers.

    ``share`` is how many of them those are; None is returned where that makes no layer, or all of them.
    """
    with norm.early_batch_statistics(model, share=share) as layers:
        if not 0 < layers < len(norm.batch_norms(model)):
            return None
        return task.forward(FunctionalModel(model, weights), layout.for_prediction(inputs))


class SourceComparison:
    """Compares the adapted model with the unadapted one over a session, and keeps the results.

    Attributes:
        images_checked, images_since_check: number of images on which the models were compared, and of images since the
            last comparison; ``decisions_checked``: number of compared decisions.
        verified: signals of the adapted model on the newest batch that passed; None before the first.
        last: the newest comparison.
        consecutive_failures: how many of the newest comparisons failed in a row, that is, favoured the unadapted model.
        sticky_fallback: whether comparisons failed so clearly that several must pass, under a stricter limit, before
            the adapted model predicts again. On a stream with only one class, for example, adaptation stays harmful
            even where a single comparison passes.
        falling_back: whether the newest comparison failed, so that the unadapted model predicts.
        adapted_views, unadapted_views: decisions of both models on images and on their mirror images.
        with_between: decisions of both models, and of the one with adapted statistics in its first layers alone.
        few_classes: whether these last showed a stream of few classes, or damage; None before they showed either.
        seconds: wall-clock seconds spent on running the unadapted model, and both models on mirror images.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], *, task: Task) -> None:
        self._model, self._weights, self._task = model, weights, task
        self._pairs: deque[SignalPair] = deque(maxlen=REMEMBERED_PAIRS)
        # With a batch size of 1 a summary covers hundreds of pairs, and it is used more often than they change.
        self._summaries: dict[tuple[int, int], SignalPair] = {}
        self._failures: deque[bool] = deque(maxlen=REMEMBERED_COMPARISONS)
        self.seconds = 0.0
        self.reset()

    def reset(self) -> None:
        """Clear all results, as for a new stream."""
        self._failures.clear()
        self._latest: tuple[Any, Any] | None = None
        self._of_first: tuple[Any, Any] | None = None
        self._was_compared = False
        self.images_checked = self.images_since_check = self.decisions_checked = 0
        self.verified: Signals | None = None
        self.last: SignalPair | None = None
        self.falling_back = False
        self.consecutive_failures = self._consecutive_passes = 0
        self.sticky_fallback = False
        self._scores: deque[float] = deque(maxlen=2)
        self.few_classes: bool | None = None
        self._beginning_undone = False
        self._clear_evidence()

    def begin_stream(self) -> None:
        """Begin to compare anew, because images are of another kind; failures of before count still.

        A method whose step was undone finds the same stream anew in the next batch, or another one: so evidence on a
        few images is kept then.
        """
        if self._beginning_undone and self.images_checked < _MOST_UNDONE_IMAGES:
            return
        self._clear_evidence()
        self.images_checked = self.decisions_checked = 0
        self.few_classes = None

    def record_beginning(self, *, new_stream: bool, kept: bool) -> None:
        """Record a step: whether it was on a new stream, and whether it stands."""
        self._beginning_undone = (new_stream or self._beginning_undone) and not kept

    def _clear_evidence(self) -> None:
        self._pairs.clear()
        self._summaries.clear()
        self.adapted_views = self.unadapted_views = ViewDecisions.none()
        self.with_between = ThreeDecisions.none()

    def source_tensors(self) -> dict[str, Tensor]:
        """Return every weight and buffer of the unadapted model by name."""
        return {**dict(self._model.named_buffers()), **dict(self._model.named_parameters()), **self._weights}

    @property
    def recent_failures(self) -> int:
        """How many of the newest comparisons failed."""
        return sum(self._failures)

    def outputs(self, batch: Any) -> Any:
        """Return the unadapted model's outputs on ``batch``; those of the last :meth:`compare` are reused."""
        if self._latest is not None and self._latest[0] is batch:
            return self._latest[1]
        started = time.perf_counter()
        outputs = source_outputs(self._model, batch, self._weights, task=self._task)
        self.seconds += time.perf_counter() - started
        return outputs

    def offer(self, batch: Any, outputs: Any) -> None:
        """Take the unadapted model's ``outputs`` on ``batch`` or its first images, which the method has computed."""
        if sample_count(outputs) < sample_count(batch):
            self._of_first = (batch, outputs)
        else:
            self._latest = (batch, outputs)

    def add_views(self, adapted: ViewDecisions, unadapted: ViewDecisions) -> None:
        """Record the decisions of both models on the same images and mirror images."""
        self.adapted_views = self.adapted_views.plus(adapted).newest(REMEMBERED_VIEWS)
        self.unadapted_views = self.unadapted_views.plus(unadapted).newest(REMEMBERED_VIEWS)

    def add_between(self, found: ThreeDecisions) -> None:
        """Record the decisions of both models and of the one between them on the same images."""
        self.with_between = self.with_between.plus(found).newest(REMEMBERED_VIEWS)

    def record_score(self, score: float) -> None:
        """Record the degradation score of the compared batch; the limit is 1."""
        self._scores.append(score)

    def compare(self, batch: Any, adapted: Signals, *, decisions: int, outputs: Any = None) -> SignalPair:
        """Run the unadapted model on ``batch``, and return the signals of both on about the last ``decisions``.

        Given the adapted model's ``outputs``, the images of :meth:`offer` are enough, or a quarter of the images of a
        large batch, or of a segmenter's, which makes hundreds of decisions in each.
        """
        self.images_checked += adapted.samples
        self._was_compared = True
        known = self._latest is not None and self._latest[0] is batch
        large = adapted.samples >= _LARGE_BATCH if self._task.exclusive else self._has_enough_in_a_quarter(adapted)
        first = None if self._of_first is None or self._of_first[0] is not batch else self._of_first[1]
        if outputs is not None and not known and first is not None:
            count = sample_count(first)
            pair = SignalPair.of(self._task, map_tensors(lambda tensor: tensor[:count], outputs), first, samples=count)
        elif outputs is not None and not known and large:
            part, outputs = (map_tensors(lambda tensor: tensor[::4], whole) for whole in (batch, outputs))
            pair = SignalPair.of(self._task, outputs, self.outputs(part), samples=sample_count(part))
        else:
            of_source = self.outputs(batch)
            self._latest = (batch, of_source)
            pair = SignalPair(adapted, Signals.of(self._task, of_source, samples=adapted.samples))
        self._pairs.append(pair)
        self._summaries.clear()
        self.decisions_checked += adapted.decisions
        self.images_since_check = 0
        self.last = self.recent(decisions)
        return self.last

    def _has_enough_in_a_quarter(self, adapted: Signals) -> bool:
        return self._task.aligned and adapted.samples >= 4 and adapted.decisions >= _MANY_DECISIONS * adapted.samples

    def recent(self, decisions: int, *, images: int = 0) -> SignalPair:
        """Return the signals of both models on about the last ``decisions`` and ``images`` that were compared."""
        key = (decisions, images)
        if key not in self._summaries:
            self._summaries[key] = SignalPair.recent(self._pairs, decisions=decisions, images=images)
        return self._summaries[key]

    def clear_history(self) -> None:
        """Clear the signals from before a reset to the source, because they are not those of the restored model."""
        self._clear_evidence()
        self.consecutive_failures = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to continue after a restart, as plain values."""
        return {
            "falling_back": self.falling_back,
            "sticky_fallback": self.sticky_fallback,
            "consecutive_failures": self.consecutive_failures,
            "failures": tuple(self._failures),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.reset()
        self.falling_back, self.sticky_fallback = state["falling_back"], state["sticky_fallback"]
        self.consecutive_failures = state["consecutive_failures"]
        self._failures.extend(state["failures"])

    def history(self) -> dict[str, Any]:
        """Return all that is remembered of the stream, beyond :meth:`state_dict`; see :mod:`acclimate.core.history`."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "pairs": tuple(self._pairs),
            "scores": tuple(self._scores),
            "last": self.last,
            "verified": self.verified,
            "views": tuple(
                tensor for views in (self.adapted_views, self.unadapted_views) for tensor in (views.first, views.second)
            ),
            "with_between": self.with_between.tensors,
            "few_classes": self.few_classes,
            "beginning_undone": self._beginning_undone,
        }

    def restore_history(self, history: Mapping[str, Any]) -> None:
        """Go on from what :meth:`history` returned, after :meth:`load_state_dict`."""
        for name in _COUNTS:
            setattr(self, name, history[name])
        self._pairs.extend(history["pairs"])
        self._scores.extend(history["scores"])
        self.last, self.verified = history["last"], history["verified"]
        views = history["views"]
        self.adapted_views, self.unadapted_views = ViewDecisions(*views[:2]), ViewDecisions(*views[2:])
        # Files of earlier versions do not have these.
        self.with_between = ThreeDecisions(*history.get("with_between", ThreeDecisions.none().tensors))
        self.few_classes = history.get("few_classes")
        self._beginning_undone = history.get("beginning_undone", False)

    def record(self, adapted: Signals, *, falling_back: bool) -> None:
        """Record the result for a batch, whether or not the models were compared on it."""
        compared, self._was_compared = self._was_compared, False
        if not compared:
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
        """Drop the stored outputs on the newest batch, whose tensor the caller may fill with other images."""
        self._latest, self._of_first, self._was_compared = None, None, False

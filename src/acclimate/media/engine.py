"""Requests: from labelled images or sounds and a query to an answer with its evidence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from acclimate.errors import CheckpointError, ConfigError
from acclimate.media.adaptation import adapted
from acclimate.media.calibration import temperature
from acclimate.media.checks import Checked, checked
from acclimate.media.classifier import MediaClassifier
from acclimate.media.embeddings import Embeddings
from acclimate.media.encoders.catalogue import DEFAULTS, load_encoder
from acclimate.media.encoders.protocol import Encoder
from acclimate.media.heads.catalogue import HEAD_NAMES, head_named
from acclimate.media.held_out import fit
from acclimate.media.items import Item, Kind, Limits, MediaExample
from acclimate.media.report import MediaReport
from acclimate.media.selection import Candidates, choose
from acclimate.media.spent import Spent
from acclimate.media.typicality import Typicality
from acclimate.media.views.recipes import DEFAULT_VIEWS, Views, views_named

logger = logging.getLogger(__name__)
Adaptation = Literal["norm"]


class MediaEngine:
    """Makes classifiers from a few labelled images or sounds; keeps encoders and vectors between requests.

    May be called from several threads.

    Args:
        encoders: names (see :func:`acclimate.media.encoders.catalogue.load_encoder`) or encoders, the preferred one
            first; by default those of :data:`~acclimate.media.encoders.catalogue.DEFAULTS` for this kind of input.
        heads: names of the heads that are compared, the preferred one first; by default all.
        views: names of the recipes that are compared, the preferred one first; by default those of
            :data:`~acclimate.media.views.recipes.DEFAULT_VIEWS`.
        refuse_below: a query whose typicality is lower is answered with "none of these"; None never refuses.
        adapt: ``norm`` trains the encoder's norm parameters on the examples and keeps them where held-out examples
            gain; None never does.
        device: of encoders that are torch networks.
        limits: of inputs.
        embeddings: keeps vectors, and may be shared by several engines.
        progress: called with lines of text while weights are fetched.
    """

    def __init__(
        self,
        *,
        encoders: Sequence[str | Encoder] | None = None,
        heads: Sequence[str] | None = None,
        views: Sequence[str] | None = None,
        refuse_below: float | None = None,
        adapt: Adaptation | None = None,
        device: str = "cpu",
        limits: Limits | None = None,
        embeddings: Embeddings | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if refuse_below is not None and not 0 < refuse_below < 1:
            raise ConfigError(f"refuse_below must lie between 0 and 1, got {refuse_below}")
        if adapt not in (None, "norm"):
            raise ConfigError(f"unknown adaptation {adapt!r}; choose norm, or leave it out")
        for name in heads or ():
            head_named(name)
        self.limits = limits or Limits()
        self.refuse_below = refuse_below
        self.adapt = adapt
        self.embeddings = embeddings or Embeddings()
        self._given, self._heads, self._views = encoders, tuple(heads or HEAD_NAMES), views
        self._device, self._progress = device, progress
        self._loaded: dict[tuple[Kind, str], Encoder] = {}
        self._missing: dict[str, str] = {}
        self._lock = threading.Lock()

    def ask(self, examples: Sequence[MediaExample], query: Item) -> MediaReport:
        """Return the answer to a query, learned from labelled examples.

        Raises:
            DataError: the examples cannot be learned from, or the query is of another kind.
            ConfigError: an encoder, a head or a recipe of views does not exist or is for another kind.
            CheckpointError: weights cannot be loaded.
            TTTNotSupportedError: the encoder was to be trained and cannot be.
        """
        return self.fit(examples).ask(query)

    def fit(self, examples: Sequence[MediaExample]) -> MediaClassifier:
        """Return a classifier made from labelled examples, for any number of queries.

        Raises:
            InputError: see :meth:`ask`.
        """
        usable = checked(examples, limits=self.limits)
        encoders, warnings = self._encoders(usable.kind)
        began = Spent.now(self.embeddings.cpu_seconds)
        classes = {label: number for number, label in enumerate(usable.labels)}
        labels = np.array([classes[example.output] for example in usable.examples])
        items = [example.item for example in usable.examples]
        candidates = Candidates(encoders, self._recipes(usable.kind), self._heads)
        choice = choose(items, labels, candidates, self.embeddings)
        if self.adapt is not None:
            choice = adapted(choice, items, labels, self.embeddings)
        head = head_named(choice.head, size=choice.unchanged.shape[1])
        fitted = fit(head, choice.vectors, labels, len(classes))
        return MediaClassifier(
            usable,
            choice,
            fitted,
            temperature(choice.head, choice.found),
            Typicality.of(np.asarray(choice.unchanged, np.float64), labels),
            self.refuse_below,
            Spent.now(self.embeddings.cpu_seconds).since(began),
            self.embeddings,
            (*usable.warnings, *warnings, *_evidence_warnings(usable, choice.found.count)),
        )

    def _recipes(self, kind: Kind) -> tuple[Views, ...]:
        return tuple(views_named(kind, name) for name in self._views or DEFAULT_VIEWS[kind])

    def _encoders(self, kind: Kind) -> tuple[tuple[Encoder, ...], tuple[str, ...]]:
        """Return the loaded encoders, and what is to be said about those of the defaults that cannot be loaded."""
        if self._given is not None:
            return tuple(self._encoder(each, kind) for each in self._given), ()
        found, warnings = [], []
        for info in DEFAULTS[kind]:
            if info.name not in self._missing:
                try:
                    found.append(self._encoder(info.name, kind))
                    continue
                except CheckpointError as error:
                    # Not tried again: where there is no network, that takes long.
                    self._missing[info.name] = str(error)
            warnings.append(f"the encoder {info.name} was not compared: {self._missing[info.name]}")
        return tuple(found), tuple(warnings)

    def _encoder(self, given: str | Encoder, kind: Kind) -> Encoder:
        if not isinstance(given, str):
            if given.info.kind != kind:
                raise ConfigError(f"encoder {given.info.name!r} is for {given.info.kind} inputs, not for {kind}")
            return given
        with self._lock:
            if (kind, given) not in self._loaded:
                self._loaded[kind, given] = load_encoder(given, kind, device=self._device, progress=self._progress)
            return self._loaded[kind, given]


def _evidence_warnings(usable: Checked, held_out: int) -> tuple[str, ...]:
    if held_out:
        return ()
    return (
        f"with one example for each of {len(usable.labels)} classes nothing can be held out: nothing was compared, and "
        "the probability is a guess; give two or more of each",
    )

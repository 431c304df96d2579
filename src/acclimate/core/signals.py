"""What a model's outputs look like as a whole: how sure, how varied, how many. No label is needed to tell collapse.

A model that has collapsed gives one class to everything, or detects nothing; one whose statistics are of the wrong
images is unsure of what it was sure of before. :class:`acclimate.core.WorseThanSource` looks at both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from acclimate.core.losses import softmax_entropy
from acclimate.core.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Sums over the decisions in one or more batches.

    Attributes:
        samples: images.
        decisions: what was decided on in them: one for each image of a classifier, candidate objects of a detector.
        classes: alternatives that a decision has, no object included.
        entropy_sum_nats: of the decisions' entropies; the ``_nats`` properties below are means.
        energy_sum: of the decisions' ``logsumexp`` of logits, which is high for what a network knows (Liu et al.,
            NeurIPS 2020, arXiv 2010.03759).
        score_sum: of the probability of each decision's best class, no object left out.
        probability_sum: of the class probabilities ``(classes)``, no object left out; None without decisions.
        decided: the class of each decision, in order.
    """

    samples: int
    decisions: int = 0
    classes: int = 0
    entropy_sum_nats: float = 0.0
    energy_sum: float = 0.0
    score_sum: float = 0.0
    probability_sum: Tensor | None = None
    decided: tuple[int, ...] = ()

    @classmethod
    @torch.no_grad()
    def of(cls, task: Task, outputs: Any, *, samples: int) -> Signals:
        """Return the signals of a model's outputs on ``samples`` images."""
        decisions = task.decisions(outputs)
        if len(decisions) == 0:
            return cls(samples=samples)
        probabilities = decisions.class_probabilities()
        best, classes = probabilities.max(-1)
        return cls(
            samples=samples,
            decisions=len(decisions),
            classes=decisions.logits.shape[-1],
            entropy_sum_nats=float(softmax_entropy(decisions.logits).sum()),
            energy_sum=float(decisions.logits.logsumexp(-1).sum()),
            score_sum=float(best.sum()),
            probability_sum=probabilities.sum(0),
            decided=tuple(classes.tolist()),
        )

    @classmethod
    def total(cls, parts: Iterable[Signals]) -> Signals:
        """Return the signals of several batches together."""
        parts = list(parts)
        decided = [part for part in parts if part.decisions]
        probabilities = [part.probability_sum for part in decided if part.probability_sum is not None]
        return cls(
            samples=sum(part.samples for part in parts),
            decisions=sum(part.decisions for part in decided),
            classes=max((part.classes for part in decided), default=0),
            entropy_sum_nats=sum(part.entropy_sum_nats for part in decided),
            energy_sum=sum(part.energy_sum for part in decided),
            score_sum=sum(part.score_sum for part in decided),
            probability_sum=torch.stack(probabilities).sum(0) if probabilities else None,
            decided=tuple(label for part in decided for label in part.decided),
        )

    @property
    def entropy_nats(self) -> float:
        """Mean entropy of a decision."""
        return self.entropy_sum_nats / self.decisions if self.decisions else 0.0

    @property
    def mean_prediction_entropy_nats(self) -> float:
        """Entropy of the mean class probabilities: near 0 when everything gets one class."""
        if self.probability_sum is None:
            return 0.0
        mean = (self.probability_sum / self.probability_sum.sum()).clamp(min=1e-9)
        return float(-(mean * mean.log()).sum())

    @property
    def effective_classes(self) -> float:
        """The number of classes that decisions are spread over: the exponential of that entropy."""
        return math.exp(self.mean_prediction_entropy_nats)

    @property
    def top_share(self) -> float:
        """Share of the most frequent class among the decisions."""
        return Counter(self.decided).most_common(1)[0][1] / self.decisions if self.decisions else 0.0

    @property
    def detections_per_image(self) -> float:
        """Decisions per image; 1 for a classifier."""
        return self.decisions / self.samples if self.samples else 0.0

    @property
    def mean_score(self) -> float:
        """Mean probability of the decided class."""
        return self.score_sum / self.decisions if self.decisions else 0.0

    def to_dict(self) -> dict[str, float]:
        """Return the signals as numbers by name, for a report."""
        return {
            "entropy_nats": self.entropy_nats,
            "mean_prediction_entropy_nats": self.mean_prediction_entropy_nats,
            "top_share": self.top_share,
            "detections_per_image": self.detections_per_image,
            "mean_score": self.mean_score,
        }


@dataclass(frozen=True, slots=True)
class SignalPair:
    """The adapted and the unadapted model on the same images."""

    adapted: Signals
    source: Signals

    @classmethod
    def of(cls, task: Task, adapted: Any, source: Any, *, samples: int) -> SignalPair:
        """Return the signals of both models' outputs on ``samples`` images."""
        return cls(Signals.of(task, adapted, samples=samples), Signals.of(task, source, samples=samples))

    @classmethod
    def recent(cls, pairs: Sequence[SignalPair], *, decisions: int = 0, images: int = 0) -> SignalPair:
        """Return the newest pairs together: as many as it takes for so many of the source's decisions, and images.

        An image without a decision counts as one.
        """
        chosen: list[SignalPair] = []
        held = seen = 0
        for pair in reversed(pairs):
            chosen.append(pair)
            held += max(pair.source.decisions, pair.source.samples)
            seen += pair.source.samples
            if held >= decisions and seen >= images:
                break
        return cls(Signals.total(pair.adapted for pair in chosen), Signals.total(pair.source for pair in chosen))

    @property
    def entropy_rise(self) -> float:
        """How much less sure the adapted model is, as a fraction of the largest entropy that a decision can have."""
        classes = max(self.adapted.classes, self.source.classes)
        if classes < 2 or not self.adapted.decisions or not self.source.decisions:
            return 0.0
        return (self.adapted.entropy_nats - self.source.entropy_nats) / math.log(classes)

    @property
    def energy_drop(self) -> float:
        """By how much less the adapted model knows what it sees: the drop of mean energy, relative to the source's."""
        if not self.adapted.decisions or self.source.energy_sum <= 0:
            return 0.0
        source = self.source.energy_sum / self.source.decisions
        return max(0.0, 1 - self.adapted.energy_sum / self.adapted.decisions / source)

    @property
    def agreement(self) -> float | None:
        """Share of decisions on which both give the same class; None where they cannot be told to be the same ones."""
        ours, theirs = self.adapted.decided, self.source.decided
        # One for each image: a classifier's. A detector's candidates come in another order and number each time.
        if not len(ours) == len(theirs) == self.adapted.samples or not ours:
            return None
        return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)

    @property
    def variety_ratio(self) -> float:
        """Over how many classes the adapted model's decisions spread, over how many the source's do."""
        if not self.adapted.decisions or not self.source.decisions:
            return 1.0
        return self.adapted.effective_classes / self.source.effective_classes

    @property
    def detection_ratio(self) -> float:
        """The adapted model's summed scores over the source's: below 1 it sees less."""
        if self.source.score_sum == 0:
            return 1.0
        return self.adapted.score_sum / self.source.score_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """Tells by how sure two models are of the same images whether adapting has made it worse.

    Two signals, added: by how much the mean entropy of a decision rises, against what is allowed, and by how much the
    energy falls. Where both models agree on next to nothing, the unadapted one is lost on these images (noise, fog) and
    its being sure says little: then more is allowed. The numbers are from ``benchmarks/guards/thresholds.py``.

    Attributes:
        entropy_rise: of the mean entropy of a decision, as a fraction of the largest entropy that one can have, at
            which the adapted model is thought to be the worse one; ``lost_entropy_rise``: where the unadapted one is
            lost.
        chance: added to either, divided by the root of how many decisions were compared.
        energy_weight: of the relative drop of energy; ``lost_energy_weight``: where the unadapted model is lost.
        lost_agreement: the share of equal decisions below which it is.
    """

    entropy_rise: float = 0.06
    lost_entropy_rise: float = 0.1
    chance: float = 0.14
    energy_weight: float = 3.0
    lost_energy_weight: float = 1.0
    lost_agreement: float = 0.25

    def allowed(self, decisions: int, *, lost: bool = False) -> float:
        """Return the entropy rise that is allowed by itself."""
        allowed = self.lost_entropy_rise if lost else self.entropy_rise
        return allowed + self.chance / math.sqrt(max(1, decisions))

    def degradation_score(self, both: SignalPair) -> float:
        """Return how much speaks against the adapted model; above 1 it is thought to be the worse one."""
        lost = both.agreement is not None and both.agreement < self.lost_agreement
        allowed = self.allowed(min(both.adapted.decisions, both.source.decisions), lost=lost)
        return (
            both.entropy_rise / allowed + (self.lost_energy_weight if lost else self.energy_weight) * both.energy_drop
        )

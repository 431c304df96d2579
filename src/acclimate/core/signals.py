"""Statistics of a model's outputs that show harmful adaptation without labels: certainty, variety and detections.

A collapsed model predicts one class for everything, or detects nothing. A model whose BatchNorm statistics come from
unsuitable images makes decisions with a higher entropy. :class:`acclimate.core.WorseThanSource` checks both.
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
        samples: number of images.
        decisions: number of decisions: one for each image of a classifier, candidate objects of a detector.
        classes: number of columns that a decision has, "no object" included.
        entropy_sum_nats: sum of the decisions' entropies; the ``_nats`` properties below are means.
        energy_sum: sum of the decisions' ``logsumexp`` of logits, which is higher on images like those of training (the
            negative energy of Liu et al., NeurIPS 2020, arXiv 2010.03759).
        score_sum: sum of the probability of each decision's best class, "no object" excluded.
        probability_sum: sum of the class probabilities ``(classes)``, "no object" excluded; None without decisions.
        decided: the most probable class of each decision, in order.
        matched: whether the decisions of two passes over one batch are about the same things, in the same order.
    """

    samples: int
    decisions: int = 0
    classes: int = 0
    entropy_sum_nats: float = 0.0
    energy_sum: float = 0.0
    score_sum: float = 0.0
    probability_sum: Tensor | None = None
    decided: tuple[int, ...] = ()
    matched: bool = False

    @classmethod
    @torch.no_grad()
    def of(cls, task: Task, outputs: Any, *, samples: int) -> Signals:
        """Return the signals of a model's outputs on ``samples`` images."""
        decisions = task.decisions(outputs)
        if len(decisions) == 0:
            return cls(samples=samples)
        probabilities = decisions.class_probabilities()
        best, classes = probabilities.max(-1)
        logits = decisions.logits
        # One transfer from a GPU for the three.
        sums = torch.stack([softmax_entropy(logits).sum(), logits.logsumexp(-1).sum(), best.sum()]).tolist()
        return cls(
            samples=samples,
            decisions=len(decisions),
            classes=logits.shape[-1],
            entropy_sum_nats=sums[0],
            energy_sum=sums[1],
            score_sum=sums[2],
            probability_sum=probabilities.sum(0),
            decided=tuple(classes.tolist()),
            matched=task.aligned and probabilities.shape[1] > 1,
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
            matched=bool(decided) and all(part.matched for part in decided),
        )

    @property
    def entropy_nats(self) -> float:
        """Mean entropy of a decision, in nats."""
        return self.entropy_sum_nats / self.decisions if self.decisions else 0.0

    @property
    def mean_prediction_entropy_nats(self) -> float:
        """Entropy of the mean class probabilities, in nats: near 0 when one class is predicted for everything."""
        if self.probability_sum is None:
            return 0.0
        mean = (self.probability_sum / self.probability_sum.sum()).clamp(min=1e-9)
        return float(-(mean * mean.log()).sum())

    @property
    def effective_classes(self) -> float:
        """Effective number of predicted classes: the exponential of ``mean_prediction_entropy_nats``."""
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
    """Signals of the adapted and of the unadapted model on the same images."""

    adapted: Signals
    source: Signals

    @classmethod
    def of(cls, task: Task, adapted: Any, source: Any, *, samples: int) -> SignalPair:
        """Return the signals of both models' outputs on ``samples`` images."""
        return cls(Signals.of(task, adapted, samples=samples), Signals.of(task, source, samples=samples))

    @classmethod
    def recent(cls, pairs: Sequence[SignalPair], *, decisions: int = 0, images: int = 0) -> SignalPair:
        """Return the sum of the newest pairs, as many as contain that number of decisions and of images.

        Decisions are counted on the source model; an image without a decision counts as one.
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
        """How much higher the adapted model's mean entropy is, as a fraction of the largest entropy of a decision."""
        classes = max(self.adapted.classes, self.source.classes)
        if classes < 2 or not self.adapted.decisions or not self.source.decisions:
            return 0.0
        return (self.adapted.entropy_nats - self.source.entropy_nats) / math.log(classes)

    @property
    def energy_drop(self) -> float:
        """The drop of the adapted model's mean energy relative to the source's; 0 where it does not drop."""
        if not self.adapted.decisions or self.source.energy_sum <= 0:
            return 0.0
        source = self.source.energy_sum / self.source.decisions
        return max(0.0, 1 - self.adapted.energy_sum / self.adapted.decisions / source)

    @property
    def agreement(self) -> float | None:
        """Share of decisions on which both predict the same class; None where decisions cannot be matched."""
        adapted, source = self.adapted.decided, self.source.decided
        if not (self.adapted.matched and self.source.matched) or len(adapted) != len(source) or not adapted:
            return None
        return sum(a == b for a, b in zip(adapted, source, strict=True)) / len(adapted)

    @property
    def is_dense(self) -> bool:
        """Whether images have several decisions each that can be matched, as the pixels of a segmenter."""
        return self.adapted.matched and self.source.matched and self.source.decisions > self.source.samples

    @property
    def variety_ratio(self) -> float:
        """The adapted model's effective number of classes over the source's; 1 where either has no decisions."""
        if not self.adapted.decisions or not self.source.decisions:
            return 1.0
        return self.adapted.effective_classes / self.source.effective_classes

    @property
    def detection_ratio(self) -> float:
        """The adapted model's summed scores over the source's; below 1 it detects less."""
        if self.source.score_sum == 0:
            return 1.0
        return self.adapted.score_sum / self.source.score_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """Computes from the certainty of two models on the same images whether adaptation has made the model worse.

    The degradation score adds two signals: the rise of the mean entropy of a decision, divided by the allowed rise, and
    the relative drop of energy. Where the models hardly ever agree, the unadapted one fails on these images (noise,
    fog) and its certainty means little; then larger changes are allowed (the ``lost_`` settings). The default values
    were measured by ``benchmarks/guards/thresholds.py``.

    A segmenter's images show many classes. Where the unadapted model gives far fewer classes to their pixels than the
    adapted one, it has failed, however certain it is (haze: one class, at a third of the usual entropy), and the score
    is 0. The pixels of an image are no independent evidence, so chance is that of the number of images.

    Attributes:
        entropy_rise: the allowed rise of the mean entropy, as a fraction of the largest entropy of a decision;
            ``lost_entropy_rise``: the same where the unadapted model fails.
        chance: added to the allowed rise after division by the square root of the number of compared decisions, which
            allows for sampling error.
        energy_weight: weight of the relative drop of energy; ``lost_energy_weight``: where the unadapted model fails.
        lost_agreement: the unadapted model is taken to fail where the share of equal decisions is below this;
            ``lost_variety``: on a segmenter also where its effective number of classes is below this fraction of the
            adapted model's.
    """

    entropy_rise: float = 0.06
    lost_entropy_rise: float = 0.1
    chance: float = 0.14
    energy_weight: float = 3.0
    lost_energy_weight: float = 1.0
    lost_agreement: float = 0.25
    lost_variety: float = 0.5

    def allowed(self, decisions: int, *, lost: bool = False) -> float:
        """Return the allowed entropy rise for a number of compared decisions."""
        allowed = self.lost_entropy_rise if lost else self.entropy_rise
        return allowed + self.chance / math.sqrt(max(1, decisions))

    def degradation_score(self, both: SignalPair) -> float:
        """Return the degradation score of the adapted model; above 1 it is considered worse than the unadapted one."""
        lost = both.agreement is not None and both.agreement < self.lost_agreement
        compared = min(both.adapted.decisions, both.source.decisions)
        if both.is_dense:
            if both.variety_ratio * self.lost_variety > 1:
                return 0.0
            compared = both.source.samples
        allowed = self.allowed(compared, lost=lost)
        return (
            both.entropy_rise / allowed + (self.lost_energy_weight if lost else self.energy_weight) * both.energy_drop
        )

"""Which of two models to trust on a stream, from the classes that each gives to images and to their mirror images.

A model that recognises what images show gives an image and its mirror image the same class. Unlike an entropy, the
share of such images means the same for networks of ten and of a thousand classes, over-confident ones and cautious
ones. By itself it can deceive: a model that gives one class to everything agrees with itself whatever it is shown. So
a model is preferred only if it also gives about as many different classes as the other one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from acclimate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ViewDecisions:
    """The classes that one model gave to images, and to another view of each (its mirror image): both ``(N,)``."""

    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> Self:
        """Return the most probable classes in two tensors of class probabilities or logits ``(N, K)``."""
        return cls(first.argmax(-1), second.argmax(-1))

    @classmethod
    def none(cls) -> Self:
        """Return the decisions on no image."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))

    def plus(self, other: ViewDecisions) -> ViewDecisions:
        """Return these decisions followed by the other's."""
        before = (self.first.to(other.first.device), self.second.to(other.second.device))
        return ViewDecisions(torch.cat([before[0], other.first]), torch.cat([before[1], other.second]))

    def newest(self, count: int) -> ViewDecisions:
        """Return the decisions on the last ``count`` images."""
        return ViewDecisions(self.first[-count:], self.second[-count:])

    def __len__(self) -> int:
        return len(self.first)

    @property
    def agreements(self) -> Tensor:
        """For each image whether both views have the same class: ``(N,)``."""
        return self.first == self.second

    @property
    def effective_classes(self) -> float:
        """Effective number of classes that the images have: the exponential of the entropy of their shares."""
        return effective_classes(self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementTest:
    """Says whether one model agrees with itself over two views better than another model does on the same images.

    Attributes:
        least_images: fewer images than this say nothing.
        standard_errors: by how many standard errors the numbers of agreements must differ.
        disagreement_ratio: the share of images whose views differ in class must be below this times the other model's.
        most_disagreements: a model whose views differ in a larger share of images recognises too little to be
            preferred.
        credible_disagreements: the same for :meth:`is_credible`. With statistics that come from images of one class the
            views of about half the images differ, and of a third where some images are of other classes.
        class_ratio: the effective number of classes must be at least this times the other model's.

    Raises:
        ConfigError: a field is out of range.
    """

    least_images: int = 64
    standard_errors: float = 1.25
    disagreement_ratio: float = 0.8
    most_disagreements: float = 0.5
    credible_disagreements: float = 0.25
    class_ratio: float = 0.9

    def __post_init__(self) -> None:
        if self.least_images < 1:
            raise ConfigError(f"AgreementTest least_images must be at least 1, got {self.least_images}")
        if not self.standard_errors >= 0:
            raise ConfigError(f"AgreementTest standard_errors must not be negative, got {self.standard_errors}")
        for name in ("disagreement_ratio", "most_disagreements", "credible_disagreements", "class_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"AgreementTest {name} must lie in (0, 1], got {getattr(self, name)}")

    def favours(self, one: ViewDecisions, other: ViewDecisions) -> bool:
        """Say whether ``one`` is clearly the more consistent model."""
        if len(one) < self.least_images or not self.is_open(one, other):
            return False
        changes = one.agreements.int() - other.agreements.int()
        gain, changed = int(changes.sum()), int(changes.abs().sum())
        if gain <= self.standard_errors * math.sqrt(max(1, changed)):
            return False
        return self.has_fewer(one, other)

    def has_fewer(self, one: ViewDecisions, other: ViewDecisions) -> bool:
        """Say whether the views of ``one`` differ in clearly fewer images, by ``disagreement_ratio`` alone."""
        return _disagreements(one) < self.disagreement_ratio * _disagreements(other)

    def is_credible(self, one: ViewDecisions, other: ViewDecisions) -> bool:
        """Say whether ``one`` recognises images whatever its entropies are, seen beside ``other``.

        Where both give about as many classes, it must be no less consistent. Where ``other`` gives fewer, because it
        takes damaged images for one class or because the stream really has few, it must be consistent by itself.
        """
        ratio = one.effective_classes / max(other.effective_classes, 1.0)
        if len(one) < self.least_images or ratio < self.class_ratio:
            return False
        if ratio * self.class_ratio <= 1 and _disagreements(one) > _disagreements(other):
            return False
        return _disagreements(one) <= self.credible_disagreements * len(one)

    def is_open(self, one: ViewDecisions, other: ViewDecisions) -> bool:
        """Say whether more images could still show that ``one`` is the more consistent model."""
        return len(one) < self.least_images or self.could_favour(one, other)

    def could_favour(self, one: ViewDecisions, other: ViewDecisions) -> bool:
        """Say whether ``one`` is the more consistent model on these images, however many they are."""
        return (
            _disagreements(one) < min(_disagreements(other), self.most_disagreements * len(one))
            and one.effective_classes >= self.class_ratio * other.effective_classes
        )


@dataclass(frozen=True, slots=True)
class ThreeDecisions:
    """The classes that three models gave to the same images, each ``(N,)``.

    Attributes:
        adapted, unadapted: those of the two models that are compared.
        between: those of the unadapted model with adapted statistics in its first layers alone.
    """

    adapted: Tensor
    unadapted: Tensor
    between: Tensor

    @classmethod
    def none(cls) -> Self:
        """Return the decisions on no image."""
        return cls(*(torch.empty(0, dtype=torch.int64) for _ in range(3)))

    def plus(self, other: ThreeDecisions) -> ThreeDecisions:
        """Return these decisions followed by the other's."""
        device = other.adapted.device
        return ThreeDecisions(
            *(torch.cat([mine.to(device), theirs]) for mine, theirs in zip(self.tensors, other.tensors, strict=True))
        )

    def newest(self, count: int) -> ThreeDecisions:
        """Return the decisions on the last ``count`` images."""
        return ThreeDecisions(*(tensor[-count:] for tensor in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three tensors: adapted, unadapted, between."""
        return self.adapted, self.unadapted, self.between

    def __len__(self) -> int:
        return len(self.adapted)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMixTest:
    """Says why an adapted model gives more classes than the unadapted one: damaged images, or a stream of few classes.

    Damage makes a model give few classes to images of many, and adapted statistics undo that. Statistics of images
    that really are of few classes do the opposite: decisions spread over classes that are not there. Damage shows in
    the first layers, where the mix of classes hardly matters. So with adapted statistics in the first layers alone, a
    model gives many classes to damaged images, and few to images of few classes.

    Attributes:
        least_images: fewer images than this say nothing.
        more_classes: only an adapted model that gives at least this times as many classes is examined.
        damage_evidence, few_classes_evidence: with damage, the evidence is above the first, and with few classes below
            the second; between them nothing is said. The evidence is the effective number of classes of the model
            between over that of the adapted one, plus the share of images on which it agrees with the adapted one, less
            the share on which it agrees with the unadapted one, less ``view_weight`` times the share of images to which
            the adapted model gives another class in another view.
        view_weight: see there.
        few_images: raises the first limit by this divided by the number of images; ``another_stream``: by so much more
            where the stream was of few classes so far, because it usually stays so.

    The defaults were chosen on the half ``tune`` of ``benchmarks/shifts``, on streams of one class and on digits. With
    256 images, 95 % of the values were below -0.12 on streams of one class, and above 0.15 under damage.

    Raises:
        ConfigError: a field is out of range.
    """

    least_images: int = 64
    more_classes: float = 1.3
    damage_evidence: float = -0.08
    few_classes_evidence: float = -0.25
    view_weight: float = 2.0
    few_images: float = 10.0
    another_stream: float = 0.25

    def __post_init__(self) -> None:
        if self.least_images < 1:
            raise ConfigError(f"ClassMixTest least_images must be at least 1, got {self.least_images}")
        if not self.more_classes >= 1:
            raise ConfigError(f"ClassMixTest more_classes must be at least 1, got {self.more_classes}")

    def is_due(self, adapted: Tensor, unadapted: Tensor) -> bool:
        """Say whether the adapted model gives so many more classes that the reason has to be found."""
        return effective_classes(adapted) >= self.more_classes * effective_classes(unadapted)

    def is_damage(self, found: ThreeDecisions, views: ViewDecisions, *, were_few: bool = False) -> bool | None:
        """Say whether damage is the reason, given views of the adapted model too; None where that is open.

        ``were_few``: whether few classes were the reason so far.
        """
        if min(len(found), len(views)) < self.least_images:
            return None
        sides = (found.between == found.adapted).int() - (found.between == found.unadapted).int()
        evidence = effective_classes(found.between) / effective_classes(found.adapted) + int(sides.sum()) / len(found)
        evidence -= self.view_weight * _disagreements(views) / len(views)
        limit = self.damage_evidence + self.few_images / len(found) + self.another_stream * were_few
        if evidence > limit:
            return True
        return False if evidence < self.few_classes_evidence else None


def effective_classes(classes: Tensor) -> float:
    """Return the effective number of ``classes`` ``(N,)``: the exponential of the entropy of their shares."""
    if len(classes) == 0:
        return 0.0
    shares = torch.bincount(classes).double() / len(classes)
    return float(torch.exp(torch.special.entr(shares).sum()))


def _disagreements(decisions: ViewDecisions) -> int:
    return len(decisions) - int(decisions.agreements.sum())

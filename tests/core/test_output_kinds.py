"""Models whose outputs are no logits are found on the first batch, before anything is adapted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from acclimate.core import Classification, Multilabel, Session, Task
from acclimate.core.losses import sigmoid_entropy, softmax_entropy
from acclimate.core.output_kinds import remarks, rows_sum_to_one, to_logits
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.methods import BatchNormStats, Tent
from acclimate.vision.models.detection import Detection
from tests.networks import Detector, assert_identical, classifier, detector, images, tensors_of


class Ending(nn.Module):
    """A classifier whose logits are changed at the end."""

    def __init__(self, change: Callable[[Tensor], Tensor], *, classes: int = 16) -> None:
        super().__init__()
        self.inner = classifier(classes=classes)
        self.change = change

    def forward(self, batch: Tensor) -> Tensor:
        return self.change(self.inner(batch))


class ScoredDetector(Detector):
    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        found = super().forward(batch)
        return {**found, "logits": found["logits"].sigmoid()}


@pytest.mark.parametrize("method", [Tent(), BatchNormStats()])
@pytest.mark.parametrize(
    ("change", "task", "message"),
    [
        (lambda z: z.softmax(-1), Classification(), "before the softmax"),
        (lambda z: z.softmax(-1).half().float(), Classification(), "before the softmax"),
        (lambda z: z[:, :1], Classification(), r"kind='multilabel'.*regression"),
        (lambda z: z[:, 0], Classification(), r"kind='multilabel'.*regression"),
        (lambda z: z.softmax(-1), Multilabel(), "kind='classifier'"),
        (lambda z: z.sigmoid(), Multilabel(), "before the sigmoid"),
    ],
)
def test_outputs_that_are_no_logits_are_refused_and_nothing_is_adapted(
    method: Tent | BatchNormStats, change: Callable[[Tensor], Tensor], task: Task, message: str
) -> None:
    model = Ending(change).eval()
    before = tensors_of(model)
    with (
        Session(model, method, task=task) as session,
        pytest.raises((TTTNotSupportedError, ConfigError), match=message) as caught,
    ):
        session.adapt_and_predict(images())
    assert "\n" not in str(caught.value)
    assert_identical(model, before)


def test_a_detectors_scores_are_refused() -> None:
    model = ScoredDetector().eval()
    task = Detection(head="sigmoid")
    with Session(model, Tent(), task=task) as session, pytest.raises(TTTNotSupportedError, match=r"torch\.logit"):
        session.adapt(images(side=32))
    softmax = Detection(head="softmax")
    assert softmax.not_logits(torch.rand(2, 3, 4).softmax(-1)) is not None
    assert softmax.not_logits(detector(head="softmax")(images(side=32))["logits"]) is None


@pytest.mark.parametrize("change", [lambda z: z * 4, lambda z: (z * 4).log_softmax(-1)])
def test_logits_and_logarithms_of_probabilities_are_adapted_without_remarks(
    change: Callable[[Tensor], Tensor],
) -> None:
    with Session(Ending(change).eval(), Tent()) as session:
        assert session.adapt(images()).verdict == "kept"
        assert session.report().notes == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z.sigmoid(), r"all outputs lie in \[0, 1\]"),
        (lambda z: z * 1e5, "regression"),
        (lambda z: z - 6, "several labels or none"),
    ],
)
def test_what_is_only_likely_is_a_warning(change: Callable[[Tensor], Tensor], message: str) -> None:
    with Session(Ending(change).eval(), Tent(), guards=()) as session:
        session.adapt(images())
        (note,) = session.report().notes
    assert re.search(message, note)
    assert len(remarks(change(classifier(classes=16)(images())))) == 1


def test_a_first_batch_that_is_not_finite_says_nothing_and_the_next_one_is_looked_at() -> None:
    model = Ending(lambda z: z.softmax(-1)).eval()
    with Session(model, Tent()) as session:
        assert session.adapt(images() * float("nan")).verdict == "rolled_back"
        with pytest.raises(TTTNotSupportedError, match="softmax"):
            session.adapt(images())


def test_probabilities_are_told_from_logits() -> None:
    assert rows_sum_to_one(torch.rand(4, 7).softmax(-1))
    assert rows_sum_to_one(torch.randn(4, 300).softmax(-1).bfloat16())
    assert not rows_sum_to_one(torch.randn(4, 7))
    assert not rows_sum_to_one(torch.rand(4, 7).softmax(-1) * 1.01)
    assert not rows_sum_to_one(torch.ones(4, 1))
    probabilities = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    torch.testing.assert_close(to_logits(probabilities).softmax(-1), probabilities)


def test_several_labels_are_decided_one_by_one() -> None:
    task, logits = Multilabel(), torch.tensor([[2.0, -1.0, 0.0], [-3.0, 4.0, 1.0]])
    decisions = task.decisions(logits)
    assert decisions.logits.shape == (6, 2)
    torch.testing.assert_close(decisions.class_probabilities()[:, 0], logits.sigmoid().flatten())
    torch.testing.assert_close(softmax_entropy(decisions.logits).view(2, 3).sum(-1), sigmoid_entropy(logits))
    divergence = task.divergence(torch.zeros(2, 3), logits)
    torch.testing.assert_close(divergence, torch.full((6,), math.log(2)))
    assert task.forward(lambda batch: batch[:, 0], logits).shape == (2, 1)
    with pytest.raises(ConfigError, match=r"\(B, K\)"):
        task.forward(lambda batch: batch[None], logits)

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acclimate.core import Segmentation, Session, Signals
from acclimate.core.losses import soft_cross_entropy
from acclimate.core.segmentation import sample_positions
from acclimate.core.signals import SignalPair
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.methods import Tent
from tests.networks import images, segmenter

CPU = torch.device("cpu")


@given(height=st.integers(1, 90), width=st.integers(1, 90), count=st.integers(1, 400))
def test_sampled_positions_lie_in_the_grid_and_are_spread(height: int, width: int, count: int) -> None:
    found = sample_positions(height, width, count, CPU)
    assert len(found) == count
    assert int(found.min()) >= 0
    assert int(found.max()) < height * width
    rows, columns = found // width, found % width
    # Each half of the image has about half of them.
    for places, side in ((rows, height), (columns, width)):
        if side % 2 == 0:
            assert abs(float((places < side // 2).float().mean()) - 0.5) <= 2.5 / count**0.5


def test_decisions_are_as_many_on_large_images_and_all_positions_of_small_ones() -> None:
    task = Segmentation(sampled_positions=50)
    small = torch.randn(2, 3, 6, 8)
    decisions = task.decisions(small).logits
    assert torch.equal(decisions, small.permute(0, 2, 3, 1).reshape(-1, 3))
    for side in (64, 640):
        rows = task.decisions(torch.randn(2, 3, side, side)).logits
        assert rows.shape == (100, 3)
    one = torch.randn(1, 3, 64, 64)
    both = task.decisions(torch.cat([one, one])).logits
    assert torch.equal(both[:50], both[50:])
    assert torch.equal(both[:50], task.decisions(one.contiguous(memory_format=torch.channels_last)).logits)


def test_views_are_flipped_back() -> None:
    task, batch = Segmentation(), images()
    view = task.mirrored(batch)
    assert view is not None
    assert torch.equal(view.undo(view.batch), batch)
    chosen = torch.tensor([True, False] * (len(batch) // 2))
    some = task.mirror(batch, chosen)
    assert torch.equal(some.batch[0], batch[0].flip(-1))
    assert torch.equal(some.batch[1], batch[1])
    assert torch.equal(some.undo(some.batch), batch)
    views = list(task.views(batch, count=12, rng=torch.Generator().manual_seed(0)))
    distances = [float((view.undo(view.batch) - batch).abs().mean()) for view in views]
    unturned = [float((view.batch - batch).abs().mean()) for view in views]
    assert max(distances) < 0.3
    assert any(after < before for after, before in zip(distances, unturned, strict=True))
    assert Segmentation(flips=False).mirrored(batch) is None


def test_a_teacher_is_compared_at_each_sampled_position() -> None:
    task = Segmentation(sampled_positions=10)
    student, teacher = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    found = task.divergence(student, teacher)
    expected = soft_cross_entropy(task.decisions(student).logits, task.decisions(teacher).logits)
    assert found.shape == (20,)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert student.grad is not None
    # Positions that are not sampled have no part in it.
    assert 0 < int(student.grad.abs().sum((0, 1)).count_nonzero()) <= 10


@pytest.mark.parametrize("form", ["tensor", "logits", "out", "tuple", "attribute"])
def test_the_forms_of_outputs(form: str) -> None:
    class Holder:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    logits = torch.randn(2, 3, 4, 4)
    made = {
        "tensor": logits,
        "logits": {"logits": logits},
        "out": {"out": logits, "aux": logits + 1},
        "tuple": (logits,),
        "attribute": Holder(logits),
    }[form]
    assert torch.equal(Segmentation().forward(lambda batch: made, None), logits)


def test_one_channel_is_foreground_against_background() -> None:
    logits = torch.randn(2, 1, 4, 4)
    found = Segmentation().forward(lambda batch: logits, None)
    torch.testing.assert_close(found.softmax(1)[:, 1:], logits.sigmoid())


def test_outputs_that_are_no_logits_of_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="a model with one class for each image is a classifier"):
        Segmentation().forward(lambda batch: torch.zeros(2, 3), None)
    with pytest.raises(ConfigError, match="no logits in the model's output"):
        Segmentation().forward(lambda batch: {"masks": torch.zeros(2, 3)}, None)
    with pytest.raises(ConfigError, match="sampled_positions must be at least 1, got 0"):
        Segmentation(sampled_positions=0)
    for last in (torch.nn.Softmax(1), torch.nn.Sigmoid()):
        model = torch.nn.Sequential(segmenter(), last)
        with (
            Session(model, Tent(), task=Segmentation()) as session,
            pytest.raises(TTTNotSupportedError, match="return the values before the softmax or the sigmoid"),
        ):
            session.adapt(images())


def test_agreement_is_counted_by_position() -> None:
    task = Segmentation()
    first, second = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    first[:, 0] = second[:, 0] = 1.0
    second[0, 1, 0, 0] = 2.0
    assert SignalPair.of(task, first, second, samples=1).agreement == 0.75
    pair = SignalPair.of(task, first, second, samples=1)
    both = SignalPair(Signals.total([pair.adapted] * 2), Signals.total([pair.source] * 2))
    assert both.agreement == 0.75


def test_the_cost_of_decisions_does_not_grow_with_the_image() -> None:
    task = Segmentation()
    counts = {side: len(task.decisions(task.forward(segmenter(), torch.rand(1, 3, side, side)))) for side in (128, 256)}
    assert counts == {128: 1024, 256: 1024}

from __future__ import annotations

import pytest
import torch

from acclimate.core import Classification, Session
from acclimate.core.pacing import Pace, Pacing, image_statistics
from acclimate.errors import ConfigError
from acclimate.methods import BatchNormStats, Tent
from tests.networks import classifier, images, tensors_of


def stream(count: int, *, offset: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.rand((16, 3, 8, 8), generator=rng) * 0.5 + offset).clamp(0, 1) for _ in range(count)]


def due(pacing: Pacing, batches: list[torch.Tensor]) -> list[bool]:
    pace = Pace(pacing, Classification())
    return [pace.is_due(batch) for batch in batches]


def test_it_adapts_at_the_start_and_then_at_intervals() -> None:
    found = due(Pacing(warm_up=3, every=5), stream(14))
    assert [position for position, is_due in enumerate(found) if is_due] == [0, 1, 2, 7, 12]


def test_a_shift_resumes_adaptation() -> None:
    found = due(Pacing(warm_up=2, after_shift=3, every=100), [*stream(10), *stream(10, offset=0.4)])
    assert [position for position, is_due in enumerate(found) if is_due] == [0, 1, 10, 11, 12]


def test_batches_of_one_stream_are_no_shift() -> None:
    assert sum(due(Pacing(warm_up=1, every=10_000), stream(300))) == 1


def test_a_batch_of_nan_is_a_shift_and_not_an_error() -> None:
    assert due(Pacing(warm_up=1, every=100), [*stream(3), stream(1)[0] * float("nan")])[-1]


def test_sharpness_tells_noise_from_blur() -> None:
    sharp = stream(1)[0]
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    assert bool((image_statistics(sharp)[:, 6:] > image_statistics(blurred)[:, 6:]).all())


def test_a_paused_step_predicts_and_changes_no_weight() -> None:
    model = classifier()
    with Session(model, Tent(lr=1e-3), guards=(), pacing=Pacing(warm_up=2, every=100, step_scale=3.0)) as session:
        reports = [session.adapt_and_predict(batch)[1] for batch in stream(2)]
        assert {report.verdict for report in reports} == {"kept"}
        # Adam's first step is lr for each element: here three times that, without changing the rate itself.
        assert reports[0].update_norm == pytest.approx(3e-3 * 16**0.5, rel=0.05)
        assert session.optimizer is not None
        assert session.optimizer.param_groups[0]["lr"] == 1e-3
        before = tensors_of(model)
        batch = stream(1, seed=1)[0]
        outputs, report = session.adapt_and_predict(batch)
        assert (report.verdict, report.reason) == ("paused", "the image statistics of the stream have not changed")
        assert torch.equal(outputs, session.predict(batch))
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
        session.reset()
        assert session.adapt(batch).verdict == "kept"
        assert session.report().counts == {"kept": 3, "paused": 1}


def test_a_method_without_a_gradient_can_be_paced_too() -> None:
    with Session(classifier(), BatchNormStats(), pacing=Pacing(warm_up=1)) as session:
        assert [session.adapt(images()).verdict for _ in range(2)] == ["kept", "paused"]


def test_numbers_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="every must be positive, got 0"):
        Pacing(every=0)


def test_guards_check_paused_steps_too() -> None:
    model = classifier()
    with torch.no_grad():
        model[5].weight.mul_(40)
    pacing = Pacing(warm_up=1, every=1000)
    with Session(model, BatchNormStats(source_strength=0), pacing=pacing) as session:
        verdicts = [session.adapt_and_predict(images(64, seed=seed))[1].verdict for seed in range(3)]
        assert verdicts == ["kept", "paused", "paused"]
        # A single repeated image, whose own batch statistics remove all differences.
        alone = images(1).repeat(64, 1, 1, 1)
        outputs, report = session.adapt_and_predict(alone)
        assert report.verdict == "rolled_back"
        torch.testing.assert_close(outputs, session.predict_as_source(alone))
        assert session.adapt(alone).verdict != "paused"


def test_an_infinite_pixel_does_not_disable_shift_detection() -> None:
    poisoned = stream(1, seed=3)[0].clone()
    poisoned[0, 0, 0, 0] = float("inf")
    found = due(Pacing(warm_up=1, every=1000), [*stream(4), poisoned, *stream(2, seed=4), *stream(2, offset=0.4)])
    assert found[-2]
    assert not found[-1]


def test_pacing_decides_once_for_several_steps_on_a_batch() -> None:
    with Session(classifier(), Tent(lr=1e-4), guards=(), pacing=Pacing(warm_up=2, every=1000)) as session:
        for batch in stream(3):
            session.adapt(batch, steps=3)
        assert session.report().counts == {"kept": 6, "paused": 3}

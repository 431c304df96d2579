"""Behaviour of spectrum and align that the contract tests do not cover."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from acclimate.core import Classification, Session, Task
from acclimate.core.spectrum import PowerSpectrum, Sums, measure
from acclimate.errors import ConfigError, EmptySelectionError, TTTNotSupportedError
from acclimate.methods import Align, SpectrumFilter
from acclimate.methods.spectrum import SpectrumState, WayTrial
from acclimate.vision.demos.pose_scenes import make_scene
from acclimate.vision.demos.pose_scenes.tensors import as_tensors
from acclimate.vision.models.rtdetr_pose.adapter import RTDETRPoseAdapter
from tests.networks import assert_identical, classifier, tensors_of


@lru_cache
def scenes(first: int, count: int) -> Tensor:
    return nn.functional.avg_pool2d(as_tensors([make_scene(first + k, split="train") for k in range(count)])[0], 2)


def dull(images: Tensor) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return mean + 0.2 * (images - mean)


@pytest.fixture(scope="module")
def source() -> PowerSpectrum:
    return measure([scenes(0, 200)])


@pytest.fixture
def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    torch.manual_seed(0)
    model.append(nn.Linear(32, 5))
    model.train()
    seen = scenes(0, 40)
    with torch.no_grad():
        for _ in range(60):
            model(seen)
    return model.eval()


def test_predictions_on_a_stream_like_the_source_are_bit_identical(network: nn.Module, source: PowerSpectrum) -> None:
    batch = scenes(1000, 32)
    with torch.no_grad():
        plain = network(batch)
    with Session(network, SpectrumFilter(source=source)) as session:
        outputs, report = session.adapt_and_predict(batch)
        assert report.verdict == "kept"
        assert session.method.cleaned(batch, session.state, task=Classification()) is batch  # type: ignore[attr-defined]
    # Not bit for bit, because the memory layout changes the order of sums.
    torch.testing.assert_close(outputs, plain, rtol=1e-5, atol=1e-6)


def test_a_low_contrast_stream_is_predicted_nearly_as_the_original(network: nn.Module, source: PowerSpectrum) -> None:
    batch = scenes(1000, 32)
    with torch.no_grad():
        clear, without = network(batch), network(dull(batch))
    with Session(network, SpectrumFilter(source=source, batch_weight=0.0)) as session:
        outputs, _ = session.adapt_and_predict(dull(batch))
    assert (outputs - clear).norm() < 0.5 * (without - clear).norm()


def test_predictions_use_the_spectrum_of_the_stream_so_far(network: nn.Module, source: PowerSpectrum) -> None:
    one = dull(scenes(1000, 33)[32:])
    with Session(network, SpectrumFilter(source=source)) as session:
        before = session.predict(one)
        session.adapt(dull(scenes(1000, 32)))
        after = session.predict(one)
        assert not torch.equal(before, after)
        session.reset()
        assert torch.equal(session.predict(one), before)


def test_a_changed_stream_restarts_the_running_spectrum(source: PowerSpectrum) -> None:
    method = SpectrumFilter(source=source)
    clear = SpectrumState(Sums.of(scenes(1000, 64)))
    changed = method.continued(Sums.of(dull(scenes(2000, 16))), clear)
    assert (changed.stream.count, changed.began) == (16, True)
    same = method.continued(Sums.of(scenes(2000, 16)), clear)
    assert (same.stream.count, same.began) == (80, False)


def test_guards_are_told_where_nothing_was_adapted_and_where_images_of_another_kind_begin(
    network: nn.Module, source: PowerSpectrum
) -> None:
    method, task, steps = SpectrumFilter(source=source), Classification(), []
    with method.select(network) as selection:
        state = method.start(network, selection)
        for batch in (scenes(1000, 32), scenes(1032, 32), dull(scenes(2000, 32)), dull(scenes(2032, 32))):
            step = method.step(
                network, batch, state, task=task, selection=selection, optimizer=None, rng=torch.Generator()
            )
            state = step.state
            steps.append((step.new_stream, step.unadapted is step.outputs, step.unadapted is None))
    assert steps == [(True, True, False), (False, True, False), (True, False, True), (False, False, True)]


def test_single_images_are_compared_with_the_stream_once_they_are_enough(source: PowerSpectrum) -> None:
    method = SpectrumFilter(source=source, least_images=8)
    for images, expected in ((dull(scenes(2000, 9)), [*range(65, 72), 8, 9]), (scenes(2000, 9), [*range(65, 74)])):
        state, counts = SpectrumState(Sums.of(scenes(1000, 64))), []
        for image in images:
            state = method.continued(Sums.of(image[None]), state)
            counts.append(state.stream.count)
        assert counts == pytest.approx(expected)


def test_without_source_images_a_stream_is_compared_with_itself() -> None:
    method, clear = SpectrumFilter(), SpectrumState(Sums.of(scenes(1000, 64)))
    assert method.continued(Sums.of(dull(scenes(2000, 16))), clear).began
    assert not method.continued(Sums.of(scenes(2000, 16)), clear).began


def test_the_running_spectrum_is_limited_to_recent_images(source: PowerSpectrum) -> None:
    method = SpectrumFilter(source=source, memory_images=40)
    state = SpectrumState()
    for start in range(0, 96, 16):
        state = method.continued(Sums.of(scenes(start, 16)), state)
    assert state.stream.count == pytest.approx(40)


def test_normalised_images_are_filtered_in_the_tasks_range(network: nn.Module, source: PowerSpectrum) -> None:
    """With black at -2 and white at 2 in the task's range, the filter is the same."""
    batch = dull(scenes(1000, 32))
    scaled = nn.Sequential(_Rescaled(), network).eval()
    with Session(network, SpectrumFilter(source=source)) as session:
        expected, _ = session.adapt_and_predict(batch)
    with Session(scaled, SpectrumFilter(source=source), task=Classification(pixel_range=(-2.0, 2.0))) as session:
        outputs, _ = session.adapt_and_predict(batch * 4 - 2)
    torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-4)


class _Rescaled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images + 2) / 4


def test_no_source_no_range_and_bad_fields_are_refused(network: nn.Module, source: PowerSpectrum) -> None:
    with pytest.raises(TTTNotSupportedError, match="--ttt-source"), Session(network, SpectrumFilter()):
        pass
    with (
        pytest.raises(TTTNotSupportedError, match="no known pixel_range"),
        Session(network, SpectrumFilter(source=source), task=Classification(pixel_range=None)) as session,
    ):
        session.adapt(scenes(0, 4))
    for field, value in (
        ("max_gain", 0.5),
        ("sharpening", 0.7),
        ("spike_share", 0.0),
        ("spike_deviations", 0.5),
        ("tolerance_nats", 0.0),
        ("memory_images", 0),
        ("stripe_excess_nats", 0.0),
        ("least_shift", 0.0),
        ("least_departure", 0.0),
        ("full_departure", 1.0),
        ("trial_images", -1),
        ("less_entropy", 1.0),
    ):
        with pytest.raises(ConfigError, match=field):
            SpectrumFilter(**{field: value})
    with pytest.raises(ConfigError, match="batch_weight"):
        SpectrumFilter(batch_weight=1.5)
    with pytest.raises(ConfigError, match="lr"):
        Align(lr=-1.0)


def test_alignment_reduces_the_distance_of_statistics(network: nn.Module) -> None:
    shifted = [0.5 * scenes(1000 + 32 * k, 32) + 0.4 for k in range(6)]
    method = Align(lr=2e-2, batch_statistics=False)
    with Session(network, method, guards=(), restore=True) as session:
        losses = [session.adapt(batch).loss or 0.0 for _ in range(8) for batch in shifted]
    # Not to zero, because batches of 32 differ from each other.
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


def test_alignment_does_not_update_layers_behind_the_last_batch_norm(network: nn.Module) -> None:
    """The loss does not depend on the layers behind the last BatchNorm, so they are not updated."""
    last = network[-1].weight.detach().clone()  # type: ignore[union-attr, operator]
    with Session(network, Align(), guards=()) as session:
        session.adapt(scenes(0, 16))
    assert torch.equal(network[-1].weight, last)  # type: ignore[arg-type]


def test_alignment_filters_first_where_a_spectrum_is_known(network: nn.Module, source: PowerSpectrum) -> None:
    batch = dull(scenes(1000, 32))
    before = tensors_of(network)
    with Session(network, Align(), guards=(), restore=True) as session:
        alone = session.adapt(batch).loss
    with Session(network, Align(spectrum=SpectrumFilter(source=source)), guards=(), restore=True) as session:
        filtered = session.adapt(batch).loss
        assert any("the spectrum of 200 source images" in note for note in session.report().notes)
    assert filtered is not None
    assert alone is not None
    assert filtered < alone
    assert_identical(network, before)


def test_alignment_needs_running_statistics() -> None:
    with pytest.raises(EmptySelectionError, match="align needs BatchNorm"), Session(classifier("gn"), Align()):
        pass


def test_settings_include_those_of_the_filter(source: PowerSpectrum) -> None:
    assert dataclasses.asdict(Align())["spectrum"] is None
    assert Align(spectrum=SpectrumFilter(source=source)) != Align()


@lru_cache
def shipped() -> tuple[nn.Module, Task, PowerSpectrum]:
    adapter = RTDETRPoseAdapter()
    return adapter.get_model(), adapter.task, adapter.source_spectrum  # type: ignore[return-value]


@lru_cache
def full_scenes(first: int, count: int) -> Tensor:
    return as_tensors([make_scene(first + k, split="test") for k in range(count)])[0]


def snowy(images: Tensor) -> Tensor:
    flakes = torch.rand((len(images), 1, 32, 32), generator=torch.Generator().manual_seed(0)) < 0.1
    flakes = nn.functional.interpolate(flakes.float(), images.shape[-2:], mode="bilinear")
    return images * (1 - 0.9 * flakes) + 0.9 * flakes


def noisy(images: Tensor) -> Tensor:
    return (images + 0.15 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def way_of(change: Callable[[Tensor], Tensor], images: int = 64) -> tuple[SpectrumState, bool]:
    """Return the state after a stream, and whether its last batch was predicted as by the unadapted model."""
    model, task, source = shipped()
    with Session(model, SpectrumFilter(source=source, trial_images=32), task=task, guards=()) as session:
        for start in range(0, images, 16):
            batch = change(full_scenes(7000 + start, 16))
            outputs, _ = session.adapt_and_predict(batch)
        same = bool(torch.equal(outputs["logits"], session.predict_as_source(batch)["logits"]))
        assert torch.equal(outputs["logits"], session.predict(batch)["logits"])
        return session.state, same


def test_a_detectors_stream_is_predicted_in_the_way_that_makes_it_most_certain() -> None:
    state, same = way_of(noisy)
    assert (state.way, state.trial, same) == ("filter", None, False)
    # Snow leaves the spectrum as it is, and changes the statistics of the layers.
    state, same = way_of(snowy)
    assert (state.way, state.trial, same) == ("statistics", None, False)


def test_a_detectors_stream_like_the_source_is_not_tried_and_predicted_as_by_the_unadapted_model() -> None:
    state, same = way_of(lambda images: images)
    assert (state.way, state.trial, same) == ("filter", WayTrial(), True)
    assert 0 < state.shift < SpectrumFilter().least_shift


def test_a_new_stream_is_tried_anew() -> None:
    model, task, source = shipped()
    with Session(model, SpectrumFilter(source=source, trial_images=16), task=task, guards=()) as session:
        session.adapt(dull(full_scenes(7000, 16)))
        assert session.state.trial is None
        session.adapt(full_scenes(7016, 16))
        assert session.state.trial == WayTrial()


def test_batches_too_small_for_statistics_are_not_judged_by_them() -> None:
    model, task, source = shipped()
    with Session(model, SpectrumFilter(source=source, trial_images=64), task=task, guards=()) as session:
        for image in full_scenes(7000, 3):
            session.adapt(image[None])
        assert session.state.trial == WayTrial()


@pytest.mark.parametrize(
    ("entropies_nats", "decisions", "expected"),
    [
        ((8.0, 9.0, 20.0), (20, 20, 20), "filter"),
        ((9.0, 8.0, 20.0), (20, 20, 20), "statistics"),
        ((8.2, 8.0, 20.0), (20, 20, 20), "filter"),
        ((8.6, 8.0, 20.0), (20, 20, 20), "filter"),  # enough on 64 images, not on 32
        ((9.8, 9.7, 10.0), (20, 20, 20), "unadapted"),
        ((10.0, 12.0, 10.0), (20, 20, 20), "unadapted"),
        ((1.0, 9.0, 20.0), (5, 20, 20), "statistics"),
        ((9.0, 9.0, 0.1), (20, 20, 1), "filter"),
        ((0.0, 0.0, 0.0), (0, 0, 0), "filter"),
    ],
)
def test_the_best_way_has_the_lowest_mean_entropy_by_a_margin_and_detects_enough(
    entropies_nats: tuple[float, ...], decisions: tuple[int, ...], expected: str
) -> None:
    assert WayTrial(32, entropies_nats, decisions).best(less_entropy=0.05) == expected


def test_stripes_are_removed_before_the_spectrum_is_taken(network: nn.Module, source: PowerSpectrum) -> None:
    clear = scenes(1000, 32)
    lines = 0.15 * torch.randn((32, 1, 1, clear.shape[-1]), generator=torch.Generator().manual_seed(0))
    striped = (clear + lines).clamp(0, 1)
    task = Classification()

    def left(method: SpectrumFilter) -> float:
        return float((method.observe(striped, SpectrumState(), task=task)[1] - clear).norm())

    assert left(SpectrumFilter(source=source)) < 0.7 * left(SpectrumFilter(source=source, stripe_excess_nats=100.0))


def test_small_batches_are_without_stripes_after_a_larger_one_showed_them(source: PowerSpectrum) -> None:
    method, task = SpectrumFilter(source=source), Classification()
    clear = scenes(1000, 18)
    striped = (
        clear + 0.15 * torch.randn((18, 1, clear.shape[2], 1), generator=torch.Generator().manual_seed(0))
    ).clamp(0, 1)
    first, _ = method.observe(striped[:2], SpectrumState(), task=task)
    assert not first.striped
    state, _ = method.observe(striped[:16], SpectrumState(), task=task)
    state, after = method.observe(striped[16:], state, task=task)
    assert state.striped
    assert (after - clear[16:]).norm() < 0.8 * (striped[16:] - clear[16:]).norm()
    torch.testing.assert_close(method.cleaned(striped[16:], state, task=task), after)
    state, _ = method.observe(clear[:16], state, task=task)
    assert not state.striped

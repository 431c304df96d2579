"""Behaviour of blend that the contract tests do not cover."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from acclimate.core import Classification, Session, norm
from acclimate.core.source_images import SourceImages
from acclimate.core.spectrum import measure
from acclimate.core.view_agreement import ClassMixTest, ViewDecisions
from acclimate.core.views import with_content
from acclimate.errors import ConfigError, EmptySelectionError
from acclimate.methods import Blend, SpectrumFilter
from acclimate.methods.blend import AdaptationTrial, BlendState, FilterTrial, WeightTrial
from acclimate.methods.spectrum import SpectrumState, with_unit_images
from acclimate.vision.models.detection import Detection
from tests.networks import classifier, detector, images


class Recorded(nn.BatchNorm2d):
    """A BatchNorm that records the statistics it normalised with."""

    def forward(self, values: Tensor) -> Tensor:
        self.used = self.running_mean.clone(), self.running_var.clone()
        return super().forward(values)


def network() -> tuple[nn.Module, Recorded]:
    torch.manual_seed(0)
    layer = Recorded(3)
    layer.running_mean.uniform_(-0.2, 0.2)
    layer.running_var.uniform_(0.5, 1.5)
    return nn.Sequential(layer, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)).eval(), layer


def test_running_statistics_are_the_weighted_moments_of_all_images() -> None:
    model, layer = network()
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    method = Blend(memory_images=24, prior_images=16, flip_averaging=False, diversity_exponent=0.0, repairs=False)
    with Session(model, method, guards=()) as session:
        # The source's statistics count for 16 images, and all there is for 24 at most.
        for seed, count, before in ((1, 7, 16), (2, 1, 23), (3, 40, 24), (4, 5, 24)):
            batch = images(count, seed=seed)
            session.adapt(batch)
            rate = count / (count + before)
            batch_var, batch_mean = torch.var_mean(batch, (0, 2, 3), correction=0)
            # The variance of a mixture: E[x^2] - E[x]^2 over both parts.
            second = (1 - rate) * (var + mean**2) + rate * (batch_var + batch_mean**2)
            mean = (1 - rate) * mean + rate * batch_mean
            var = second - mean**2
            source_mean, source_var = layer.running_mean, layer.running_var
            torch.testing.assert_close(layer.used[0], 0.5 * source_mean + 0.5 * mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.used[1], 0.5 * source_var + 0.5 * var, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [4, 12])
def test_a_small_shift_counts_less_and_statistics_that_are_young_are_not_taken_for_one(count: int) -> None:
    model, layer = network()
    method = Blend(flip_averaging=False, diversity_exponent=0.0, full_shift=10.0)
    with Session(model, method, guards=()) as session:
        session.adapt(images(count))
        found, source = session.state.memory["0"], (layer.running_mean, layer.running_var)
        share = count / (count + method.prior_images)
        # The divergence of statistics that have come this share of the way, and of a stream that is so far away.
        weight = 0.5 * float(norm.shift(found, source)) / (10.0 * share**2)
        assert 0.01 < weight < 0.4
        torch.testing.assert_close(layer.used[0], torch.lerp(source[0], found[0], weight), rtol=1e-4, atol=1e-5)
        again = images(1)
        session.predict(again)
        torch.testing.assert_close(layer.used[1], torch.lerp(source[1], found[1], weight), rtol=1e-4, atol=1e-5)


def test_prediction_uses_the_running_statistics_without_updating_them() -> None:
    model, layer = network()
    with Session(model, Blend(flip_averaging=False), guards=()) as session:
        session.adapt(images(16))
        state = session.state
        session.predict(images(16))
        used = layer.used
        session.predict(images(16, seed=9))
        assert torch.equal(layer.used[0], used[0])
        assert not torch.allclose(used[0], layer.running_mean)
        assert session.state is state


def test_decisions_with_few_classes_lower_the_rate() -> None:
    method = Blend(flip_averaging=False)
    even, single = torch.full((4,), 0.25), torch.tensor([0.97, 0.01, 0.01, 0.01])
    assert method.diversity(BlendState()) == 1
    assert method.diversity(BlendState(classes=even, decisions=64.0)) == pytest.approx(1)
    assert method.diversity(BlendState(classes=single, decisions=64.0)) < 0.1
    # Too few decisions.
    assert method.diversity(BlendState(classes=single, decisions=8.0)) == 1

    def moved(state: BlendState) -> float:
        model, layer = network()
        with Session(model, method, guards=()) as session:
            batch, selection = images(16) * 3, session.selection
            state = dataclasses.replace(state, taken=64.0)
            method.step(
                model, batch, state, task=session.task, selection=selection, optimizer=None, rng=torch.Generator()
            )
            return float((layer.used[0] - layer.running_mean).norm())

    assert moved(BlendState(classes=single, decisions=64.0)) < 1e-3 * moved(BlendState(classes=even, decisions=64.0))


def test_diversity_is_computed_over_a_window_of_decisions() -> None:
    method = Blend(diversity_window=8)
    state = BlendState()
    for label in (0, 0, 1, 1):
        state = method._with_decisions(state, torch.eye(3)[[label] * 4])
    assert state.decisions == 8
    # Twelve decisions precede the last four; the window of eight gives the last four half of the weight.
    assert float(state.classes[1]) > float(state.classes[0])  # type: ignore[index]
    state = method._with_decisions(state, torch.eye(3)[[2] * 50])
    assert state.classes is not None
    assert state.classes.tolist() == pytest.approx([0, 0, 1])


def test_the_mirrored_view_has_half_the_weight() -> None:
    model, batch = classifier("bn"), images()
    with torch.no_grad():
        one, other = model(batch), model(batch.flip(-1))
    # With the source's statistics alone, so that only the views differ.
    with Session(model, Blend(memory_weight=0.0, repairs=False)) as session:
        first, _ = session.adapt_and_predict(batch)
        torch.testing.assert_close(session.predict(batch), (one + other) / 2)
        torch.testing.assert_close(first, (one + other) / 2)


def test_mirror_images_have_running_statistics_of_their_own() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(first, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)).eval()
    # Brighter from left to right: a filter for edges gives the opposite values on the mirror images.
    ramp = torch.linspace(0, 1, 16).expand(8, 3, 16, 16) + 0.05 * images(8)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([-1.0, 0.0, 1.0]).expand(4, 3, 3, 3) / 9)
    with Session(model, Blend(diversity_exponent=0.0, repairs=False), guards=()) as session:
        session.adapt(ramp)
        straight, mirrored = session.state.memory["1"][0], session.state.flipped_memory["1"][0]
        with torch.no_grad():
            expected = [model[0](views).mean((0, 2, 3)) for views in (ramp, ramp.flip(-1))]
    rate = 8 / (8 + 16)
    torch.testing.assert_close(straight, rate * expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mirrored, rate * expected[1], rtol=1e-4, atol=1e-5)


def filter_towards_smooth_images() -> SpectrumFilter:
    smooth = nn.functional.interpolate(images(32, side=4, seed=9), size=16, mode="bicubic").clamp(0, 1)
    return SpectrumFilter(source=measure([smooth]))


def test_the_filter_is_tried_at_the_beginning_of_a_stream_and_when_its_spectrum_changes() -> None:
    model, method = classifier("bn"), Blend(spectrum=filter_towards_smooth_images(), filter_trial_images=40)
    noise = [images(16, seed=seed) for seed in range(6)]
    with Session(model, method, guards=()) as session:
        session.adapt(noise[0])
        assert session.state.trial is not None
        assert session.state.trial.images == 16
        for batch in noise[1:]:
            session.adapt(batch)
        assert session.state.trial is None, "decided after 40 images at the latest"
        session.adapt(nn.functional.interpolate(images(16, side=4, seed=3), size=16, mode="bicubic").clamp(0, 1))
        assert session.state.trial is not None, "a stream without noise is another one"


@pytest.mark.parametrize("filter_gain", [-1.0, 1.0])
def test_evidence_decides_whether_images_are_filtered(filter_gain: float) -> None:
    spectrum = filter_towards_smooth_images()
    model = classifier("bn")
    method = Blend(spectrum=spectrum, filter_gain=filter_gain, filter_trial_images=32, diversity_exponent=0.0)
    reference = Blend(
        spectrum=spectrum if filter_gain < 0 else None, filter_trial_images=0, diversity_exponent=0.0, repairs=False
    )
    batches = [images(16, seed=seed) for seed in range(4)]
    found = []
    for one in (method, reference):
        with Session(model, one, guards=(), restore=True) as session:
            outputs = [session.adapt_and_predict(batch)[0] for batch in batches]
            found.append((outputs[2:], session.predict(batches[0])))
    # Each kind of images has statistics of its own, so that the one that is chosen is as if it had always been alone.
    torch.testing.assert_close(found[0], found[1])


def test_without_evidence_images_are_filtered() -> None:
    spectrum = filter_towards_smooth_images()
    method = Blend(spectrum=spectrum)
    few = FilterTrial(images=16, gain=-8.0, changes=4.0)
    many = FilterTrial(images=64, gain=-8.0, changes=4.0)
    model, batch = classifier("bn"), images()
    seen, _ = spectrum.observe(batch, SpectrumState(), task=Classification())
    predicted = [
        method.predict(model, batch, BlendState(seen=seen, trial=trial), task=Classification())
        for trial in (None, few, many)
    ]
    assert torch.equal(predicted[0], predicted[1])
    assert not torch.allclose(predicted[0], predicted[2], atol=1e-3)
    expected = Blend().predict(model, batch, BlendState(), task=Classification())
    torch.testing.assert_close(predicted[2], expected)


def test_a_model_that_gives_few_classes_without_the_filter_is_no_evidence_against_it() -> None:
    method, task, model, batch = (
        Blend(spectrum=filter_towards_smooth_images()),
        Classification(),
        classifier(),
        images(),
    )
    assert method.spectrum is not None
    seen, _ = method.spectrum.observe(batch, SpectrumState(), task=task)
    many, one = torch.full((5,), 12.8), torch.tensor([60.0, 1.0, 1.0, 1.0, 1.0])
    predicted = []
    for plain in (many, one):
        evidence = FilterTrial(images=64, gain=-8.0, changes=4.0, classes=many, plain_classes=plain)
        predicted.append(method.predict(model, batch, BlendState(seen=seen, trial=evidence), task=task))
    filtered = method.predict(model, batch, BlendState(seen=seen), task=task)
    assert not torch.allclose(predicted[0], filtered, atol=1e-3)
    assert torch.equal(predicted[1], filtered)


class Tokens(nn.Module):
    """Four tokens of an image, normalised by a LayerNorm, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.norm, self.head = nn.Conv2d(3, 8, 8, stride=8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.tokens(batch).flatten(2).transpose(1, 2)).mean(1))
        return logits


@pytest.mark.parametrize("kind", ["gn", "tokens"])
def test_outputs_of_other_normalisation_layers_get_the_sources_moments(kind: str) -> None:
    model = Tokens().eval() if kind == "tokens" else classifier("gn")
    name = "norm" if kind == "tokens" else "1"
    source = SourceImages(batches=lambda size: images(64, seed=9).split(size))
    method = Blend(
        flip_averaging=False, memory_weight=1.0, memory_images=1, diversity_exponent=0.0, repairs=False
    ).with_source(model, source, task=Classification())
    assert set(method.source_outputs) == {name}
    dims = (0, 1) if kind == "tokens" else (0, 2, 3)
    recorded: list[Tensor] = []
    # The filter is left out: it is the moments that are looked at.
    with Session(model, dataclasses.replace(method, spectrum=None), guards=()) as session:
        handle = model.get_submodule(name).register_forward_hook(lambda *found: recorded.append(found[2]))
        plain = session.predict(images(256, seed=4) * 0.3)
        with torch.no_grad():
            torch.testing.assert_close(plain, model(images(256, seed=4) * 0.3), msg="before the first batch")
        for _ in range(4):
            session.adapt(images(256, seed=4) * 0.3)
        handle.remove()
        with norm.running_statistics(
            model, session.state.memory, memory_weight=1.0, rate=0.0, outputs_of=method.source_outputs
        ):
            handle = model.get_submodule(name).register_forward_hook(lambda *found: recorded.append(found[2]))
            model(images(256, seed=4) * 0.3)
            handle.remove()
        # The unadapted model is not affected.
        torch.testing.assert_close(session.predict_as_source(images(8)), model(images(8)))
    mean, variance = method.source_outputs[name]
    torch.testing.assert_close(recorded[-1].mean(dims), mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(recorded[-1].var(dims, correction=0), variance, rtol=1e-2, atol=1e-3)
    assert not torch.allclose(recorded[0].mean(dims), mean, atol=1e-2)


def test_models_with_batch_norm_keep_no_moments_of_outputs() -> None:
    source = SourceImages(batches=lambda size: images(64).split(size))
    assert not Blend().with_source(classifier("bn"), source, task=Classification()).source_outputs
    assert not Blend().with_source(classifier("ln"), source, task=Classification()).source_outputs, "no channels"


def smooth_images(count: int, *, seed: int) -> Tensor:
    return nn.functional.interpolate(images(count, side=4, seed=seed), size=16, mode="bicubic").clamp(0, 1)


def test_a_stream_like_the_source_is_predicted_to_the_bit_as_by_the_unadapted_model() -> None:
    # The statistics of this network are not those of any images.
    spectrum = SpectrumFilter(source=measure([smooth_images(256, seed=9)]))
    model, method = classifier("bn"), Blend(spectrum=spectrum, departure=1e9)
    with torch.no_grad():
        # In the memory layout that the caller gives, with which rounding differs on some processors.
        given_to_the_model = copy.deepcopy(model)(smooth_images(5, seed=4))
    with Session(model, method) as session:
        for seed, count in ((1, 1), (2, 8), (3, 64)):
            outputs, report = session.adapt_and_predict(smooth_images(count, seed=seed))
            expected = session.predict_as_source(smooth_images(count, seed=seed))
            assert torch.equal(outputs, expected)
            assert report.verdict == "kept"
        assert torch.equal(
            session.predict(smooth_images(5, seed=4)), session.predict_as_source(smooth_images(5, seed=4))
        )
        with session.installed():
            assert torch.equal(model(smooth_images(5, seed=4)), given_to_the_model)
        session.adapt(images(64))
        outputs, _ = session.adapt_and_predict(images(64))
        assert not torch.allclose(outputs, session.predict_as_source(images(64)), atol=1e-3)


def test_a_stream_with_stripes_is_not_taken_for_the_source_although_its_spectrum_is_the_sources_without_them() -> None:
    # The statistics of this network are not those of any images.
    spectrum = SpectrumFilter(source=measure([smooth_images(256, seed=9)]))
    model, method = classifier("bn"), Blend(spectrum=spectrum, departure=1e9)
    lines = 0.2 * torch.randn((64, 1, 1, 16), generator=torch.Generator().manual_seed(0))
    clear = 0.4 * smooth_images(64, seed=3) + 0.3
    with Session(model, method, guards=()) as session:
        outputs, _ = session.adapt_and_predict(clear + lines)
        assert session.state.seen.striped
        assert not torch.allclose(outputs, session.predict_as_source(clear + lines), atol=1e-3)


def trial(*, adapted_wrong: int, unadapted_wrong: int, count: int = 100) -> AdaptationTrial:
    """Return evidence from images of which so many differ in class from their mirror images."""
    classes = torch.arange(count) % 4
    both = [
        ViewDecisions(classes, torch.where(torch.arange(count) < wrong, classes + 1, classes) % 4)
        for wrong in (adapted_wrong, unadapted_wrong)
    ]
    return AdaptationTrial(*both)


@pytest.mark.parametrize(("unadapted_wrong", "unadapted"), [(0, True), (60, False)])
def test_the_unadapted_model_predicts_where_it_agrees_better_with_itself(unadapted_wrong: int, unadapted: bool) -> None:
    model, task, method = classifier("bn"), Classification(), Blend(adaptation_trial_images=128)
    evidence = trial(adapted_wrong=60, unadapted_wrong=unadapted_wrong)
    state = BlendState(classes=torch.full((5,), 0.2), decisions=64.0, adaptation_trial=evidence)
    with torch.no_grad():
        of_source = (model(images(32)) + model(images(32).flip(-1))) / 2
    with Session(model, method) as session:
        options = {"task": task, "selection": session.selection, "optimizer": None, "rng": torch.Generator()}
        for _ in range(2):
            found = method.step(model, images(32), state, **options)
            assert torch.allclose(found.outputs, of_source, atol=1e-5) == unadapted
            assert torch.allclose(method.predict(model, images(32), found.state, task=task), of_source, atol=1e-5) == (
                unadapted
            )
            state = found.state
            assert (state.adaptation_trial, state.unadapted) == (None, unadapted), "decided after 128 images"
        with method.installed(model, state, task=task), torch.no_grad():
            found = model(images(32))
    with torch.no_grad():
        assert torch.equal(found, model(images(32))) == unadapted


def test_without_source_images_adaptation_is_tried_again_when_decisions_become_less_sure() -> None:
    model, method = classifier("bn"), Blend(diversity_window=16, adaptation_trial_images=16)
    with torch.no_grad():
        model[-1].weight.mul_(30)
    with Session(model, method, guards=()) as session:
        for seed in range(3):
            session.adapt(images(16, seed=seed))
        assert session.state.adaptation_trial is None
        assert session.state.confidence.reference is not None
        # Nearly the same colour everywhere: no class stands out.
        with torch.no_grad():
            model[-1].weight.mul_(1e-3)
        session.adapt(images(16, seed=7))
        session.adapt(images(16, seed=8))
        again = session.state.confidence
        assert again.reference is not None
        assert again.reference < 0.3, "measured anew, after another trial"


@pytest.mark.parametrize(("first_diversity", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_first_batch_is_taken_in_full_where_its_decisions_are_diverse_enough(
    first_diversity: float, share: float
) -> None:
    # The source model is certain of one class, and less certain with statistics of the batch.
    model, layer = network()
    with torch.no_grad():
        layer.running_mean.zero_()
        layer.running_var.fill_(0.01)
        model[3].weight.mul_(6)
    bright = images(32) * 0.2 + 0.8
    with Session(model, Blend(flip_averaging=False, first_diversity=first_diversity), guards=()) as session:
        session.adapt(bright)
        mean = session.state.memory["0"][0]
    torch.testing.assert_close(mean, share * 32 / (32 + 16) * bright.mean((0, 2, 3)), rtol=1e-4, atol=1e-3)


def test_tasks_that_do_not_allow_mirroring_are_not_flip_averaged() -> None:
    model, batch = classifier("bn"), images()
    with Session(model, Blend(), task=Classification(flips=False)) as session:
        found, _ = session.adapt_and_predict(batch)
        assert any("flips are not averaged" in note for note in session.report().notes)
    with Session(model, Blend(flip_averaging=False), guards=()) as session:
        expected, _ = session.adapt_and_predict(batch)
    assert torch.equal(found, expected)


def test_a_detectors_boxes_are_mirrored_back() -> None:
    model, batch = detector(), images(side=32)
    task = Detection(head="sigmoid", match_iou=0.1, pixel_range=(0.0, 1.0))
    with Session(model, Blend(), task=task) as session:
        outputs, _ = session.adapt_and_predict(batch)
    assert outputs["pred_boxes"].shape == (8, 16, 4)
    assert float(outputs["pred_boxes"].min()) >= 0


def test_a_network_without_batch_norm_is_filtered_or_refused() -> None:
    smooth = nn.functional.interpolate(images(16, side=4), size=16, mode="bicubic").clamp(0, 1)
    with Session(classifier("gn"), Blend(spectrum=SpectrumFilter(source=measure([smooth])))) as session:
        assert session.adapt(images()).verdict == "kept"
    with pytest.raises(EmptySelectionError, match="--ttt-source"), Session(classifier("gn"), Blend()):
        pass


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_weight", 1.5),
        ("memory_images", 0),
        ("diversity_window", 0),
        ("diversity_exponent", -1.0),
        ("filter_gain", 2.0),
        ("filter_trial_images", -1),
        ("adaptation_trial_images", -1),
    ],
)
def test_bad_fields_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        Blend(**{field: value})  # type: ignore[arg-type]


def test_images_of_one_colour_are_predicted_but_not_in_the_statistics() -> None:
    model, _ = network()
    batch = torch.cat([images(6), torch.zeros(3, 3, 16, 16), torch.full((1, 3, 16, 16), 0.5)])
    with Session(model, Blend(flip_averaging=False), guards=()) as session:
        session.adapt(images(6))
        expected = session.state
        session.reset()
        outputs, report = session.adapt_and_predict(batch)
        assert (report.verdict, report.used, len(outputs)) == ("kept", 6, 10)
        for ours, theirs in zip(session.state.memory["0"], expected.memory["0"], strict=True):
            torch.testing.assert_close(ours, theirs)
        assert session.state.decisions == expected.decisions
        state = session.state
        outputs, report = session.adapt_and_predict(batch[6:])
        assert (report.verdict, len(outputs)) == ("skipped", 4)
        assert session.state is state


def test_which_images_have_content() -> None:
    dim = torch.zeros(1, 3, 4, 4)
    dim[0, 1, 2, 2] = 2 / 255
    batch = torch.cat([images(1, side=4), torch.zeros(1, 3, 4, 4), dim, torch.full((1, 3, 4, 4), float("nan"))])
    assert with_content(batch, pixel_range=(0.0, 1.0)).tolist() == [True, False, True, True]
    assert with_content(batch * 100, pixel_range=(0.0, 100.0)).tolist() == [True, False, True, True]
    assert with_content(torch.ones(2, 3, 4, 4), pixel_range=None).tolist() == [False, False]


@pytest.mark.parametrize("knows_source", [True, False])
def test_statistics_begin_again_where_the_images_show_another_stream(knows_source: bool) -> None:
    smooth = nn.functional.interpolate(images(64, side=4, seed=9), size=16, mode="bicubic").clamp(0, 1)
    spectrum = SpectrumFilter(source=measure([smooth])) if knows_source else None
    method = Blend(spectrum=spectrum, flip_averaging=False, diversity_exponent=0.0)
    noisy = (smooth + 0.4 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    model, _ = network()
    with Session(model, method, guards=()) as session:
        session.adapt(0.2 * smooth[:32] + 0.4)
        session.adapt(0.2 * smooth[32:] + 0.4)
        assert session.state.taken == 64
        session.adapt(noisy[:32])
        assert session.state.taken == 32
        after = session.state.memory["0"]
    with Session(model, method, guards=()) as session:
        session.adapt(noisy[:32])
        assert_moments_close(after, session.state.memory["0"])


def assert_moments_close(found: norm.Moments, expected: norm.Moments) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_where_images_are_of_many_kinds_nothing_is_tried_and_all_of_it_is_used() -> None:
    smooth = nn.functional.interpolate(images(128, side=4, seed=9), size=16, mode="bicubic").clamp(0, 1)
    model, task = classifier("bn"), Classification()
    method = Blend().with_source(model, SourceImages(batches=smooth.split), task=task)
    hazy = 0.3 * smooth[:64] + 0.5
    noise = 0.4 * torch.randn(hazy.shape, generator=torch.Generator().manual_seed(1))
    mixed = torch.where(torch.arange(64).view(-1, 1, 1, 1) % 2 == 0, (hazy + noise).clamp(0, 1), hazy)
    for batch, tried in ((hazy, True), ((hazy + noise).clamp(0, 1), True), (mixed, False)):
        with Session(model, method, task=task, guards=()) as session:
            session.adapt(batch[:24])
            assert (session.state.adaptation_trial is not None) == tried
            assert session.state.filters or tried


@pytest.mark.parametrize(("few_classes", "taken"), [(True, 0.0), (False, 64.0)])
def test_a_first_batch_of_few_classes_is_not_taken_where_the_first_layers_show_it(
    few_classes: bool, taken: float
) -> None:
    # The source model is certain of one class, and less certain with statistics of the batch.
    model, _ = network()
    with torch.no_grad():
        model[0].running_mean.zero_()
        model[0].running_var.fill_(0.01)
        model[3].weight.mul_(6)
    bright = images(64) * 0.2 + 0.8
    # A first layer that changes nothing, with its own statistics or with those of the batch.
    neutral = nn.BatchNorm2d(3)
    with torch.no_grad():
        neutral.running_var, neutral.running_mean = torch.var_mean(bright, (0, 2, 3), correction=0)
        neutral.weight.copy_((neutral.running_var + neutral.eps).sqrt())
        neutral.bias.copy_(neutral.running_mean)
    model = nn.Sequential(neutral, *model).eval()
    # Whatever the evidence is, it is below one limit or above the other.
    evidence = 100.0 if few_classes else -100.0
    test = ClassMixTest(more_classes=1.0, few_classes_evidence=evidence, damage_evidence=100.0)
    method = Blend(class_mix=test, first_diversity=0.0)
    with Session(model, method, guards=()) as session:
        session.adapt(bright)
        assert session.state.taken == taken


def test_statistics_of_a_settled_stream_take_in_every_second_batch() -> None:
    model, layer = network()
    method = Blend(memory_images=16, flip_averaging=False, diversity_exponent=0.0)
    with Session(model, method, guards=()) as session:
        changed, used = [], []
        for seed in range(6):
            before = session.state.memory.get("0", (torch.zeros(3),))[0]
            session.adapt(images(16, seed=seed))
            changed.append(not torch.equal(before, session.state.memory["0"][0]))
            used.append(layer.used)
    # The first batch fills the memory; from the second on, each that is taken in is followed by one that is not.
    assert changed == [True, True, False, True, False, True]
    assert torch.equal(used[1][0], used[2][0])
    assert torch.equal(used[1][1], used[2][1])
    assert not torch.equal(used[2][0], used[3][0])


@pytest.mark.parametrize("hedge", [0.0, 1.1])
def test_where_both_models_mostly_agree_the_unadapted_one_predicts_mirror_images(hedge: float) -> None:
    model, _ = network()
    batch, more = images(48), images(8, seed=3)
    with Session(model, Blend(hedge=hedge, sure=1.0, adaptation_trial_images=32), guards=()) as session:
        session.adapt(batch)
        assert session.state.adaptation_trial is None
        assert session.state.hedged == (hedge == 0)
        found = session.predict(more)
        with session.installed():
            adapted = model(more)
        mirrored = session.predict_as_source(more.flip(-1))
    average = (adapted + mirrored) / 2
    assert torch.allclose(found, average, atol=1e-5) == (hedge == 0)


def test_a_model_that_is_the_more_consistent_one_is_not_averaged_with_the_other() -> None:
    classes = torch.arange(40) % 4
    other = torch.where(torch.arange(40) < 8, 3 - classes, classes)
    method = Blend(hedge=0.5)
    for adapted, unadapted, hedged in (
        ((classes, classes), (classes, other), False),
        ((classes, other),) * 2 + (True,),
    ):
        trial = AdaptationTrial(ViewDecisions(*adapted), ViewDecisions(*unadapted))
        assert method._hedges(BlendState(adaptation_trial=trial)) == hedged
        realigned = dataclasses.replace(method, source_outputs={"norm": (torch.zeros(3), torch.ones(3))})
        assert not realigned._hedges(BlendState(adaptation_trial=trial))


@pytest.mark.parametrize("departure", [0.0, 1e9])
def test_damage_that_does_not_show_in_the_spectrum_shows_in_the_statistics(departure: float) -> None:
    model, _ = network()
    smooth = nn.functional.interpolate(images(128, side=4, seed=9), size=16, mode="bicubic").clamp(0, 1)
    method = Blend(departure=departure).with_source(model, SourceImages(batches=smooth.split), task=Classification())
    with Session(model, method, guards=()) as session:
        found, _ = session.adapt_and_predict(smooth[:64])
        source = session.predict_as_source(smooth[:64])
        assert session.state.departs == (departure == 0)
        assert bool(session.state.memory) == (departure == 0)
        assert torch.equal(found, source) == (departure > 0)


def smooth_scenes(count: int, *, seed: int) -> Tensor:
    return nn.functional.interpolate(images(count, side=4, seed=seed), size=32, mode="bicubic").clamp(0.1, 0.9)


def noise(images: Tensor) -> Tensor:
    return (images + 0.15 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def spikes(images: Tensor) -> Tensor:
    draws = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(draws < 0.03, 0.0, torch.where(draws > 0.97, 1.0, images))


def stripes(images: Tensor) -> Tensor:
    rows = torch.randn(len(images), 1, images.shape[2], 1, generator=torch.Generator().manual_seed(0))
    return (images + 0.2 * rows).clamp(0, 1)


@pytest.mark.parametrize("damage", [noise, spikes, stripes])
def test_without_source_images_noise_spikes_and_stripes_are_removed(damage: Callable[[Tensor], Tensor]) -> None:
    seen: list[Tensor] = []
    model, task = classifier("bn"), Classification()
    clean = smooth_scenes(32, seed=3)
    damaged = damage(clean)
    for repairs in (True, False):
        method = Blend(repairs=repairs, flip_averaging=False, memory_weight=0.0)
        with Session(model, method, guards=(), restore=True) as session:
            outputs, _ = session.adapt_and_predict(damaged)
            handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            # What was found out on many images is used for single ones, and wherever the model is called.
            one = session.predict(damaged[:1])
            handle.remove()
            torch.testing.assert_close(one, outputs[:1], rtol=1e-2, atol=1e-2)
            with method.installed(model, session.state, task=task), torch.no_grad():
                torch.testing.assert_close(model(damaged[:1]), one)
    repaired, plain = (float((found - clean[:1]).square().mean()) for found in seen)
    assert plain == pytest.approx(float((damaged[:1] - clean[:1]).square().mean()))
    assert repaired < 0.5 * plain


def test_without_source_images_clean_ones_are_left_as_they_are_and_repairs_are_tried() -> None:
    model = classifier("bn")
    with Session(model, Blend(), guards=(), restore=True) as session:
        session.adapt(smooth_scenes(32, seed=3))
        assert (session.state.noise, session.state.seen.striped, session.state.trial) == (None, False, None)
    with Session(model, Blend(filter_gain=1.0), guards=(), restore=True) as session:
        for seed in range(2):
            session.adapt(noise(smooth_scenes(64, seed=seed)))
            assert session.state.noise is not None
        assert not session.state.filters, "nothing can be gained that is asked for"
        session.adapt(smooth_scenes(64, seed=5))
        assert session.state.filters, "another stream begins"
        assert session.state.noise is None


def test_repairs_are_tried_when_they_begin_and_forgotten_where_another_stream_begins() -> None:
    model = classifier("bn")
    with Session(model, Blend(filter_trial_images=64), guards=(), restore=True) as session:
        session.adapt(noise(smooth_scenes(4, seed=1)))
        assert session.state.noise is None, "too few to tell noise from textures"
        session.adapt(noise(smooth_scenes(16, seed=2)))
        assert session.state.noise is not None
        assert session.state.trial is not None
        for seed in range(3, 9):
            session.adapt(noise(smooth_scenes(32, seed=seed)))
        assert session.state.trial is None, "decided"
        for seed in range(9, 13):
            session.adapt(smooth_scenes(4, seed=seed))
        assert session.state.noise is None


def test_images_of_whole_numbers_are_rounded() -> None:
    task = Classification(pixel_range=(0.0, 255.0))
    unit = torch.tensor([0.1, 0.499, 0.5, 0.9999]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    for dtype in (torch.uint8, torch.float32):
        batch = torch.zeros(1, 3, 2, 2, dtype=dtype)
        found = with_unit_images(batch, unit, task)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), 255 * unit, rtol=0, atol=0.51 if dtype == torch.uint8 else 1e-4)
    assert with_unit_images(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), unit, task)[0, 0, 1, 1] == 255


def test_only_half_of_a_large_batch_is_predicted_by_the_unadapted_model_for_trials() -> None:
    model, _ = network()
    counts = []
    model.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    with Session(model, Blend(sure=0.01, hedge=1.1, repairs=False), guards=()) as session:
        counts.clear()
        session.adapt(images(64))
    # Its outputs are examined on eight; then images and mirror images, by the unadapted model and by the adapted one,
    # with both weights of its statistics.
    assert counts == [8, 32, 32, 64, 64, 64, 64]


def test_evidence_on_the_weight_goes_on_over_streams() -> None:
    trial = WeightTrial().plus(torch.tensor([0.5, -0.1, 0.2, 0.2]))
    assert (trial.images, trial.here) == (4, 4)
    assert trial.gain == pytest.approx(0.8)
    assert trial.changes == pytest.approx(0.34)
    assert not trial.is_clear()
    method = Blend(weight_trial_images=16)
    again = method._with_trials(BlendState(weight_trial=trial), task=Classification())
    assert again.weight_trial == dataclasses.replace(trial, here=0)
    assert method._with_trials(BlendState(), task=Classification()).weight_trial == WeightTrial()
    for found, tried in (
        (WeightTrial(images=40, gain=3.0, changes=1.0), False),  # clear from other streams
        (WeightTrial(images=40, gain=-3.0, changes=1.0), False),
        (WeightTrial(images=40, gain=1.0, changes=1.0, here=8), True),
        (WeightTrial(images=40, gain=1.0, changes=1.0, here=16), False),
        (WeightTrial(images=64, gain=1.0, changes=1.0), False),  # known from four other streams, as far as it can be
        (WeightTrial(images=8, gain=3.0, changes=1.0, here=8), True),  # too few
    ):
        assert method._tries_weight(BlendState(weight_trial=found)) == tried
        assert not method._tries_weight(BlendState(weight_trial=found, hedged=True))


@pytest.mark.parametrize("gain", [1.5, -1.5])
def test_the_streams_statistics_alone_are_used_where_views_agree_better_with_them(gain: float) -> None:
    model, layer = network()
    method, batch = Blend(full_shift=0.0, adaptation_trial_images=0, repairs=False), 0.5 * images(64)
    known = WeightTrial(images=64, gain=gain, changes=1.0)
    options = {"task": Classification(), "optimizer": None, "rng": torch.Generator()}
    with method.select(model) as selection:
        state = dataclasses.replace(method.start(model, selection), weight_trial=known)
        step = method.step(model, batch, state, selection=selection, **options)
        state = step.state
        assert state.full_weight == (gain > 0)
        assert state.weight_trial.here == 64
        again = method.predict(model, batch, state, task=Classification())
        assert torch.allclose(step.outputs, again, atol=1e-5)
        # The mirror images were predicted last.
        source, stream = layer.running_mean, state.flipped_memory["0"][0]
        assert not torch.allclose(source, stream, atol=1e-2)
        torch.testing.assert_close(layer.used[0], stream if gain > 0 else (source + stream) / 2)

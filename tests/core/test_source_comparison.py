"""The guard that compares with the unadapted model, and the signals that it uses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from acclimate.core import Classification, Segmentation, Session, Step, WorseThanSource
from acclimate.core.selection import nothing_selected
from acclimate.core.signals import Certainty, SignalPair, Signals
from acclimate.core.source_model import SourceComparison, source_outputs
from acclimate.errors import ConfigError
from acclimate.methods import BatchNormStats, Blend, Cotta, Tent
from acclimate.registry import MethodInfo
from acclimate.vision.models.detection import Detection
from tests.networks import assert_identical, classifier, detector, images, segmenter, tensors_of

TASK = Classification()


def signals(logits: Any) -> Signals:
    logits = torch.as_tensor(logits, dtype=torch.float32)
    return Signals.of(TASK, logits, samples=len(logits))


def test_signals_of_a_classifier() -> None:
    found = signals([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    assert found.top_share == 0.75  # a tie goes to the first class
    assert found.detections_per_image == 1
    assert found.entropy_nats == pytest.approx(math.log(3) / 4, abs=0.01)
    assert found.mean_score == pytest.approx((3 + 1 / 3) / 4, abs=0.001)
    assert 2 < found.effective_classes < 3
    assert found.to_dict()["top_share"] == 0.75


def test_signals_add_up() -> None:
    logits = torch.randn((12, 5), generator=torch.Generator().manual_seed(0))
    parts, whole = Signals.total(signals(part) for part in logits.split(5)), signals(logits)
    assert parts.decided == whole.decided
    for name in ("entropy_nats", "mean_prediction_entropy_nats", "top_share", "mean_score"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def test_images_without_detections_count_as_images() -> None:
    task = Detection(head="sigmoid")
    outputs = {"logits": torch.full((2, 3, 4), -9.0), "pred_boxes": torch.rand(2, 3, 4)}
    outputs["logits"][0, 0, 1] = 4.0
    found = Signals.of(task, outputs, samples=2)
    assert (found.decisions, found.detections_per_image) == (1, 0.5)
    blind = Signals.of(task, {**outputs, "logits": torch.full((2, 3, 4), -9.0)}, samples=2)
    assert SignalPair(blind, found).detection_ratio == 0
    assert SignalPair(blind, found).agreement is None
    assert (blind.entropy_nats, blind.effective_classes, blind.top_share) == (0.0, 1.0, 0.0)


def test_the_degradation_score_grows_with_entropy_and_with_lost_energy_and_less_where_the_source_is_lost() -> None:
    sure = signals(torch.eye(5).repeat(20, 1) * 8)
    unsure = signals(torch.eye(5).repeat(20, 1) * 3)
    weak = signals(torch.eye(5).repeat(20, 1) * 8 - 6)
    assert Certainty().degradation_score(SignalPair(sure, sure)) == 0
    assert Certainty().degradation_score(SignalPair(unsure, sure)) > 1
    assert Certainty().degradation_score(SignalPair(sure, unsure)) < 0
    # Softmax probabilities are equal; energies differ.
    assert SignalPair(weak, sure).entropy_rise == pytest.approx(0, abs=1e-6)
    assert Certainty().degradation_score(SignalPair(weak, sure)) > 1
    elsewhere = signals(torch.eye(5).roll(1, 1).repeat(20, 1) * 3)
    assert SignalPair(elsewhere, sure).agreement == 0
    assert Certainty().degradation_score(SignalPair(elsewhere, sure)) < Certainty().degradation_score(
        SignalPair(unsure, sure)
    )


def test_fewer_decisions_allow_a_larger_entropy_rise() -> None:
    assert Certainty().allowed(1) > Certainty().allowed(64) > Certainty().entropy_rise


@pytest.mark.parametrize(
    "method", [Tent(lr=0.05), Cotta(view_count=1, lr=0.05), BatchNormStats(), Blend(flip_averaging=False)]
)
def test_the_unadapted_model_is_run_without_a_copy_or_side_effects(method: Any) -> None:
    model, batch = classifier(), images(32)
    with torch.no_grad():
        expected = model(batch)
    with Session(model, method, guards=()) as session:
        for seed in range(3):
            session.adapt(images(32, seed=seed))
        before, adapted = tensors_of(model), session.predict(batch)
        assert not torch.allclose(adapted, expected, atol=1e-3)
        torch.testing.assert_close(session.predict_as_source(batch), expected)
        assert_identical(model, before)
        assert torch.equal(session.predict(batch), adapted)


@dataclasses.dataclass(frozen=True)
class Uncertain:
    """Does not adapt, and returns outputs with a lower certainty than the model's."""

    inner: BatchNormStats = BatchNormStats()
    scale: float = 0.0
    info = MethodInfo(name="uncertain")

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.inner, attribute)

    def step(self, model: Any, batch: Any, state: Any, **kwargs: Any) -> Step:
        step = self.inner.step(model, batch, state, **kwargs)
        return dataclasses.replace(step, outputs=step.outputs * self.scale)


def confident() -> torch.nn.Module:
    model = classifier()
    with torch.no_grad():
        model[5].weight.mul_(40)
    return model


def mirror_proof() -> torch.nn.Module:
    """A classifier by mean colour, which gives the same class to mirror images and several classes to images()."""
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(400 * (torch.eye(3) - 1 / 3))
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Rotated:
    """Changes nothing, but gives the classes of another part of each image, which mirrors differently."""

    consistent: bool
    doubt: float = 1.0
    damage: bool = False
    info = MethodInfo(name="rotated")

    def __getattr__(self, attribute: str) -> Any:
        return getattr(Uncertain(), attribute)

    def select(self, model: Any) -> Any:
        return nothing_selected(model)

    def step(self, model: Any, batch: Any, state: Any, **kwargs: Any) -> Step:
        outputs = self.predict(model, batch, state, task=TASK)
        return Step(state, outputs, None, len(batch), damage=self.damage)

    def predict(self, model: Any, inputs: Any, state: Any, *, task: Any) -> Any:
        with torch.no_grad():
            outputs = model(inputs) if self.consistent else model(inputs[..., : inputs.shape[-1] // 2])
        return outputs * self.doubt


@pytest.mark.parametrize(
    ("method", "code"),
    [
        (Rotated(consistent=False), "less_consistent_than_source"),
        (Rotated(consistent=True), None),
        # Less certain by its entropy, but no less consistent.
        (Rotated(consistent=True, doubt=0.05), None),
        (Rotated(consistent=False, doubt=0.05), "less_certain_than_source"),
    ],
)
def test_classes_of_mirror_images_decide_where_both_models_give_as_many_classes(
    method: Rotated, code: str | None
) -> None:
    with Session(mirror_proof(), method) as session:
        report = session.adapt(images(128, seed=3))
        assert report.code == code, report.reason


def test_images_that_cannot_be_mirrored_are_moved() -> None:
    with Session(mirror_proof(), Rotated(consistent=True, doubt=0.05), task=Classification(flips=False)) as session:
        report = session.adapt(images(128, seed=3))
        assert report.code is None, report.reason
        assert len(session.source_comparison.adapted_views) == 128


def test_statistics_of_few_classes_are_told_from_those_of_damaged_images() -> None:
    """The classes are patterns without mean, so that the first layer's statistics are the same for each of them."""
    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 3, 8, bias=False), torch.nn.BatchNorm2d(3), torch.nn.Flatten(),
        torch.nn.Linear(3, 3),
    ).eval()  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    rows = torch.arange(8)
    patterns = torch.stack([((rows // 2**k) % 2 * 2.0 - 1)[:, None].expand(8, 8) for k in range(3)])
    labels = torch.randint(0, 3, (128,), generator=rng)
    noise = 0.5 * torch.randn(128, 3, 8, 8, generator=rng)
    with torch.no_grad():
        # The noise of a mirror image counts otherwise, the pattern does not.
        model[1].weight.copy_((patterns * (4 * (rows >= 4) - 1.0))[:, None].expand(-1, 3, -1, -1))
        model[4].weight.copy_(5 * torch.eye(3))
        model[4].bias.copy_(torch.tensor([3.0, 0.0, 0.0]))
        source = patterns[labels][:, None] + noise
        for layer in (0, 2):
            hidden = model[:layer](source)
            model[layer].running_mean.copy_(hidden.mean((0, 2, 3)))
            model[layer].running_var.copy_(hidden.var((0, 2, 3)))
    one_class = patterns[0] + noise
    # Of so little contrast that the unadapted model gives one class to everything.
    damaged = 0.01 * source + 1
    for batch, code in ((one_class, "statistics_of_few_classes"), (damaged, None)):
        with Session(model, BatchNormStats(source_strength=0)) as session:
            report = session.adapt(batch)
            assert report.code == code, report.reason
            assert len(session.source_comparison.with_between) == 128
            assert session.source_comparison.few_classes == (code is not None)


@dataclasses.dataclass(frozen=True)
class Announcing(Rotated):
    """Says that nothing was adapted on images of one colour, and that a new stream begins with the first others."""

    def start(self, model: Any, selection: Any) -> bool:
        return False

    def step(self, model: Any, batch: Any, state: Any, **kwargs: Any) -> Step:
        plain = bool(batch[0].std() < 1e-4)
        outputs = self.predict(model, batch, state, task=TASK)
        source = outputs if plain else None
        return Step(not plain, outputs, None, len(batch), unadapted=source, new_stream=state is plain)


def test_batches_that_nothing_was_adapted_on_are_no_evidence() -> None:
    grey = torch.full((64, 3, 8, 8), 0.5)
    with Session(mirror_proof(), Announcing(consistent=False)) as session:
        for _ in range(12):
            report = session.adapt(grey)
            assert report.verdict == "kept"
        # However long the stream was before, the first batches on which something is adapted are compared.
        assert session.source_comparison.images_checked == 0
        assert session.adapt(images(128, seed=3)).code == "less_consistent_than_source"


def test_images_of_another_kind_are_compared_anew() -> None:
    with Session(mirror_proof(), Announcing(consistent=True)) as session:
        for seed in range(8):
            session.adapt(images(64, seed=seed))
        comparison = session.source_comparison
        assert (comparison.images_checked, len(comparison.adapted_views)) == (256, 128)
        session.adapt(torch.full((64, 3, 8, 8), 0.5))
        assert (comparison.images_checked, len(comparison.adapted_views)) == (0, 0)
        session.adapt(images(64))
        assert (comparison.images_checked, len(comparison.adapted_views)) == (64, 64)


def test_evidence_on_a_new_stream_adds_up_to_128_images_while_its_first_steps_are_undone() -> None:
    seen = []
    with Session(mirror_proof(), Announcing(consistent=False)) as session:
        for seed in range(3):
            assert session.adapt(images(64, seed=seed)).verdict in ("rolled_back", "reset")
            seen.append(len(session.source_comparison.adapted_views))
    # What follows may be another stream than the one whose steps were undone.
    assert seen == [64, 128, 64]


def test_a_session_that_goes_on_knows_that_the_first_steps_on_a_new_stream_were_undone() -> None:
    with Session(mirror_proof(), Announcing(consistent=False)) as session:
        assert session.adapt(images(64, seed=0)).verdict == "rolled_back"
        state, history = session.source_comparison.state_dict(), session.source_comparison.history()
    with Session(mirror_proof(), Announcing(consistent=False)) as session:
        session.source_comparison.load_state_dict(state)
        session.source_comparison.restore_history(history)
        session.adapt(images(64, seed=1))
        assert len(session.source_comparison.adapted_views) == 128


def test_methods_that_average_views_are_not_asked_about_mirror_images() -> None:
    averaging = dataclasses.replace(Rotated(consistent=False))
    object.__setattr__(averaging, "info", MethodInfo(name="averaging", averages_views=True))
    with Session(mirror_proof(), averaging) as session:
        assert session.adapt(images(128, seed=3)).code is None
        assert len(session.source_comparison.adapted_views) == 0


@pytest.mark.parametrize(("damage", "code"), [(False, "less_certain_than_source"), (True, None)])
def test_decisions_may_be_less_certain_where_the_method_found_that_images_are_damaged(
    damage: bool, code: str | None
) -> None:
    method = Rotated(consistent=True, doubt=0.05, damage=damage)
    object.__setattr__(method, "info", MethodInfo(name="own", averages_views=True, compares_itself=True))
    with Session(mirror_proof(), method) as session:
        report = session.adapt(images(128, seed=3))
        assert report.code == code, report.reason


def test_a_method_that_compares_itself_is_compared_on_a_quarter_of_a_large_batch() -> None:
    seen: list[int] = []
    for compares_itself in (False, True):
        method = dataclasses.replace(Rotated(consistent=True))
        object.__setattr__(method, "info", MethodInfo(name="own", averages_views=True, compares_itself=compares_itself))
        with Session(mirror_proof(), method) as session:
            session.adapt(images(64))
            last = session.source_comparison.last
            assert last is not None
            assert last.adapted.samples == last.source.samples
            assert last.adapted.decided == last.source.decided
            seen.append(last.source.samples)
            assert session.source_comparison.images_checked == 64
    assert seen == [64, 16]


def test_a_segmenter_is_compared_on_a_quarter_of_its_frames() -> None:
    frames, seen = images(8).repeat(1, 1, 2, 2), []
    for positions in (100, 256):
        task = Segmentation(sampled_positions=positions)
        with Session(segmenter(), BatchNormStats(), task=task) as session:
            session.adapt(frames)
            last = session.source_comparison.last
            assert last is not None
            assert last.adapted.decisions == last.source.decisions == positions * last.source.samples
            seen.append(last.source.samples)
    assert seen == [8, 2]  # a hundred decisions in each image are too few


def test_the_unadapted_model_predicts_as_long_as_it_is_more_certain() -> None:
    model, batch = confident(), images(64)
    with torch.no_grad():
        expected = model(batch)
    with Session(model, Uncertain()) as session:
        outputs, report = session.adapt_and_predict(batch)
        assert report.verdict == "rolled_back"
        assert "less certain than the unadapted model" in (report.reason or "")
        assert report.signals is not None
        assert report.signals["entropy_nats"] == pytest.approx(math.log(5))
        torch.testing.assert_close(outputs, expected)
        # Until a comparison passes again, all predictions are the unadapted model's, also those of direct calls.
        torch.testing.assert_close(session.predict(batch), expected)
        with session.installed(), torch.no_grad():
            torch.testing.assert_close(model(batch), expected)
        for _ in range(3):
            report = session.adapt(batch)
        assert report.verdict == "reset"
        session.method = BatchNormStats()
        assert session.adapt(batch).verdict == "kept"
        assert not torch.allclose(session.predict(batch), expected)
        assert session.report().source_seconds > 0


def test_comparisons_are_rare_while_they_pass() -> None:
    guard = WorseThanSource(first_images=64, every_images=128)
    asked = []
    with Session(confident(), Uncertain(scale=1.1), guards=(guard,)) as session:
        for _ in range(12):
            before = session.report().source_seconds
            session.adapt(images(16))
            asked.append(session.report().source_seconds > before)
    assert asked == [True] * 4 + [False] * 7 + [True]


def test_a_loss_of_certainty_triggers_a_comparison() -> None:
    guard = WorseThanSource(first_images=16, every_images=10_000)
    # Without mirror images, which show that the classes are as before.
    task = Classification(flips=False)
    with Session(confident(), Uncertain(scale=1.1), task=task, guards=(guard,)) as session:
        assert [session.adapt(images(32)).verdict for _ in range(4)] == ["kept"] * 4
        session.method = Uncertain(scale=0.05)
        assert session.adapt(images(32)).verdict == "rolled_back"


def test_a_stream_of_one_class_is_no_collapse_and_one_predicted_class_is() -> None:
    task = Classification()
    one_class, mixed = signals(torch.tensor([[9.0, 0, 0, 0]]).repeat(64, 1)), signals(torch.eye(4).repeat(16, 1) * 9)
    assert SignalPair(one_class, one_class).variety_ratio == 1
    assert SignalPair(one_class, mixed).variety_ratio < WorseThanSource().min_variety
    assert task.aligned

    class OneClass(Uncertain):
        # Its views are not compared, only its classes.
        info = MethodInfo(name="one_class", averages_views=True)

        def step(self, model: Any, batch: Any, state: Any, **kwargs: Any) -> Step:
            step = self.inner.step(model, batch, state, **kwargs)
            outputs = torch.zeros_like(step.outputs)
            outputs[:, 0] = 50.0
            return dataclasses.replace(step, outputs=outputs)

    varied = classifier()
    with torch.no_grad():
        varied[5].weight.mul_(400)
        varied[5].bias.zero_()
    guards = (WorseThanSource(variety_window=64, min_variety=0.5),)
    with Session(varied, OneClass(), task=Classification(flips=False), guards=guards) as session:
        report = session.adapt(images(64, seed=5) * torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(2)))
        assert "decisions are spread over 1.0 classes" in (report.reason or "")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_detector_that_stops_detecting_is_rejected(size: int) -> None:
    model, task = detector(), Detection(head="sigmoid", min_foreground=0.3)
    with torch.no_grad():
        model.classes.bias.fill_(0.5)

    class Blind(Uncertain):
        def step(self, model: Any, batch: Any, state: Any, **kwargs: Any) -> Step:
            step = self.inner.step(model, batch, state, **kwargs)
            return dataclasses.replace(step, outputs={**step.outputs, "logits": step.outputs["logits"] - 50})

    with Session(model, Blind(), task=task) as session:
        for _ in range(8 // size):
            outputs, report = session.adapt_and_predict(images(size, side=32))
        assert report.reason == "scores sum to 0% of the unadapted model's, which predicts instead"
        assert float(outputs["logits"].max()) > 0


def test_an_image_with_nan_does_not_affect_the_others() -> None:
    model, batch = classifier(), images(16)
    batch[3] = float("nan")
    fine = torch.arange(16) != 3
    with torch.no_grad():
        expected = model(batch)
    with Session(model, Tent()) as session:
        outputs, report = session.adapt_and_predict(batch)
        assert "non-finite" in (report.reason or "")
        torch.testing.assert_close(outputs[fine], expected[fine])
        torch.testing.assert_close(session.predict(batch)[fine], expected[fine])


def test_a_reused_input_tensor_is_predicted_again() -> None:
    model, buffer = confident(), images(64)
    with torch.no_grad():
        expected = model(images(64, seed=7))
    with Session(model, Uncertain()) as session:
        session.adapt_and_predict(buffer)
        buffer.copy_(images(64, seed=7))
        torch.testing.assert_close(session.predict(buffer), expected)


def test_source_statistics_end_with_the_block() -> None:
    model, batch = classifier(), images(32)
    with Session(model, BatchNormStats(source_strength=0), guards=()) as session:
        adapted = session.predict(batch)
        source_outputs(model, batch, {}, task=TASK)
        assert torch.equal(session.predict(batch), adapted)


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="window must be positive"):
        WorseThanSource(window=0)
    with pytest.raises(ConfigError, match="min_variety must lie in"):
        WorseThanSource(min_variety=1.0)


def test_two_clear_failures_in_a_row_begin_a_sticky_fallback() -> None:
    batch = images(64)
    with Session(confident(), Uncertain()) as session:
        for _ in range(2):
            session.adapt(batch)
        assert session.source_comparison.sticky_fallback
        # Otherwise this loss of certainty would be allowed; in a sticky fallback, three comparisons must pass first.
        session.method = Uncertain(scale=0.9)
        assert session.adapt(batch).verdict in ("rolled_back", "reset")
        session.method = Uncertain(scale=1.5)
        assert [session.adapt(batch).verdict for _ in range(3)] == ["kept"] * 3
        assert not session.source_comparison.sticky_fallback
        session.method = Uncertain(scale=0.9)
        assert session.adapt(batch).verdict == "kept"


def test_a_guard_that_raises_undoes_the_step() -> None:
    model, batch = classifier(), images(16)
    before = tensors_of(model)

    def broken(evidence: Any) -> None:
        raise RuntimeError("out of memory")

    with Session(model, Tent(lr=0.05), guards=(broken,)) as session:
        state = session.state
        with pytest.raises(RuntimeError, match="out of memory"):
            session.adapt(batch)
        assert_identical(model, before)
        assert session.state is state
        assert session.report().steps == ()


def test_signals_from_before_a_reset_are_not_compared() -> None:
    with Session(confident(), Uncertain()) as session:
        verdicts = [session.adapt(images(1, seed=seed)).verdict for seed in range(5)]
        assert "reset" in verdicts
        session.method = Uncertain(scale=1.2)
        later = [session.adapt(images(1, seed=seed)).verdict for seed in range(12)]
    assert later.count("reset") <= 1
    assert later[-1] == "kept"


def test_images_with_many_decisions_are_compared_less_often() -> None:
    task = Segmentation(sampled_positions=64)
    guard = WorseThanSource(first_decisions=128)
    batch = images(2)
    with Session(segmenter(), BatchNormStats(), task=task, guards=(guard,)) as session:
        checked = []
        for _ in range(4):
            session.adapt(batch)
            checked.append(session.source_comparison.images_checked)
    # Two images have 128 decisions; then a batch is compared after every 512 images, or when certainty falls.
    assert checked == [2, 2, 2, 2]
    with Session(segmenter(), BatchNormStats(), task=task, guards=(WorseThanSource(),)) as session:
        for _ in range(4):
            session.adapt(batch)
        assert session.source_comparison.images_checked == 8


def test_a_segmenter_that_sees_one_class_everywhere_has_failed_however_certain_it_is() -> None:
    task = Segmentation()
    draws = torch.Generator().manual_seed(0)
    one_class = torch.zeros(4, 6, 8, 8)
    one_class[:, 2] = 9.0
    adapted = torch.randn(4, 6, 8, 8, generator=draws)
    pair = SignalPair.of(task, adapted, one_class, samples=4)
    assert pair.is_dense
    assert pair.entropy_rise > 0.5
    assert Certainty().degradation_score(pair) == 0
    assert Certainty(lost_variety=0.0).degradation_score(pair) > 1
    # The other way round, and where both see as many classes, the score is that of certainty.
    assert Certainty().degradation_score(SignalPair.of(task, adapted, 6 * adapted, samples=4)) > 1
    # A classifier's stream may really have one class.
    flat = [values.permute(0, 2, 3, 1).reshape(-1, 6) for values in (adapted, one_class)]
    assert Certainty().degradation_score(SignalPair.of(Classification(), *flat, samples=256)) > 1


def test_pixels_of_one_image_are_no_independent_evidence() -> None:
    task = Segmentation()
    certain = 2 * torch.eye(6)[torch.randint(0, 6, (64,), generator=torch.Generator().manual_seed(1))]
    source = certain.T.reshape(1, 6, 8, 8).repeat(4, 1, 1, 1)
    pair = SignalPair.of(task, 0.8 * source, source, samples=4)
    scores = [Certainty(chance=chance, energy_weight=0.0).degradation_score(pair) for chance in (0.0, 0.14)]
    rise = pair.entropy_rise
    assert scores == pytest.approx([rise / 0.06, rise / (0.06 + 0.14 / 4**0.5)])


def test_outputs_that_the_method_has_on_the_first_images_are_compared_with_those() -> None:
    model, batch = classifier("bn"), images(64)
    comparison = SourceComparison(model, {}, task=TASK)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    adapted = torch.randn((64, 5), generator=torch.Generator().manual_seed(0))
    offered = torch.randn((32, 5), generator=torch.Generator().manual_seed(1))
    comparison.offer(batch, offered)
    pair = comparison.compare(batch, signals(adapted), decisions=32, outputs=adapted)
    assert pair.source.decided == signals(offered).decided
    assert pair.adapted.decided == signals(adapted[:32]).decided
    assert calls == []
    # They are no outputs on the batch, and none on another one.
    assert len(comparison.outputs(batch)) == 64
    other = comparison.compare(images(64, seed=1), signals(adapted), decisions=32, outputs=adapted)
    assert calls == [64, 16]
    assert other.source.samples == 32 + 16


@pytest.mark.parametrize(("compares_itself", "compared"), [(False, 4), (True, 2)])
def test_methods_that_compare_themselves_are_compared_on_half_of_the_first_images(
    compares_itself: bool, compared: int
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Same(BatchNormStats):
        info = dataclasses.replace(BatchNormStats.info, compares_itself=compares_itself)

    guard = WorseThanSource(first_images=64, every_images=10_000, certainty=Certainty(entropy_rise=100.0))
    with Session(classifier("bn"), Same(), guards=(guard,)) as session:
        for seed in range(6):
            session.adapt(images(16, seed=seed))
        assert session.source_comparison.images_checked == 16 * compared

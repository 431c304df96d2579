from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.core import (
    Budget,
    Collapse,
    MaxDrift,
    MaxUpdate,
    NonFinite,
    ProbeAgreement,
    ProbeLoss,
    Session,
    SessionReport,
    Step,
    TensorFilter,
)
from acclimate.core.guards import Rejection
from acclimate.core.outputs import all_finite, detach, map_tensors, nbytes, sample_count
from acclimate.errors import ConfigError, SessionError
from acclimate.methods import BatchNormStats, Cotta, Sar, Tent
from acclimate.registry import MethodInfo
from tests.networks import assert_identical, classifier, images, tensors_of


def test_a_session_must_be_open() -> None:
    session = Session(classifier(), Tent())
    with pytest.raises(SessionError, match="not open"):
        session.adapt(images())
    with session, pytest.raises(SessionError, match="already open"):
        session.__enter__()


def test_weights_stay_adapted_unless_restored() -> None:
    model = classifier()
    before = tensors_of(model)
    with Session(model, Tent(), restore=True) as session:
        session.adapt(images())
        assert session.report().changed_param_count == 16
    assert_identical(model, before)
    with Session(model, Tent()) as session:
        session.adapt(images())
    assert not torch.equal(model.state_dict()["1.weight"], before["1.weight"])


def test_a_learning_rate_a_thousand_times_too_high_is_rolled_back_on_the_first_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = classifier()
    before = tensors_of(model)
    with caplog.at_level(logging.WARNING), Session(model, Tent(lr=1.0)) as session:
        report = session.adapt(images())
        # Adam's first step has norm lr * sqrt(n), so a guard on the gradient or on the loss would not have fired.
        assert report.update_norm == pytest.approx(math.sqrt(16), rel=0.05)
        assert report.verdict == "rolled_back"
        assert_identical(model, before)
        # The moments were restored too: a second identical batch has exactly the same result.
        assert session.adapt(images()).update_norm == report.update_norm
    assert "exceeds 0.1" in caplog.text


def test_drift_is_bounded_and_resets_to_the_source() -> None:
    model = classifier()
    before = tensors_of(model)
    with Session(model, Tent(lr=0.02), guards=(NonFinite(), MaxDrift(0.05))) as session:
        verdicts = [session.adapt(images(seed=seed)).verdict for seed in range(12)]
        assert "reset" in verdicts
        first = verdicts.index("reset")
        assert set(verdicts[:first]) == {"kept"}
        session.reset()
        assert_identical(model, before)


@dataclasses.dataclass(frozen=True)
class OneClass:
    """Returns outputs of one class and changes no weight, for testing guards on decisions."""

    inner: Tent = Tent(lr=1e-6)
    info = MethodInfo(name="one_class")

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.inner, attribute)

    def step(self, model: Any, batch: Any, state: Any, **kwargs: Any) -> Step:
        step = self.inner.step(model, batch, state, **kwargs)
        outputs = torch.zeros_like(step.outputs)
        outputs[:, 1] = 5.0
        return dataclasses.replace(step, outputs=outputs)


def test_collapse_to_one_class_resets() -> None:
    with Session(classifier(), OneClass(), guards=(Collapse(0.9, window=16),)) as session:
        assert session.adapt(images(8)).verdict == "kept"
        report = session.adapt(images(8))
        assert (report.verdict, report.reason) == ("reset", "one class takes 100% of the last 16 decisions")
        # The window of decisions restarts with the source weights.
        assert session.adapt(images(8)).verdict == "kept"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_collapse_is_detected_in_small_batches_too(batch_size: int) -> None:
    with Session(classifier(), OneClass(), guards=(Collapse(0.9, window=256),)) as session:
        verdicts = [session.adapt(images(batch_size)).verdict for _ in range(256 // batch_size + 1)]
    assert verdicts.count("reset") == 1


def test_a_guard_gets_earlier_decisions() -> None:
    seen: list[int] = []

    def counting(evidence: Any) -> Rejection | None:
        seen.append(len(evidence.recent_classes))
        return None

    with Session(classifier(), Tent(), guards=(counting,)) as session:
        for _ in range(3):
            session.adapt(images(8))
    assert seen == [0, 8, 16]


def test_rolling_back_after_a_reset_stays_at_the_source() -> None:
    model = classifier()
    before = tensors_of(model)
    with Session(model, Tent(), probe=images(4)) as session:
        session.adapt(images())
        session.reset()
        session.rollback()
        assert_identical(model, before)


def test_a_failing_probe_restores_the_model() -> None:
    model = classifier().train()
    with pytest.raises(RuntimeError), Session(model, Tent(), probe=torch.zeros(2, 1, 16, 16)):
        pass
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_low_rank_drift_is_relative_to_the_norm_of_the_model() -> None:
    update = TensorFilter(kind="lora_only", lora_rank=2)
    with Session(classifier(), Tent(update=update), guards=(NonFinite(), MaxDrift(0.2))) as session:
        verdicts = {session.adapt(images(seed=seed)).verdict for seed in range(50)}
    # The low-rank tensors' own norm is near zero at first, so that relative to it every update would be a large drift.
    assert verdicts == {"kept"}


def test_a_channels_last_model_is_channels_first_inside_the_session_only() -> None:
    model = classifier().to(memory_format=torch.channels_last)
    weight = model[0].weight
    assert not weight.is_contiguous()
    with Session(model, Cotta(view_count=1)) as session:
        assert weight.is_contiguous()
        session.adapt(images())
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_the_probe_loss_is_measured_on_one_batch() -> None:
    class WorstTent(Tent):
        """Maximises the entropy, so that it rises on the probe."""

        def optimizer(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=5.0, maximize=True)

    model, probe = classifier(), images(seed=9)
    before = tensors_of(model)
    with Session(model, WorstTent(), guards=(ProbeLoss(0.01),), probe=probe) as session:
        report = session.adapt(images())
        assert report.verdict == "rolled_back"
        assert report.probe_loss_after is not None
        assert report.probe_loss_before is not None
        assert report.probe_loss_after > report.probe_loss_before + 0.01
        assert session.report().probe_seconds > 0
    assert_identical(model, before)


def test_low_agreement_with_the_source_resets() -> None:
    class Biased(Tent):
        """Adapts, and then makes the head's most frequent class improbable."""

        def step(self, model: Any, batch: Any, state: None, **kwargs: Any) -> Step:
            step = super().step(model, batch, state, **kwargs)
            with torch.no_grad():
                model[5].bias[step.outputs.argmax(-1)[0]] -= 100.0
            return step

    model = classifier()
    before = tensors_of(model)
    method = Biased(update=TensorFilter(kind="all"))
    with Session(model, method, guards=(ProbeAgreement(0.5),), probe=images(32, seed=4)) as session:
        report = session.adapt(images())
        assert report.verdict == "reset"
        assert "agreement with the source" in (report.reason or "")
        assert_identical(model, before)


def test_a_custom_guard() -> None:
    def suspicious(evidence: Any) -> Rejection | None:
        return Rejection("disliked", "I do not like it", "reset")

    with Session(classifier(), Tent(), guards=(suspicious,)) as session:
        assert session.adapt(images()).reason == "I do not like it"


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(max_steps=2), "step budget"),
        (Budget(max_seconds=0.0), "time budget"),
        (Budget(max_bytes=10), "memory budget"),
    ],
)
def test_budgets_end_the_adaptation_with_a_reason(budget: Budget, reason: str) -> None:
    with Session(classifier(), Tent(), budget=budget) as session:
        for _ in range(4):
            last = session.adapt(images())
        report = session.report()
    assert last.verdict == "refused"
    assert report.stopped_early
    assert reason in (report.stop_reason or "")
    assert len(report.steps) == (2 if budget.max_steps else 0)


def test_sar_resets_to_the_source_and_clears_its_moving_average() -> None:
    model = classifier()
    before = tensors_of(model)
    with Session(model, Sar(lr=1e-3, entropy_margin=2.0, reset_below_nats=50.0), guards=()) as session:
        report = session.adapt(images())
        assert report.verdict == "recovered"
        assert session.state.mean_loss_nats is None
        assert_identical(model, before)


def test_reports_survive_a_round_trip_through_json() -> None:
    with Session(classifier(), Cotta(view_count=2)) as session:
        session.adapt(images())
        session.adapt(images() * float("nan"))
        report = session.report()
    again = SessionReport.from_json(report.to_json())
    # JSON has no NaN: the loss of a batch with NaN is null.
    assert again.steps[1].loss is None
    assert again.steps[0] == report.steps[0]
    assert (again.method, again.counts) == ("cotta", {"kept": 1, "rolled_back": 1})


def test_on_report_is_called_on_exit() -> None:
    heard: list[SessionReport] = []
    with Session(classifier(), BatchNormStats(), on_report=heard.append) as session:
        session.adapt(images())
    assert heard[0].counts == {"kept": 1}
    assert heard[0].updated_param_count == 0


def test_several_steps_on_one_batch() -> None:
    with Session(classifier(), Tent()) as session:
        session.adapt(images(), steps=3)
        session.adapt_and_predict(images(), steps=2)
        assert len(session.report().steps) == 5


def test_the_callers_random_numbers_do_not_change() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with Session(classifier_without_seeding(), Cotta(view_count=2)) as session:
        session.adapt(images())
    assert torch.equal(torch.rand(3), expected)


def classifier_without_seeding() -> torch.nn.Module:
    state = torch.get_rng_state()
    model = classifier()
    torch.set_rng_state(state)
    return model


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_limits_must_be_positive(limit: float) -> None:
    with pytest.raises(ConfigError):
        MaxUpdate(limit)
    with pytest.raises(ConfigError):
        MaxDrift(limit)


def test_other_limits() -> None:
    with pytest.raises(ConfigError, match="max_share"):
        Collapse(1.5)
    with pytest.raises(ConfigError, match="max_steps"):
        Budget(max_steps=-1)


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-6, 1e3),
    scale=st.floats(1e-3, 1e3),
    limit=st.floats(1e-6, 10),
    poison=st.sampled_from([None, float("nan"), float("inf")]),
    seed=st.integers(0, 100),
)
def test_kept_steps_are_within_limits_and_other_steps_change_nothing(
    lr: float, scale: float, limit: float, poison: float | None, seed: int
) -> None:
    model, batch = classifier(seed=seed), images(seed=seed) * scale
    if poison is not None:
        batch[0, 0, 0, 0] = poison
    before = tensors_of(model)
    with Session(model, Tent(lr=lr), guards=(NonFinite(), MaxUpdate(limit))) as session:
        report = session.adapt(batch)
        if report.verdict == "kept":
            assert poison is None
            assert report.relative_update <= limit
            assert all_finite(model.state_dict())
        else:
            assert_identical(model, before)


def test_functions_on_nested_outputs() -> None:
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor
        extra: tuple[Any, ...]

    tree = {"a": [torch.ones(2, requires_grad=True)], "b": Output(torch.zeros(3), (torch.ones(1), "text", None))}
    assert sample_count(tree) == 2
    assert nbytes(tree) == 6 * 4
    assert not detach(tree)["a"][0].requires_grad
    doubled = map_tensors(lambda tensor: tensor * 2, tree)
    assert doubled["b"].extra[0].item() == 2
    assert doubled["b"].extra[1] == "text"
    assert all_finite(tree)
    assert not all_finite((tree, torch.tensor([1.0, float("inf")])))
    assert all_finite(torch.tensor([3]))
    assert sample_count([]) == 0


def test_logits_of_another_shape_than_a_classifiers_are_refused() -> None:
    dense = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    with Session(dense, Tent()) as session, pytest.raises(ConfigError, match=r"returned \(8, 4, 14, 14\)"):
        session.adapt(images())

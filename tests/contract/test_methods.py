"""The same checks for every method, on every kind of network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from acclimate import registry
from acclimate.core import (
    Budget,
    Classification,
    MaxUpdate,
    Multilabel,
    NonFinite,
    Segmentation,
    Session,
    Task,
    TensorFilter,
)
from acclimate.core.method import UsesSourceImages
from acclimate.core.norm import batch_norms
from acclimate.core.outputs import tensors
from acclimate.core.precision import dtype_of
from acclimate.core.selection import parameter_names
from acclimate.core.source_images import SourceImages
from acclimate.core.spectrum import measure
from acclimate.errors import TTTNotSupportedError
from acclimate.vision.models.detection import Detection
from tests.networks import (
    assert_identical,
    assert_same_objects,
    classifier,
    detector,
    images,
    objects_of,
    segmenter,
    shared_module,
    tensors_of,
    tied,
)

SMOOTH = torch.nn.functional.interpolate(images(32, side=4, seed=9), size=32, mode="bicubic").clamp(0, 1)
# Thresholds that samples of networks with random weights pass, and sizes that keep the tests short.
SETTINGS: dict[str, dict[str, Any]] = {
    "eata": {"lr": 5e-3, "entropy_margin": 2.0, "redundancy_margin": 1.1},
    "sar": {"entropy_margin": 2.0, "reset_below_nats": 0.0},
    "cotta": {"view_count": 2},
    "mim": {"patch_size": 4},
    # Flip averaging calls the model twice, which a method installed in the model cannot do.
    "blend": {"flip_averaging": False},
    "deyo": {"entropy_margin": 2.0, "min_difference": -1.0},
    "rotta": {"capacity": 8, "update_every": 8},
    "memo": {"view_count": 2},
    "foa_shift": {"source_mean": torch.zeros(1)},
}


def maker(name: str) -> Callable[..., Any]:
    """Return a function that makes a method for these tests; its arguments take precedence over the settings above."""
    cls = registry.METHODS.load(name)
    rate = {"lr": 1e-2} if "lr" in {field.name for field in dataclasses.fields(cls)} else {}

    def make(**over: Any) -> Any:
        method = cls(**{**rate, **SETTINGS.get(name, {}), **over})
        if isinstance(method, UsesSourceImages):
            # The tests' noise differs so much from smooth source images that the filter has its full strength.
            source = SourceImages(spectrum=measure([SMOOTH]))
            method = method.with_source(nn.Identity(), source, task=Classification())
        return method

    return make


def kind_of(network: str) -> registry.Kind:
    return next(kind for kind in registry.KINDS if network.startswith(kind))


INFOS = {name: entry.info for name, entry in registry.METHODS.shipped().items() if entry.info is not None}
METHODS: dict[str, Callable[..., Any]] = {name: maker(name) for name in INFOS}
NETWORKS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor, Task]]] = {
    "classifier-bn": lambda: (classifier("bn"), images(), Classification()),
    "classifier-gn": lambda: (classifier("gn"), images(), Classification()),
    "classifier-ln": lambda: (classifier("ln"), images(), Classification()),
    "classifier-shared-module": lambda: (shared_module(), images(), Classification()),
    "classifier-tied": lambda: (tied(), images(), Classification()),
    "classifier-tied-frozen": lambda: (tied(frozen=True), images(), Classification()),
    "classifier-float16": lambda: (classifier("bn").half(), images().half(), Classification()),
    "classifier-bfloat16": lambda: (classifier("bn").bfloat16(), images().bfloat16(), Classification()),
    "classifier-float64": lambda: (classifier("bn").double(), images().double(), Classification()),
    "classifier-tied-frozen-float16": lambda: (tied(frozen=True).half(), images().half(), Classification()),
    "multilabel-bn": lambda: (classifier("bn"), images(), Multilabel()),
    "multilabel-ln": lambda: (classifier("ln"), images(), Multilabel()),
    "segmenter-bn": lambda: (segmenter("bn"), images(), Segmentation(sampled_positions=40)),
    "segmenter-bfloat16": lambda: (segmenter("ln").bfloat16(), images().bfloat16(), Segmentation(sampled_positions=40)),
    "detector-sigmoid-bn": lambda: (
        detector(),
        images(side=32),
        Detection(head="sigmoid", match_iou=0.1, pixel_range=(0.0, 1.0)),
    ),
    "detector-bfloat16": lambda: (
        detector(norm="ln").bfloat16(),
        images(side=32).bfloat16(),
        Detection(head="sigmoid", match_iou=0.1, pixel_range=(0.0, 1.0)),
    ),
    "detector-softmax-bn": lambda: (
        detector(head="softmax"),
        images(side=32),
        Detection(head="softmax", match_iou=0.1, pixel_range=(0.0, 1.0)),
    ),
    "detector-sigmoid-ln": lambda: (
        detector(norm="ln"),
        images(side=32),
        Detection(head="sigmoid", match_iou=0.1, pixel_range=(0.0, 1.0)),
    ),
}
CLASSIFIERS_ONLY = tuple(name for name, info in INFOS.items() if info.kinds == ("classifier",))
LEFT = ("classifier-bn", "classifier-tied-frozen", "segmenter-bn", "detector-sigmoid-bn")
CASES = [
    pytest.param(method, network, id=f"{method}-{network}")
    for method, info in INFOS.items()
    for network in NETWORKS
    if info.applies_to(
        kind_of(network),
        batch_norm=bool(batch_norms(NETWORKS[network]()[0])),
        source_images=True,
    )
]
LEARNING = [
    case for case in CASES if INFOS[case.values[0]].needs_gradient and not INFOS[case.values[0]].adapts_each_image
]
# What is left as it was learned is the same objects too; networks of each kind show it, and all of them in test-all.
LEFT_OR_RESTORED = [
    pytest.param(*case.values, restore, id=f"{case.id}-{'restored' if restore else 'left'}", marks=marks)
    for case in CASES
    for restore in (True, False)
    for marks in [() if restore or case.values[1] in LEFT else pytest.mark.slow]
]
# A method that adapts to each image alone cannot be installed in a model.
INSTALLED = [case for case in CASES if not INFOS[case.values[0]].adapts_each_image]


@pytest.mark.parametrize(("method", "network"), LEARNING)
def test_a_step_changes_selected_tensors_and_no_other(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    before = tensors_of(model)
    with Session(model, METHODS[method](), task=task, guards=()) as session:
        report = session.adapt(batch)
        assert report.verdict == "kept"
        assert report.used > 0
        assert report.loss is not None
        aliases = parameter_names(model)
        selected = {alias for name in session.selection.parameters for alias in aliases[name]}
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert moved
        assert moved <= selected
        counted = session.report()
    assert 0 < counted.changed_param_count <= counted.updated_param_count


@pytest.mark.parametrize(("method", "network", "restore"), LEFT_OR_RESTORED)
def test_afterwards_the_model_consists_of_the_same_objects(method: str, network: str, restore: bool) -> None:
    model, batch, task = NETWORKS[network]()
    before, values = objects_of(model), tensors_of(model)
    with Session(model, METHODS[method](), task=task, restore=restore) as session:
        session.adapt_and_predict(batch)
        session.adapt(batch.flip(0))
        session.predict(batch)
        session.predict_as_source(batch)
    assert_same_objects(model, before)
    if restore:
        assert_identical(model, values)


@pytest.mark.parametrize("method", [name for name, info in INFOS.items() if "classifier" in info.kinds])
def test_a_module_with_two_names_adapts_as_one_with_one_name(method: str) -> None:
    def run(model: nn.Module, batch: torch.Tensor) -> tuple[list[Any], dict[str, torch.Tensor]]:
        with Session(model, METHODS[method](), task=Classification()) as session:
            found = [session.adapt_and_predict(part) for part in (batch, batch.flip(0), batch * 0.5)]
            predicted = session.predict(batch)
        steps = [(report.verdict, report.loss, report.used, report.update_norm) for _, report in found]
        return [*steps, *(outputs.tolist() for outputs, _ in found), predicted.tolist()], tensors_of(model)

    plain, shared = classifier(), shared_module()
    expected, weights = run(plain, images())
    found, own = run(shared, images())
    assert found == expected
    assert any(step[0] == "kept" for step in found[:3])
    for name, value in weights.items():
        assert torch.equal(own[f"features.{name}"], value), name
        assert torch.equal(own[f"backbone.{name}"], value), name


@pytest.mark.parametrize("method", [case.values[0] for case in LEARNING if case.values[1] == "classifier-tied"])
def test_low_rank_weights_on_shared_layers_are_attached_once_and_gone_afterwards(method: str) -> None:
    model, batch = shared_module(), images()
    before, objects = tensors_of(model), objects_of(model)
    update = TensorFilter(kind="lora_only", lora_rank=2)
    with Session(model, METHODS[method](update=update)) as session:
        assert session.adapt(batch).verdict == "kept"
        assert all(name.startswith("backbone.") for name in session.selection.parameters)
    assert_identical(model, before)
    assert_same_objects(model, objects)


@pytest.mark.parametrize(("method", "network"), CASES)
def test_a_nan_batch_leaves_the_model_identical(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    before = tensors_of(model)
    poison = batch.clone()
    poison[0, 0, 0, 0] = float("nan")
    with Session(model, METHODS[method](), task=task) as session:
        state = session.state
        report = session.adapt(poison)
        # The logits become NaN, which must not be reported as a skipped batch of unreliable samples.
        assert report.verdict == "rolled_back", report
        assert "non-finite" in (report.reason or "")
        assert_identical(model, before)
        assert session.state is state
    assert_identical(model, before)


@pytest.mark.parametrize(("method", "network"), LEARNING)
def test_a_guard_that_fires_leaves_the_model_identical(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    before = tensors_of(model)
    guards = (NonFinite(), MaxUpdate(1e-9))
    with Session(model, METHODS[method](), task=task, guards=guards) as session:
        outputs, report = session.adapt_and_predict(batch)
        assert report.verdict == "rolled_back"
        assert report.update_norm > 0
        assert_identical(model, before)
        for ours, again in zip(tensors(outputs), tensors(session.predict(batch)), strict=True):
            assert torch.equal(ours, again)


@pytest.mark.parametrize("method", ["eata", "sar"])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_an_all_skipped_batch_leaves_the_model_identical(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    before = tensors_of(model)
    with Session(model, METHODS[method](entropy_margin=1e-6), task=task) as session:
        report = session.adapt(batch)
        assert (report.verdict, report.used, report.loss) == ("skipped", 0, None)
        assert_identical(model, before)


@pytest.mark.parametrize("method", ["tent", "eata", "sar", "mim", "cotta", "roid"])
def test_a_detector_without_candidates_is_not_updated(method: str) -> None:
    model, batch = detector(), images(side=32)
    before = tensors_of(model)
    with Session(model, METHODS[method](), task=Detection(head="sigmoid", min_foreground=1.0)) as session:
        assert session.adapt(batch).verdict == "skipped"
    assert_identical(model, before)


@pytest.mark.parametrize(("method", "network"), CASES)
def test_reset_is_exact_and_clears_all_state(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    before = tensors_of(model)

    def run(session: Session) -> list[Any]:
        reports = [session.adapt(part) for part in (batch, batch.flip(0), batch * 0.5)]
        return [(r.verdict, r.loss, r.used, r.update_norm) for r in reports]

    with Session(model, METHODS[method](), task=task, guards=()) as session:
        first = run(session)
        after_first = tensors_of(model)
        session.reset()
        assert_identical(model, before)
        # Moments, moving averages, teachers and random numbers restart: the second run equals the first.
        assert run(session) == first
        assert_identical(model, after_first)


@pytest.mark.parametrize(("method", "network"), LEARNING)
def test_rollback_undoes_one_step(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    with Session(model, METHODS[method](), task=task, guards=()) as session:
        session.adapt(batch)
        after_one, state = tensors_of(model), session.state
        session.adapt(batch.flip(0))
        session.rollback()
        assert_identical(model, after_one)
        assert session.state is state


@pytest.mark.parametrize(("method", "network"), CASES)
def test_one_seed_gives_one_report(method: str, network: str) -> None:
    def run(seed: int) -> tuple[Any, dict[str, torch.Tensor]]:
        model, batch, task = NETWORKS[network]()
        torch.manual_seed(1000 + seed * 17)  # the global generator must not matter
        with Session(model, METHODS[method](), task=task, seed=3, guards=()) as session:
            for part in (batch, batch.flip(0)):
                session.adapt(part)
            return session.report().without_times(), tensors_of(model)

    (report, weights), (again, weights_again) = run(0), run(1)
    assert report == again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)


@pytest.mark.parametrize(("method", "network"), CASES)
def test_flags_modes_and_gradients_are_put_back(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    model.train()
    first = next(model.parameters())
    first.requires_grad_(False)
    gradient = torch.ones_like(list(model.parameters())[-1])
    list(model.parameters())[-1].grad = gradient
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: (m.training, getattr(m, "track_running_stats", None)) for name, m in model.named_modules()}
    names = list(model.state_dict())
    with Session(model, METHODS[method](), task=task) as session:
        session.adapt(batch)
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert modes == {name: (m.training, getattr(m, "track_running_stats", None)) for name, m in model.named_modules()}
    assert names == list(model.state_dict())
    assert list(model.parameters())[-1].grad is gradient
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("method", ["tent", "eata", "sar", "cotta", "mim", "roid", "deyo", "rotta"])
def test_low_rank_weights_are_removed_on_exit(method: str) -> None:
    model, batch = classifier("bn"), images()
    before = tensors_of(model)
    update = TensorFilter(kind="lora_only", lora_rank=2)
    with Session(model, METHODS[method](update=update), guards=()) as session:
        assert session.adapt(batch).verdict == "kept"
        assert all("low_rank" in name for name in session.selection.parameters)
    assert_identical(model, before)


@pytest.mark.parametrize(("method", "network"), CASES)
def test_predicting_changes_nothing(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    with Session(model, METHODS[method](), task=task, guards=()) as session:
        session.adapt(batch)
        before, state = tensors_of(model), session.state
        first = list(tensors(session.predict(batch)))
        second = list(tensors(session.predict(batch)))
        assert_identical(model, before)
        assert session.state is state
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not any(value.requires_grad for value in first)


@pytest.mark.parametrize(("method", "network"), CASES)
def test_an_exception_inside_a_step_leaves_the_model_identical(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    before = tensors_of(model)
    session = Session(model, METHODS[method](), task=task)
    with pytest.raises((RuntimeError, TTTNotSupportedError)), session:
        session.adapt(batch[:, :2])  # a channel is missing
    assert_identical(model, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("method", "network"), CASES)
def test_without_budget_steps_are_refused_and_predictions_made(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    with Session(model, METHODS[method](), task=task, guards=(), budget=Budget(max_steps=1)) as session:
        session.adapt(batch)
        before = tensors_of(model)
        outputs, report = session.adapt_and_predict(batch)
        assert report.verdict == "refused"
        assert next(tensors(outputs)).shape[0] == len(batch)
        assert_identical(model, before)
        assert session.report().stop_reason == "step budget: 1 of 1 steps made"


@pytest.mark.parametrize(("method", "network"), INSTALLED)
def test_an_installed_method_predicts_as_the_session(method: str, network: str) -> None:
    model, batch, task = NETWORKS[network]()
    with Session(model, METHODS[method](), task=task, guards=()) as session, ExitStack() as stack:
        session.adapt(batch)
        before = tensors_of(model)
        expected = list(tensors(session.predict(batch)))
        with torch.no_grad():
            stack.enter_context(session.installed())
            found = list(tensors(task.forward(model, batch)))
        stack.close()
        assert_identical(model, before)
        # What is installed returns logits in the model's own number format.
        tolerance = {} if dtype_of(model).itemsize > 2 else {"rtol": torch.finfo(dtype_of(model)).eps, "atol": 1e-2}
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("method", CLASSIFIERS_ONLY)
@pytest.mark.parametrize(("network", "task"), [(classifier, Multilabel()), (segmenter, Segmentation())])
def test_a_method_for_exclusive_classes_refuses_several_and_says_what_to_use(
    method: str, network: Callable[[], nn.Module], task: Task
) -> None:
    with (
        Session(network(), METHODS[method](), task=task) as session,
        pytest.raises(TTTNotSupportedError, match=f"{method} .*several classes or none; use tent"),
    ):
        session.adapt(images())


@pytest.mark.parametrize("method", CLASSIFIERS_ONLY)
def test_a_method_for_classifiers_refuses_a_detector_with_a_remedy(method: str) -> None:
    with (
        Session(detector(), METHODS[method](), task=Detection(head="sigmoid")) as session,
        pytest.raises(TTTNotSupportedError, match=f"{method} .*use spectrum"),
    ):
        session.adapt(images(side=32))

"""Behaviour of single methods that the contract tests do not cover."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from acclimate.core import Classification, Session
from acclimate.core.outputs import detach
from acclimate.errors import ConfigError
from acclimate.methods import BatchNormStats, Cotta, Eata, Mim, Sar
from acclimate.methods.eata import fisher_information
from acclimate.vision.models.detection import Detection
from tests.networks import Detector, classifier, images, tensors_of


def test_eata_keeps_adapting_a_detector_with_one_class() -> None:
    torch.manual_seed(0)
    model = Detector(classes=1).eval()
    method = Eata(entropy_margin=2.0)
    with Session(model, method, task=Detection(head="sigmoid"), guards=()) as session:
        used = [session.adapt(images(4, side=32, seed=seed)).used for seed in range(5)]
    assert all(used)


def test_eata_skips_redundant_samples() -> None:
    with Session(classifier(), Eata(entropy_margin=2.0, redundancy_margin=0.5), guards=()) as session:
        assert session.adapt(images()).verdict == "kept"
        # Repeated images are similar to the moving average.
        assert session.adapt(images()).verdict == "skipped"


def test_eata_is_regularised_towards_the_source() -> None:
    def drift(anchor_weight: float) -> float:
        method = Eata(lr=0.1, entropy_margin=2.0, redundancy_margin=1.1, anchor_weight=anchor_weight)
        with Session(classifier(), method, guards=()) as session:
            for seed in range(20):
                session.adapt(images(seed=seed))
            return session.report().relative_drift

    assert drift(1.0) < 0.5 * drift(0.0)


def test_the_fisher_information_is_the_mean_squared_gradient() -> None:
    model = classifier()
    before = tensors_of(model)
    batches = [images(4, seed=seed) for seed in range(3)]
    fisher = fisher_information(model, iter(batches))
    assert set(fisher) == {"1.weight", "1.bias"}
    expected = torch.zeros(8)
    with Eata().select(model) as selection:
        for batch in batches:
            logits = model(batch)
            loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
            (gradient,) = torch.autograd.grad(loss, [selection.parameters["1.weight"]])
            expected += gradient**2 / 3
    torch.testing.assert_close(fisher["1.weight"], expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="at least one batch"):
        fisher_information(model, [])


@pytest.mark.parametrize(("threshold", "views"), [(0.0, 0), (1e-6, 0), (1.0, 3)])
def test_cotta_computes_views_only_where_the_source_is_uncertain(threshold: float, views: int) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Counting(Classification):
        drawn: list[int] = dataclasses.field(default_factory=list)

        def views(self, batch, *, count, rng):  # type: ignore[no-untyped-def]
            self.drawn.append(count)
            return super().views(batch, count=count, rng=rng)

    task = Counting()
    with Session(classifier(), Cotta(anchor_threshold=threshold, view_count=3), task=task) as session:
        session.adapt(images())
    assert sum(task.drawn) == views


def test_cotta_restores_all_weights_with_probability_one() -> None:
    model = classifier()
    before = tensors_of(model)
    with Session(model, Cotta(restore_probability=1.0, view_count=1), guards=()) as session:
        session.adapt(images())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        teacher = session.state.teacher
    # The teacher was updated before the student's weights were restored.
    assert any(not torch.equal(before[name], value) for name, value in teacher.items())


def test_sar_does_not_update_the_papers_frozen_blocks() -> None:
    model = torch.nn.ModuleDict({"layer3": torch.nn.BatchNorm2d(2), "layer4": torch.nn.BatchNorm2d(2)})
    with Sar().select(model) as selection:
        assert set(selection.parameters) == {"layer3.weight", "layer3.bias"}


def test_mim_masks_the_given_share_of_patches() -> None:
    class Watching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier()
            self.seen: list[torch.Tensor] = []

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.seen.append(inputs.detach())
            result: torch.Tensor = self.inner(inputs)
            return result

    model = Watching().eval()
    with Session(model, Mim(patch_size=4, mask_value=9.0, mask_probability=0.5), guards=()) as session:
        session.adapt(images(32))
    whole, masked = model.seen[-2:]
    hidden = (masked == 9.0).all(1)
    assert 0.4 < float(hidden.float().mean()) < 0.62
    assert torch.equal(masked[:, 0][~hidden], whole[:, 0][~hidden])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchNormStats(source_strength=-1.0), "source_strength"),
        (lambda: BatchNormStats(source_strength=float("nan")), "source_strength"),
        (lambda: Eata(entropy_margin=0), "entropy_margin"),
        (lambda: Eata(fisher_weight=-1), "fisher_weight"),
        (lambda: Sar(base="lion"), "sgd or adam"),  # type: ignore[arg-type]
        (lambda: Sar(rho=0), "rho"),
        (lambda: Cotta(ema=2), "ema"),
        (lambda: Cotta(view_count=0), "view_count"),
        (lambda: Mim(mask_probability=0), "mask_probability"),
        (lambda: Mim(patch_size=0), "patch_size"),
        (lambda: Mim(target="words"), "target"),  # type: ignore[arg-type]
    ],
)
def test_bad_hyper_parameters(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()


def test_outputs_do_not_require_a_gradient() -> None:
    with Session(classifier(), Cotta(view_count=1)) as session:
        outputs, _ = session.adapt_and_predict(images())
    assert torch.equal(detach(outputs), outputs)
    assert not outputs.requires_grad

"""ROID, DeYO, RoTTA, MEMO and LAME compared with direct implementations of the papers' equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acclimate.core import Classification, Session
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.methods import Deyo, Lame, Memo, Roid, Rotta
from acclimate.methods.deyo import shuffled_patches
from acclimate.methods.memo import marginal_entropy
from acclimate.methods.roid import prior_corrected
from acclimate.methods.rotta import Remembered
from tests.networks import classifier, images, tensors_of


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ROID


def test_roid_minimises_the_weighted_likelihood_ratio_and_averages_weights() -> None:
    model, batch = classifier(), images(12)
    source = tensors_of(model)
    reference = classifier()
    method = Roid(lr=1e-2, consistency=False)
    with Session(model, method, guards=()) as session:
        outputs, report = session.adapt_and_predict(batch)
        after = session.predict(batch)

    reference.train()
    reference[1].track_running_stats = False
    logits = reference(batch)
    probabilities = logits.detach().softmax(1)
    unlike = 1 - F.cosine_similarity(torch.full((1, 5), 0.2), probabilities, dim=1)
    unlike = (unlike - unlike.min()) / (unlike.max() - unlike.min())
    certain = (probabilities * probabilities.log()).sum(1)
    certain = (certain - certain.min()) / (certain.max() - certain.min())
    weights = torch.exp(unlike * certain * 3)
    weights[unlike < unlike.mean()] = 0
    clipped = logits.softmax(1).clamp(max=0.99)
    loss = (-(clipped * (clipped / (1 - clipped) + 1e-5).log()).sum(1) * weights).sum() / 12
    parameters = [reference[1].weight, reference[1].bias]
    gradients = torch.autograd.grad(loss, parameters)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert report.used == int((weights > 0).sum())
    # Adam's first step is lr times the sign of the gradient; then the weights move back by a hundredth of the distance.
    for name, parameter, gradient in zip(("1.weight", "1.bias"), parameters, gradients, strict=True):
        moved = parameter.detach() - 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(model.state_dict()[name], 0.99 * moved + 0.01 * source[name])
    prior = probabilities.mean(0)
    smoothing = (1 / 5) / prior.max()
    torch.testing.assert_close(outputs, 5 * logits.detach() * (prior + smoothing) / (1 + smoothing * 5))
    assert not torch.allclose(after, outputs)


def test_roid_works_with_a_batch_of_one() -> None:
    with Session(classifier("gn"), Roid()) as session:
        report = session.adapt(images(1))
        assert report.verdict == "kept"
        assert report.loss is not None
        assert math.isfinite(report.loss)


def test_an_even_prior_changes_no_logits() -> None:
    logits = torch.eye(4) * 3
    torch.testing.assert_close(prior_corrected(logits), logits)


# DeYO


def test_patches_are_permuted_independently_in_each_image() -> None:
    batch = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    mixed = shuffled_patches(batch, patches=2, rng=rng())

    def patches_of(image: Tensor) -> set[tuple[float, ...]]:
        return {tuple(image[:, r : r + 4, c : c + 4].flatten().tolist()) for r in (0, 4) for c in (0, 4)}

    for image, whole in zip(mixed, batch, strict=True):
        assert patches_of(image) == patches_of(whole)
    assert not torch.equal(mixed, batch)


def test_patches_that_do_not_divide_the_image_are_resized() -> None:
    assert shuffled_patches(images(2, side=10), patches=4, rng=rng()).shape == (2, 3, 10, 10)
    with pytest.raises(ConfigError, match="cannot be cut into 4 patches"):
        shuffled_patches(images(1, side=3), patches=4, rng=rng())


def test_deyo_weights_certain_samples_that_depend_on_shape() -> None:
    batch = images(16)
    method = Deyo(lr=0.0, entropy_margin=2.0, min_difference=0.0)
    with Session(classifier("gn"), method, guards=(), seed=5) as session:
        report = session.adapt(batch)
    model = classifier("gn")
    with torch.no_grad():
        probabilities = model(batch).softmax(1)
        shuffled = shuffled_patches(batch, patches=4, rng=rng(5))
        best, label = probabilities.max(1)
        difference = best - model(shuffled).softmax(1).gather(1, label[:, None])[:, 0]
        entropy = -(probabilities * probabilities.log()).sum(1)
    keep = difference > 0
    weight = 1 / torch.exp(entropy - 0.4 * math.log(5)) + 1 / torch.exp(-difference)
    assert 0 < int(keep.sum()) < 16
    assert report.used == int(keep.sum())
    assert report.loss == pytest.approx(float((weight * entropy)[keep].mean()), rel=1e-5)


# RoTTA


class PlainMemory:
    """The paper's algorithm 1 on lists, one for each class, as in the authors' code."""

    def __init__(self, capacity: int, classes: int) -> None:
        self.capacity, self.classes = capacity, classes
        self.lists: list[list[list[Any]]] = [[] for _ in range(classes)]

    def score(self, age: int, entropy: float) -> float:
        return 1 / (1 + math.exp(-age / self.capacity)) + entropy / math.log(self.classes)

    def add(self, image: Tensor, label: int, entropy: float) -> None:
        sizes = [len(held) for held in self.lists]
        full = sum(sizes) >= self.capacity
        among: list[int] | None = None
        if sizes[label] >= self.capacity / self.classes:
            among = [label]
        elif full:
            among = [other for other, size in enumerate(sizes) if size == max(sizes)]
        takes = True
        if among is not None:
            worst = None
            for other in among:
                for position, (_, held_entropy, age) in enumerate(self.lists[other]):
                    score = self.score(age, held_entropy)
                    if worst is None or score >= worst[0]:
                        worst = (score, other, position)
            if worst is not None:
                takes = worst[0] > self.score(0, entropy)
                if takes:
                    self.lists[worst[1]].pop(worst[2])
        if takes:
            self.lists[label].append([image, entropy, 0])
        for held in self.lists:
            for item in held:
                item[2] += 1


def test_rottas_memory_bank_follows_the_papers_algorithm() -> None:
    method, plain = Rotta(capacity=12), PlainMemory(12, 5)
    memory: tuple[Remembered, ...] = ()
    random = rng(3)
    for number in range(300):
        # Two classes are frequent, and all entropies differ, because the order of ties is not defined.
        label = int(torch.randint(0, 5, (1,), generator=random) * (torch.rand(1, generator=random) > 0.5))
        entropy = float(torch.rand(1, generator=random)) * math.log(5)
        memory = method.with_image(memory, Remembered(torch.tensor(float(number)), label, entropy), classes=5)
        plain.add(torch.tensor(float(number)), label, entropy)
        ours = sorted((item.label, float(item.image), item.age) for item in memory)
        theirs = sorted((label, float(item[0]), item[2]) for label, held in enumerate(plain.lists) for item in held)
        assert ours == theirs
    assert len(memory) <= 12


def test_rotta_steps_at_intervals_and_the_teacher_is_a_moving_average() -> None:
    model = classifier()
    before = tensors_of(model)
    method = Rotta(lr=1e-2, capacity=8, update_every=10, teacher_rate=0.25)
    with Session(model, method, guards=()) as session:
        assert session.adapt(images(8)).loss is None
        assert session.state.seen == 8
        report = session.adapt(images(8, seed=2))
        assert report.loss is not None
        for name in ("1.weight", "1.bias"):
            student = model.state_dict()[name]
            assert not torch.equal(student, before[name])
            torch.testing.assert_close(session.state.teacher[name], 0.75 * before[name] + 0.25 * student)
        mean, var = session.state.teacher_statistics["1"]
        assert not torch.equal(mean, before["1.running_mean"])
        assert bool((var > 0).all())


def test_rottas_running_statistics_use_the_statistics_rate() -> None:
    model, batch = classifier(), images(8)
    with torch.no_grad():
        inputs = model[0](batch)
    with Session(model, Rotta(lr=0.0, capacity=100, update_every=8), guards=()) as session:
        session.adapt(batch)
        mean, var = session.state.teacher_statistics["1"]
    # The memory bank contains the whole batch, in another order.
    torch.testing.assert_close(mean, 0.95 * model[1].running_mean + 0.05 * inputs.mean((0, 2, 3)))
    expected = 0.95 * model[1].running_var + 0.05 * inputs.var((0, 2, 3), correction=0)
    torch.testing.assert_close(var, expected)


# MEMO


def test_memo_predicts_each_image_after_its_own_step() -> None:
    model, batch = classifier("gn"), images(3)
    before = tensors_of(model)
    method = Memo(lr=0.1, view_count=4, view_seed=7)
    with Session(model, method, guards=()) as session:
        found = session.predict(batch)
        again = session.predict(batch[1:2])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    random = rng(7)
    task = Classification()
    for position in range(3):
        reference = classifier("gn")
        views = torch.cat([view.batch for view in task.views(batch[position : position + 1], count=4, rng=random)])
        mean = reference(views).softmax(1).mean(0)
        loss = -(mean * mean.log()).sum()
        loss.backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= 0.1 * parameter.grad
            expected = reference(batch[position : position + 1])
        torch.testing.assert_close(found[position : position + 1], expected)
    assert again.shape == (1, 5)


def test_marginal_entropy_is_that_of_the_mean_prediction() -> None:
    logits = torch.randn((6, 4), generator=rng())
    mean = logits.softmax(1).mean(0)
    torch.testing.assert_close(marginal_entropy(logits), -(mean * mean.log()).sum())


# LAME


def test_lame_reaches_a_fixed_point_of_its_update() -> None:
    logits, features = torch.randn((10, 4), generator=rng()), torch.randn((10, 6), generator=rng(1))
    method = Lame(affinity="knn", neighbours=3, max_steps=1000)
    found = method.corrected(logits, features).softmax(1)
    unit = F.normalize(features, dim=1)
    kernel = torch.zeros(10, 10)
    for row in range(10):
        distances = [(float((unit[row] - unit[other]).norm()), other) for other in range(10)]
        for _, other in sorted(distances)[1:4]:
            kernel[row, other] = 1.0
    unary = -(logits.softmax(1) + 1e-10).log()
    torch.testing.assert_close(found, (kernel @ found - unary).softmax(1), atol=1e-3, rtol=1e-3)


def test_lame_gives_similar_images_similar_predictions() -> None:
    features = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5) + 0.01 * torch.randn((10, 2), generator=rng())
    logits = torch.zeros(10, 2)
    logits[:5, 0], logits[5:, 1] = 2.0, 2.0
    logits[0] = torch.tensor([0.0, 0.5])  # its features are those of the first five, its predicted class is another
    for affinity in ("rbf", "knn", "linear"):
        corrected = Lame(affinity=affinity, neighbours=3).corrected(logits, features)  # type: ignore[arg-type]
        assert corrected.argmax(1).tolist() == [0] * 5 + [1] * 5, affinity


def test_lame_does_not_change_the_prediction_of_a_single_image() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    for affinity in ("rbf", "knn", "linear"):
        corrected = Lame(affinity=affinity).corrected(logits, torch.ones(1, 4))  # type: ignore[arg-type]
        assert corrected.argmax(1).tolist() == [1]


def test_lame_needs_a_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with Session(model, Lame()) as session, pytest.raises(TTTNotSupportedError, match="last linear layer"):
        session.adapt(images())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Roid(temperature=0), "temperature must be positive"),
        (lambda: Roid(clip=2), "clip must lie in"),
        (lambda: Deyo(patches=1), "patches must be at least 2"),
        (lambda: Deyo(entropy_margin=0), "entropy_margin must be positive"),
        (lambda: Rotta(capacity=0), "capacity must be at least 1"),
        (lambda: Rotta(teacher_rate=2), "teacher_rate must lie in"),
        (lambda: Memo(view_count=1), "view_count must be at least 2"),
        (lambda: Memo(source_strength=-1), "source_strength must not be negative"),
        (lambda: Lame(affinity="cosine"), "affinity must be rbf, knn or linear"),  # type: ignore[arg-type]
        (lambda: Lame(neighbours=0), "neighbours must be at least 1"),
    ],
)
def test_invalid_settings_are_refused(made: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made()

"""Methods that move embeddings: NEO and the activation shifting of FOA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acclimate.core import Classification, Session
from acclimate.core.source_images import SourceImages
from acclimate.errors import ConfigError, TTTNotSupportedError
from acclimate.methods import FoaShift, Neo
from acclimate.vision.models.detection import Detection
from tests.networks import classifier, detector, images


def embeddings_of(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model[:-1](batch)  # type: ignore[index]
    return found


def with_moved_embeddings(model: nn.Module, batch: Tensor, shift: Tensor) -> Tensor:
    with torch.no_grad():
        moved: Tensor = model[-1](embeddings_of(model, batch) + shift)  # type: ignore[index]
    return moved


def source_of(batch: Tensor) -> SourceImages:
    return SourceImages(batches=lambda size: batch.split(size or 8))


@pytest.mark.parametrize("kind", ["bn", "gn", "ln"])
def test_neo_subtracts_the_mean_embedding_of_all_images_so_far(kind: str) -> None:
    model, batches = classifier(kind), [images(count, seed=count) for count in (8, 1, 5)]
    with Session(model, Neo(), guards=()) as session:
        for number, batch in enumerate(batches):
            outputs, _ = session.adapt_and_predict(batch)
            mean = embeddings_of(model, torch.cat(batches[: number + 1])).mean(0)
            torch.testing.assert_close(outputs, with_moved_embeddings(model, batch, -mean))
        later = images(3, seed=9)
        expected = with_moved_embeddings(model, later, -mean)
        torch.testing.assert_close(session.predict(later), expected)
        with session.installed(), torch.no_grad():
            torch.testing.assert_close(model(later), expected)
        assert session.state.images == 14


def test_a_window_forgets_earlier_images() -> None:
    model = classifier("gn")
    with Session(model, Neo(window_images=8), guards=()) as session:
        session.adapt(images(8, seed=1))
        session.adapt(images(8, seed=2) * 0.3)
        torch.testing.assert_close(session.state.mean, embeddings_of(model, images(8, seed=2) * 0.3).mean(0))
        session.adapt(images(2, seed=3))
        assert session.state.images == 8


def test_before_the_first_batch_nothing_is_moved() -> None:
    model, batch = classifier("gn"), images(4)
    method = FoaShift().with_source(model, source_of(images(16, seed=5)), task=Classification())
    for one in (Neo(), method):
        with Session(model, one, guards=()) as session, torch.no_grad():
            torch.testing.assert_close(session.predict(batch), model(batch))


@pytest.mark.parametrize("step_size", [1.0, 0.5])
def test_foa_moves_embeddings_towards_the_source_by_a_moving_average(step_size: float) -> None:
    model, source, first, second = (
        classifier("ln"),
        images(20, seed=5),
        images(8, seed=1) * 0.5,
        images(4, seed=2) * 0.5,
    )
    method = FoaShift(step_size=step_size).with_source(model, source_of(source), task=Classification())
    wanted = embeddings_of(model, source).mean(0)
    with Session(model, method, guards=()) as session:
        outputs, _ = session.adapt_and_predict(first)
        mean = embeddings_of(model, first).mean(0)
        torch.testing.assert_close(outputs, with_moved_embeddings(model, first, step_size * (wanted - mean)))
        outputs, _ = session.adapt_and_predict(second)
        mean = 0.9 * mean + 0.1 * embeddings_of(model, second).mean(0)
        torch.testing.assert_close(outputs, with_moved_embeddings(model, second, step_size * (wanted - mean)))
        torch.testing.assert_close(
            session.predict(first), with_moved_embeddings(model, first, step_size * (wanted - mean))
        )


def test_images_of_the_source_are_hardly_moved_by_foa() -> None:
    model, source = classifier("gn"), images(24, seed=5)
    method = FoaShift().with_source(model, source_of(source), task=Classification())
    with Session(model, method, guards=()) as session, torch.no_grad():
        outputs, _ = session.adapt_and_predict(source)
        torch.testing.assert_close(outputs, model(source))


def test_what_cannot_be_shifted_is_refused() -> None:
    with pytest.raises(TTTNotSupportedError, match="--ttt-source"), Session(classifier("gn"), FoaShift()):
        pass
    assert FoaShift().with_source(classifier("gn"), SourceImages(), task=Classification()) == FoaShift()
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    methods: list[Any] = [Neo(), FoaShift(source_mean=torch.zeros(4))]
    for method in methods:
        with Session(pooled, method) as session, pytest.raises(TTTNotSupportedError, match="last linear layer"):
            session.adapt(images(4))
        task = Detection(head="sigmoid")
        with Session(detector(), method, task=task) as session, pytest.raises(TTTNotSupportedError, match="detector"):
            session.adapt(images(4, side=32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neo(window_images=0), "window_images"),
        (lambda: FoaShift(step_size=0.0), "step_size"),
        (lambda: FoaShift(rate=0.0), "rate"),
    ],
)
def test_bad_fields_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

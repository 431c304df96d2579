"""A classifier as a torch network: the same answers, and the vision methods adapt it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acclimate import Blend, Session
from acclimate.errors import TTTNotSupportedError
from acclimate.media import Item, MediaEngine, StreamNetwork
from acclimate.media.encoders.gradients import Gradients
from tests.media import making
from tests.vision import tiny_transformers


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> MediaEngine:
    model: Path = tiny_transformers.save("resnet", tmp_path_factory.mktemp("resnet"))
    return MediaEngine(encoders=[str(model)], heads=["logistic"])


def test_the_network_says_what_the_classifier_says_and_is_adapted(engine: MediaEngine) -> None:
    classifier = engine.fit(making.image_examples(per_class=6))
    network = StreamNetwork(classifier).eval()
    images = [making.shape_image(kind, seed) for seed in range(50, 54) for kind in ("lying", "upright", "square")]
    inputs = network.encoder.tensors(images)
    with torch.no_grad():
        probabilities = network(inputs).softmax(1)
    for row, image in zip(probabilities, images, strict=True):
        report = classifier.ask(Item.of("image", image, "query"))
        assert network.labels[int(row.argmax())] == report.label
        assert float(row.max()) == pytest.approx(report.probability, abs=1e-3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with Session(network, Blend(), guards=(), restore=True) as session:
        logits, step = session.adapt_and_predict(inputs)
    assert logits.shape == (12, 3)
    assert step.verdict in ("kept", "skipped")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_is_no_network_is_one_line(engine: MediaEngine) -> None:
    with pytest.raises(TTTNotSupportedError, match="no torch network for images"):
        StreamNetwork(MediaEngine(encoders=[Gradients()]).fit(making.image_examples()))
    means = MediaEngine(encoders=[engine._given[0]], heads=["class_means"]).fit(making.image_examples())
    with pytest.raises(TTTNotSupportedError, match="is not linear"):
        StreamNetwork(means)

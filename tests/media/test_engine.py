"""From labelled images or sounds to an answer: what is chosen, reported, warned about and refused."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest

from acclimate.errors import CheckpointError, ConfigError, DataError, TTTNotSupportedError
from acclimate.media import Item, MediaEngine, MediaExample
from acclimate.media import engine as engine_module
from acclimate.media.embeddings import Embeddings
from acclimate.media.encoders.gradients import Gradients
from acclimate.media.encoders.log_mel import LogMel
from acclimate.media.encoders.protocol import EncoderInfo
from tests.media import making


@dataclass(frozen=True)
class Blind:
    """An encoder that sees nothing but the size of an image."""

    info = EncoderInfo(name="blind", kind="image", title="", licence="-", source="-", cost_ms=0.0)
    identity = "blind"

    def encode(self, values: list[np.ndarray]) -> np.ndarray:
        return np.array([[1.0, *np.random.default_rng(len(v.tobytes())).normal(size=3)] for v in values], np.float32)


def query(kind: str, seed: int = 99) -> Item:
    return Item.of("image", making.shape_image(kind, seed), f"open {kind}")


def engine(**given: object) -> MediaEngine:
    return MediaEngine(**{"encoders": [Gradients()], **given})


def test_an_image_is_recognised_and_the_report_says_why() -> None:
    report = engine().ask(making.image_examples(), query("lying"))
    assert report.answer == report.label == "lying"
    assert report.probability == max(report.probabilities.values()) > 0.6
    assert sum(report.probabilities.values()) == pytest.approx(1)
    assert (report.encoder, report.examples_used, report.held_out_examples) == ("gradients", 12, 12)
    assert report.held_out_accuracy > 0.8
    assert report.nearest[0].output == "lying"
    assert {(one.head, one.views) for one in report.tried} >= {("logistic", "damaged"), ("lda", "none")}
    assert "held-out examples" in report.explanation
    assert "gradients" in report.status_line
    assert report.other_cpu_seconds > 0
    assert json.loads(json.dumps(report.to_dict()))["nearest"][0]["output"] == "lying"


def test_a_sound_is_recognised() -> None:
    report = MediaEngine(encoders=[LogMel()]).ask(
        making.sound_examples(), Item.of("audio", making.tone(2500, 99, seconds=0.7), "open")
    )
    assert report.answer == "high"


def test_the_encoder_that_recognises_held_out_examples_is_taken() -> None:
    report = engine(encoders=[Blind(), Gradients()]).ask(making.image_examples(), query("square"))
    assert report.encoder == "gradients"
    screened = {one.encoder: one.accuracy for one in report.tried[:2]}
    assert screened["blind"] < screened["gradients"]


def test_heads_and_views_can_be_named() -> None:
    report = engine(heads=["class_means"], views=["mirrored"]).ask(making.image_examples(), query("lying"))
    assert (report.head, report.views) == ("class_means", "mirrored")
    assert len(report.tried) == 1


def test_one_classifier_answers_many_queries_from_several_threads() -> None:
    classifier = engine().fit(making.image_examples())
    found: dict[str, str] = {}

    def ask(kind: str) -> None:
        found[kind] = classifier.ask(query(kind)).answer

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ("lying", "upright", "square")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {kind: kind for kind in found}
    assert len(found) == 3


def test_vectors_are_computed_once() -> None:
    shared = Embeddings()
    engine(embeddings=shared).fit(making.image_examples())
    computed = shared.count
    first = engine(embeddings=shared).ask(making.image_examples(), query("lying"))
    assert shared.count == computed + 1
    assert engine().ask(making.image_examples(), query("lying")).probabilities == first.probabilities


def test_the_oldest_vectors_are_dropped() -> None:
    small = Embeddings(max_vectors=3)
    items = [example.item for example in making.image_examples()]
    first = small.of(Gradients(), items)
    np.testing.assert_array_equal(small.of(Gradients(), items[-3:]), first[-3:])
    assert small.count == len(items)
    small.of(Gradients(), items[:1])
    assert small.count == len(items) + 1


def test_a_query_unlike_all_examples_can_be_refused() -> None:
    examples = making.image_examples(per_class=8)
    noise = Item.of("image", np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8), "noise")
    report = engine().ask(examples, noise)
    assert not report.refused
    assert report.typicality < 0.05
    assert any("unlike the examples" in warning for warning in report.warnings)
    refusing = engine(refuse_below=0.05)
    assert refusing.ask(examples, noise).answer == "none of these"
    assert refusing.ask(examples, query("lying")).answer == "lying"


def test_duplicates_and_contradictions_are_reported_and_not_used() -> None:
    examples = making.image_examples()
    wrong = replace(examples[0], output="square")
    report = engine().ask([*examples, examples[5], wrong], query("lying"))
    assert report.examples_used == len(examples) - 1
    assert "upright0.png (upright), upright0.png (square) are one input with different outputs" in report.warnings[0]
    assert report.warnings[1] == "1 repeated example(s) dropped"


def test_a_query_that_is_an_example_is_said_to_be_one() -> None:
    examples = making.image_examples()
    report = engine().ask(examples, examples[3].item)
    assert any("the same as the example upright3.png" in warning for warning in report.warnings)


def test_one_example_of_each_class_is_answered_without_evidence() -> None:
    report = engine().ask(making.image_examples(per_class=1), query("lying"))
    assert report.answer == "lying"
    assert report.held_out_accuracy is None
    assert report.typicality is None
    assert any("nothing can be held out" in warning for warning in report.warnings)
    assert "could be held out" in report.explanation


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([], "there are no examples"),
        (making.image_examples(kinds=("lying",)), "all examples have the output 'lying'"),
        ([*making.image_examples(), *making.sound_examples()], "12 of kind image"),
        ([replace(making.image_examples()[0], output=" ")], "example 1 (upright0.png) has an empty output"),
        (making.image_examples() * 50, "600 examples given, at most 512"),
        ([making.image_examples()[0], replace(making.image_examples()[0], output="x")], "no example is left"),
    ],
)
def test_examples_that_cannot_be_learned_from_are_one_line(examples: list[MediaExample], said: str) -> None:
    with pytest.raises(DataError) as error:
        engine().fit(examples)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(DataError, match="the examples are of kind image"):
        engine().ask(making.image_examples(), making.sound_examples()[0].item)
    with pytest.raises(ConfigError, match="refuse_below"):
        engine(refuse_below=2.0)
    with pytest.raises(ConfigError, match="unknown adaptation"):
        engine(adapt="all")
    with pytest.raises(ConfigError, match="unknown views 'upside_down'"):
        engine(views=["upside_down"]).fit(making.image_examples())
    with pytest.raises(ConfigError, match="is for audio inputs"):
        engine(encoders=["speech"]).fit(making.image_examples())
    with pytest.raises(ConfigError, match="is for image inputs"):
        engine().fit(making.sound_examples())
    with pytest.raises(TTTNotSupportedError, match="no torch network for images"):
        engine(adapt="norm").fit(making.image_examples())


def test_a_default_encoder_that_cannot_be_fetched_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def load(name: str, *_: object, **__: object) -> LogMel:
        tried.append(name)
        if name == "speaker":
            raise CheckpointError("resemblyzer cannot be fetched")
        return LogMel()

    monkeypatch.setattr(engine_module, "load_encoder", load)
    engine = MediaEngine()
    for _ in range(2):
        report = engine.ask(making.sound_examples(), making.sound_examples()[0].item)
        assert any("speaker was not compared: resemblyzer cannot be fetched" in each for each in report.warnings)
    assert tried.count("speaker") == 1

"""Encoders: the right weights, vectors that say what they should, any transformers model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from acclimate.errors import CheckpointError, ConfigError, TTTNotSupportedError
from acclimate.media import DEFAULTS, Item, MediaEngine, load_encoder
from acclimate.media.adaptation import NormTraining, TrainableEncoder, adapted
from acclimate.media.embeddings import Embeddings
from acclimate.media.encoders import speaker
from acclimate.media.encoders.efficientnet import EfficientNetLite0
from acclimate.media.encoders.gradients import Gradients
from acclimate.media.encoders.log_mel import LogMel
from acclimate.media.encoders.mel import MelSettings, mel_power
from acclimate.media.encoders.protocol import Encoder
from acclimate.media.encoders.transformers_encoder import TransformersEncoder
from acclimate.media.encoders.weights import checked
from acclimate.media.selection import Candidates, Choice, choose
from acclimate.media.views.recipes import views_named
from tests.media import making
from tests.vision import tiny_transformers


def nearness(encoder: Encoder, a: np.ndarray, b: np.ndarray) -> float:
    one, other = encoder.encode([a, b])
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("make", [Gradients, EfficientNetLite0])
def test_images_of_one_shape_are_nearer_than_others(make: type[Encoder]) -> None:
    encoder = make()
    images = [making.shape_image(kind, seed) for kind in ("lying", "upright") for seed in (0, 1)]
    vectors = encoder.encode(images)
    assert vectors.dtype == np.float32
    assert nearness(encoder, images[0], images[1]) > nearness(encoder, images[0], images[2])
    # The same alone and beside others.
    np.testing.assert_allclose(encoder.encode(images[2:3])[0], vectors[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["log_mel", "speech"])
def test_sounds_of_one_pitch_are_nearer_than_others(name: str) -> None:
    encoder = load_encoder(name, "audio")
    assert nearness(encoder, making.tone(300, 0), making.tone(300, 1)) > nearness(
        encoder, making.tone(300, 0), making.tone(2500, 1)
    )


@pytest.mark.parametrize("name", ["log_mel", "speech"])
@pytest.mark.parametrize("samples", [1, 100, 16_000 * 3])
def test_short_long_and_silent_sounds_have_vectors(name: str, samples: int) -> None:
    vectors = load_encoder(name, "audio").encode([np.zeros(samples, np.float32)])
    assert np.isfinite(vectors).all()


def test_images_of_one_pixel_have_vectors() -> None:
    for encoder in (Gradients(), EfficientNetLite0()):
        assert np.isfinite(encoder.encode([np.zeros((1, 1, 3), np.uint8)])).all()


def test_mel_bands_are_where_the_tone_is() -> None:
    power = mel_power(making.tone(1000, 0), MelSettings(bands=40)).mean(0)
    assert 10 < int(power.argmax()) < 18
    assert power.shape == (40,)


def test_loudness_changes_nothing_of_log_mel() -> None:
    quiet, loud = LogMel().encode([0.05 * making.tone(440, 0), making.tone(440, 0)])
    np.testing.assert_allclose(quiet, loud, atol=1e-4)


def test_weights_are_checked_by_their_digest(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="it was not used"):
        checked(tmp_path / "weights", "0" * 64)
    with pytest.raises(CheckpointError, match="install acclimate"):
        checked(tmp_path / "missing", "0" * 64)


def test_the_speakers_windows_and_level(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = speaker._Speaker()
    path = tmp_path / "pretrained.pt"
    torch.save({"model_state": {**network.state_dict(), "similarity_weight": torch.ones(1)}}, path)
    monkeypatch.setattr(speaker, "file_of_wheel", lambda *_, **__: path)
    monkeypatch.setattr(speaker, "checked", lambda path, _: path)
    encoder = speaker.SpeakerEncoder()
    vectors = encoder.encode([making.tone(300, 0), 0.1 * making.tone(300, 0), np.zeros(100, np.float32)])
    assert vectors.shape == (3, 256)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert speaker._windows(torch.rand(400, 40)).shape == (4, 160, 40)


@pytest.mark.slow
def test_the_speaker_encoder_is_fetched_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    said: list[str] = []
    encoder = load_encoder("speaker", "audio", progress=said.append)
    assert said == ["Fetching resemblyzer==0.1.4 (once)"]
    assert encoder.encode([making.tone(300, 0)]).shape == (1, 256)
    load_encoder("speaker", "audio", progress=said.append)
    assert len(said) == 1


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.save("resnet", tmp_path_factory.mktemp("resnet"))


def test_any_vision_model_of_transformers(image_model: Path) -> None:
    encoder = load_encoder(str(image_model), "image")
    vectors = encoder.encode([making.shape_image("lying", seed) for seed in range(5)])
    assert vectors.shape[0] == 5
    assert np.isfinite(vectors).all()
    assert encoder.identity == load_encoder(str(image_model), "image").identity


def test_any_audio_model_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    hf.Wav2Vec2Model(config).save_pretrained(tmp_path)
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    encoder = TransformersEncoder(str(tmp_path), "audio")
    assert encoder.encode([making.tone(300, 0), making.tone(300, 0, seconds=1.0)]).shape == (2, 16)
    with pytest.raises(ConfigError, match="cannot load an encoder of image inputs"):
        TransformersEncoder(str(tmp_path), "image")
    hf.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="hears sounds at 8000 Hz"):
        TransformersEncoder(str(tmp_path), "audio")


def test_what_is_no_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot load an encoder of image inputs") as error:
        load_encoder(str(tmp_path), "image")
    assert "\n" not in str(error.value)


def test_every_default_encoder_says_what_it_is() -> None:
    for kind, infos in DEFAULTS.items():
        for info in infos:
            assert info.kind == kind
            assert info.licence in ("Apache-2.0", "-")


def choice_of(encoder: Encoder, views: str, kept: Embeddings) -> tuple[Choice, list[Item], np.ndarray]:
    """A choice with the tiny network, on eight examples of each of three shapes."""
    found = making.image_examples(per_class=8)
    labels = np.array([("upright", "lying", "square").index(example.output) for example in found])
    items = [example.item for example in found]
    candidates = Candidates((encoder,), (views_named("image", views),), ("class_means",))
    return choose(items, labels, candidates, kept), items, labels


def test_norm_parameters_are_trained_on_a_copy_where_held_out_examples_gain(image_model: Path) -> None:
    encoder = TransformersEncoder(str(image_model), "image")
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    kept = Embeddings()
    choice, items, labels = choice_of(encoder, "damaged", kept)
    found = adapted(choice, items, labels, kept, NormTraining(steps=20, learning_rate=0.02))
    assert found.adapted
    assert found.frozen == found.tried[-2]
    assert found.tried[-1].adapted
    assert found.tried[-1].accuracy > found.frozen.accuracy
    assert isinstance(found.encoder, TrainableEncoder)
    changed = {
        name
        for name, value in found.encoder.network.state_dict().items()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    assert changed
    assert all("normalization" in name for name in changed)
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_where_held_out_examples_do_not_gain_the_encoder_stays_frozen(image_model: Path) -> None:
    encoder = TransformersEncoder(str(image_model), "image")
    kept = Embeddings()
    choice, items, labels = choice_of(encoder, "none", kept)
    found = adapted(choice, items, labels, kept, NormTraining(steps=1, learning_rate=1e-6))
    assert not found.adapted
    assert found.frozen is None
    assert found.encoder is encoder
    assert [one.adapted for one in found.tried[-2:]] == [False, True]


def test_a_report_names_the_frozen_head_that_was_beaten(image_model: Path) -> None:
    examples = making.image_examples(per_class=8)
    engine = MediaEngine(encoders=[str(image_model)], adapt="norm", heads=["class_means"], views=["damaged"])
    report = engine.ask(examples, examples[0].item)
    assert report.tried[-1].adapted
    assert report.adapted == (report.frozen is not None)
    with pytest.raises(TTTNotSupportedError, match="two examples of every class"):
        engine.fit(examples[:9])

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from acclimate.core.precision import parse_dtype
from acclimate.errors import CheckpointError, ConfigError, DataError, TTTNotSupportedError
from acclimate.vision.data.records import load_dataset
from acclimate.vision.models.torch_adapter import TorchAdapter, TorchModel
from acclimate.vision.run.auto import choose
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.settings import settings_for
from acclimate.vision.run.ttt import TTTRun
from tests import networks
from tests.networks import write_images

FACTORIES = "tests.vision.factories"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 3, side=20)
    return tmp_path


@pytest.mark.parametrize("factory", ["classifier", "normalised", "detector", "softmax_detector"])
def test_the_adapter_predicts(folder: Path, factory: str) -> None:
    adapter = TorchAdapter(f"{FACTORIES}:{factory}", score_threshold=0.1)
    records = load_dataset(folder / "images").records
    entries = adapter.predict(records)
    assert [entry["image"] for entry in entries] == [record.image for record in records]
    assert all((entry["width"], entry["height"]) == (20, 20) for entry in entries)
    if adapter.kind == "classifier":
        assert all(len(entry["classification"]["topk"]) == 5 for entry in entries)
        return
    for entry in entries:
        scores = [detection["score"] for detection in entry["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert min(scores) > 0.1
        for detection in entry["detections"]:
            box = detection["bbox"]
            assert 0 <= box["cx"] - box["w"] / 2 <= box["cx"] + box["w"] / 2 <= 1 + 1e-6
            assert 0 <= detection["class_id"] < 3


def test_several_labels_have_a_score_each(folder: Path) -> None:
    adapter = TorchAdapter(f"{FACTORIES}:multilabel", categories={7: "E", 3: "a"})
    records = load_dataset(folder / "images").records
    (batch,) = adapter.build_loader(records, batch_size=8)
    expected = adapter.get_model()(batch.inputs).sigmoid().detach()
    for row, entry in zip(expected, adapter.predict(records), strict=True):
        found = entry["classification"]
        assert found["scores"] == [[3, pytest.approx(float(row[0]))], [7, pytest.approx(float(row[4]))]]
        assert [found["class_id"], found["score"]] == found["topk"][0] == max(found["scores"], key=lambda s: s[1])
    assert any("not in the data set" in warning for warning in adapter.warnings)
    (one,) = TorchAdapter(f"{FACTORIES}:one_label").predict(records[:1])
    assert 0 < one["classification"]["score"] < 1


def test_outputs_that_are_no_logits_are_found(folder: Path) -> None:
    records = load_dataset(folder / "images").records
    with pytest.raises(ConfigError, match="kind='multilabel'"):
        TorchAdapter(f"{FACTORIES}:one_logit").predict(records)
    with pytest.raises(ConfigError, match=r"torch\.logit"):
        TorchAdapter(f"{FACTORIES}:scored_detector").predict(records)
    adapter = TorchAdapter(f"{FACTORIES}:probabilities")
    entries, plain = adapter.predict(records), TorchAdapter(f"{FACTORIES}:bare").model.module.requires_grad_(False)
    assert [warning for warning in adapter.warnings if "returns probabilities" in warning] == list(adapter.warnings)
    (batch,) = adapter.build_loader(records, batch_size=8)
    for row, entry in zip(plain(batch.inputs).softmax(-1), entries, strict=True):
        assert entry["classification"]["score"] == pytest.approx(float(row.max()))
    with (
        TTTRun(adapter, TTTConfig(reset="online", batch_size=3)) as run,
        pytest.raises(TTTNotSupportedError, match="before the softmax"),
    ):
        list(run.online(records))


def test_pixels_are_normalised_as_described_by_the_model(folder: Path) -> None:
    records = load_dataset(folder / "images").records
    (plain,) = TorchAdapter(f"{FACTORIES}:classifier").build_loader(records, batch_size=8)
    (scaled,) = TorchAdapter(f"{FACTORIES}:normalised").build_loader(records, batch_size=8)
    assert plain.inputs.shape == (3, 3, 16, 16)
    assert 0 <= float(plain.inputs.min()) <= float(plain.inputs.max()) <= 1
    expected = (plain.inputs - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / 0.2
    torch.testing.assert_close(scaled.inputs, expected)


def test_a_bare_module_is_a_classifier_of_images_at_their_size(folder: Path) -> None:
    adapter = TorchAdapter(f"{FACTORIES}:bare")
    assert len(adapter.predict(load_dataset(folder / "images").records)) == 3
    write_images(folder / "images" / "other", 1, side=24)
    with pytest.raises(DataError, match=r"differ in size.*image_size"):
        adapter.predict(load_dataset(folder / "images").records)


def test_a_checkpoint_must_fit_exactly(folder: Path) -> None:
    other = networks.classifier(seed=5)
    save_file(other.state_dict(), folder / "weights.safetensors")
    adapter = TorchAdapter(f"{FACTORIES}:classifier", checkpoint=str(folder / "weights.safetensors"))
    assert torch.equal(adapter.get_model().state_dict()["5.weight"], other.state_dict()["5.weight"])
    save_file({"5.weight": torch.zeros(1)}, folder / "short.safetensors")
    torch.save(other.state_dict(), folder / "weights.pt")
    torch.save(other, folder / "module.pt")
    (folder / "broken.safetensors").write_text("nothing")
    for name, message in [
        ("short.safetensors", r"Missing key.*0\.weight"),
        ("broken.safetensors", "cannot be loaded"),
        ("module.pt", "--trust-pickle"),
        ("gone.safetensors", "does not exist"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            TorchAdapter(f"{FACTORIES}:classifier", checkpoint=str(folder / name))
    # A pickle of tensors alone executes nothing when it is loaded.
    for name, trust in (("weights.pt", False), ("module.pt", True)):
        found = TorchAdapter(f"{FACTORIES}:classifier", checkpoint=str(folder / name), trust_pickle=trust)
        assert torch.equal(found.get_model().state_dict()["5.weight"], other.state_dict()["5.weight"])
    trusted = TorchAdapter(f"{FACTORIES}:classifier", checkpoint=str(folder / "weights.pt"), trust_pickle=True)
    assert torch.equal(trusted.get_model().state_dict()["5.weight"], other.state_dict()["5.weight"])


@pytest.mark.parametrize("factory", ["scripted", "exported", "parallel"])
def test_programs_and_wrapped_modules_predict_as_the_module(folder: Path, factory: str) -> None:
    records = load_dataset(folder / "images").records
    expected = TorchAdapter(f"{FACTORIES}:classifier").predict(records)
    adapter = TorchAdapter(f"{FACTORIES}:{factory}")
    for found, entry in zip(adapter.predict(records), expected, strict=True):
        assert found["classification"]["class_id"] == entry["classification"]["class_id"]
        assert found["classification"]["score"] == pytest.approx(entry["classification"]["score"], abs=1e-5)
    config, _ = settings_for(adapter, {"reset": "online"}, None, records, source_records=(), goes_on=False)
    assert config is not None
    assert config.method == "tent"
    if factory == "parallel":
        with TTTRun(adapter, config) as run:
            assert len(list(run.online(records))) == 1
        return
    with pytest.raises(TTTNotSupportedError, match="spectrum or blend"), TTTRun(adapter, config):
        pass
    sourced = TTTConfig.resolve({"method": "spectrum", "reset": "online"}, kind="classifier")
    with TTTRun(adapter, sourced, source_records=records) as run:
        assert sum(len(batch) for batch in run.online(records)) == 3
    choice = choose(adapter, {"method": "auto"}, records)
    assert (choice.method, choice.config) == ("none", None)


def test_a_program_of_one_batch_size_says_so(folder: Path) -> None:
    records = load_dataset(folder / "images").records
    adapter = TorchAdapter(f"{FACTORIES}:exported_for_two")
    assert len(adapter.predict(records[:2])) == 2
    with pytest.raises(ConfigError, match="dynamic batch dimension"):
        adapter.predict(records)
    with pytest.raises(ConfigError, match="--dtype"):
        TorchAdapter(f"{FACTORIES}:exported", dtype="float16")
    with pytest.raises(ConfigError, match="--checkpoint"):
        TorchAdapter(f"{FACTORIES}:exported", checkpoint="x.safetensors")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("factory", ["classifier", "detector", "scripted"])
def test_images_follow_the_number_format_of_the_model(folder: Path, factory: str, dtype: str) -> None:
    records = load_dataset(folder / "images").records
    adapter = TorchAdapter(f"{FACTORIES}:{factory}", dtype=dtype)
    (batch,) = adapter.build_loader(records, batch_size=8)
    assert batch.inputs.dtype == parse_dtype(dtype)
    plain = TorchAdapter(f"{FACTORIES}:{factory}").predict(records)
    for found, entry in zip(adapter.predict(records), plain, strict=True):
        if adapter.kind == "classifier":
            assert found["classification"]["score"] == pytest.approx(entry["classification"]["score"], abs=0.01)
        else:
            scores = [detection["score"] for detection in found["detections"]]
            expected = [detection["score"] for detection in entry["detections"]]
            assert scores[:5] == pytest.approx(expected[:5], abs=0.05)
    if factory == "scripted":
        return
    config = TTTConfig.resolve({"method": "tent", "reset": "online", "batch_size": 3}, kind=adapter.kind)
    with TTTRun(adapter, config) as run:
        assert sum(len(part) for part in run.online(records)) == 3
        assert set(run.report().session.counts) <= {"kept", "skipped"}


def test_half_precision_from_the_factory_is_kept(folder: Path) -> None:
    adapter = TorchAdapter(f"{FACTORIES}:half")
    (batch,) = adapter.build_loader(load_dataset(folder / "images").records, batch_size=8)
    assert batch.inputs.dtype == torch.bfloat16
    assert len(adapter.predict(load_dataset(folder / "images").records)) == 3


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nonsense", "package.module:factory"),
        ("tests.nowhere:model", "cannot be found"),
        (f"{FACTORIES}:nowhere", "cannot be found"),
        (f"{FACTORIES}:wrong", "an object of type dict"),
        (f"{FACTORIES}:not_callable", "not a callable"),
    ],
)
def test_bad_factories(factory: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchAdapter(factory)


def test_bad_models() -> None:
    with pytest.raises(ConfigError, match="kind"):
        TorchModel(module=networks.classifier(), kind="regressor")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="together"):
        TorchModel(module=networks.classifier(), mean=(0, 0, 0))


def test_categories_need_names(folder: Path) -> None:
    with pytest.raises(DataError, match="no labels"):
        TorchAdapter(f"{FACTORIES}:normalised", categories={1: "a"})
    assert TorchAdapter(f"{FACTORIES}:classifier", categories={5: "A", 6: "b"}).labels.ids == {0: 5, 1: 6}


def test_a_factory_may_import_from_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a_neighbour.py").write_text("from tests.networks import classifier as network\n")
    monkeypatch.chdir(folder)
    assert TorchAdapter(f"{FACTORIES}:sibling").kind == "classifier"

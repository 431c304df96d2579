"""``auto``: candidates by the model's layers, the choice by their results, and the reasons."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from acclimate.errors import ConfigError, EmptySelectionError
from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.data.records import load_dataset
from acclimate.vision.demos.pose_scenes.dataset import write_dataset
from acclimate.vision.evaluation.compare import Comparison, compare
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.models.rtdetr_pose.adapter import RTDETRPoseAdapter
from acclimate.vision.models.torch_adapter import TorchAdapter, TorchModel
from acclimate.vision.run import auto
from acclimate.vision.run.auto import Trial, as_flags, choose
from acclimate.vision.run.export import ExportJob, export
from tests.networks import classifier, write_images


def batch_norm() -> TorchModel:
    return TorchModel(module=classifier("bn"), image_size=(16, 16))


def group_norm() -> TorchModel:
    return TorchModel(module=classifier("gn"), image_size=(16, 16))


class Negated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier("gn")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(images)
        return torch.nn.functional.pad(logits, (0, 1))


def without_linear_layer() -> TorchModel:
    return TorchModel(module=Negated(), image_size=(16, 16))


class Doubled(nn.Module):
    """Certain under its own statistics, whatever the images; less certain under those of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(48)
        self.head = nn.Linear(48, 5)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(5).repeat_interleave(10, 1)[:, :48] * 0.05)
            self.head.bias.zero_()
            self.norm.running_var.fill_(1e-4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)))
        return logits


def fooled() -> TorchModel:
    return TorchModel(module=Doubled().eval(), image_size=(16, 16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 40)
    return tmp_path


def chosen(factory: str, folder: Path, given: dict[str, Any] | None = None, *, source: bool = False) -> auto.Choice:
    adapter = TorchAdapter(f"{__name__}:{factory}")
    records = load_dataset(folder / "images").records
    settings = {"method": "auto", "reset": "online", **(given or {})}
    return choose(adapter, settings, records, source_records=records if source else ())


def test_blend_is_chosen_for_a_classifier_with_batch_norm_with_reasons(folder: Path) -> None:
    choice = chosen("batch_norm", folder, {"batch_size": 8})
    assert choice.method == "blend"
    assert choice.config is not None
    assert (choice.config.method, choice.config.batch_size, choice.config.reset) == ("blend", 8, "online")
    assert choice.reasons[0] == "the model is a classifier with 1 BatchNorm layers"
    assert "no source images are known" in choice.reasons[1]
    assert "most accurate method on every kind of stream" in choice.reasons[-1]
    assert [trial.method for trial in choice.trials] == ["none", "blend"]
    assert as_flags(choice) == "--ttt --ttt-method blend --ttt-reset online --ttt-batch-size 8"


def test_source_images_make_blend_work_without_batch_norm(folder: Path) -> None:
    choice = chosen("group_norm", folder, source=True)
    assert choice.method == "blend"
    assert "no BatchNorm" in choice.reasons[0]


def test_without_batch_norm_and_source_neo_is_tried_and_then_learning_rates(folder: Path) -> None:
    choice = chosen("group_norm", folder)
    tried = [(trial.method, trial.lr) for trial in choice.trials]
    assert tried == [("none", None), ("eata", 5e-4), ("eata", 5e-3), ("neo", None)]
    assert choice.method == "neo"
    assert choice.trials[-1].disagreements is not None
    # Its logits are not those of a last linear layer.
    choice = chosen("without_linear_layer", folder)
    assert choice.trials[-1].refused is not None
    assert choice.method == "eata"
    assert choice.config is not None
    assert choice.config.lr == 5e-3
    assert "--ttt-lr 0.005" in as_flags(choice)


def test_the_more_consistent_model_is_taken() -> None:
    trials = [trial("none", 1.0), dataclasses.replace(trial("neo", 0.5), disagreements=30, unadapted_disagreements=9)]
    assert auto._best(trials, "classifier")[0] == 1
    inconsistent = dataclasses.replace(trials[1], less_consistent=True)
    position, reasons = auto._best([trials[0], inconsistent], "classifier")
    assert position is None
    assert "gives 30 images another class when they are mirrored or moved, the unadapted model 9" in reasons[0]
    uncertain = dataclasses.replace(trials[1], degradation_score=2.0)
    assert auto._best([trials[0], uncertain], "classifier")[0] is None
    assert auto._best([trials[0], dataclasses.replace(uncertain, credible=True)], "classifier")[0] == 1


def test_a_method_that_makes_the_model_less_certain_is_not_chosen(folder: Path) -> None:
    choice = chosen("fooled", folder, {"batch_size": 40})
    assert choice.method == "none"
    assert choice.config is None
    assert "less certain" in " ".join(choice.reasons)
    assert choice.reasons[-1] == "the model is not adapted"
    assert as_flags(choice) == "(without --ttt)"


def test_the_model_is_not_changed(folder: Path) -> None:
    adapter = TorchAdapter(f"{__name__}:group_norm")
    before = {name: value.clone() for name, value in adapter.get_model().state_dict().items()}
    choose(adapter, {"method": "auto"}, load_dataset(folder / "images").records)
    assert all(torch.equal(value, before[name]) for name, value in adapter.get_model().state_dict().items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method_options": {"ema": 0.9}}, "options of one \\(ema\\)"),
        ({"reset": "sample"}, "auto chooses for a stream"),
    ],
)
def test_settings_of_a_single_method_are_refused(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen("batch_norm", folder, given)


def test_an_empty_stream_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="there are none"):
        choose(TorchAdapter(f"{__name__}:batch_norm"), {"method": "auto"}, [])


@pytest.mark.parametrize(("condition", "expected"), [("clean", {"spectrum"}), ("contrast:5", {"spectrum", "align"})])
def test_the_method_for_the_packages_detector_depends_on_the_corruption(
    tmp_path: Path, condition: str, expected: set[str]
) -> None:
    records = load_dataset(write_dataset(tmp_path / "plates", images=24, split="test", seed=1)).records
    reader = ImageReader(None if condition == "clean" else CorruptionSpec.parse(condition))
    adapter = RTDETRPoseAdapter(reader=reader, categories={})
    choice = choose(adapter, {"method": "auto", "batch_size": 8}, records)
    assert choice.method in expected
    assert [trial.method for trial in choice.trials] == ["none", "bn", "spectrum", "align"]
    by_name = {trial.method: trial for trial in choice.trials}
    seeing = [trial for trial in choice.trials if trial.detections_per_image > 1]
    assert by_name[choice.method].entropy_nats <= 1.05 * min(trial.entropy_nats for trial in seeing)


def trial(method: str, entropy: float, **values: Any) -> Trial:
    values = {"detections_per_image": 2.0, **values}
    return Trial(method=method, entropy_nats=entropy, effective_classes=values.pop("classes", 5.0), **values)


def test_the_most_certain_method_and_among_equals_the_cheapest_is_chosen() -> None:
    def best(*trials: Trial) -> str:
        position, _ = auto._best(trials, "detector")
        return "none" if position is None else trials[position].method

    assert best(trial("none", 1.0), trial("bn", 0.8), trial("align", 0.6)) == "align"
    assert best(trial("none", 1.0), trial("bn", 0.6), trial("align", 0.58)) == "bn"
    assert best(trial("none", 0.6), trial("bn", 0.6), trial("align", 0.6)) == "none"
    assert best(trial("none", 0.6), trial("bn", 0.58), trial("spectrum", 0.6), trial("align", 0.575)) == "spectrum"
    assert best(trial("none", 1.0), trial("bn", 0.6), trial("align", 0.56)) == "align"
    assert best(trial("none", 0.6), trial("bn", 0.6), trial("spectrum", 0.6), trial("align", 0.6)) == "spectrum"
    assert best(trial("none", 1.0), trial("bn", 0.1, classes=1.0), trial("align", 0.9)) == "align"
    assert best(trial("none", 1.0), trial("bn", 0.1, refused="no")) == "none"
    # A candidate without detections has an entropy of 0, which is no certainty.
    blind = trial("none", 0.0, detections_per_image=0.0)
    assert best(blind, trial("bn", 0.9, detections_per_image=2.0)) == "bn"


def test_the_export_reports_the_choice(folder: Path) -> None:
    options = AdapterOptions(adapter="torch", model=f"{__name__}:batch_norm")
    job = ExportJob(
        source=folder / "images", output=folder / "p.json", adapter=options, wrap=True, ttt={"method": "auto"}
    )
    result = export(job)
    assert result.choice is not None
    meta = json.loads((folder / "p.json").read_text())["meta"]["ttt"]
    assert (meta["method"], meta["choice"]["method"]) == ("blend", "blend")
    assert meta["choice"]["reasons"]
    assert {trial["method"] for trial in meta["choice"]["trials"]} == {"none", "blend"}


def test_the_export_does_not_adapt_where_no_method_helps(folder: Path) -> None:
    options = AdapterOptions(adapter="torch", model=f"{__name__}:fooled")
    plain = export(ExportJob(source=folder / "images", output=folder / "plain.json", adapter=options))
    job = ExportJob(
        source=folder / "images", output=folder / "p.json", adapter=options, wrap=True,
        ttt={"method": "auto", "batch_size": 40},
    )  # fmt: skip
    result = export(job)
    assert result.report is None
    assert result.entries == plain.entries
    meta = json.loads((folder / "p.json").read_text())["meta"]["ttt"]
    assert meta["enabled"] is False
    assert meta["choice"]["method"] == "none"


def test_a_preset_or_a_state_is_refused_with_auto(folder: Path) -> None:
    options = AdapterOptions(adapter="torch", model=f"{__name__}:batch_norm")
    job = ExportJob(
        source=folder / "images", output=folder / "p.json", adapter=options, ttt={"method": "auto"}, preset="safe"
    )
    with pytest.raises(ConfigError, match="of one method"):
        export(job)


def test_compare_recommends(folder: Path) -> None:
    options = AdapterOptions(adapter="torch", model=f"{__name__}:batch_norm")
    comparison = Comparison(
        source=folder / "images", output=folder / "out", adapter=options, methods=("none", "bn"), recommend=True
    )
    result = compare(comparison)
    assert result.recommended is not None
    assert result.recommended.method == "blend"
    content = json.loads((folder / "out" / "comparison.json").read_text())
    assert content["recommended"]["flags"].startswith("--ttt --ttt-method blend")


def test_a_candidate_with_nan_outputs_is_not_chosen() -> None:
    broken = trial("eata", float("nan"), lr=5e-3, classes=float("nan"), degradation_score=float("nan"))
    position, reasons = auto._best([trial("none", 1.0), trial("eata", 0.9, lr=5e-4), broken], "classifier")
    assert position == 1
    assert any("not finite" in reason for reason in reasons)


def test_patterns_that_match_nothing_are_an_error(folder: Path) -> None:
    with pytest.raises(EmptySelectionError, match="nonexistent"):
        chosen("group_norm", folder, {"include": ("nonexistent",)})


def test_an_adapter_without_entries_can_be_tried(folder: Path) -> None:
    class Bare:
        def __init__(self, inner: TorchAdapter) -> None:
            self.predict, self.get_model, self.build_loader = inner.predict, inner.get_model, inner.build_loader

    adapter: Any = Bare(TorchAdapter(f"{__name__}:batch_norm"))
    records = load_dataset(folder / "images").records
    assert choose(adapter, {"method": "auto"}, records).method == "blend"


def test_requests_that_were_not_carried_out_are_reported(folder: Path) -> None:
    options = AdapterOptions(adapter="torch", model=f"{__name__}:fooled")
    job = ExportJob(
        source=folder / "images", output=folder / "p.json", adapter=options, ttt={"method": "auto", "batch_size": 40},
        save_state=folder / "a.state", log_output=folder / "log.json",
    )  # fmt: skip
    result = export(job)
    assert f"no state was written to {folder / 'a.state'}" in " ".join(result.meta["warnings"])
    assert json.loads((folder / "log.json").read_text())["ttt"]["choice"]["method"] == "none"


def test_a_state_to_load_is_refused_with_auto(folder: Path) -> None:
    options = AdapterOptions(adapter="torch", model=f"{__name__}:batch_norm")
    job = ExportJob(
        source=folder / "images", output=folder / "p.json", adapter=options, ttt={"method": "auto"},
        load_state=folder / "some.state",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="of one method"):
        export(job)


def test_a_failing_recommendation_does_not_lose_the_comparison(folder: Path) -> None:
    options = AdapterOptions(adapter="torch", model=f"{__name__}:batch_norm")
    comparison = Comparison(
        source=folder / "images", output=folder / "out", adapter=options, methods=("none", "sar"), recommend=True,
        given={"method_options": {"rho": 0.1}}, ttt_source=folder / "images",
    )  # fmt: skip
    result = compare(comparison)
    assert result.recommended is not None
    flags = json.loads((folder / "out" / "comparison.json").read_text())["recommended"]["flags"]
    assert f"--ttt-source {folder / 'images'}" in flags

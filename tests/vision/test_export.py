"""The export job on real files: without and with adaptation, interrupted, resumed, and with bad input."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acclimate.errors import ConfigError, DataError, EmptySelectionError, InputError, TTTNotSupportedError
from acclimate.registry import METHODS, presets
from acclimate.vision.data.images import CorruptionSpec, ImageReader
from acclimate.vision.data.predictions import read_predictions, to_coco
from acclimate.vision.data.records import load_dataset
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.models.torch_adapter import TorchAdapter
from acclimate.vision.run.config import TTTConfig
from acclimate.vision.run.export import ExportJob, ExportResult, export
from acclimate.vision.run.runners import dry_run, run_ttt
from acclimate.vision.run.tta import TTAConfig
from acclimate.vision.run.ttt import TTTRun
from tests.networks import assert_identical, tensors_of, write_images
from tests.test_output_files import Reader

FACTORIES = "tests.vision.factories"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 7, side=24)
    return tmp_path


def job(folder: Path, model: str = "classifier", **changes: Any) -> ExportJob:
    values: dict[str, Any] = {
        "source": folder / "images",
        "output": folder / "out" / "predictions.json",
        "adapter": AdapterOptions(adapter="torch", model=f"{FACTORIES}:{model}"),
    }
    return ExportJob(**{**values, **changes})


def without_times(meta: dict[str, Any]) -> Any:
    if isinstance(meta, dict):
        return {key: without_times(value) for key, value in meta.items() if "seconds" not in key and key != "timestamp"}
    return [without_times(item) for item in meta] if isinstance(meta, list) else meta


NUMBER = (int, float)
TTA_TYPES: dict[str, Any] = {
    "enabled": bool, "seed": (int, None), "flip_prob": NUMBER, "norm_only": bool, "warnings": list,
    "summary": (dict, None),
}  # fmt: skip
TTT_TYPES: dict[str, Any] = {
    "enabled": bool, "method": str, "steps": int, "batch_size": int, "lr": NUMBER, "update_filter": str,
    "include": (list, None), "exclude": (list, None), "max_batches": int, "seed": (int, None), "mim": dict,
    "report": (dict, None),
}  # fmt: skip
MIM_TYPES: dict[str, Any] = {"mask_prob": NUMBER, "patch_size": int, "mask_value": NUMBER}


def assert_types(block: dict[str, Any], types: dict[str, Any]) -> None:
    for key, allowed in types.items():
        assert key in block, key
        kinds = allowed if isinstance(allowed, tuple) else (allowed,)
        kind = None if block[key] is None else type(block[key])
        assert kind in kinds, (key, block[key])


def assert_yolozus_types(content: dict[str, Any]) -> None:
    """Check the types that the validator of YOLOZU requires in a wrapped export; an int is never a boolean."""
    assert content["schema_version"] == 1
    meta = content["meta"]
    assert_types(meta, {"timestamp": str, "adapter": str, "config": str, "checkpoint": (str, None), "images": int})
    assert_types(meta, {"tta": dict, "ttt": dict})
    assert_types(meta["tta"], TTA_TYPES)
    assert_types(meta["ttt"], TTT_TYPES)
    assert_types(meta["ttt"]["mim"], MIM_TYPES)
    for entry in content["predictions"]:
        assert isinstance(entry["image"], str)
        assert entry["image"]
        assert isinstance(entry.get("detections"), list | None)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").rglob("*")) if (folder / "out").exists() else []


def test_without_ttt_the_export_writes_only_the_adapters_predictions(folder: Path) -> None:
    export(job(folder))
    adapter = TorchAdapter(f"{FACTORIES}:classifier")
    expected = adapter.predict(load_dataset(folder / "images").records)
    assert json.loads((folder / "out" / "predictions.json").read_text()) == expected
    assert files(folder) == ["predictions.json"]
    first = (folder / "out" / "predictions.json").read_bytes()
    export(job(folder))
    assert (folder / "out" / "predictions.json").read_bytes() == first


@pytest.mark.parametrize("model", ["classifier", "detector"])
@pytest.mark.parametrize("policy", ["stream", "sample", "online"])
@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_and_reset_policy_writes_a_report(folder: Path, model: str, policy: str, method: str) -> None:
    options: dict[str, Any] = {
        "cotta": {"view_count": 2},
        "eata": {"entropy_margin": 2.0},
        "sar": {"entropy_margin": 2.0},
        "deyo": {"entropy_margin": 2.0, "min_difference": -1.0},
        "rotta": {"update_every": 1},
        "memo": {"view_count": 2},
    }
    if model not in METHODS.info(method).kinds:
        pytest.skip("for classifiers")
    given = {
        "method": method,
        "reset": policy,
        "batch_size": 4,
        "method_options": options.get(method, {}),
        "max_update": 1e9,
        "max_drift": 1e9,
    }
    needs_source = method is not None and METHODS.info(method).needs_one_of == ("source_images",)
    source = folder / "images" if needs_source else None
    result = export(job(folder, model, ttt=given, ttt_source=source, wrap=True, log_output=folder / "out" / "log.json"))
    content = json.loads((folder / "out" / "predictions.json").read_text())
    assert_yolozus_types(content)
    assert len(content["predictions"]) == 7
    meta = content["meta"]
    assert set(meta) >= {"timestamp", "adapter", "config", "checkpoint", "images", "tta", "ttt"}
    assert set(meta["tta"]) >= {"enabled", "seed", "flip_prob", "norm_only", "warnings", "summary"}
    ttt = meta["ttt"]
    assert set(ttt) >= {
        "enabled",
        "method",
        "reset",
        "steps",
        "batch_size",
        "lr",
        "update_filter",
        "include",
        "exclude",
        "max_batches",
        "seed",
        "mim",
        "report",
    }
    assert set(ttt["report"]) >= {
        "losses",
        "mask_ratio",
        "updated_param_count",
        "changed_param_count",
        "warnings",
        "stopped_early",
        "stop_reason",
        "step_metrics",
    }
    assert (ttt["method"], ttt["reset"], ttt["batch_size"]) == (method, policy, 4)
    assert len(ttt["report"]["losses"]) == {"stream": 2, "online": 2, "sample": 7}[policy]
    assert ttt["report"]["mask_ratio"] == (0.6 if method == "mim" else None)
    log = json.loads((folder / "out" / "log.json").read_text())
    assert log["ttt"] == ttt
    assert log["output"].endswith("predictions.json")
    assert result.report is not None
    again = export(job(folder, model, ttt=given, ttt_source=source, wrap=True))
    assert without_times(again.meta) == without_times(result.meta)
    assert again.entries == result.entries


@pytest.mark.parametrize("preset", list(presets()))
@pytest.mark.parametrize("model", ["classifier", "detector"])
def test_every_preset_can_be_run(folder: Path, preset: str, model: str) -> None:
    method = presets()[preset][0]
    # It needs source images; the error without them is tested in tests/cli/test_pose_scenes_commands.py.
    needs_source = method is not None and METHODS.info(method).needs_one_of == ("source_images",)
    source = folder / "images" if needs_source else None
    if model not in METHODS.info(method).kinds:
        for given in ({"method": method}, {}):
            with pytest.raises(TTTNotSupportedError, match=f"{method} is for classifiers"):
                export(job(folder, model, ttt=given, preset=preset))
        return
    result = export(job(folder, model, ttt={"method": method}, preset=preset, ttt_source=source))
    assert len(result.entries) == 7
    assert result.report is not None
    assert any(f"preset {preset!r}" in warning for warning in result.report.warnings)


def test_stream_and_online_predict_before_and_after_adaptation(folder: Path) -> None:
    given = {"batch_size": 4, "lr": 0.05, "update_filter": "norm_only", "max_update": 1e9, "max_drift": 1e9}
    runs = {policy: export(job(folder, ttt={**given, "reset": policy})) for policy in ("stream", "online", "sample")}
    scores = {policy: [entry["classification"]["score"] for entry in run.entries] for policy, run in runs.items()}
    assert scores["stream"] != scores["online"] != scores["sample"]
    # Online, the first batch is predicted before the first update, so its predictions are those of batch statistics.
    bn = export(
        job(folder, ttt={"method": "bn", "batch_size": 4, "reset": "online", "method_options": {"source_strength": 0}})
    )
    first = [entry["classification"]["score"] for entry in bn.entries[:4]]
    assert scores["online"][:4] == pytest.approx(first, abs=1e-5)


def test_sample_does_not_depend_on_the_order(folder: Path) -> None:
    given = {"reset": "sample", "method": "mim", "patch_size": 4, "lr": 0.01}
    forward = export(job(folder, ttt=given)).entries
    listed = folder / "list.txt"
    listed.write_text("\n".join(f"images/image_{n:03d}.png" for n in reversed(range(7))))
    backward = export(job(folder, source=listed, ttt=given)).entries
    assert [e["classification"] for e in forward] == [e["classification"] for e in reversed(backward)]


def test_max_batches_bounds_the_adaptation(folder: Path) -> None:
    for policy in ("stream", "online"):
        result = export(job(folder, ttt={"batch_size": 2, "max_batches": 2, "reset": policy}))
        assert result.report is not None
        assert result.report.batches == 2
        assert len(result.entries) == 7


def test_coco_results(folder: Path) -> None:
    export(job(folder, "detector", format="coco"))
    results = json.loads((folder / "out" / "predictions.json").read_text())
    assert {result["image_id"] for result in results} == set(range(1, 8))
    for result in results:
        x, y, w, h = result["bbox"]
        assert -1e-4 <= x <= x + w <= 24.0001
        assert -1e-4 <= y <= y + h <= 24.0001
    with pytest.raises(ConfigError, match="a classifier"):
        export(job(folder, format="coco"))
    with pytest.raises(ConfigError, match="--wrap"):
        export(job(folder, format="coco", wrap=True))


def test_tta_is_applied_and_reported(folder: Path) -> None:
    plain = export(job(folder)).entries
    tta = TTAConfig(enabled=True, seed=4, flip_prob=0.5)
    result = export(job(folder, tta=tta, wrap=True))
    changed = [a != b for a, b in zip(result.entries, plain, strict=True)]
    assert result.meta["tta"]["summary"] == {"images": 7, "mirrored": sum(changed)}
    assert 0 < sum(changed) < 7
    assert export(job(folder, tta=tta)).entries == result.entries
    adapted = export(job(folder, tta=tta, ttt={"reset": "online"}))
    assert adapted.meta["tta"]["summary"]["images"] == 7
    boxes_only = export(job(folder, tta=TTAConfig(enabled=True, norm_only=True)))
    assert boxes_only.entries == plain
    assert "this model has none" in boxes_only.meta["tta"]["warnings"][0]
    with pytest.raises(ConfigError, match="dummy"):
        export(job(folder, tta=tta, adapter=AdapterOptions(adapter="dummy")))
    with pytest.raises(ConfigError, match="flip_prob"):
        TTAConfig(flip_prob=2)


@pytest.mark.parametrize("model", ["classifier", "detector"])
@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("method", [None, *METHODS.names()])
def test_wrapped_exports_have_yolozus_types_and_say_what_has_an_effect(
    folder: Path, model: str, tta: bool, method: str | None
) -> None:
    if method is not None and model not in METHODS.info(method).kinds:
        pytest.skip("for classifiers")
    given = None if method is None else {"method": method, "reset": "online", "batch_size": 4, "max_batches": 1}
    needs_source = method is not None and METHODS.info(method).needs_one_of == ("source_images",)
    source = folder / "images" if needs_source else None
    export(job(folder, model, ttt=given, ttt_source=source, tta=TTAConfig(enabled=tta), wrap=True))
    content = json.loads((folder / "out" / "predictions.json").read_text())
    assert_yolozus_types(content)
    ttt = content["meta"]["ttt"]
    if method is None:
        plan = {"method": "tent", "steps": 1, "batch_size": 1, "lr": 1e-4, "update_filter": "all", "max_batches": 0}
        assert {key: ttt[key] for key in plan} == plan
        assert ttt["effective"] is None
        return
    effective = ttt["effective"]
    assert (effective["max_batches"], effective["batch_size"]) == (1, 4)
    assert (effective["mim"] is None) == (method != "mim")
    learns = METHODS.info(method).needs_gradient
    for key in ("steps", "lr", "update_filter"):
        assert effective[key] == (ttt[key] if learns else None)
    if not learns:
        assert (ttt["steps"], ttt["lr"], ttt["update_filter"]) == (1, 1e-4, "all")


def test_category_ids_that_are_no_indices_are_said(folder: Path) -> None:
    content = {"images": [{"id": 7, "file_name": "image_000.png"}]}
    for ids, said in (((0, 1, 2), False), ((1, 2, 3), True), ((3, 40, 90), True)):
        categories = [{"id": number, "name": name} for number, name in zip(ids, "xyz", strict=True)]
        (folder / "gt.json").write_text(json.dumps({**content, "categories": categories}))
        result = export(job(folder, "detector", source=folder / "gt.json", images_root=folder / "images", wrap=True))
        notes = [note for note in result.meta["warnings"] if "category ids" in note]
        assert bool(notes) == said
        assert all(f"({ids[0]} to {ids[2]})" in note for note in notes)


def test_the_corruption_is_applied_before_prediction(folder: Path) -> None:
    plain, foggy = export(job(folder)), export(job(folder, corruption=CorruptionSpec("fog", 5)))
    assert plain.entries != foggy.entries
    assert foggy.meta["corruption"] == "fog:5"


def test_unusable_images_are_skipped_or_an_error_with_strict(folder: Path) -> None:
    (folder / "images" / "broken.png").write_text("no image")
    np.save(folder / "images" / "nan.npy", np.full((24, 24, 3), np.nan, np.float32))
    result = export(job(folder, wrap=True, ttt={"reset": "online", "batch_size": 4}))
    assert len(result.entries) == 7
    assert sorted(Path(path).name for path in result.skipped) == ["broken.png", "nan.npy"]
    assert len(result.meta["skipped"]) == 2
    (folder / "out" / "predictions.json").unlink()
    with pytest.raises(DataError, match="2 images cannot be used"):
        export(job(folder, strict=True))
    assert files(folder) == []


class Interrupted(BaseException):
    """Raised in place of Ctrl-C."""


@pytest.mark.parametrize(
    "ttt",
    [
        None,
        {"reset": "stream", "batch_size": 2},
        {"reset": "sample", "batch_size": 2},
        {"reset": "online", "batch_size": 2},
    ],
)
def test_an_interrupted_run_writes_no_output_and_resumes_to_the_same_result(
    folder: Path, ttt: dict[str, Any] | None
) -> None:
    (folder / "images" / "image_001.png").write_text("broken on purpose")
    work = job(folder, ttt=ttt, batch_size=2, wrap=True)
    whole = export(work)
    (folder / "out" / "predictions.json").unlink()

    def stop_after_four(what: str, done: int, total: int) -> None:
        if what == "predict" and done >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        export(work, progress=stop_after_four)
    assert files(folder) == [".predictions.json.partial.jsonl"]
    heard: list[int] = []
    resumed = export(
        dataclasses.replace(work, resume=True),
        progress=lambda what, done, total: heard.append(done) if what == "predict" else None,
    )
    assert resumed.entries == whole.entries
    assert resumed.skipped == whole.skipped
    assert files(folder) == ["predictions.json"]
    if ttt is None or ttt["reset"] != "online":
        assert heard[0] > 2, "what was done must not be done again"
    else:
        assert any("restart" in warning for warning in resumed.meta["warnings"])


def test_resuming_another_job_is_refused(folder: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        export(job(folder, batch_size=2), progress=stop)
    for changes in ({"model": "normalised"}, {"corruption": CorruptionSpec("fog", 1)}, {"batch_size": 3}):
        with pytest.raises(DataError, match="other images or settings"):
            export(job(folder, **{"batch_size": 2, "resume": True, **changes}))
    partial = folder / "out" / ".predictions.json.partial.jsonl"
    partial.write_text("garbage\n")
    with pytest.raises(DataError, match="other images or settings"):
        export(job(folder, batch_size=2, resume=True))
    partial.write_text("")
    assert len(export(job(folder, batch_size=2, resume=True)).entries) == 7


def test_an_image_that_is_listed_twice_is_predicted_twice_also_on_resume(folder: Path) -> None:
    listed = folder / "list.txt"
    listed.write_text("\n".join(f"images/image_{n:03d}.png" for n in (0, 1, 0, 2, 3)))

    def stop(what: str, done: int, total: int) -> None:
        if done >= 2:
            raise Interrupted

    work = job(folder, source=listed, batch_size=1)
    with pytest.raises(Interrupted):
        export(work, progress=stop)
    resumed = export(dataclasses.replace(work, resume=True))
    assert [entry["image_id"] for entry in resumed.entries] == [1, 2, 3, 4, 5]


def test_sample_counts_finished_images_towards_max_batches_on_resume(folder: Path) -> None:
    work = job(folder, ttt={"reset": "sample", "max_batches": 3, "lr": 0.05, "max_update": 1e9, "max_drift": 1e9})
    whole = export(work)
    assert whole.report is not None
    assert whole.report.changed_param_count == 16
    (folder / "out" / "predictions.json").unlink()

    def stop(what: str, done: int, total: int) -> None:
        if what == "predict" and done >= 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        export(work, progress=stop)
    assert export(dataclasses.replace(work, resume=True)).entries == whole.entries


def test_a_fifo_gets_the_predictions_and_no_partial_file(folder: Path) -> None:
    whole = export(job(folder))
    for path in (folder / "out").iterdir():
        path.unlink()
    reader = Reader(folder / "out" / "pipe", kind="fifo")
    export(job(folder, output=folder / "out" / "pipe"))
    assert json.loads(reader.received()) == list(whole.entries)
    assert files(folder) == ["pipe"]
    with pytest.raises(ConfigError, match="--resume"):
        export(job(folder, output=folder / "out" / "pipe", resume=True))


def test_the_partial_file_of_a_link_is_beside_its_target(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "link.json").symlink_to("out/real.json")

    def stop(what: str, done: int, total: int) -> None:
        if done >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        export(job(folder, output=folder / "link.json", batch_size=2), progress=stop)
    assert files(folder) == [".real.json.partial.jsonl"]
    export(job(folder, output=folder / "link.json", batch_size=2, resume=True))
    assert files(folder) == ["real.json"]
    assert (folder / "link.json").is_symlink()


def test_images_that_were_replaced_are_not_resumed(folder: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "predict" and done >= 4:
            raise Interrupted

    write_images(folder / "source", 3, side=24)
    work = job(folder, batch_size=2)
    stream = job(folder, ttt={"method": "spectrum", "batch_size": 2}, ttt_source=folder / "source")
    for interrupted, image in (
        (work, folder / "images" / "image_000.png"),
        (work, folder / "images" / "image_006.png"),
        (stream, folder / "source" / "image_001.png"),
    ):
        with pytest.raises(Interrupted):
            export(interrupted, progress=stop)
        write_images(folder / "other", 1, side=20)[0].replace(image)
        with pytest.raises(DataError, match=rf"1 of \d+ images were changed .*{image.name}.*leave out --resume"):
            export(dataclasses.replace(interrupted, resume=True))
        assert not (folder / "out" / "predictions.json").exists()
        assert files(folder) == [".predictions.json.partial.jsonl"]
    whole = export(dataclasses.replace(work, output=folder / "whole.json"))
    assert export(work).entries == whole.entries
    # A run that starts again anyway predicts the images as they are now.
    online = job(folder, ttt={"reset": "online", "batch_size": 2})
    with pytest.raises(Interrupted):
        export(online, progress=stop)
    write_images(folder / "other", 2, side=20)[1].replace(folder / "images" / "image_000.png")
    assert export(dataclasses.replace(online, resume=True)).entries == export(online).entries


@pytest.mark.parametrize("target", ["a_folder", "a_file/below.json"])
def test_unwritable_outputs_are_refused_before_prediction(folder: Path, target: str) -> None:
    (folder / "a_folder").mkdir()
    (folder / "a_file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        export(job(folder, output=folder / target), progress=lambda *values: pytest.fail("work was done"))


def test_an_incomplete_last_line_is_predicted_again(folder: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        export(job(folder, batch_size=2), progress=stop)
    partial = folder / "out" / ".predictions.json.partial.jsonl"
    partial.write_text(partial.read_text()[:-20])
    assert len(export(job(folder, batch_size=2, resume=True)).entries) == 7


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": Path("nowhere")}, DataError, "does not exist"),
        (
            {"adapter": AdapterOptions(adapter="dummy"), "ttt": {}},
            TTTNotSupportedError,
            "'dummy'.*get_model and no build_loader",
        ),
        ({"adapter": AdapterOptions(adapter="magic")}, ConfigError, "unknown adapter"),
        ({"adapter": AdapterOptions(adapter="torch")}, ConfigError, "needs --model"),
        ({"adapter": AdapterOptions(model="x", checkpoint="y")}, ConfigError, "--checkpoint is for"),
        ({"ttt": {"method": "magic"}}, ConfigError, "unknown method"),
        ({"ttt": {"update_filter": "lora_only"}}, EmptySelectionError, "--lora-rank"),
        ({"ttt": {"include": ("nowhere",)}}, EmptySelectionError, "nowhere"),
        (
            {"ttt": {"method": "mim", "method_options": {"target": "pixels"}}},
            TTTNotSupportedError,
            "reconstruction head",
        ),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    folder: Path, changes: dict[str, Any], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(job(folder, **changes))
    assert files(folder) == []


def test_bn_without_batch_norm_is_refused_with_a_remedy(folder: Path) -> None:
    with pytest.raises(EmptySelectionError, match="use tent"):
        export(job(folder, "normalised", ttt={"method": "bn"}))


def test_a_filter_that_is_not_the_papers_is_reported(folder: Path) -> None:
    result = export(job(folder, ttt={"update_filter": "all"}))
    assert result.report is not None
    assert "tent with update filter 'all': the paper updates 'norm_only'" in result.report.warnings


def test_eata_uses_source_images_for_its_fisher_term(folder: Path) -> None:
    write_images(folder / "source", 4, side=16, seed=3)
    given = {"method": "eata", "reset": "online", "method_options": {"entropy_margin": 2.0, "fisher_weight": 2000.0}}
    with_source = export(job(folder, ttt=given, ttt_source=folder / "source"))
    without = export(job(folder, ttt=given))
    assert with_source.report is not None
    assert without.report is not None
    assert not any("without source samples" in warning for warning in with_source.report.warnings)
    assert any("without source samples" in warning for warning in without.report.warnings)


def test_run_ttt_keeps_adapted_weights_and_warns_about_lost_effects(folder: Path) -> None:
    adapter, records = TorchAdapter(f"{FACTORIES}:classifier"), load_dataset(folder / "images").records
    before = tensors_of(adapter.get_model())
    report = run_ttt(adapter, records, TTTConfig(batch_size=4, update_filter="norm_only"))
    assert (len(report.losses), report.updated_param_count, report.changed_param_count) == (2, 16, 16)
    assert any("adapter.predict() does not use" in warning for warning in report.warnings)
    assert not all(np.array_equal(before[name], value) for name, value in adapter.get_model().state_dict().items())
    with pytest.raises(ConfigError, match="enabled=False"):
        run_ttt(adapter, records, TTTConfig(enabled=False))
    with pytest.raises(ConfigError, match="use TTTRun"):
        run_ttt(adapter, records, TTTConfig(reset="online"))


def test_run_ttt_keeps_the_teachers_weights_where_it_predicts(folder: Path) -> None:
    adapter, records = TorchAdapter(f"{FACTORIES}:normalised"), load_dataset(folder / "images").records
    config = TTTConfig(method="cotta", batch_size=4, lr=0.01, method_options={"view_count": 2, "ema": 0.5})
    with TTTRun(adapter, config) as run:
        run.adapt(records)
        expected = [entry for batch in run.predict(records) for entry in batch]
    run_ttt(adapter, records, config)
    found = [entry for batch in TorchAdapterPredictions(adapter, records, 4) for entry in batch]
    assert [e["classification"]["score"] for e in found] == pytest.approx(
        [e["classification"]["score"] for e in expected]
    )


class TorchAdapterPredictions:
    """Predictions of the base model in batches of one size."""

    def __init__(self, adapter: TorchAdapter, records: Any, size: int) -> None:
        self.adapter, self.records, self.size = adapter, records, size

    def __iter__(self) -> Iterator[list[Any]]:
        for start in range(0, len(self.records), self.size):
            yield self.adapter.predict(self.records[start : start + self.size])


class OnlyPredicts:
    """An adapter of a third party, with the two optional functions, whose predict calls the model directly."""

    name = "third_party"

    def __init__(self) -> None:
        self.inner = TorchAdapter(f"{FACTORIES}:classifier")
        self.reader = ImageReader()

    def get_model(self) -> Any:
        return self.inner.get_model()

    def build_loader(self, records: Any, *, batch_size: int) -> Iterator[Any]:
        for batch in self.inner.build_loader(records, batch_size=batch_size):
            yield batch.inputs

    def predict(self, records: Any) -> list[Any]:
        import torch

        (batch,) = self.inner.build_loader(records, batch_size=99)
        with torch.no_grad():
            return self.inner.entries(self.get_model()(batch.inputs), batch)


def test_an_adapter_with_only_predict_predicts_with_the_adapted_model(folder: Path) -> None:
    adapter, records = OnlyPredicts(), load_dataset(folder / "images").records
    plain = adapter.predict(records)
    before = tensors_of(adapter.get_model())
    with TTTRun(adapter, TTTConfig(method="cotta", batch_size=7, lr=0.01, method_options={"view_count": 2})) as run:  # type: ignore[arg-type]
        run.adapt(records)
        (adapted,) = run.predict(records)
        assert run.report().batches == 1
    assert adapted != plain
    assert_identical(adapter.get_model(), before)
    with pytest.raises(TTTNotSupportedError, match="entries"):
        TTTRun(adapter, TTTConfig(reset="online"))  # type: ignore[arg-type]


def test_dry_run_lists_parameters_and_changes_nothing() -> None:
    adapter = TorchAdapter(f"{FACTORIES}:classifier")
    before = tensors_of(adapter.get_model())
    assert dry_run(adapter, TTTConfig(update_filter="norm_only")) == [("1.weight", (8,)), ("1.bias", (8,))]
    low_rank = dry_run(adapter, TTTConfig(update_filter="lora_only", lora_rank=2, lora_targets=("5",)))
    assert [shape for _, shape in low_rank] == [(2, 32), (5, 2)]
    assert_identical(adapter.get_model(), before)


@pytest.mark.parametrize("content", ["{}", "[1, 2]", '{"predictions": 3}', "nonsense"])
def test_files_without_predictions_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(DataError):
        read_predictions(path)


def test_the_dummy_adapter_predicts_no_objects(folder: Path) -> None:
    result: ExportResult = export(job(folder, adapter=AdapterOptions(adapter="dummy"), wrap=True))
    assert to_coco(result.entries) == []
    assert [Path(entry["image"]).name for entry in result.entries] == [f"image_{n:03d}.png" for n in range(7)]
    assert result.meta["ttt"]["enabled"] is False
    assert_yolozus_types(json.loads((folder / "out" / "predictions.json").read_text()))


def test_source_images_are_not_corrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from acclimate.methods import eata

    write_images(folder / "source", 3, side=16, seed=3)
    given = {"method": "eata", "reset": "online"}
    seen: list[Any] = []

    def watched(model: Any, batches: Any, **kwargs: Any) -> Any:
        batches = list(batches)
        seen.append(batches[0])
        return original(model, batches, **kwargs)

    original = eata.fisher_information
    monkeypatch.setattr(eata, "fisher_information", watched)
    for corruption in (None, CorruptionSpec("contrast", 5)):
        export(job(folder, ttt=given, ttt_source=folder / "source", corruption=corruption))
    assert np.array_equal(*seen)


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({"reset": "sample"}, True),
        ({"reset": "online", "batch_size": 3}, True),
        ({"reset": "online", "batch_size": 4}, True),
        ({"reset": "online", "batch_size": 7}, False),
        ({"reset": "sample", "method_options": {"batch_statistics": False}}, False),
    ],
)
def test_statistics_of_few_images_cause_a_warning(folder: Path, given: dict[str, Any], warned: bool) -> None:
    # Seven images in batches of four leave a last batch of three.
    report = export(job(folder, ttt=given)).report
    assert report is not None
    assert any("statistics of batches of only" in warning for warning in report.warnings) is warned


def test_a_preset_cannot_be_named_without_applying_it() -> None:
    with pytest.raises(TypeError, match="preset"):
        TTTConfig(preset="safe")  # type: ignore[call-arg]
    config = TTTConfig.resolve({"lr": 0.5}, kind="classifier")
    assert config.filled == ("update_filter", "max_drift", "batch_size")


def test_a_resumed_run_warns_about_the_missing_part_of_its_report(folder: Path) -> None:
    work = job(folder, ttt={"reset": "sample"}, wrap=True)

    def stop(what: str, done: int, total: int) -> None:
        if done >= 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        export(work, progress=stop)
    resumed = export(dataclasses.replace(work, resume=True))
    assert "resumed: the report of the adaptation leaves out the first 3 images" in resumed.meta["warnings"]

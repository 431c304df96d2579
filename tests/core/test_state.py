from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from acclimate.core import Budget, Session, TensorFilter
from acclimate.core.outputs import tensors
from acclimate.core.pacing import Pacing
from acclimate.core.state import SavedState, difference
from acclimate.errors import CheckpointError
from acclimate.methods import BatchNormStats, Tent
from tests.contract.test_methods import METHODS, NETWORKS
from tests.networks import classifier, images


@pytest.mark.parametrize("method", list(METHODS))
def test_a_session_that_loads_a_state_continues_as_if_uninterrupted(method: str, tmp_path: Path) -> None:
    made = METHODS[method]()
    parts = [images(seed=seed) for seed in range(6)]

    def model() -> Any:
        return NETWORKS["classifier-bn"]()[0]

    with Session(model(), made, guards=()) as whole:
        expected = [whole.adapt_and_predict(part)[0] for part in parts][3:]
        report = whole.report()
    with Session(model(), made, guards=()) as first:
        for part in parts[:3]:
            first.adapt_and_predict(part)
        first.save_state(tmp_path / "camera.safetensors")
    with Session(model(), made, guards=(), seed=9) as second:
        second.load_state(tmp_path / "camera.safetensors")
        found = [second.adapt_and_predict(part)[0] for part in parts[3:]]
        resumed = second.report()
    for ours, theirs in zip(tensors(found), tensors(expected), strict=True):
        assert torch.equal(ours, theirs)
    assert resumed.without_times().steps == report.without_times().steps[3:]
    assert resumed.steps_before == 3
    assert resumed.changed_param_count == report.changed_param_count


def test_low_rank_weights_are_saved_too(tmp_path: Path) -> None:
    method = Tent(update=TensorFilter(kind="lora_only", lora_rank=2), lr=1e-2)
    with Session(classifier(), method, guards=()) as session:
        session.adapt(images())
        expected = session.predict(images(seed=3))
        session.save_state(tmp_path / "state")
    with Session(classifier(), method) as session:
        session.load_state(tmp_path / "state")
        assert torch.equal(session.predict(images(seed=3)), expected)


STATES = Path(__file__).parent.parent / "data" / "states"
#: Batches after which another version of a method computes something else on purpose: blend adds every second batch of
#: a settled stream to its statistics now.
BATCHES = {"blend": 2}


@pytest.mark.parametrize(
    "method", sorted(path.stem for path in STATES.glob("*.safetensors") if path.stem != "expected")
)
def test_files_that_named_classes_by_their_python_path_still_load(method: str) -> None:
    # The file was written by acclimate 0.1.0, before classes and modules were renamed; outputs are of that version too.
    expected = load_file(STATES / "expected.safetensors")
    pacing = Pacing(warm_up=2, every=2)
    with Session(NETWORKS["classifier-bn"]()[0], METHODS[method](), pacing=pacing) as session:
        session.load_state(STATES / f"{method}.safetensors")
        for seed in range(3, 3 + BATCHES.get(method, 3)):
            outputs = session.adapt_and_predict(images(seed=seed))[0]
            torch.testing.assert_close(outputs, expected[f"{method}.{seed}"], rtol=1e-4, atol=1e-5)


def test_files_name_a_method_by_its_registered_name_and_version(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Session(classifier(), METHODS["sar"](), guards=()) as session:
        session.adapt(images())
        session.save_state(path)
    with safe_open(path, framework="pt") as file:
        described = file.metadata()
    assert (described["method"], described["method_version"]) == ("sar", "1")
    assert "acclimate." not in described["method_state"]
    newer = dataclasses.replace(SavedState.read(path), method_version=2)
    newer.write(path)
    with Session(classifier(), METHODS["sar"]()) as session, pytest.raises(CheckpointError, match="holds version 2"):
        session.load_state(path)


def saved(path: Path, *, steps: int, seed: int = 0) -> SavedState:
    with Session(classifier(seed=seed), Tent(lr=1e-2), guards=()) as session:
        for number in range(steps):
            session.adapt(images(seed=number))
        session.save_state(path)
    return SavedState.read(path)


def test_the_difference_lists_changed_tensors_with_distances(tmp_path: Path) -> None:
    early, late = saved(tmp_path / "a", steps=1), saved(tmp_path / "b", steps=4)
    moved = difference(early, late)
    assert {tensor.name for tensor in moved} == {"1.weight", "1.bias"}
    assert [tensor.relative for tensor in moved] == sorted((tensor.relative for tensor in moved), reverse=True)
    for tensor in moved:
        gap = late.weights[tensor.name] - early.weights[tensor.name]
        assert tensor.distance == pytest.approx(float(gap.norm()))
        assert tensor.largest == pytest.approx(float(gap.abs().max()))
        assert (tensor.changed, tensor.elements) == (8, 8)
    assert all(tensor.distance == 0 for tensor in difference(late, late))


def test_a_state_of_another_model_or_method_is_refused(tmp_path: Path) -> None:
    state = saved(tmp_path / "state", steps=1)
    update = TensorFilter(kind="all")
    with (
        Session(classifier(), Tent(update=update)) as session,
        pytest.raises(CheckpointError, match="other parameters are"),
    ):
        session.load_state(tmp_path / "state")
    with Session(classifier(seed=1), Tent()) as session, pytest.raises(CheckpointError, match="another model"):
        session.load_state(tmp_path / "state")
    with Session(classifier(), METHODS["eata"]()) as session, pytest.raises(CheckpointError, match="a state of tent"):
        session.load_state(tmp_path / "state")
    with pytest.raises(CheckpointError, match="different models"):
        difference(state, saved(tmp_path / "other", steps=1, seed=1))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("described", "without"),
    [
        ({"method_state": DEEP}, ""),
        ({"settings": "{"}, ""),
        ({"method_version": "one"}, ""),
        ({}, "method"),
        ({}, "stream"),
        ({}, "rng"),
        ({}, "report"),
    ],
)
def test_damaged_state_files_are_refused_in_one_line(tmp_path: Path, described: dict[str, str], without: str) -> None:
    saved(tmp_path / "state", steps=1)
    with safe_open(str(tmp_path / "state"), "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != without}
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != without}  # noqa: SIM118
    save_file(tensors, tmp_path / "damaged", metadata=metadata | described)
    with pytest.raises(CheckpointError, match="damaged") as refused:
        SavedState.read(tmp_path / "damaged")
    assert "\n" not in str(refused.value)


def test_files_that_are_no_state_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        SavedState.read(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read"):
        SavedState.read(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="no state that acclimate saved"):
        SavedState.read(tmp_path / "other")


def test_a_file_cannot_name_other_classes_than_the_methods(tmp_path: Path) -> None:
    saved(tmp_path / "state", steps=1)
    held = SavedState.read(tmp_path / "state")
    described = {
        "format": "acclimate session state 1", "method": "tent", "settings": "{}", "source_sha256": "",
        "optimizer": "{}", "optimizer_name": "Adam", "memory": "{}",
    }  # fmt: skip
    for name in ("os:getcwd", "antigravity:Nothing"):
        described["method_state"] = json.dumps({"class": name, "fields": {}})
        tensors = {"rng": held.rng, "report": torch.zeros(1, dtype=torch.uint8)}
        save_file(tensors, tmp_path / "evil", described)
        with pytest.raises(CheckpointError, match="none of the method's state types"):
            SavedState.read(tmp_path / "evil")
    assert "antigravity" not in sys.modules


def test_the_error_for_an_unsupported_state_names_the_type(tmp_path: Path) -> None:
    class Odd(Tent):
        def start(self, model: Any, selection: Any) -> Any:
            return {"what": object()}

    with Session(classifier(), Odd()) as session, pytest.raises(CheckpointError, match="type object in a state"):
        session.save_state(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Session(classifier(), Tent()) as session, pytest.raises(CheckpointError, match="cannot write"):
        session.save_state(tmp_path / "file" / "state")
    (tmp_path / "state").mkdir()
    with Session(classifier(), Tent()) as session, pytest.raises(CheckpointError, match="cannot write"):
        session.save_state(tmp_path / "state")


def test_settings_come_from_the_session_and_moments_from_the_file(tmp_path: Path) -> None:
    saved(tmp_path / "state", steps=2)
    with Session(classifier(), Tent(lr=1e-5), guards=()) as session:
        session.load_state(tmp_path / "state")
        assert session.optimizer is not None
        assert session.optimizer.param_groups[0]["lr"] == 1e-5
        assert len(session.optimizer.state) == 2
    sar = METHODS["sar"]
    with Session(classifier(), sar(base="adam"), guards=()) as session:
        session.adapt(images())
        session.save_state(tmp_path / "sar")
    with Session(classifier(), sar(base="sgd")) as session, pytest.raises(CheckpointError, match="moments of Adam"):
        session.load_state(tmp_path / "sar")


def test_a_loaded_state_does_not_use_up_the_budget(tmp_path: Path) -> None:
    saved(tmp_path / "state", steps=3)
    with Session(classifier(), Tent(), guards=(), budget=Budget(max_steps=1)) as session:
        session.load_state(tmp_path / "state")
        report = session.adapt(images())
        assert (report.verdict, report.index) == ("kept", 3)
        assert session.adapt(images()).verdict == "refused"
        assert session.report().counts == {"kept": 1}


def test_fallback_and_pacing_survive_a_restart(tmp_path: Path) -> None:
    alone = images(1).repeat(64, 1, 1, 1)
    sure = classifier()
    with torch.no_grad():
        sure[5].weight.mul_(40)
    weights = {name: value.clone() for name, value in sure.state_dict().items()}
    with Session(sure, BatchNormStats(source_strength=0), pacing=Pacing(warm_up=1, every=1000)) as session:
        for seed in range(3):
            session.adapt(images(64, seed=seed))
        assert session.report().counts == {"kept": 1, "paused": 2}
        session.adapt(alone)
        assert session.source_comparison.falling_back
        expected = session.predict(images(32))
        session.save_state(tmp_path / "state")
    again = classifier()
    again.load_state_dict(weights)
    with Session(again, BatchNormStats(source_strength=0), pacing=Pacing(warm_up=1, every=1000)) as session:
        session.load_state(tmp_path / "state")
        assert torch.equal(session.predict(images(32)), expected)
        session.source_comparison.falling_back = False
        assert session.adapt(images(64, seed=2)).verdict == "paused"


def test_a_long_report_can_be_saved(tmp_path: Path) -> None:
    with Session(classifier(), Tent(), guards=()) as session:
        report = session.adapt(images(1))
        session.save_state(tmp_path / "short")
    short = SavedState.read(tmp_path / "short")
    long = dataclasses.replace(short.report, steps=(report,) * 50_000)
    dataclasses.replace(short, report=long).write(tmp_path / "long")
    assert len(SavedState.read(tmp_path / "long").report.steps) == 50_000

"""Checkpoints as training code writes them, and files that are none."""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import CheckpointError
from acclimate.vision.models.checkpoints import load_checkpoint
from tests.networks import assert_identical, classifier, tensors_of


def state() -> dict[str, Tensor]:
    return classifier(seed=5).state_dict()


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state().items()}


class Executes:
    """What a hostile pickle does: it calls a function when it is loaded."""

    called = False

    def __reduce__(self) -> Any:
        return (_note_call, ())


def _note_call() -> dict[str, Any]:
    Executes.called = True
    return {}


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (state, []),
        (lambda: prefixed("module."), ["prefix 'module.'"]),
        (lambda: prefixed("module._orig_mod."), ["prefix 'module._orig_mod.'"]),
        (lambda: {"state_dict": state(), "epoch": 3}, ["under 'state_dict'"]),
        (lambda: {"model": state(), "optimizer": {"state": {}, "param_groups": []}}, ["under 'model'"]),
        (lambda: {"model_state_dict": prefixed("module.")}, ["under 'model_state_dict'", "prefix 'module.'"]),
        (
            lambda: {"model": classifier().state_dict(), "ema": state()},
            [r"under 'ema' .*also has weights under 'model'"],
        ),
        (lambda: {"ema": {"module": state(), "updates": 7}}, [r"under 'ema\.module'"]),
        (lambda: {"model_ema": state(), "args": {"lr": 0.1}}, ["under 'model_ema'"]),
        (lambda: {"state_dict": prefixed("model."), "loops": {}}, ["under 'state_dict'", "prefix 'model.'"]),
        # What fits is taken, whatever its place in the order.
        (lambda: {"ema": {"decay": torch.ones(1)}, "model": state()}, ["under 'model'"]),
    ],
)
def test_weights_are_unwrapped_and_it_is_said(
    tmp_path: Path, content: Callable[[], dict[str, Any]], notes: list[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content(), path)
    model = classifier()
    found = load_checkpoint(model, path, trust_pickle=False)
    assert_identical(model, state())
    assert len(found) == len(notes)
    for note, expected in zip(found, notes, strict=True):
        assert note.startswith("checkpoint: ")
        assert "\n" not in note
        assert re.search(expected, note), note


def test_names_that_have_a_known_prefix_in_the_model_too_are_kept(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = classifier(seed=5)

    torch.save(Outer().state_dict(), tmp_path / "weights.pt")
    outer = Outer()
    assert load_checkpoint(outer, tmp_path / "weights.pt", trust_pickle=False) == ()


def test_nothing_is_executed_without_permission(tmp_path: Path) -> None:
    for number, content in enumerate([Executes(), {"state_dict": state(), "extra": Executes()}]):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        raw = tmp_path / f"{number}.pkl"
        raw.write_bytes(pickle.dumps(content))
        for file in (path, raw):
            Executes.called = False
            with pytest.raises(CheckpointError, match="--trust-pickle") as caught:
                load_checkpoint(classifier(), file, trust_pickle=False)
            assert "\n" not in str(caught.value)
            assert not Executes.called
    model = classifier()
    load_checkpoint(model, tmp_path / "1.pt", trust_pickle=True)
    assert Executes.called
    assert_identical(model, state())


def test_a_whole_pickled_module_needs_permission(tmp_path: Path) -> None:
    torch.save({"model": classifier(seed=5)}, tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn.*save only the state_dict.*--trust-pickle"):
        load_checkpoint(classifier(), tmp_path / "module.pt", trust_pickle=False)
    model = classifier()
    (note,) = load_checkpoint(model, tmp_path / "module.pt", trust_pickle=True)
    assert "under 'model'" in note
    assert_identical(model, state())


def test_a_class_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ModuleType("a_training_library")
    gone.Config = type("Config", (), {"__module__": "a_training_library"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_training_library", gone)
    torch.save({"model": state(), "config": gone.Config()}, tmp_path / "weights.pt")
    monkeypatch.delitem(sys.modules, "a_training_library")
    with pytest.raises(CheckpointError, match=r"a_training_library\.Config.*--trust-pickle"):
        load_checkpoint(classifier(), tmp_path / "weights.pt", trust_pickle=False)
    with pytest.raises(CheckpointError, match=r"cannot be imported \(No module named 'a_training_library'\)"):
        load_checkpoint(classifier(), tmp_path / "weights.pt", trust_pickle=True)


def _bytes(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pt", lambda: b"", "cannot be loaded"),
        ("noise.pt", lambda: bytes(range(256)) * 8, "cannot be loaded|pickle"),
        ("text.pt", lambda: b"hello", "cannot be loaded|pickle"),
        ("half.pt", lambda: _bytes(lambda b: torch.save(state(), b))[:900], "cannot be loaded"),
        ("half.safetensors", lambda: b"\x10\0\0", "cannot be loaded"),
        ("list.pt", lambda: _bytes(lambda b: torch.save([1, 2], b)), "no weights: it is an object of type list"),
        ("keys.pt", lambda: _bytes(lambda b: torch.save({"epoch": 3, "lr": 0.1}, b)), "its keys are epoch, lr"),
        ("nothing.pt", lambda: _bytes(lambda b: torch.save({}, b)), "it is empty"),
        ("script.pt", lambda: _bytes(lambda b: torch.jit.save(torch.jit.script(classifier()), b)), r"torch\.jit\.load"),
        ("other.pt", lambda: _bytes(lambda b: torch.save({"model": {"w": torch.ones(1)}}, b)), "Missing key"),
        (
            "shape.pt",
            lambda: _bytes(lambda b: torch.save({"module." + k: v[:1] for k, v in state().items() if v.dim()}, b)),
            "size mismatch|Missing key",
        ),
    ],
)
def test_files_that_cannot_be_used_are_one_line(
    tmp_path: Path, name: str, content: Callable[[], bytes], message: str, trust: bool
) -> None:
    path = tmp_path / name
    path.write_bytes(content())
    model = classifier()
    before = tensors_of(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, path, trust_pickle=trust)
    assert "\n" not in str(caught.value)
    if name not in ("shape.pt",):
        assert_identical(model, before)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(classifier(), tmp_path, trust_pickle=False)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(classifier(), tmp_path / "none.pt", trust_pickle=False)

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from acclimate.core import Session, TensorFilter
from acclimate.core.determinism import parse_device
from acclimate.core.precision import MasterCopies, dtype_of, name_of, optimizer_for, parse_dtype
from acclimate.core.views import augmented, normalised_range
from acclimate.errors import CheckpointError, ConfigError
from acclimate.methods import Cotta, Lame, Sar, Tent
from tests.networks import assert_identical, classifier, images, tensors_of

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
def test_tent_learns_in_half_precision_what_it_learns_in_float32(dtype: torch.dtype) -> None:
    def adapted(model: nn.Module, batch: torch.Tensor) -> tuple[list[str], torch.Tensor]:
        with Session(model, Tent(lr=1e-4)) as session:
            verdicts = [session.adapt(batch).verdict for _ in range(20)]
        return verdicts, model.state_dict()["1.weight"].float()

    start = classifier().state_dict()["1.weight"]
    verdicts, expected = adapted(classifier(), images())
    found, weight = adapted(classifier().to(dtype), images().to(dtype))
    assert found == verdicts == ["kept"] * 20
    # Twenty steps of 1e-4 add up to 2e-3, although one of them is less than the distance of two numbers around 1.
    spacing = torch.finfo(dtype).eps
    assert float((expected - start).abs().max()) > 1.5e-3
    assert float((weight - expected).abs().max()) <= spacing


@pytest.mark.parametrize("dtype", HALVES)
def test_a_reset_restores_the_copies_too(dtype: torch.dtype) -> None:
    batch = images().to(dtype)
    with Session(classifier().to(dtype), Tent(lr=1e-4), guards=()) as session:
        assert isinstance(session.optimizer, MasterCopies)
        first = [session.adapt(batch).loss for _ in range(8)]
        copies = [copy.clone() for copy in session.optimizer.copies]
        session.reset()
        assert [session.adapt(batch).loss for _ in range(8)] == first
        assert all(torch.equal(a, b) for a, b in zip(copies, session.optimizer.copies, strict=True))
        session.adapt(batch)
        session.rollback()
        assert all(torch.equal(a, b) for a, b in zip(copies, session.optimizer.copies, strict=True))


def test_a_saved_state_goes_on_with_the_copies(tmp_path: Path) -> None:
    batch = images().bfloat16()

    def session() -> Session:
        return Session(classifier().bfloat16(), Tent(lr=1e-4), guards=())

    with session() as whole:
        expected = [whole.adapt(batch).loss for _ in range(30)]
    with session() as first:
        found = [first.adapt(batch).loss for _ in range(15)]
        first.save_state(tmp_path / "state.safetensors")
    with session() as second:
        second.load_state(tmp_path / "state.safetensors")
        found += [second.adapt(batch).loss for _ in range(15)]
    assert found == expected
    sar = Sar(base="sgd", frozen_layers=())
    with (
        Session(classifier().bfloat16(), sar) as other,
        pytest.raises(CheckpointError, match="state of tent"),
    ):
        other.load_state(tmp_path / "state.safetensors")


def test_changes_from_outside_are_taken_into_the_copies() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    single = nn.Parameter(torch.ones(1))
    optimizer = optimizer_for([parameter, single], lambda values: torch.optim.SGD(values, lr=1e-3))
    assert isinstance(optimizer, MasterCopies)
    assert name_of(optimizer) == "SGD on float32 copies"
    assert len(optimizer.copies) == 1, "a parameter in float32 needs no copy"
    for _ in range(8):
        parameter.grad, single.grad = torch.ones_like(parameter), torch.ones_like(single)
        optimizer.step()
    torch.testing.assert_close(optimizer.copies[0], torch.full((2,), 0.992))
    torch.testing.assert_close(parameter.float(), torch.full((2,), 0.992), atol=2e-3, rtol=0)
    torch.testing.assert_close(single.detach(), torch.tensor([0.992]))
    with torch.no_grad():
        parameter[0] = 5.0
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.copies[0].tolist() == [5.0, pytest.approx(0.992)]
    plain = optimizer_for([single], lambda values: torch.optim.SGD(values, lr=1e-3))
    assert type(plain) is torch.optim.SGD


@pytest.mark.parametrize("dtype", HALVES)
def test_lame_and_a_teacher_work_in_half_precision(dtype: torch.dtype) -> None:
    batch = images().to(dtype)
    with Session(classifier(), Lame()) as exact, Session(classifier().to(dtype), Lame()) as half:
        torch.testing.assert_close(half.predict(batch), exact.predict(batch.float()), atol=0.05, rtol=0.05)
    with Session(classifier().to(dtype), Cotta(lr=1e-2, ema=0.99, view_count=2), guards=()) as session:
        start = {name: value.clone() for name, value in session.state.teacher.items()}
        for _ in range(3):
            session.adapt(batch)
        # A hundredth of the difference would be lost in half precision.
        moved = [not torch.equal(start[name], value) for name, value in session.state.teacher.items()]
        assert all(value.dtype == torch.float32 for value in session.state.teacher.values())
        assert sum(moved) >= 5


def test_images_in_half_precision_may_be_rounded_beyond_the_pixel_range() -> None:
    pixel_range = normalised_range((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    white = (torch.ones(2, 3, 8, 8) - 0.4) / 0.225
    white[:] = torch.tensor(pixel_range[1])[None, :, None, None]
    for dtype in HALVES:
        rng = torch.Generator().manual_seed(0)
        found = augmented(white.to(dtype), rng=rng, pixel_range=pixel_range, flip_probability=0.5)
        assert found.dtype == dtype


def test_under_autocast_the_updated_weights_predict() -> None:
    model, batch = classifier(), images()
    update = TensorFilter(kind="all", include=("5",))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        Session(model, Tent(lr=0.1, update=update, batch_statistics=False), guards=()) as session,
    ):
        before = session.predict(batch)
        session.adapt(batch)
        after = session.predict(batch)
        with torch.no_grad():
            fresh = model(batch).float()
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, fresh, atol=0.05, rtol=0.05)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(after, model(batch).float(), atol=0.05, rtol=0.05)


def test_number_formats_have_names() -> None:
    assert parse_dtype("bfloat16") == torch.bfloat16
    assert dtype_of(classifier().double()) == torch.float64
    assert dtype_of(nn.ReLU()) == torch.float32
    with pytest.raises(ConfigError, match="float32, float16, bfloat16, float64"):
        parse_dtype("int8")


def test_the_meta_device_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no values") as caught:
        parse_device("meta")
    assert "\n" not in str(caught.value)


def test_float64_stays_exact() -> None:
    model, batch = classifier().double(), images().double()
    before = tensors_of(model)
    with Session(model, Tent(), restore=True) as session:
        report = session.adapt(batch)
        assert report.update_norm > 0
        assert session.predict(batch).dtype == torch.float64
    assert_identical(model, before)

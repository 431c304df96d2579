"""Models whose weights cannot be trained are refused with a remedy that works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acclimate.core import Classification, Session, Task
from acclimate.core.programs import Program, unwrapped
from acclimate.core.source_images import SourceImages
from acclimate.core.spectrum import measure
from acclimate.errors import TTTNotSupportedError
from acclimate.methods import Align, BatchNormStats, Blend, Cotta, Eata, Lame, Memo, Mim, SpectrumFilter, Tent
from acclimate.methods.eata import fisher_information
from tests.networks import assert_identical, assert_same_objects, classifier, images, objects_of, tensors_of


class NoGrad(nn.Module):
    """A classifier whose forward pass records no gradient."""

    def __init__(self, mode: Callable[[], Any], inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.mode = inner, mode

    def forward(self, batch: Tensor) -> Tensor:
        with self.mode():
            found: Tensor = self.inner(batch)
        return found


def exported(model: nn.Module) -> Any:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))


PROGRAMS = {
    "script": lambda: torch.jit.script(classifier()),
    "trace": lambda: torch.jit.trace(classifier(), images(2)),
    "export": lambda: exported(classifier()),
}
SMOOTH = torch.nn.functional.interpolate(images(32, side=4, seed=9), size=32, mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs_predict_and_methods_that_change_images_adapt_them(kind: str) -> None:
    program = Program.of(PROGRAMS[kind]())
    assert program is not None
    expected = classifier()(images())
    torch.testing.assert_close(program(images()), expected)
    source = SourceImages(spectrum=measure([SMOOTH]))
    for method in (SpectrumFilter(), Blend()):
        ready = method.with_source(program, source, task=Classification())
        with Session(program, ready, guards=()) as session:
            outputs, report = session.adapt_and_predict(images())
            assert report.verdict == "kept"
            assert not torch.allclose(outputs, expected, atol=1e-3), "the filter has an effect"
            session.predict_as_source(images())


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize("method", [Tent(), Cotta(), Mim(), Memo(), Eata(), BatchNormStats(), Align(), Blend()])
@pytest.mark.parametrize("wraps", [True, False])
def test_methods_that_change_a_programs_layers_are_refused(kind: str, method: Any, wraps: bool) -> None:
    made = PROGRAMS[kind]()
    model: Any = Program.of(made) if wraps else made.module() if kind == "export" else made
    with pytest.raises(TTTNotSupportedError, match="spectrum or blend") as caught:
        Session(model, method).__enter__()
    assert "tent" not in str(caught.value), "what fails too is no advice"


def test_lame_says_that_a_program_shows_no_linear_layer() -> None:
    program = Program.of(PROGRAMS["script"]())
    assert program is not None
    with Session(program, Lame()) as session, pytest.raises(TTTNotSupportedError, match="no linear layer"):
        session.adapt(images())


def test_methods_that_do_not_change_layers_say_how_to_wrap_a_program() -> None:
    with pytest.raises(TTTNotSupportedError, match="wrap it with"):
        Session(torch.jit.script(classifier()), Lame()).__enter__()


def test_a_model_is_no_program() -> None:
    assert Program.of(classifier()) is None
    assert Program.of(torch.fx.symbolic_trace(classifier())) is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", [Tent(), Eata(), Cotta(), Mim(), Memo()])
def test_a_forward_pass_without_gradient_is_found_before_anything_is_adapted(
    mode: Callable[[], Any], method: Any
) -> None:
    model = NoGrad(mode, classifier()).eval()
    before = tensors_of(model)
    with (
        Session(model, method) as session,
        pytest.raises(TTTNotSupportedError, match=r"torch\.no_grad or torch\.inference_mode.*use bn or blend"),
    ):
        session.adapt_and_predict(images())
    assert_identical(model, before)
    norms = NoGrad(mode, classifier("ln")).eval()
    with Session(norms, method) as session, pytest.raises(TTTNotSupportedError, match="use spectrum or blend with"):
        session.adapt(images())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", [BatchNormStats(), Blend(), Lame()])
def test_methods_without_gradient_work_there(mode: Callable[[], Any], method: Any) -> None:
    with Session(NoGrad(mode, classifier()).eval(), method) as session:
        session.adapt_and_predict(images())
        assert session.predict(images()).shape == (8, 5)


def test_the_fisher_information_names_the_missing_gradient() -> None:
    with pytest.raises(TTTNotSupportedError, match="Fisher information learns from gradients"):
        fisher_information(NoGrad(torch.no_grad, classifier()).eval(), [images()])


def test_mim_may_learn_from_a_reconstruction_although_the_outputs_have_no_gradient() -> None:
    class Rebuilding(NoGrad):
        def __init__(self) -> None:
            super().__init__(torch.no_grad, classifier())
            self.norm = nn.GroupNorm(1, 3)

        def reconstruct(self, batch: Tensor) -> Tensor:
            rebuilt: Tensor = self.norm(batch)
            return rebuilt

    with Session(Rebuilding().eval(), Mim(patch_size=4), guards=()) as session:
        assert session.adapt(images()).verdict == "kept"


def test_parameters_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = classifier()
    with pytest.raises(TTTNotSupportedError, match="outside of it, or use bn or blend"):
        Session(model, Tent()).__enter__()


def test_the_module_inside_a_wrapper_is_adapted(tmp_path: Path) -> None:
    def run(model: nn.Module, task: Task) -> list[Any]:
        with Session(model, Tent(), task=task) as session:
            steps = [session.adapt_and_predict(images()) for _ in range(3)]
        return [(outputs.tolist(), report.loss) for outputs, report in steps]

    expected = run(classifier(), Classification())
    parallel = nn.DataParallel(classifier())
    before = objects_of(parallel)
    assert run(parallel, Classification()) == expected
    assert_same_objects(parallel, before)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        distributed = nn.parallel.DistributedDataParallel(classifier())
        assert unwrapped(nn.DataParallel(distributed)) is distributed.module
        assert run(distributed, Classification()) == expected
    finally:
        torch.distributed.destroy_process_group()

"""The real network on real corrupted images, against the numbers of the authors' code."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from acclimate.methods import BatchNormStats, Eata, Sar, Tent
from acclimate.methods.eata import fisher_information

FOLDER = Path(os.environ.get("ACCLIMATE_DATA", "/nowhere")) / "cifar10"
SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "cifar" / "run.py"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="set ACCLIMATE_DATA to a folder with cifar10/ (see benchmarks/cifar/README.md)"
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cifar_run"] = module
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    return module


@pytest.fixture(scope="module")
def setting(benchmark: ModuleType) -> tuple[Any, Any]:
    return benchmark.Data(FOLDER), benchmark.load(FOLDER / "resnet20.safetensors")


@pytest.mark.slow
def test_batch_statistics_give_the_authors_errors_to_the_last_digit(
    benchmark: ModuleType, setting: tuple[Any, Any]
) -> None:
    data, model = setting
    stream = benchmark.Stream("short", corruptions=("brightness", "jpeg"))
    assert benchmark.measure_plain(model, stream, data).error_percent == {"brightness": 12.88, "jpeg": 31.32}
    run = benchmark.measure(model, BatchNormStats(source_strength=0), stream, data, name="bn")
    assert [round(error, 1) for error in run.error_percent.values()] == [17.5, 33.5]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "authors"), [("tent", 28.98), ("eata", 27.88), ("sar", 29.73)])
def test_errors_are_within_a_third_of_a_point_of_the_authors_or_below(
    benchmark: ModuleType, setting: tuple[Any, Any], name: str, authors: float
) -> None:
    data, model = setting
    fisher = fisher_information(model, data.source.split(64))
    method = {"tent": Tent(), "eata": Eata(fisher=fisher), "sar": Sar(base="adam")}[name]
    run = benchmark.measure(model, method, benchmark.Stream("continual"), data, name=name)
    assert run.mean_error_percent <= authors + 0.3

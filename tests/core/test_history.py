"""A session that goes on in another process from a state with history makes the same decisions, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from acclimate.core import Session
from acclimate.core.outputs import tensors
from acclimate.core.pacing import Pacing
from tests.contract.test_methods import CASES, METHODS, NETWORKS
from tests.networks import tensors_of

#: One network of each kind; the others differ in ways that do not concern state.
KINDS = (
    "classifier-bn",
    "classifier-gn",
    "multilabel-bn",
    "segmenter-bn",
    "detector-sigmoid-bn",
    "classifier-bfloat16",
)


def batches(batch: torch.Tensor) -> list[torch.Tensor]:
    return [(batch.roll(step, 0) * (1 - 0.1 * step)).to(batch.dtype) for step in range(6)]


def run(session: Session, parts: list[torch.Tensor]) -> list[Any]:
    found: list[Any] = []
    for part in parts:
        outputs, report = session.adapt_and_predict(part)
        found.append((report.verdict, report.code, report.reason, report.loss, report.update_norm))
        found += [tensor.tolist() for tensor in tensors(outputs)]
    return found


@pytest.mark.parametrize(
    ("method", "network"), [pytest.param(*case.values, id=case.id) for case in CASES if case.values[1] in KINDS]
)
def test_a_stream_goes_on_to_the_bit(method: str, network: str, tmp_path: Path) -> None:
    def made() -> tuple[Any, torch.Tensor, dict[str, Any]]:
        model, batch, task = NETWORKS[network]()
        pacing = Pacing(warm_up=2, every=2) if method == "tent" else None
        return model, batch, {"task": task, "seed": 3, "pacing": pacing}

    model, batch, settings = made()
    parts = batches(batch)
    with Session(model, METHODS[method](), **settings) as session:
        expected = run(session, parts)
        weights = tensors_of(model)
    first, _, settings = made()
    with Session(first, METHODS[method](), **settings) as session:
        found = run(session, parts[:3])
        session.save_state(tmp_path / "state.safetensors", with_history=True)
    second, _, settings = made()
    with Session(second, METHODS[method](), **settings) as session:
        session.load_state(tmp_path / "state.safetensors")
        found += run(session, parts[3:])
        for name, value in tensors_of(second).items():
            assert torch.equal(value, weights[name]), name
    assert found == expected


def test_without_history_the_comparison_begins_anew(tmp_path: Path) -> None:
    model, batch, task = NETWORKS["classifier-bn"]()
    with Session(model, METHODS["tent"](), task=task) as session:
        run(session, batches(batch))
        checked = session.source_comparison.images_checked
        session.save_state(tmp_path / "plain")
        session.save_state(tmp_path / "history", with_history=True)
    assert checked > 0
    for name, expected in (("plain", 0), ("history", checked)):
        fresh, _, _ = NETWORKS["classifier-bn"]()
        with Session(fresh, METHODS["tent"](), task=task) as session:
            session.load_state(tmp_path / name)
            assert session.source_comparison.images_checked == expected

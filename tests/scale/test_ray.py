"""Two Ray workers on this machine, of which one is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from acclimate.errors import ConfigError
from acclimate.scale.export import export_shards, read_rows
from acclimate.scale.ray_engine import ShardProgress
from acclimate.vision.models.loading import AdapterOptions
from tests.networks import write_images
from tests.scale.test_shards import job

pytestmark = pytest.mark.slow
#: The same weights as the classifier of the reference, and long enough at work to be seen doing it.
SLOW = AdapterOptions(adapter="torch", model="tests.scale.factories:slow_classifier")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cameras")
    for seed, (name, count) in enumerate({"dock": 40, "gate": 24, "yard": 6}.items()):
        write_images(folder / name, count, side=24, seed=seed)
    return folder


@pytest.mark.parametrize("policy", ["online tent", "stream tent", "sample tent"])
def test_rows_are_those_of_one_machine_although_a_worker_was_killed(images: Path, policy: str, tmp_path: Path) -> None:
    reference, work = job(images, tmp_path / "reference", policy), job(images, tmp_path / "out", policy, adapter=SLOW)
    export_shards(reference, engine="here")
    seen: list[ShardProgress] = []
    killed: list[int] = []

    def note(progress: ShardProgress) -> None:
        seen.append(progress)
        started = progress.adapted + progress.predicted
        if progress.shard == "dock" and progress.worker is not None and started > 0 and not killed:
            killed.append(progress.worker)
            os.kill(progress.worker, signal.SIGKILL)

    result = export_shards(work, engine="ray", workers=2, on_progress=note)
    assert result.failed == {}
    assert killed
    assert list(read_rows(work.output)) == list(read_rows(reference.output))
    workers = {progress.worker for progress in seen if progress.worker is not None}
    assert len(workers) >= 3
    assert os.getpid() not in workers
    assert {progress.shard for progress in seen if progress.finished} == {"dock", "gate", "yard"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {shard["name"]: shard["attempts"] for shard in manifest["shards"]} == {"dock": 2, "gate": 1, "yard": 1}


def test_a_shard_that_ends_every_worker_fails_by_itself_and_is_resumed(images: Path, tmp_path: Path) -> None:
    work = job(images, tmp_path / "out", attempts=2)

    def kill(progress: ShardProgress) -> None:
        if progress.shard == "gate" and progress.worker is not None:
            os.kill(progress.worker, signal.SIGKILL)

    result = export_shards(work, engine="ray", workers=2, on_progress=kill)
    assert list(result.failed) == ["gate"]
    assert "2 workers ended one after the other" in result.failed["gate"]
    assert {row["shard"] for row in read_rows(work.output)} == {"dock", "yard"}
    again = job(images, tmp_path / "out", attempts=2, resume=True)
    assert export_shards(again, engine="ray", workers=2).failed == {}
    export_shards(job(images, tmp_path / "reference"), engine="here")
    assert list(read_rows(work.output)) == list(read_rows(str(tmp_path / "reference")))


def test_a_model_that_cannot_be_loaded_ends_the_export(images: Path, tmp_path: Path) -> None:
    missing: Any = AdapterOptions(adapter="torch", model="tests.vision.factories:nothing")
    with pytest.raises(ConfigError, match="nothing"):
        export_shards(job(images, tmp_path / "out", adapter=missing), engine="ray", workers=1)

"""Two Ray workers on this machine, of which one is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from acclimate.errors import ConfigError
from acclimate.scale.export import export_shards, read_rows
from acclimate.scale.ray_engine import ShardProgress
from acclimate.vision.models.loading import AdapterOptions
from tests.monitoring.databases import free_port
from tests.networks import write_images
from tests.scale.archives import write_archive
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


@pytest.mark.parametrize("policy", ["online tent", "stream tent"])
def test_archives_on_workers_of_which_one_is_killed(images: Path, policy: str, tmp_path: Path) -> None:
    """Each archive is listed by the worker that has it, again by the one after it, and becomes one of predictions."""
    for name in ("dock", "gate", "yard"):
        write_archive(tmp_path / "tars" / f"{name}.tar", sorted((images / name).iterdir()))
    (tmp_path / "tars" / "zoo.tar").write_bytes((tmp_path / "tars" / "gate.tar").read_bytes()[:-20_000])
    given: dict[str, Any] = {"source": str(tmp_path / "tars"), "format": "webdataset"}
    reference = job(images, tmp_path / "reference", policy, **given)
    assert list(export_shards(reference, engine="here").failed) == ["zoo"]
    work = job(images, tmp_path / "out", policy, adapter=SLOW, **given)
    killed: list[int] = []

    def kill(progress: ShardProgress) -> None:
        started = progress.adapted + progress.predicted
        if progress.shard == "dock" and progress.worker is not None and started > 0 and not killed:
            # Until an archive was listed nobody knows how many images it has.
            assert progress.images == 40
            killed.append(progress.worker)
            os.kill(progress.worker, signal.SIGKILL)

    result = export_shards(work, engine="ray", workers=2, on_progress=kill)
    assert list(result.failed) == ["zoo"]
    assert "zoo.tar is damaged or cut off" in result.failed["zoo"]
    assert killed
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {shard["name"]: shard["attempts"] for shard in manifest["shards"]} == {
        "dock": 2, "gate": 1, "yard": 1, "zoo": 1,
    }  # fmt: skip
    assert [shard["images"] for shard in manifest["shards"]] == [40, 24, 6, 0]
    for name in ("dock", "gate", "yard"):
        mine, other = (tmp_path / folder / f"{name}.tar" for folder in ("out", "reference"))
        assert mine.read_bytes() == other.read_bytes()
    (tmp_path / "tars" / "zoo.tar").write_bytes((tmp_path / "tars" / "gate.tar").read_bytes())
    assert export_shards(dataclasses.replace(work, resume=True), engine="ray", workers=1).failed == {}
    assert sum(1 for _ in read_rows(work.output)) == 94


def acclimate(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "acclimate", *arguments]


def test_an_export_on_a_cluster_that_runs_already(images: Path, tmp_path: Path) -> None:
    """The cluster goes on after the export, and after one whose driver was killed, which does not block the next."""
    reference = job(images, tmp_path / "reference", batches_per_commit=1)
    export_shards(reference, engine="here")
    arguments = [
        "export", str(images), "--adapter", "torch", "--ttt", "--ttt-method", "tent", "--ttt-reset", "online",
        "--ttt-lr", "1e-2", "--ttt-batch-size", "2", "--commit-every", "1", "--workers", "2",
        "--engine", "ray",
    ]  # fmt: skip
    plain = [*arguments, "--model", "tests.vision.factories:classifier", "-o", str(tmp_path / "out")]
    slow = [*arguments, "--model", "tests.scale.factories:slow_classifier", "-o", str(tmp_path / "slow")]
    with running_cluster(2) as (address, environment):
        at = ["--ray-address", address]
        done = subprocess.run(acclimate(*plain, *at), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "70 of 70 images predicted in 3 shards" in done.stderr
        assert list(read_rows(str(tmp_path / "out"))) == list(read_rows(reference.output))
        # Ray says no more than that it cannot connect.
        without_token = {name: value for name, value in environment.items() if name != "RAY_AUTH_MODE"}
        refused = subprocess.run(
            acclimate(*plain, *at, "--resume"), env=without_token, capture_output=True, text=True, timeout=300
        )
        assert refused.returncode == 2
        last_line = refused.stderr.splitlines()[-1]
        assert last_line.startswith(f"Error: no Ray cluster at {address}: ")
        assert last_line.endswith("and set RAY_AUTH_MODE=token if the cluster was started with a token")
        first = subprocess.Popen(acclimate(*slow, *at), env=environment, stderr=subprocess.PIPE, text=True)
        try:
            commit = tmp_path / "slow" / "shards" / "dock" / "commit.json"
            deadline = time.monotonic() + 120
            while not commit.exists() and time.monotonic() < deadline:
                assert first.poll() is None, first.communicate()[1]
                time.sleep(0.1)
            second = subprocess.run(
                acclimate(*slow, *at, "--resume"), env=environment, capture_output=True, text=True, timeout=300
            )
            assert second.returncode == 2
            assert f"process {first.pid} on " in second.stderr
            assert "is writing" in second.stderr
            assert first.poll() is None
        finally:
            first.kill()
            first.communicate()
        last = subprocess.run(
            acclimate(*slow, *at, "--resume"), env=environment, capture_output=True, text=True, timeout=300
        )
        assert last.returncode == 0, last.stderr
        assert list(read_rows(str(tmp_path / "slow"))) == list(read_rows(reference.output))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_an_address_where_nobody_listens_is_said_at_once(images: Path, host: str, tmp_path: Path) -> None:
    address, began = f"{host}:{free_port()}", time.monotonic()
    with pytest.raises(ConfigError, match=rf"^no Ray cluster at {re.escape(address)}: .*; check the address, or"):
        export_shards(job(images, tmp_path / "out"), engine="ray", address=address)
    assert time.monotonic() - began < 30


@contextmanager
def running_cluster(processors: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a cluster that only this machine reaches; yield its address, and the environment of its drivers."""
    root = Path(__file__).parents[2]
    path = f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', root)}"
    environment = os.environ | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": path,
    }  # fmt: skip
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", f"--ray-client-server-port={free_port()}", f"--num-cpus={processors}",
            "--include-dashboard=false", f"--dashboard-agent-listen-port={free_port()}",
            f"--object-store-memory={80 * 2**20}", f"--temp-dir={folder}/ray", "--disable-usage-stats",
        ]  # fmt: skip
        with log.open("wb") as file:
            head = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text() and time.monotonic() < deadline:
                assert head.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}", environment
        finally:
            # It ends the processes that it has started, and no other cluster's, as "ray stop" does.
            head.terminate()
            try:
                head.wait(60)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(head.pid, signal.SIGKILL)

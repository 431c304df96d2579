"""One driver at a time for an output folder, here and in an object store; the other one is a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from acclimate.errors import ConfigError
from acclimate.scale import export as scale_export
from acclimate.scale.drivers import sole_driver
from acclimate.scale.export import export_shards, read_rows
from acclimate.scale.ray_engine import ShardProgress
from acclimate.storage import Folder
from acclimate.vision.run.export import ExportJob, export
from tests.networks import write_images
from tests.scale.object_store import s3_server
from tests.scale.test_shards import MODEL, KilledError, job
from tests.test_output_locks import HOLD, holder

RENEWAL_S, SILENCE_S = 0.1, 1.0
DRIVE = f"""
import sys, time
from acclimate.scale.drivers import sole_driver
from acclimate.storage import Folder
with sole_driver(Folder(sys.argv[1]), renewal_s={RENEWAL_S}, silence_s={SILENCE_S}):
    print("held", flush=True)
    time.sleep(600)
"""
#: As above, and says when it has lost the folder.
CHECK = f"""
import sys, time
from acclimate.errors import ConfigError
from acclimate.scale.drivers import sole_driver
from acclimate.storage import Folder
with sole_driver(Folder(sys.argv[1]), renewal_s={RENEWAL_S}, silence_s={SILENCE_S}) as driver:
    print("held", flush=True)
    while True:
        time.sleep(0.05)
        try:
            driver.check()
        except ConfigError as error:
            print(error, flush=True)
            break
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an output folder; drivers of this process wait as long for a silent one as those of others do."""
    sole = sole_driver
    monkeypatch.setattr(
        scale_export, "sole_driver", lambda folder: sole(folder, renewal_s=RENEWAL_S, silence_s=SILENCE_S)
    )
    if request.param == "local":
        return str(tmp_path / "out")
    request.getfixturevalue("address")
    bucket = f"b{uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/out"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cameras")
    for seed, (name, count) in enumerate({"dock": 8, "gate": 4}.items()):
        write_images(folder / name, count, side=24, seed=seed)
    return folder


def test_a_second_driver_is_refused_and_a_killed_one_does_not_block_resume(
    images: Path, output: str, tmp_path: Path
) -> None:
    """An export is interrupted; another process drives it on and is killed; this one ends it."""
    reference = job(images, tmp_path / "reference")
    export_shards(reference, engine="here")
    work = job(images, output)

    def interrupt(progress: ShardProgress) -> None:
        if progress.predicted == 4:
            raise KilledError

    with pytest.raises(KilledError):
        export_shards(work, engine="here", on_progress=interrupt)
    work = dataclasses.replace(work, resume=True)
    before = Folder(output).read("manifest.json")
    with holder(DRIVE, output) as process:
        with pytest.raises(
            ConfigError, match=rf"^process {process.pid} on .* is writing .*out; wait for it to end, or"
        ):
            export_shards(work, engine="here")
        # Nothing was written by the one that was refused.
        assert Folder(output).read("manifest.json") == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        assert export_shards(work, engine="here").failed == {}
        assert time.monotonic() - began < 30
    assert list(read_rows(output)) == list(read_rows(reference.output))
    # One that has ended is not waited for.
    with sole_driver(Folder(output), silence_s=600.0) as driver:
        driver.check()


def test_of_drivers_that_begin_at_the_same_moment_one_goes_on(output: str) -> None:
    started, refused = [], []
    together = threading.Barrier(4)
    ends = threading.Event()

    def drive() -> None:
        together.wait()
        try:
            with sole_driver(Folder(output), renewal_s=RENEWAL_S, silence_s=SILENCE_S):
                started.append(1)
                ends.wait(20)
        except ConfigError as error:
            refused.append(str(error))
        if len(refused) == 3:
            ends.set()

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(started), len(refused)) == (1, 3)


def test_a_driver_that_was_stopped_for_a_while_finds_out_that_it_was_replaced(address: str) -> None:
    bucket = f"b{uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    folder = Folder(f"s3://{bucket}/out")
    with holder(CHECK, folder.url) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with sole_driver(folder, renewal_s=RENEWAL_S, silence_s=SILENCE_S) as mine:
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdout is not None
            assert "another driver has taken over s3://" in process.stdout.readline()
            process.wait(30)
            mine.check()
    first, second = (json.loads(folder.read(f"drivers/00000{number}.json") or b"") for number in (1, 2))
    assert (first["ended"], second["ended"]) == (False, True)
    assert second["driver"].startswith(f"process {os.getpid()} on ")


def test_an_export_that_was_replaced_ends_before_it_writes_more(
    address: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"b{uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    monkeypatch.setattr(scale_export, "sole_driver", lambda folder: sole_driver(folder, renewal_s=0.02, silence_s=1.0))
    folder = Folder(f"s3://{bucket}/out")

    def replaced(progress: ShardProgress) -> None:
        if progress.predicted == 4 and folder.read("drivers/000002.json") is None:
            folder.write("drivers/000002.json", folder.read("drivers/000001.json") or b"")
            time.sleep(1.0)

    with pytest.raises(ConfigError, match="another driver has taken over"):
        export_shards(job(images, folder.url), engine="here", on_progress=replaced)
    assert json.loads(folder.read("manifest.json") or b"")["ended"] is False


def test_two_exports_of_one_process_do_not_write_one_file(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "p.json"
    work = ExportJob(source=images / "gate", output=output, adapter=MODEL)
    output.parent.mkdir()
    with holder(HOLD, str(output.parent / ".p.json.lock")) as process:
        with pytest.raises(ConfigError, match=rf"process {process.pid} on \S+ is writing .*p\.json; wait for it"):
            export(work)
        process.kill()
        process.wait()
        export(dataclasses.replace(work, resume=True))
    assert [path.name for path in output.parent.iterdir()] == ["p.json"]

"""Exports from and to an object store: the same rows as in local folders, and one line for each thing that is wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from acclimate import storage
from acclimate.cli import sharded_export
from acclimate.cli.main import main
from acclimate.errors import DataError, MissingExtraError
from acclimate.scale import export as scale_export
from acclimate.scale import shard_run
from acclimate.scale.export import export_shards, read_rows
from acclimate.scale.ray_engine import ShardProgress
from acclimate.scale.shards import divided
from acclimate.storage import Folder
from tests.networks import write_images
from tests.scale.archives import write_archive
from tests.scale.object_store import checking_keys, s3_server
from tests.scale.test_shards import KilledError, job, run_interrupted

ROOT = Path(__file__).parents[2]
CAMERAS = {"dock": 12, "gate": 6}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cameras")
    for seed, (name, count) in enumerate(CAMERAS.items()):
        write_images(folder / name, count, side=24, seed=seed)
    return folder


@pytest.fixture
def bucket(address: str, images: Path) -> str:
    """A bucket with the images in the folder ``cameras``."""
    name = f"b{uuid4().hex}"
    store = fsspec.filesystem("s3")
    store.mkdir(name)
    store.put(f"{images}/", f"{name}/cameras/", recursive=True)
    return f"s3://{name}"


def renamed(rows: Any, here: Any, there: str) -> list[dict[str, Any]]:
    return [{**row, "image": row["image"].replace(str(here), there)} for row in rows]


@pytest.mark.parametrize("policy", ["online tent", "stream tent", "sample tent"])
def test_rows_are_those_of_local_folders_wherever_the_export_was_interrupted(
    images: Path, bucket: str, policy: str, tmp_path: Path
) -> None:
    local = job(images, tmp_path / "out", policy)
    export_shards(local, engine="here")
    work = job(images, f"{bucket}/out", policy, source=f"{bucket}/cameras", resume=True)
    commits = run_interrupted(work, most_runs=40)
    assert len(commits) > 5
    assert list(read_rows(work.output)) == renamed(read_rows(local.output), images, f"{bucket}/cameras")


@pytest.mark.slow
def test_the_command_goes_on_with_an_interrupted_export_although_a_worker_is_killed(
    images: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--adapter", "torch", "--model", "tests.scale.factories:slow_classifier", "--ttt", "--ttt-method", "tent",
        "--ttt-reset", "online", "--ttt-batch-size", "2", "--commit-every", "1", "--engine", "ray", "--workers", "2",
    ]  # fmt: skip
    # Workers begin in another folder than the one that the tests were started in.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', ROOT)}")
    monkeypatch.chdir(tmp_path)
    in_store = ["export", f"{bucket}/cameras", "-o", f"{bucket}/out", *arguments]
    here: dict[str, Any] = {"engine": "here", "workers": 1}

    def exported_here(job: Any, **given: Any) -> Any:
        return export_shards(job, **{**given, **here})

    def interrupted(progress: ShardProgress) -> None:
        if progress.predicted == 4:
            raise KilledError

    killed: list[int] = []

    def kill(progress: ShardProgress) -> None:
        if progress.predicted > 4 and progress.worker is not None and not killed:
            killed.append(progress.worker)
            os.kill(progress.worker, signal.SIGKILL)

    runner = CliRunner()
    with monkeypatch.context() as patched:
        patched.setattr(scale_export, "export_shards", exported_here)
        reference = runner.invoke(main, ["export", str(images), "-o", "reference", *arguments])
        assert reference.exit_code == 0, reference.output
        patched.setattr(sharded_export, "_line", interrupted)
        with pytest.raises(KilledError):
            runner.invoke(main, in_store, catch_exceptions=False)
    assert len(list(fsspec.filesystem("s3").glob(f"{bucket}/out/shards/*/rows-*"))) == 2
    monkeypatch.setattr(sharded_export, "_line", kill)
    done = runner.invoke(main, [*in_store, "--resume"])
    assert done.exit_code == 0, done.output
    assert killed
    expected = renamed(read_rows("reference"), images, f"{bucket}/cameras")
    assert len(expected) == 18
    assert list(read_rows(f"{bucket}/out")) == expected
    manifest = json.loads(Folder(f"{bucket}/out").read("manifest.json") or b"")
    assert sorted(shard["attempts"] for shard in manifest["shards"]) == [1, 2]


def test_archives_and_tables_of_an_object_store_are_read(images: Path, bucket: str, tmp_path: Path) -> None:
    store = fsspec.filesystem("s3")
    files = {name: sorted((images / name).iterdir()) for name in CAMERAS}
    for name, found in files.items():
        light = [{"light": number % 2} for number in range(len(found))]
        local = write_archive(tmp_path / "archives" / f"{name}.tar", found, fields=light)
        store.put_file(str(local), f"{bucket}/archives/{name}.tar")
    expected = job(tmp_path / "archives", tmp_path / "by archive")
    export_shards(expected, engine="here")
    work = job(images, f"{bucket}/by-archive", source=f"{bucket}/archives")
    result = export_shards(work, engine="here")
    assert (result.images, result.rows, result.failed) == (18, 18, {})
    assert list(read_rows(work.output)) == renamed(
        read_rows(expected.output), tmp_path / "archives", f"{bucket}/archives"
    )
    as_archives = job(images, f"{bucket}/as-archives", source=f"{bucket}/archives", format="webdataset")
    export_shards(as_archives, engine="here")
    assert [path.rpartition("/")[2] for path in store.glob(f"{as_archives.output}/*.tar")] == ["dock.tar", "gate.tar"]
    assert list(store.glob(f"{as_archives.output}/shards/*/rows-*")) == []
    assert list(read_rows(as_archives.output)) == list(read_rows(work.output))
    # A stream whose images lie in several archives is read by the places of its images.
    by_light = job(tmp_path / "archives", tmp_path / "by light", shard_by="light")
    export_shards(by_light, engine="here")
    in_store = job(images, f"{bucket}/by-light", source=f"{bucket}/archives/{{dock,gate}}.tar", shard_by="light")
    export_shards(in_store, engine="here")
    found_rows = list(read_rows(in_store.output))
    assert found_rows == renamed(read_rows(by_light.output), tmp_path / "archives", f"{bucket}/archives")
    assert [row["shard"] for row in found_rows] == ["0"] * 9 + ["1"] * 9
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": ["dock/image_001.png"], "light": ["dim"]}), table)
    store.pipe_file(f"{bucket}/cameras/images.parquet", table.getvalue())
    (shard,) = divided(f"{bucket}/cameras/images.parquet", "light").shards
    assert (shard.name, [record.image for record in shard.records]) == ("dim", [f"{bucket}/cameras/dock/image_001.png"])


def test_what_another_process_wrote_is_seen(bucket: str) -> None:
    writer, reader = Folder(f"{bucket}/out"), Folder(f"{bucket}/out", {"skip_instance_cache": True})
    writer.write("shards/a/commit.json", b"first")
    # Fills the reader's lists of names.
    assert [len(shard.records) for shard in divided(f"{bucket}/cameras").shards] == [12, 6]
    assert reader._fs.ls(f"{bucket}/out/shards/a")
    assert reader.read("shards/b/commit.json") is None
    writer.write("shards/a/commit.json", b"second, and longer")
    writer.write("shards/b/commit.json", b"new")
    assert reader.read("shards/a/commit.json") == b"second, and longer"
    assert reader.read("shards/b/commit.json") == b"new"
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    other.cp_file(f"{bucket}/cameras/gate/image_001.png", f"{bucket}/cameras/gate/image_900.png")
    assert [len(shard.records) for shard in divided(f"{bucket}/cameras").shards] == [12, 7]


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(
        main,
        ["export", *arguments, "--engine", "ray", "--adapter", "torch", "--model", "tests.vision.factories:classifier"],
    )


def test_what_is_wrong_is_said_in_one_line_with_a_remedy(
    bucket: str, address: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = invoked("s3://no-such-bucket/cameras", "-o", f"{bucket}/out")
    assert missing.exit_code == 2
    assert missing.output == (
        "Error: s3://no-such-bucket/cameras cannot be listed: The specified bucket does not exist; make "
        "no-such-bucket, or correct the path\n"
    )
    assert "contains no images" in invoked(f"{bucket}/nothing", "-o", f"{bucket}/out").output
    table = invoked(f"{bucket}/nothing.parquet", "-o", f"{bucket}/out").output
    assert "cannot be read as Parquet" in table
    assert table.endswith("; correct the path\n")
    with pytest.raises(DataError, match="cannot be written: The specified bucket does not exist; make no-such-bucket"):
        export_shards(job(images, "s3://no-such-bucket/out"), engine="here")
    # As by a user who forgot the engine.
    alone = CliRunner().invoke(main, ["export", f"{bucket}/cameras"])
    assert alone.exit_code == 2
    assert "is not on this machine; add --engine ray" in alone.output
    with checking_keys(address), pytest.raises(DataError, match=r"; set AWS_ACCESS_KEY_ID and .* who may do this"):
        divided(f"{bucket}/cameras")
    with monkeypatch.context() as patched:
        patched.delenv("AWS_ACCESS_KEY_ID")
        patched.delenv("AWS_SECRET_ACCESS_KEY")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(DataError, match=r"Unable to locate credentials; set AWS_ACCESS_KEY_ID and"):
            divided(f"{bucket}/cameras")
    fsspec.filesystem("s3").clear_instance_cache()
    gone = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(DataError, match=r"; check the network, and the address in AWS_ENDPOINT_URL"):
        Folder(f"{bucket}/out", gone).read("manifest.json")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(storage, "url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=r'pip install "acclimate\[s3\]"'):
        Folder("s3://bucket/out")


def test_a_shard_ends_where_its_images_cannot_be_fetched_and_goes_on_later(
    bucket: str, address: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = job(images, tmp_path / "out")
    export_shards(local, engine="here")
    work = job(images, tmp_path / "in store", source=f"{bucket}/cameras")
    fetch = shard_run._Progress._local
    count = 0

    def fetch_refused(self: Any, *given: Any) -> Any:
        nonlocal count
        count += 1
        if count != 8:
            return fetch(self, *given)
        with checking_keys(address):
            return fetch(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(shard_run._Progress, "_local", fetch_refused)
        patched.setattr(shard_run, "_DOWNLOADS", 1)
        failed = export_shards(work, engine="here").failed
    assert list(failed) == ["dock"]
    assert "cannot be fetched" in failed["dock"]
    assert export_shards(dataclasses.replace(work, resume=True), engine="here").failed == {}
    assert list(read_rows(work.output)) == renamed(read_rows(local.output), images, f"{bucket}/cameras")

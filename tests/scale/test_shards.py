"""Shards in one process: the same predictions as one machine's, also after every possible interruption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from acclimate.errors import CheckpointError, ConfigError
from acclimate.scale import shard_run
from acclimate.scale.export import ShardedResult, export_shards, read_rows
from acclimate.scale.job import ShardedJob
from acclimate.scale.ray_engine import ShardProgress
from acclimate.scale.shards import Shard, divided
from acclimate.storage import Folder
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.run.export import ExportJob, export
from tests.networks import write_images

MODEL = AdapterOptions(adapter="torch", model="tests.vision.factories:classifier")
CAMERAS = {"dock": 11, "gate": 7, "yard/north": 5}
#: ``online`` with a method that keeps moments and one that keeps statistics; ``stream`` and ``sample`` with Tent.
POLICIES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "online tent": {"method": "tent", "reset": "online", "lr": 1e-2, "batch_size": 2},
    "online blend": {"method": "blend", "reset": "online", "batch_size": 2},
    "online cotta": {"method": "cotta", "reset": "online", "batch_size": 2, "method_options": {"view_count": 2}},
    "stream tent": {"method": "tent", "reset": "stream", "lr": 1e-2, "batch_size": 2, "max_batches": 3},
    "sample tent": {"method": "tent", "reset": "sample", "lr": 1e-2},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cameras")
    for seed, (name, count) in enumerate(CAMERAS.items()):
        write_images(folder / name, count, side=24, seed=seed)
    (folder / "gate" / "image_003.png").write_bytes(b"no image")
    return folder


def job(images: Path, output: Any, policy: str = "online tent", **changes: Any) -> ShardedJob:
    values: dict[str, Any] = {"source": str(images), "output": str(output), "adapter": MODEL, "ttt": POLICIES[policy]}
    values |= {"batch_size": 2, "batches_per_commit": 2}
    return ShardedJob(**values | changes)


def predictions(rows: Any) -> dict[str, Any]:
    return {row["image"]: row["classification"] for row in rows}


def alone(images: Path, policy: str, folder: Path) -> dict[str, Any]:
    """What one machine predicts for each shard by itself."""
    found: dict[str, Any] = {}
    for name in CAMERAS:
        work = ExportJob(
            source=images / name, output=folder / "alone.json", adapter=MODEL, ttt=POLICIES[policy], batch_size=2
        )
        found |= predictions(export(work).entries)
    return found


@pytest.mark.parametrize("policy", list(POLICIES))
def test_each_shard_is_predicted_to_the_bit_as_by_one_machine(images: Path, policy: str, tmp_path: Path) -> None:
    result = export_shards(job(images, tmp_path / "out", policy), engine="here")
    rows = list(read_rows(str(tmp_path / "out")))
    assert predictions(rows) == alone(images, policy, tmp_path)
    assert result == ShardedResult(images=23, rows=22, skipped=1, shards=3, failed={})
    for name, count in CAMERAS.items():
        positions = [row["position"] for row in rows if row["shard"] == name]
        assert positions == [position for position in range(count) if (name, position) != ("gate", 3)]
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)


def test_sample_is_that_of_the_whole_data_set_on_one_machine(images: Path, tmp_path: Path) -> None:
    export_shards(job(images, tmp_path / "out", "sample tent"), engine="here")
    whole = export(ExportJob(source=images, output=tmp_path / "whole.json", adapter=MODEL, ttt=POLICIES["sample tent"]))
    rows = [
        {key: value for key, value in row.items() if key not in ("shard", "position")}
        for row in read_rows(str(tmp_path / "out"))
    ]
    assert rows == list(whole.entries)


class KilledError(BaseException):
    """As when the process ends: nothing after it runs in the shard."""


def run_interrupted(work: ShardedJob, *, most_runs: int) -> set[tuple[str, int, int]]:
    """Run an export that ends at every second new commit until it is through; return how far the commits were."""
    commits: set[tuple[str, int, int]] = set()

    def kill(progress: ShardProgress) -> None:
        commit = (progress.shard, progress.adapted, progress.predicted)
        is_new = commit not in commits
        commits.add(commit)
        if is_new and len(commits) % 2 == 0:
            raise KilledError

    for _ in range(most_runs):
        try:
            export_shards(work, engine="here", on_progress=kill)
        except KilledError:
            continue
        return commits
    pytest.fail("the export never ended")


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "online blend"])
def test_a_shard_goes_on_to_the_bit_wherever_it_was_interrupted(images: Path, policy: str, tmp_path: Path) -> None:
    reference = job(images, tmp_path / "reference", policy)
    export_shards(reference, engine="here")
    expected = list(read_rows(reference.output))
    work = job(images, tmp_path / "out", policy, resume=True)
    commits = run_interrupted(work, most_runs=60)
    assert len(commits) > 8
    assert list(read_rows(work.output)) == expected
    for name in ("dock", "gate"):
        kept = sorted(path.name for path in (tmp_path / "out" / "shards" / name).glob("state-*"))
        assert len(kept) == (0 if policy in ("plain", "sample tent") else 1)


@pytest.mark.parametrize("file", ["rows", "state", "commit"])
def test_rows_and_state_become_valid_together(
    images: Path, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = job(images, tmp_path / "reference")
    export_shards(reference, engine="here")
    work = job(images, tmp_path / "out", resume=True)
    write, writes = Folder.write, 0

    def failing(self: Folder, name: str, content: bytes) -> str:
        nonlocal writes
        if f"/{file}" in name:
            writes += 1
            if writes == 2:
                raise KilledError
        return write(self, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write", failing)
        with pytest.raises(KilledError):
            export_shards(work, engine="here")
    commit = json.loads((tmp_path / "out" / "shards" / "dock" / "commit.json").read_text())
    assert commit["predicted"] == 4
    export_shards(work, engine="here")
    assert list(read_rows(work.output)) == list(read_rows(reference.output))


def test_a_poisoned_shard_ends_by_itself_and_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shard_run.ShardWorker.run

    def poisoned(self: Any, shard: Shard, on_commit: Any = None) -> Any:
        if shard.name == "gate":
            raise ZeroDivisionError("poison")
        return run(self, shard, on_commit)

    work = job(images, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(shard_run.ShardWorker, "run", poisoned)
        result = export_shards(work, engine="here")
    assert result.failed == {"gate": "ZeroDivisionError: poison"}
    assert {row["shard"] for row in read_rows(work.output)} == {"dock", "yard/north"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [shard["status"] for shard in manifest["shards"]] == ["finished", "failed", "finished"]
    assert export_shards(dataclasses.replace(work, resume=True), engine="here").failed == {}
    assert len(list(read_rows(work.output))) == 22


def test_an_export_is_not_overwritten_and_not_mixed_with_another(images: Path, tmp_path: Path) -> None:
    work = job(images, tmp_path / "out", "plain")
    export_shards(work, engine="here")
    with pytest.raises(ConfigError, match="add --resume"):
        export_shards(work, engine="here")
    other = dataclasses.replace(work, resume=True, draft_side=8)
    failed = export_shards(other, engine="here").failed
    assert set(failed) == set(CAMERAS)
    assert "of other images or settings" in failed["dock"]
    rows = next((tmp_path / "out" / "shards" / "dock").glob("rows-*"))
    rows.write_bytes(rows.read_bytes().replace(b"0.", b"1.", 1))
    export_shards(dataclasses.replace(work, resume=True), engine="here")
    with pytest.raises(CheckpointError, match="was changed"):
        list(read_rows(work.output))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ttt": {"method": "auto"}}, "name the method"),
        ({"ttt": {"method": "tent", "max_seconds": 3.0}}, "--ttt-max-batches"),
        ({"ttt": {"method": "tent", "probe": True}}, "--ttt-probe-images"),
        ({"batches_per_commit": 0}, "batches_per_commit must be at least 1"),
    ],
)
def test_what_could_not_be_continued_exactly_is_refused(
    images: Path, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        job(images, tmp_path, **changes)


@pytest.fixture
def memory(images: Path) -> Iterator[str]:
    """The images in the memory file system, which holds nothing else."""
    found = fsspec.filesystem("memory")
    found.put(f"{images}/", "/cameras/", recursive=True)
    yield "memory://cameras"
    found.rm("/", recursive=True)


def test_images_and_results_may_be_in_another_file_system(images: Path, memory: str, tmp_path: Path) -> None:
    local, remote = job(images, tmp_path / "out"), job(images, "memory://results", source=memory)
    export_shards(local, engine="here")
    export_shards(remote, engine="here")
    expected = [{**row, "image": row["image"].replace(str(images), memory)} for row in read_rows(local.output)]
    assert list(read_rows("memory://results")) == expected
    manifests = [json.loads(Folder(work.output).read("manifest.json") or b"") for work in (local, remote)]
    gates = [next(shard for shard in manifest["shards"] if shard["name"] == "gate") for manifest in manifests]
    assert list(gates[1]["skipped"]) == [f"{memory}/gate/image_003.png"]
    assert gates[1]["skipped"][f"{memory}/gate/image_003.png"].startswith(f"{memory}/gate/image_003.png: cannot be")
    assert [part["sha256"] for part in gates[0]["rows"]] != [part["sha256"] for part in gates[1]["rows"]]
    with pytest.raises(ConfigError, match="memory of one process"):
        export_shards(remote, engine="ray")


@pytest.mark.parametrize("kind", ["coco", "parquet", "folder"])
def test_shards_are_named_by_folder_or_column(images: Path, kind: str, tmp_path: Path) -> None:
    by_folder = divided(str(images))
    assert [(shard.name, len(shard.records)) for shard in by_folder.shards] == list(CAMERAS.items())
    assert [record.image_id for shard in by_folder.shards for record in shard.records] == list(range(1, 24))
    assert [shard.name for shard in divided(str(images / "dock")).shards] == ["dock"]
    assert len({shard.file_name for shard in by_folder.shards}) == 3
    assert Shard("a/b", ()).file_name != Shard("a-b", ()).file_name
    records = [record for shard in by_folder.shards for record in shard.records]
    columns = {"image": [record.image for record in records], "light": [n % 2 for n in range(23)]}
    if kind == "coco":
        source = tmp_path / "images.json"
        listed = [
            {"id": n, "file_name": image, "light": light}
            for n, (image, light) in enumerate(zip(columns["image"], columns["light"], strict=True))
        ]
        source.write_text(json.dumps({"images": listed}))
    elif kind == "parquet":
        source = tmp_path / "images.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), source)
    else:
        with pytest.raises(ConfigError, match="names a column"):
            divided(str(images), "light")
        return
    found = divided(str(source), "light")
    assert [(shard.name, len(shard.records)) for shard in found.shards] == [("0", 12), ("1", 11)]
    assert [record.image for record in found.shards[1].records] == columns["image"][1::2]
    with pytest.raises(ConfigError, match="dark"):
        divided(str(source), "dark")

"""Predictions as WebDataset archives, read by the library of that name."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import webdataset
from click.testing import CliRunner

from acclimate.cli.main import main
from acclimate.vision.data.prediction_archives import read_samples, sample_key, write_samples
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.run.export import ExportJob, export
from tests.networks import write_images
from tests.scale.archives import write_archive

MODEL = AdapterOptions(adapter="torch", model="tests.vision.factories:classifier")


def samples(*paths: Path) -> list[dict[str, Any]]:
    """What a program that uses webdataset gets."""
    return list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode())


@pytest.mark.parametrize(
    ("image", "archive", "key"),
    [
        ("a/000.tar/000017.png", "a/000.tar", "000017"),
        ("a/000.tar/day/000017.left.png", "a/000.tar", "day/000017"),
        ("s3://b/000.tar/./000017.png", "s3://b/000.tar", "./000017"),
        ("a/000.tar/.png", "a/000.tar", "000000000005"),
        ("a/000.tar/000017.png", None, "000000000005"),
    ],
)
def test_a_key_is_that_of_the_sample_or_the_id(image: str, archive: str | None, key: str) -> None:
    assert sample_key({"image": image, "image_id": 5}, archive) == key


def test_images_and_predictions_are_joined_by_their_keys(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 7, side=24)
    found = sorted((tmp_path / "images").iterdir())
    found[3].write_bytes(b"no image")
    archive = write_archive(tmp_path / "in" / "000.tar", found, root="day/")
    output = tmp_path / "out.tar"
    done = export(ExportJob(source=archive, output=output, adapter=MODEL, format="webdataset"))
    read = samples(output)
    assert [sample["json"] for sample in read] == list(done.entries) == list(read_samples(output))
    keys = [sample["__key__"] for sample in samples(archive) if sample["__key__"] != "day/000003"]
    assert [sample["__key__"] for sample in read] == keys
    assert len(keys) == 6
    # The same predictions give the same file.
    before = output.read_bytes()
    export(ExportJob(source=archive, output=output, adapter=MODEL, format="webdataset"))
    assert output.read_bytes() == before
    with tarfile.open(output) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    # Of a folder, or several archives, keys are the ids.
    write_archive(tmp_path / "in" / "001.tar", found[:2])
    for source, count in ((tmp_path / "images", 6), (tmp_path / "in", 8)):
        export(ExportJob(source=source, output=output, adapter=MODEL, format="webdataset"))
        read = samples(output)
        assert [sample["__key__"] for sample in read] == [f"{sample['json']['image_id']:012d}" for sample in read]
        assert len(read) == count


def test_the_command_writes_predictions_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", 2, side=24)
    monkeypatch.chdir(tmp_path)
    model = ["--adapter", "torch", "--model", MODEL.model or ""]
    done = CliRunner().invoke(main, ["export", "images", *model, "--format", "webdataset", "--no-record"])
    assert done.exit_code == 0, done.output
    assert "2 images predicted, written to predictions.tar" in done.output
    assert len(samples(tmp_path / "predictions.tar")) == 2


def test_memory_does_not_grow_with_the_number_of_predictions(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        entries = ({"image_id": number, "image": "x", "detections": [0.5] * 20} for number in range(count))
        path = tmp_path / f"{count}.tar"
        path.write_bytes(b"")
        tracemalloc.start()
        with path.open("r+b") as file:
            write_samples(file, entries, lambda entry: sample_key(entry, None))
        assert sum(1 for _ in read_samples(path)) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(1500) < 1.5 * peak(150) + 50_000


def test_members_are_json_of_their_own(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    entries = [{"image_id": number, "image": "é" * 120} for number in range(3)]
    write_samples(buffer, entries, lambda entry: f"{'k' * 150}{entry['image_id']}")
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [member.name for member in tar] == [f"{'k' * 150}{number}.json" for number in range(3)]
        assert [json.load(tar.extractfile(member) or io.BytesIO()) for member in tar] == entries

"""WebDataset archives in sharded exports: each is a stream, and a damaged one ends by itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import webdataset

from acclimate.errors import CheckpointError, ConfigError, DataError
from acclimate.scale.export import export_shards, read_rows
from acclimate.scale.shards import divided
from acclimate.storage import Folder
from acclimate.vision.run.export import ExportJob, export
from tests.networks import write_images
from tests.scale.archives import without_end, write_archive
from tests.scale.test_shards import MODEL, POLICIES, KilledError, job, run_interrupted

COUNTS = (11, 7, 5)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three archives, and beside them the images that they contain in folders of the same names."""
    folder = tmp_path_factory.mktemp("archives")
    for number, count in enumerate(COUNTS):
        write_images(folder / "images" / f"{number:03d}", count, side=24, seed=number)
        found = sorted((folder / "images" / f"{number:03d}").iterdir())
        fields = [{"light": ("dim", "bright")[place % 2]} for place in range(count)]
        write_archive(folder / "tars" / f"{number:03d}.tar", found, fields=fields)
    return folder


def predictions(rows: Any) -> list[Any]:
    return [row["classification"] for row in rows]


@pytest.mark.parametrize("policy", list(POLICIES))
def test_each_archive_is_predicted_to_the_bit_as_by_one_machine_alone(
    archives: Path, policy: str, tmp_path: Path
) -> None:
    result = export_shards(job(archives / "tars", tmp_path / "out", policy), engine="here")
    assert (result.images, result.rows, result.shards, result.failed) == (23, 23, 3, {})
    rows = list(read_rows(str(tmp_path / "out")))
    assert [(row["shard"], row["position"]) for row in rows] == [
        (f"{number:03d}", place) for number, count in enumerate(COUNTS) for place in range(count)
    ]
    assert rows[0]["image"] == str(archives / "tars" / "000.tar" / "000000.png")
    for number in range(3):
        alone = [
            export(
                ExportJob(source=source, output=tmp_path / "a.json", adapter=MODEL, ttt=POLICIES[policy], batch_size=2)
            )
            for source in (archives / "tars" / f"{number:03d}.tar", archives / "images" / f"{number:03d}")
        ]
        mine = predictions(row for row in rows if row["shard"] == f"{number:03d}")
        assert mine == predictions(alone[0].entries) == predictions(alone[1].entries)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [shard["images"] for shard in manifest["shards"]] == list(COUNTS)


def test_an_archive_goes_on_to_the_bit_wherever_it_was_interrupted(archives: Path, tmp_path: Path) -> None:
    source = str(archives / "tars" / "{000..002}.tar")
    reference = job(source, tmp_path / "reference")
    export_shards(reference, engine="here")
    work = job(source, tmp_path / "out", resume=True)
    commits = run_interrupted(work, most_runs=40)
    assert len({(shard, predicted) for shard, _, predicted in commits}) > 6
    assert list(read_rows(work.output)) == list(read_rows(reference.output))


def test_predictions_are_archives_with_the_keys_of_the_samples(archives: Path, tmp_path: Path) -> None:
    """Also where the export was interrupted again and again; and each is there when its shard is done."""
    export_shards(job(archives / "tars", tmp_path / "rows"), engine="here")
    expected = list(read_rows(str(tmp_path / "rows")))
    reference = job(archives / "tars", tmp_path / "reference", format="webdataset")
    assert export_shards(reference, engine="here").rows == 23
    work = job(archives / "tars", tmp_path / "out", format="webdataset", resume=True)
    assert len(run_interrupted(work, most_runs=40)) > 6
    made = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in made] == ["000.tar", "001.tar", "002.tar"]
    assert list((tmp_path / "out").glob("shards/*/rows-*")) == []
    for path in made:
        assert path.read_bytes() == (tmp_path / "reference" / path.name).read_bytes()
    assert list(read_rows(work.output)) == expected
    read = list(webdataset.WebDataset([str(path) for path in made], shardshuffle=False).decode())
    assert [sample["json"] for sample in read] == expected
    inputs = webdataset.WebDataset([str(archives / "tars" / path.name) for path in made], shardshuffle=False)
    assert [sample["__key__"] for sample in read] == [sample["__key__"] for sample in inputs]
    made[1].write_bytes(made[1].read_bytes()[:-600])
    with pytest.raises(CheckpointError, match=r"001\.tar is gone or was changed"):
        list(read_rows(work.output))
    with pytest.raises(ConfigError, match="--format coco is one file"):
        job(archives / "tars", tmp_path / "out", format="coco")


@pytest.mark.parametrize("where", ["000.tar", "commit.json"])
def test_an_archive_of_predictions_and_its_commit_become_valid_together(
    archives: Path, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(archives / "tars", tmp_path / "out", format="webdataset", resume=True)
    write, put = Folder.write, Folder.put

    def written(self: Folder, name: str, content: bytes) -> str:
        if name.endswith(where) and (tmp_path / "out" / "000.tar").exists():
            raise KilledError
        return write(self, name, content)

    def put_file(self: Folder, name: str, source: Path) -> str:
        if name == where:
            raise KilledError
        return put(self, name, source)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write", written)
        patched.setattr(Folder, "put", put_file)
        with pytest.raises(KilledError):
            export_shards(work, engine="here")
    commit = json.loads((tmp_path / "out" / "shards" / "000" / "commit.json").read_text())
    assert (commit["predicted"], commit["finished"]) == (11, False)
    assert all(part["file"].startswith("shards/000/rows-") for part in commit["rows"])
    export_shards(work, engine="here")
    export_shards(job(archives / "tars", tmp_path / "rows"), engine="here")
    assert list(read_rows(work.output)) == list(read_rows(str(tmp_path / "rows")))


def test_a_damaged_archive_ends_by_itself_and_goes_on_when_it_was_copied_again(archives: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    contents = {path.name: path.read_bytes() for path in (archives / "tars").iterdir()}
    for name, content in contents.items():
        (tars / name).write_bytes(content if name != "001.tar" else content[: len(content) // 2])
    result = export_shards(job(tars, tmp_path / "out"), engine="here")
    assert list(result.failed) == ["001"]
    assert result.failed["001"].startswith(f"{tars}/001.tar is damaged or cut off after 3 images")
    assert {row["shard"] for row in read_rows(str(tmp_path / "out"))} == {"000", "002"}
    (tars / "001.tar").write_bytes(contents["001.tar"])
    assert export_shards(job(tars, tmp_path / "out", resume=True), engine="here").failed == {}
    assert len(list(read_rows(str(tmp_path / "out")))) == 23


def test_an_archive_that_was_replaced_is_not_continued(archives: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    (tars / "a.tar").write_bytes((archives / "tars" / "000.tar").read_bytes())
    export_shards(job(tars, tmp_path / "out"), engine="here")
    (tars / "a.tar").write_bytes((archives / "tars" / "001.tar").read_bytes())
    failed = export_shards(job(tars, tmp_path / "out", resume=True), engine="here").failed
    assert "of other images or settings" in failed["a"]


def test_an_archive_that_is_missing_is_named(archives: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = job(archives / "tars" / "{002..003}.tar", tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        result = export_shards(work, engine="here")
    assert "003.tar cannot be read" in caplog.text
    assert list(result.failed) == ["003"]
    assert "003.tar cannot be read" in result.failed["003"]
    assert result.rows == 5


def test_streams_are_named_by_a_field_of_the_samples(archives: Path, tmp_path: Path) -> None:
    found = divided(str(archives / "tars"), "light")
    assert [(shard.name, len(shard.records)) for shard in found.shards] == [("dim", 13), ("bright", 10)]
    export_shards(job(archives / "tars", tmp_path / "out", shard_by="light"), engine="here")
    rows = list(read_rows(str(tmp_path / "out")))
    assert [row["image_id"] for row in rows if row["shard"] == "bright"][:6] == [2, 4, 6, 8, 10, 13]
    first = divided(str(archives / "tars"), max_images=13)
    assert [(shard.name, len(shard.records)) for shard in first.shards] == [("000", 11), ("001", 2)]
    with pytest.raises(ConfigError, match="23 of 23 images in the archives have no 'camera'"):
        divided(str(archives / "tars"), "camera")
    bad = tmp_path / "bad.tar"
    bad.write_bytes(without_end((archives / "tars" / "000.tar").read_bytes()))
    with pytest.raises(DataError, match=r"bad\.tar is damaged or cut off after 11 images"):
        divided(str(bad), "light")


def test_archives_in_several_folders_have_names_of_their_own(archives: Path, tmp_path: Path) -> None:
    for part in ("day", "night"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.tar").write_bytes((archives / "tars" / "000.tar").read_bytes())
    assert [shard.name for shard in divided(str(tmp_path)).shards] == ["day/0", "night/0"]

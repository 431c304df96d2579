"""Decoding ahead of the model and writing behind it: the same files, errors in place, no thread left."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acclimate.errors import DataError
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.record import Record
from acclimate.vision.data.record_table import NumberedRecords
from acclimate.vision.data.records import load_dataset
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.run.export import ExportJob, export
from acclimate.vision.run.overlap import Behind, ahead
from acclimate.vision.run.stored_entries import StoredEntries
from tests.networks import write_images


def threads() -> set[str]:
    own = ("acclimate-reader", "acclimate-writer")
    return {thread.name for thread in threading.enumerate() if thread.name in own}


def job(folder: Path, **changes: Any) -> ExportJob:
    values: dict[str, Any] = {
        "source": folder / "images",
        "output": folder / "out" / "predictions.json",
        "adapter": AdapterOptions(adapter="torch", model="tests.vision.factories:classifier"),
        "wrap": True,
    }
    return ExportJob(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 11, side=24)
    (tmp_path / "images" / "image_004.png").write_bytes(b"no image")
    return tmp_path


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if "seconds" not in key and key != "timestamp"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("reset", [None, "stream", "online", "sample"])
@pytest.mark.parametrize("method", ["tent", "blend"])
def test_predictions_and_report_are_those_of_a_run_without_overlap(
    folder: Path, reset: str | None, method: str
) -> None:
    given = None if reset is None else {"method": method, "reset": reset, "lr": 1e-3, "batch_size": 3}
    if given is not None and method == "blend":
        del given["lr"]
    contents = []
    for read_ahead, decode_threads in ((0, 1), (1, 1), (4, 3)):
        work = job(folder, ttt=given, batch_size=None if given else 3)
        work = dataclasses.replace(work, read_ahead=read_ahead, decode_threads=decode_threads)
        export(work)
        contents.append(without_times(json.loads(work.output.read_text())))
        assert not threads()
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]["predictions"]) == 10
    assert list(contents[0]["meta"]["skipped"]) == [str(folder / "images" / "image_004.png")]


class StopError(Exception):
    pass


def test_an_interrupted_run_is_continued_to_the_same_file_and_leaves_no_thread(folder: Path) -> None:
    whole = job(folder, output=folder / "whole.json", ttt={"method": "tent", "batch_size": 2}, wrap=False)
    export(whole)
    work = dataclasses.replace(whole, output=folder / "out.json")

    def stop(what: str, done: int, total: int) -> None:
        if what == "predict" and done > 6:
            raise StopError

    with pytest.raises(StopError):
        export(work, progress=stop)
    assert not threads()
    partial = folder / ".out.json.partial.jsonl"
    lines = partial.read_bytes().splitlines(keepends=True)
    # As if the machine had failed in the middle of a line.
    partial.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    export(dataclasses.replace(work, resume=True))
    assert work.output.read_bytes() == whole.output.read_bytes()
    assert not partial.exists()


def test_a_prediction_that_cannot_be_written_ends_the_run_and_no_state_is_saved(folder: Path) -> None:
    work = job(folder, adapter=AdapterOptions(adapter="torch", model="tests.vision.factories:broken"))
    with pytest.raises(DataError, match="is not finite"):
        export(dataclasses.replace(work, ttt=None))
    adapting = {"method": "bn", "reset": "online", "batch_size": 2, "guards": False}
    state = folder / "state.safetensors"
    with pytest.raises(DataError, match="is not finite"):
        export(dataclasses.replace(work, ttt=adapting, save_state=state))
    assert not state.exists()
    assert not threads()
    assert not list((folder / "out").glob("*"))


def test_items_are_made_ahead_in_order_and_not_further_than_asked() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    found = ahead(items(), 2)
    assert next(found) == 0
    deadline = time.monotonic() + 240
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    # One was given, two are ready, and one waits for room.
    assert made == [0, 1, 2, 3]
    found.close()
    assert not threads()
    assert len(made) < 20
    assert list(ahead(range(9), 3)) == list(ahead(range(9), 0)) == list(range(9))


def test_an_error_is_raised_where_the_item_would_have_been() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise DataError("the second")

    found = ahead(items(), 3)
    assert next(found) == 1
    with pytest.raises(DataError, match="the second"):
        next(found)


def test_what_is_handed_over_is_done_in_order_and_an_error_stops_the_rest() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise DataError("three")
        done.append(number)

    def hand_over() -> None:
        with Behind(work) as behind:
            for number in range(50):
                behind.put(number)

    with pytest.raises(DataError, match="three"):
        hand_over()
    assert done == [0, 1, 2]
    with Behind(done.append) as behind:
        behind.put(7)
        behind.finish()
        assert done[-1] == 7
    assert not threads()


def test_entries_on_disk_are_a_sequence_that_outlives_its_file(tmp_path: Path) -> None:
    entries = [{"image_id": number, "score": 1 / (number + 1)} for number in range(10)]
    path = tmp_path / "entries"
    stored = StoredEntries.at(path, ["head"])
    for batch in (entries[:3], [], entries[3:4], entries[4:]):
        stored.append(batch)
    found = StoredEntries.found(path, len("head\n"))
    path.unlink()
    for one in (stored, found):
        assert list(one) == entries
        assert one == entries
        assert [one[number] for number in range(-10, 10)] == entries + entries
        assert one[2:9:3] == entries[2:9:3]
        with pytest.raises(IndexError):
            one[10]
    with pytest.raises(ValueError, match="JSON compliant"):
        stored.append([{"score": float("nan")}])
    assert list(stored) == entries


def test_records_of_many_files_are_what_they_would_be_as_objects() -> None:
    names = ["a.png", "b/ü.png", "c\udcff.png", "d.png"]
    table = NumberedRecords("root/", names)
    objects = [Record(f"root/{name}", number) for number, name in enumerate(names, start=1)]
    assert table == objects
    assert list(table[1:3]) == objects[1:3]
    assert table[::-1][0] == objects[3]
    assert table[1:][1:][0] == objects[2]
    assert table != objects[:3]
    with pytest.raises(IndexError):
        table[4]


def test_images_are_sorted_as_paths_are(tmp_path: Path) -> None:
    for name in ("b/1.png", "b-2/1.png", "b.png", "a/z.png", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    found = [Path(record.image) for record in load_dataset(tmp_path).records]
    assert found == sorted(found)
    assert len(found) == 5


def test_draft_decoding_keeps_the_size_of_the_image_and_nearly_its_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    path = tmp_path / "photo.jpg"
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=95)
    record = Record(str(path), 1)
    whole, draft = ImageReader(), ImageReader(draft_side=200)
    ((_, full),), ((_, half),) = whole.read_many([record]), draft.read_many([record])
    assert (full.shape, half.shape) == ((480, 640, 3), (240, 320, 3))
    assert draft.sizes([(record, half)]) == whole.sizes([(record, full)]) == ((640, 480),)
    means = full.reshape(240, 2, 320, 2, 3).mean((1, 3))
    assert np.abs(means - half).mean() < 2
    turned = Image.open(path)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(path, exif=exif, quality=95)
    (usable,) = draft.read_many([record])
    assert usable[1].shape == (320, 240, 3)
    assert draft.sizes([usable]) == ((480, 640),)

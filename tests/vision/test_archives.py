"""Images in tar files: which members are images, where they are, and what is said of damaged files."""

from __future__ import annotations

import io
import logging
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from acclimate.cli.main import main
from acclimate.errors import DataError
from acclimate.vision.data.archives import ArchivedRecords, expanded, images_in
from acclimate.vision.data.images import ImageReader
from acclimate.vision.data.records import IMAGE_SUFFIXES, load_dataset
from acclimate.vision.models.loading import AdapterOptions
from acclimate.vision.run.export import ExportJob, export
from tests.networks import write_images
from tests.scale.archives import add, without_end, write_archive

MODEL = AdapterOptions(adapter="torch", model="tests.vision.factories:classifier")


def archive_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            add(tar, name, content)
    return buffer.getvalue()


def listed(content: bytes, field: str | None = None) -> list[tuple[str, bytes, str | None]]:
    found = images_in(io.BytesIO(content), "a.tar", IMAGE_SUFFIXES, field)
    return [(image.name, content[image.offset : image.offset + image.size], image.value) for image in found]


def test_members_with_one_key_are_one_sample() -> None:
    content = archive_of(
        ("__meta__", b"{}"),
        ("day/0001.cls", b"3"),
        ("day/0001.jpg", b"first"),
        ("day/0001.json", b'{"camera": 7}'),
        ("night/0001.jpg", b"another folder"),
        ("night/0001.json", b'{"camera": "north"}'),
        ("night/0002.txt", b"no image"),
        ("night/0003.seg.png", b"labels"),
        ("night/0003.PNG", b"image"),
        ("night/0004.left.jpg", b"left"),
        ("./night/0005.webp", b"dot"),
    )
    assert listed(content, "camera") == [
        ("day/0001.jpg", b"first", "7"),
        ("night/0001.jpg", b"another folder", "north"),
        ("night/0003.PNG", b"image", None),
        ("night/0004.left.jpg", b"left", None),
        ("./night/0005.webp", b"dot", None),
    ]


def test_a_sample_with_several_images_is_told(caplog: pytest.LogCaptureFixture) -> None:
    content = archive_of(("a.b.jpg", b"1"), ("a.c.jpg", b"2"), ("b.jpg", b"3"), ("b.seg.png", b"4"))
    with caplog.at_level(logging.WARNING):
        assert [name for name, _, _ in listed(content)] == ["a.b.jpg", "b.jpg"]
    assert [record.getMessage() for record in caplog.records] == [
        "a.tar: the sample ./a has several images, and a.b.jpg is read"
    ]


def test_other_kinds_of_members_are_left_out_and_long_names_are_not(tmp_path: Path) -> None:
    name = f"{'folder/' * 30}{'n' * 90}.jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("x.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("y.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, name, b"image")
    assert listed((tmp_path / "a.tar").read_bytes()) == [(name, b"image", None)]


def test_damage_is_found_wherever_it_is() -> None:
    content = archive_of(*((f"{number}.jpg", b"x" * 700) for number in range(4)))
    size = len(without_end(content))
    assert size == 4 * 3 * 512
    assert len(listed(content)) == 4
    for end in (*range(1, size + 1, 256), size):
        with pytest.raises(DataError, match=r"^a\.tar is damaged or cut off after \d images \(.*\); write or copy it"):
            listed(content[:end])
    for header in range(4):
        place = header * 3 * 512 + 10
        damaged = content[:place] + b"\xff" + content[place + 1 :]
        with pytest.raises(DataError, match=f"after {header} images"):
            listed(damaged)
    for other in (b"", b"no tar file at all" * 100):
        with pytest.raises(DataError, match="after 0 images"):
            listed(other)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        add(tar, "a.jpg", b"1")
    for source in (tmp_path / "a.tar.gz", tmp_path):
        with pytest.raises(DataError, match=r"a\.tar\.gz is a compressed archive, .*; decompress it"):
            load_dataset(source)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{3..1}.tar", ["3.tar", "2.tar", "1.tar"]),
        ("{day,night}/{0..1}.tar", ["day/0.tar", "day/1.tar", "night/0.tar", "night/1.tar"]),
        ("{a}/{0..1}.tar", ["{a}/0.tar", "{a}/1.tar"]),
    ],
)
def test_braces_stand_for_several_archives(path: str, names: list[str]) -> None:
    assert expanded(path) == names


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def peak(count: int) -> int:
        file = io.BytesIO(archive_of(*((f"{number:08d}.jpg", b"x") for number in range(count))))
        tracemalloc.start()
        assert sum(1 for _ in images_in(file, "a.tar", IMAGE_SUFFIXES)) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    # The least of some: what other threads of the process allocate meanwhile is counted too.
    assert min(peak(3000) for _ in range(5)) < 1.5 * min(peak(300) for _ in range(5))


def test_every_kind_of_image_is_read_as_from_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}{suffix}" for number, suffix in enumerate((".png", ".jpg", ".npy", ".tif", ".bmp"))]
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for file in files[:2] + files[4:]:
        Image.fromarray(pixels).save(file)
    np.save(files[2], pixels)
    Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16)).save(files[3])
    broken = tmp_path / "5.jpg"
    broken.write_bytes(b"no image")
    dataset = load_dataset(write_archive(tmp_path / "tars" / "a.tar", [*files, broken]))
    reader = ImageReader(threads=2)
    usable = reader.read_many(dataset.records)
    assert [record.image_id for record, _ in usable] == [1, 2, 3, 4, 5]
    alone = ImageReader().read_many(load_dataset(tmp_path).records)
    for (_, mine), (_, theirs) in zip(usable, alone, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert list(reader.skipped) == [str(tmp_path / "tars" / "a.tar" / "000005.jpg")]


def test_an_export_of_archives_is_that_of_their_images_and_is_resumed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 9, side=24)
    files = sorted(images.iterdir())
    for number in range(3):
        write_archive(tmp_path / "tars" / f"{number}.tar", files[3 * number : 3 * number + 3])
    settings = {"method": "tent", "reset": "online", "lr": 1e-2, "batch_size": 2}

    def exported(source: Path, **changes: object) -> list[object]:
        job = ExportJob(source=source, output=tmp_path / "out.json", adapter=MODEL, ttt=settings, **changes)  # type: ignore[arg-type]
        return [(entry["image_id"], entry["classification"]) for entry in export(job).entries]

    expected = exported(images)
    assert exported(tmp_path / "tars") == exported(tmp_path / "tars" / "{0..2}.tar") == expected
    assert exported(tmp_path / "tars" / "{0..2}.tar", max_images=4) == exported(images, max_images=4)
    with pytest.raises(DataError, match=r"3\.tar does not exist"):
        exported(tmp_path / "tars" / "{2..3}.tar")
    records = load_dataset(tmp_path / "tars").records
    assert isinstance(records, ArchivedRecords)
    assert [record.image_id for record in records[2:5]] == [3, 4, 5]
    done = CliRunner().invoke(main, ["corrupt", str(tmp_path / "tars"), str(tmp_path / "worse"), "--name", "fog"])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "worse").rglob("*.png"))) == 9

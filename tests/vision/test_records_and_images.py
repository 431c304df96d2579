from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from acclimate.errors import DataError
from acclimate.vision.data.images import CorruptionSpec, ImageReader, decode
from acclimate.vision.data.records import Record, load_dataset
from tests.networks import write_images


def test_a_folder_is_searched_in_order_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path / "b", 2)
    write_images(tmp_path / "a", 1)
    write_images(tmp_path / ".cache", 1)
    (tmp_path / "notes.txt").write_text("no image")
    dataset = load_dataset(tmp_path)
    assert [Path(record.image).relative_to(tmp_path).as_posix() for record in dataset.records] == [
        "a/image_000.png", "b/image_000.png", "b/image_001.png",
    ]  # fmt: skip
    assert [record.image_id for record in dataset.records] == [1, 2, 3]


def test_a_list_is_relative_to_its_own_folder(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 3)
    listed = tmp_path / "list.txt"
    listed.write_text("# the last two\nimages/image_001.png\n\nimages/image_002.png\n")
    assert [record.image for record in load_dataset(listed).records] == [str(path) for path in paths[1:]]
    assert len(load_dataset(listed, max_images=1).records) == 1


@pytest.mark.parametrize("beside", [".", "images"])
def test_coco_gives_ids_and_categories(tmp_path: Path, beside: str) -> None:
    write_images(tmp_path / beside, 2)
    content = {
        "images": [{"id": 70 + n, "file_name": f"image_00{n}.png"} for n in range(2)],
        "categories": [{"id": 18, "name": "dog"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    dataset = load_dataset(path)
    assert [record.image_id for record in dataset.records] == [70, 71]
    assert all(Path(record.image).exists() for record in dataset.records)
    assert dataset.categories == {18: "dog"}


def test_two_images_with_one_id_are_refused(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="the same id"):
        load_dataset(tmp_path / "gt.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "does not exist"),
        ("empty", "", "contains no images"),
        ("broken.json", "{", "cannot be read as JSON"),
        ("other.json", '{"a": 1}', "no COCO file"),
        ("deep.json", "[" * 100_000, "nested too deeply"),
        ("deep_object.json", '{"images":' * 100_000, "nested too deeply"),
        ("number.json", "3", "no COCO file"),
        ("huge.json", "1" * 5000, "cannot be read as JSON"),
        ("texts.json", '{"images": "abc"}', "no COCO file"),
        ("binary.txt", b"\xff\xfe\x00\xd8", "cannot be read as a list"),
    ],
)
def test_bad_sources(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset(path)


def test_every_format_becomes_rgb(tmp_path: Path) -> None:
    rgb = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "gray.png")
    Image.fromarray(rgb).convert("RGBA").save(tmp_path / "alpha.png")
    np.save(tmp_path / "b.npy", rgb)
    np.save(tmp_path / "c.npy", rgb.astype(np.float32) / 255)
    np.save(tmp_path / "d.npy", rgb[..., 0])
    Image.fromarray((rgb[..., 0] / 255).astype(np.float32)).save(tmp_path / "f.tiff")
    for name in ("a.png", "b.npy", "c.npy", "alpha.png"):
        assert np.array_equal(decode(tmp_path / name), rgb), name
    for name in ("gray.png", "d.npy", "f.tiff"):
        assert np.array_equal(decode(tmp_path / name), np.repeat(rgb[..., :1], 3, 2)), name


RAMP = np.tile(np.arange(0, 65536, 4369, dtype=np.uint16), (2, 1))
"""Sixteen steps from black to white in 16 bits; in 8 bits, they are multiples of 17."""
STEPS = np.arange(0, 256, 17)


def sixteen_bits(folder: Path, name: str, values: np.ndarray) -> Path:
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, values)
    elif values.ndim == 3:
        assert cv2.imwrite(str(path), values[..., ::-1])
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("bits", [16, 12, 8])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "big_endian.tif", "a.npy"])
def test_sixteen_bits_are_scaled_by_the_range_that_is_used(tmp_path: Path, bits: int, colour: bool, name: str) -> None:
    ramp = (np.dstack([RAMP, RAMP[:, ::-1], RAMP]) if colour else RAMP) >> (16 - bits)
    if name == "big_endian.tif":
        if colour:
            pytest.skip("written for one channel only")
        ramp = ramp.astype(">u2")
    path = sixteen_bits(tmp_path, name, ramp)
    reader = ImageReader()
    pixels = reader.read(Record(str(path), 1))
    assert np.abs(pixels[0, :, 0].astype(int) - STEPS).max() <= 1
    assert np.abs(pixels[0, :, 1].astype(int) - (STEPS[::-1] if colour else STEPS)).max() <= 1
    assert reader.scaled == ({} if bits == 16 else {str(path): 2**bits - 1})
    assert all(f"{2**bits - 1} is white" in warning and str(path) in warning for warning in reader.warnings)
    assert len(reader.warnings) == (bits != 16)


def test_a_declared_range_is_taken_before_a_measured_one(tmp_path: Path) -> None:
    dark = np.full((2, 2), 1000, np.uint16)
    for top, expected in ((1023, 249), (65535, 4), (500, 62)):
        # The last one is not true: a value is larger.
        Image.fromarray(dark).save(tmp_path / "a.tif", tiffinfo={281: top})
        assert decode(tmp_path / "a.tif")[0, 0, 0] == expected
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "black.png")
    assert not decode(tmp_path / "black.png").any()
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "large.tif")
    with pytest.raises(DataError, match="white is unknown"):
        decode(tmp_path / "large.tif")


@pytest.mark.parametrize("suffix", ["gif", "jfif", "jp2", "avif", "ppm", "tga", "heic", "HEIC", ""])
def test_less_usual_formats_are_read(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :12] = (200, 40, 40)
    image = Image.fromarray(pixels)
    path = tmp_path / (f"a.{suffix}" if suffix else "without_suffix")
    if suffix.lower() == "heic":
        pytest.importorskip("pillow_heif").from_pillow(image).save(path, quality=-1)
    else:
        image.save(path, "JPEG" if suffix == "jfif" else None if suffix else "PNG")
    (tmp_path / "notes").write_text("not an image, and without a suffix")
    (record,) = load_dataset(tmp_path).records
    assert record.image == str(path)
    read = ImageReader().read(record)
    assert np.abs(read.astype(int) - pixels).mean() < 5
    assert load_dataset(path).records[0].image == str(path)


def test_images_that_cannot_be_read_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, 1)
    for name in ("a.cr2", "b.exr", "c.svg"):
        (tmp_path / name).write_text("of another kind")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "d.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(8))
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reader = ImageReader()
    assert len(reader.read_many(load_dataset(tmp_path).records)) == 1
    assert [Path(image).name for image in reader.skipped] == ["a.cr2", "b.exr", "c.svg", "d.heic", "gone.png"]
    assert "acclimate[heic]" in reader.skipped[str(tmp_path / "d.heic")]
    with pytest.raises(DataError, match="FIFO"):
        decode(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="FIFO"):
        load_dataset(tmp_path / "pipe.png")


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    write_images(tmp_path / "outside", 2)
    write_images(tmp_path / "set" / "a", 1)
    (tmp_path / "set" / "linked").symlink_to("../outside")
    (tmp_path / "set" / "again").symlink_to("a")
    (tmp_path / "set" / "a" / "loop").symlink_to("..")
    found = [
        Path(record.image).relative_to(tmp_path / "set").as_posix() for record in load_dataset(tmp_path / "set").records
    ]
    assert found == ["a/image_000.png", "linked/image_000.png", "linked/image_001.png"]
    (tmp_path / "all").symlink_to("set")
    assert len(load_dataset(tmp_path / "all").records) == 3


def test_the_root_of_the_file_system_is_no_folder_of_images() -> None:
    with pytest.raises(DataError, match="root of the file system"):
        load_dataset("/")


BOM = "\ufeff"


def test_a_byte_order_mark_is_no_part_of_the_content(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 2)
    (tmp_path / "list.txt").write_text(f"{BOM}image_000.png\r\nimage_001.png\r\n", encoding="utf-8", newline="")
    assert [record.image for record in load_dataset(tmp_path / "list.txt").records] == [str(path) for path in paths]
    (tmp_path / "list.txt").write_text(f"{BOM}# a comment\nimage_001.png\n", encoding="utf-8")
    assert [record.image for record in load_dataset(tmp_path / "list.txt").records] == [str(paths[1])]
    content = json.dumps({"images": [{"id": 1, "file_name": "image_000.png"}]})
    (tmp_path / "gt.json").write_text(BOM + content, encoding="utf-8")
    assert load_dataset(tmp_path / "gt.json").records[0].image == str(paths[0])


def test_roboflows_unused_root_category_is_left_out(tmp_path: Path) -> None:
    root = {"id": 0, "name": "fruit", "supercategory": "none"}
    own = [{"id": n, "name": name, "supercategory": "fruit"} for n, name in ((1, "apple"), (2, "pear"))]

    def categories(*given: dict[str, Any], annotated: int = 1) -> dict[int, str]:
        content = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "categories": list(given),
            "annotations": [{"image_id": 1, "category_id": annotated, "bbox": [0, 0, 1, 1]}],
        }
        (tmp_path / "gt.json").write_text(json.dumps(content))
        return load_dataset(tmp_path / "gt.json").categories

    assert categories(root, *own) == {1: "apple", 2: "pear"}
    assert categories({**root, "name": "apple"}, {**own[0], "supercategory": "apple"}) == {1: "apple"}
    # In use, or not the root of all: it stays.
    assert categories(root, *own, annotated=0) == {0: "fruit", 1: "apple", 2: "pear"}
    assert categories(root, own[0], {**own[1], "supercategory": "none"}) == {0: "fruit", 1: "apple", 2: "pear"}
    assert categories(root) == {0: "fruit"}


def bad_files(folder: Path) -> dict[str, str]:
    (folder / "text.png").write_text("not an image")
    (folder / "cut.png").write_bytes((write_images(folder / "ok", 1)[0]).read_bytes()[:60])
    np.save(folder / "nan.npy", np.full((4, 4, 3), np.nan, np.float32))
    np.save(folder / "large.npy", np.full((4, 4, 3), 200.0, np.float32))
    np.save(folder / "shape.npy", np.zeros((4, 4, 2), np.uint8))
    np.save(folder / "ints.npy", np.zeros((4, 4, 3), np.int64))
    (folder / "void.npy").write_bytes(b"")
    np.savez(folder / "zip", a=np.zeros(3))
    (folder / "zip.npz").rename(folder / "zip.npy")
    for name, shape in (("lying", (10**9, 10**5, 3)), ("wrapped", (2**62, 4, 3)), ("vast", (10**12, 10**12, 3))):
        with (folder / f"{name}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(bytes(48))
    np.save(folder / "flat.npy", np.zeros((0, 5, 3), np.uint8))
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(folder / "nan.tiff")
    return {
        "lying.npy": "cannot be decoded", "wrapped.npy": "cannot be decoded", "vast.npy": "cannot be decoded",
        "void.npy": "cannot be decoded", "zip.npy": "no image array", "flat.npy": "no image array",
        "text.png": "cannot be decoded", "cut.png": "cannot be decoded", "nan.npy": "NaN", "nan.tiff": "NaN",
        "large.npy": r"\[0, 1\]", "shape.npy": r"\(4, 4, 2\)", "ints.npy": "int64", "gone.png": "no such file",
    }  # fmt: skip


def test_unusable_images_are_reported_once(tmp_path: Path) -> None:
    reasons = bad_files(tmp_path)
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            decode(tmp_path / name)
    reader = ImageReader()
    records = [Record(str(tmp_path / name), 1) for name in reasons]
    good = Record(str(tmp_path / "ok" / "image_000.png"), 2)
    for _ in range(2):
        assert [record for record, _ in reader.read_many([*records, good])] == [good]
    assert set(reader.skipped) == {record.image for record in records}


def test_noise_depends_on_the_file_name_and_not_on_the_position(tmp_path: Path) -> None:
    first, second = (Record(str(path), n) for n, path in enumerate(write_images(tmp_path, 2)))
    reader = ImageReader(CorruptionSpec("gaussian_noise", 3))
    alone = reader.read(second)
    reader.read(first)
    assert np.array_equal(reader.read(second), alone)
    noise = [reader.read(record).astype(int) - decode(Path(record.image)) for record in (first, second)]
    assert not np.array_equal(*noise)


ORIENTATION = 0x0112


def turned(pixels: np.ndarray, orientation: int, path: Path) -> Path:
    """Write an image that viewers show as ``pixels``, stored with an EXIF orientation."""
    # The stored grid is what the inverse of the orientation makes of the pixels; 6 and 8 are inverse to each other.
    image = Image.new("RGB", pixels.shape[1::-1])
    image.putdata([tuple(pixel) for row in pixels.tolist() for pixel in row])
    exif = Image.Exif()
    exif[ORIENTATION] = {6: 8, 8: 6}.get(orientation, orientation)
    image.save(path.with_suffix(".scratch.png"), exif=exif)
    stored = ImageOps.exif_transpose(Image.open(path.with_suffix(".scratch.png")))
    path.with_suffix(".scratch.png").unlink()
    exif[ORIENTATION] = orientation
    stored.save(path, exif=exif, quality=100, lossless=True)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_images_are_read_as_viewers_show_them(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    path = turned(pixels, orientation, tmp_path / f"a{suffix}")
    assert np.array_equal(decode(path), pixels)
    if suffix != ".tiff":  # Pillow always applies the orientation of TIFF files.
        with Image.open(path) as image:
            assert np.array_equal(decode(path, exif_orientation=False), np.asarray(image))


def test_a_rotated_jpeg_and_one_with_damaged_exif_data(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0] = 255
    read = decode(turned(pixels, 6, tmp_path / "a.jpg"))
    assert read.shape == (32, 64, 3)
    assert np.abs(read.astype(int) - pixels).mean() < 4
    Image.fromarray(pixels).save(tmp_path / "b.jpg", exif=b"Exif\x00\x00MM\x00*garbage")
    assert decode(tmp_path / "b.jpg").shape == (32, 64, 3)


def test_the_declared_size_is_compared_with_the_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    turned(pixels, 6, tmp_path / "a.jpg")
    np.save(tmp_path / "b.npy", pixels)
    (tmp_path / "broken.png").write_text("no image")

    def check(width: int | None, height: int | None, *, name: str = "a.jpg", exif_orientation: bool = True) -> None:
        image = {"id": 1, "file_name": name, "width": width, "height": height}
        (tmp_path / "gt.json").write_text(json.dumps({"images": [image, {**image, "id": 2}]}))
        ImageReader(exif_orientation=exif_orientation).check_sizes(load_dataset(tmp_path / "gt.json").records)

    check(60, 40)
    check(40, 60, exif_orientation=False)
    check(None, None)
    check(0, 40)
    check(60, 40, name="b.npy")
    check(1, 1, name="broken.png")
    check(1, 1, name="missing.png")
    with pytest.raises(
        DataError, match=r"exchanged, because of its EXIF orientation; run with --no-exif-orientation \(1 m"
    ):
        check(40, 60)
    with pytest.raises(DataError, match="run without --no-exif-orientation"):
        check(60, 40, exif_orientation=False)
    with pytest.raises(DataError, match="width and height are exchanged; rotate"):
        check(40, 60, name="b.npy")
    for size in ((120, 80), (30, 20), (20, 13)):
        with pytest.raises(DataError, match="resized after it was annotated"):
            check(*size)
    with pytest.raises(DataError, match=r"60 x 40 pixels, and its annotations are for 60 x 60; give"):
        check(60, 60)
    with pytest.raises(DataError, match="no COCO file"):
        check("wide", 40)  # type: ignore[arg-type]

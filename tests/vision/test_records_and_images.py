from __future__ import annotations

import json
from pathlib import Path

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
    np.save(folder / "flat.npy", np.zeros((0, 5, 3), np.uint8))
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(folder / "nan.tiff")
    return {
        "void.npy": "cannot be decoded", "zip.npy": "no image array", "flat.npy": "no image array",
        "text.png": "cannot be decoded", "cut.png": "cannot be decoded", "nan.npy": "NaN", "nan.tiff": "NaN",
        "large.npy": r"\[0, 1\]", "shape.npy": r"\(4, 4, 2\)", "ints.npy": "int64", "gone.png": "no such file",
    }  # fmt: skip


def test_what_cannot_be_used_is_named_and_counted_once(tmp_path: Path) -> None:
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


def test_noise_depends_on_the_image_and_not_on_its_place(tmp_path: Path) -> None:
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

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from acclimate.errors import ConfigError, DataError
from acclimate.ui import image_sets
from acclimate.ui.image_sets import ImageSets, Uploads, models_of


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_images_are_stored_as_pixels_alone(tmp_path: Path, kind: str) -> None:
    uploads = Uploads(tmp_path)
    uploads.add(encoded(Image.new("RGB", (30, 20), (200, 10, 10)), kind) + b"what follows the image")
    (stored,) = uploads.path.iterdir()
    with Image.open(stored) as found:
        assert (found.format, found.size) == ("PNG", (30, 20))
    assert b"what follows" not in stored.read_bytes()
    uploads.close()
    assert not uploads.path.exists()


def test_large_photographs_are_made_smaller(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    uploads.add(encoded(Image.new("L", (3000, 1500)), "JPEG"))
    (stored,) = uploads.path.iterdir()
    with Image.open(stored) as found:
        assert found.size == (1024, 512)
        assert found.mode == "RGB"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        encoded(Image.new("RGB", (9, 9)))[:40],
        encoded(Image.new("RGB", (64, 64)), "JPEG")[:100],
        encoded(Image.new("P", (9, 9)), "GIF"),
        encoded(Image.new("RGB", (9, 9)), "TIFF"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
    ids=["empty", "text", "half a PNG", "half a JPEG", "GIF", "TIFF", "SVG", "PostScript"],
)
def test_everything_else_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    uploads = Uploads(tmp_path)
    with pytest.raises(DataError, match="this is no image in one of the formats PNG, JPEG, WEBP, BMP"):
        uploads.add(content)
    assert uploads.count == 0
    with pytest.raises(DataError, match="no image was uploaded yet"):
        uploads.as_set()


def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    content = bytearray(encoded(Image.new("1", (8, 8))))
    # Width and height stand in the header of a PNG; its checksum is looked at only where it is decoded.
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    with pytest.raises(DataError, match=r"2500 million pixels|no image"):
        Uploads(tmp_path).add(bytes(content))
    with pytest.raises(DataError, match="30 million pixels; at most 25 million"):
        Uploads(tmp_path).add(encoded(Image.new("1", (6000, 5000))))


def test_there_is_a_limit_to_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sets, "MOST_IMAGES", 2)
    uploads = Uploads(tmp_path)
    for _ in range(2):
        uploads.add(encoded(Image.new("RGB", (4, 4))))
    with pytest.raises(DataError, match="2 images were uploaded, and no more are taken"):
        uploads.add(encoded(Image.new("RGB", (4, 4))))


def test_images_that_arrive_at_once_are_all_kept(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    contents = [encoded(Image.new("RGB", (200, 200), (number, 0, 0))) for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(uploads.add, contents))
    assert uploads.count == len(list(uploads.path.iterdir())) == 24


def test_nothing_is_stored_after_the_page_was_closed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    uploads.close()
    with pytest.raises(DataError, match="the page was closed"):
        uploads.add(encoded(Image.new("RGB", (4, 4))))
    assert list(tmp_path.iterdir()) == []


def test_models_are_named_and_wrong_ones_refused() -> None:
    found = models_of(["transformers:/models/vit-small", "torch:networks.small:make"])
    assert list(found) == ["digits", "rtdetr_pose", "vit-small", "networks.small:make"]
    for wrong in ("vit-small", "onnx:file", "torch:"):
        with pytest.raises(ConfigError, match="write transformers:FOLDER or torch"):
            models_of([wrong])


def test_the_folder_of_the_server_is_removed_with_it() -> None:
    sets = ImageSets()
    found = sets.sample("digits")
    assert found.truth is not None
    assert len(found.load(10).records) == 10
    sets.close()
    assert not sets.folder.exists()

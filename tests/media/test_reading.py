"""Images and sounds are read within limits; whatever cannot be read is one line that names the file."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from acclimate.errors import DataError
from acclimate.media import Limits, image_from_bytes, item_from_bytes, read_examples, read_item, sound_from_bytes
from tests.media import making


def test_an_image_is_read_and_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (1200, 300), "red").save(tmp_path / "wide.png")
    item = read_item("image", tmp_path / "wide.png", limits=Limits(working_side=600))
    assert item.values.shape == (150, 600, 3)
    assert item.values[0, 0].tolist() == [255, 0, 0]


def test_the_same_pixels_in_two_files_are_one_input(tmp_path: Path) -> None:
    making.image_file(tmp_path / "a.png")
    making.image_file(tmp_path / "b.bmp")
    assert read_item("image", tmp_path / "a.png").digest == read_item("image", tmp_path / "b.bmp").digest


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (16_000, 6), (48_000, 1)])
def test_rates_and_channels_become_one(tmp_path: Path, rate: int, channels: int) -> None:
    wave = making.tone(440, 0, rate=rate)
    making.sound_file(tmp_path / "a.wav", np.stack([wave] * channels, 1), rate)
    item = read_item("audio", tmp_path / "a.wav")
    assert item.values.shape == (8_000,)
    spectrum = np.abs(np.fft.rfft(item.values))
    assert abs(int(spectrum.argmax()) * 2 - 440) < 30


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_every_depth_has_the_same_scale(tmp_path: Path, subtype: str) -> None:
    wave = making.tone(440, 0)
    making.sound_file(tmp_path / "a.wav", wave, subtype=subtype)
    np.testing.assert_allclose(read_item("audio", tmp_path / "a.wav").values, wave, atol=1 / 120)


@pytest.mark.parametrize("suffix", ["flac", "ogg"])
def test_other_formats_are_read(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", making.tone(440, 0), 16_000)
    assert len(read_item("audio", tmp_path / f"a.{suffix}").values) == pytest.approx(8_000, abs=200)


def test_bytes_are_read_like_files(tmp_path: Path) -> None:
    path = making.image_file(tmp_path / "a.png")
    assert image_from_bytes(path.read_bytes(), name="a").digest == read_item("image", path).digest
    path = making.sound_file(tmp_path / "a.wav", making.tone(440, 0))
    assert sound_from_bytes(path.read_bytes(), name="a").digest == read_item("audio", path).digest


def test_what_a_file_holds_is_found_out(tmp_path: Path) -> None:
    image, sound = making.image_file(tmp_path / "a.bin.png"), making.sound_file(tmp_path / "a.wav", making.tone(440, 0))
    assert item_from_bytes(image.read_bytes(), name="dropped").kind == "image"
    assert item_from_bytes(sound.read_bytes(), name="dropped").kind == "audio"
    for content, said in (
        (b"", "is empty"),
        (b"neither", "is neither an image nor a sound"),
        (b"x" * 200, "at most 100 are read"),
    ):
        with pytest.raises(DataError, match=said):
            item_from_bytes(content, name="dropped", limits=Limits(max_bytes=100))
    with pytest.raises(DataError, match=r"at most 0\.1 s"):
        item_from_bytes(wave(0.5), name="dropped", limits=Limits(max_seconds=0.1))
    with pytest.raises(DataError, match="pixels"):
        item_from_bytes(png(200, 60), name="dropped", limits=Limits(max_pixels=10_000))


def wav_header(rate: int, frames: int) -> bytes:
    """A WAV file that declares more than it holds."""
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + 2 * frames) + form + b"data" + struct.pack("<I", 2 * frames)


def png(width: int, height: int) -> bytes:
    target = io.BytesIO()
    Image.new("1", (width, height)).save(target, "PNG")
    return target.getvalue()


def nan_wave() -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.array([0.0, np.nan, 0.5]), 16_000, format="WAV", subtype="FLOAT")
    return target.getvalue()


def wave(seconds: float, rate: int = 16_000) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.zeros(round(seconds * rate)), rate, format="WAV")
    return target.getvalue()


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("image", b"no image at all", "cannot be decoded"),
        ("image", b"", "is empty"),
        ("image", making.__doc__.encode() * 1000, "at most 20000 are read"),
        ("image", png(200, 60), "at most 10000 are read; reduce the image"),
        ("image", wave(0.1), "cannot be decoded"),
        ("audio", b"no sound at all", "is no sound that can be read"),
        ("audio", png(20, 20), "is no sound that can be read"),
        ("audio", wave(0.55), "at most 0.5 s are read; cut it"),
        ("audio", wave(0.0), "holds no samples"),
        ("audio", nan_wave(), "contains NaN or infinity"),
        ("audio", wave(0.5, 200), "can be read"),
        ("audio", wav_header(16_000, 2**30), ""),
    ],
    # Some headers hold the time at which they were written, and every worker must name the cases alike.
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path: Path, kind: str, content: bytes, said: str) -> None:
    path = tmp_path / "given.file"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_item(kind, path, limits=Limits(max_bytes=20_000, max_pixels=10_000, max_seconds=0.5))
    assert said in str(error.value)
    assert "given.file" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_size_of_a_huge_image_is_read_from_its_header(tmp_path: Path) -> None:
    # 400 million pixels compress to some fifty kilobytes; decoded they would take a gigabyte.
    (tmp_path / "bomb.png").write_bytes(png(20_000, 20_000))
    with pytest.raises(DataError, match="pixels"):
        read_item("image", tmp_path / "bomb.png")


@pytest.mark.parametrize("name", ["missing.png", ".", "a\0b.png"])
def test_what_is_no_file_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        read_item("image", tmp_path / name)


def test_paths_are_relative_to_the_file_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    path = making.image_task(folder, 2)
    monkeypatch.chdir(tmp_path)
    examples = read_examples(path)
    assert [example.output for example in examples] == ["upright"] * 2 + ["lying"] * 2 + ["square"] * 2
    assert examples[0].item.name == "upright0.png"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "holds no examples"),
        ("{", "line 1 is not JSON"),
        ('{"input": {"image": "a.png"}}', "line 1 is no example"),
        ('{"input": {"image": "a.png", "audio": "b.wav"}, "output": "x"}', "line 1 is no example"),
        ('{"input": {"video": "a.mp4"}, "output": "x"}', "give one of image, audio"),
        ('{"input": {"image": 3}, "output": "x"}', "give one of image, audio"),
        ('{"input": {"image": "a.png"}, "output": ["x"]}', "it must be text"),
        ('{"input": {"image": "a.png"}, "output": "x"}\n{"input": "text", "output": "x"}', "line 2 is no example"),
        ('{"input": {"image": "a.png"}, "output": "x"}\n{"input": {"audio": "a"}, "output": "x"}', "mixes inputs"),
        ('{"input": {"image": "a.png"}, "output": "x"}', "a.png: no such file"),
    ],
)
def test_lines_that_are_no_examples_are_named(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "examples.jsonl").write_text(lines)
    with pytest.raises(DataError, match=said) as error:
        read_examples(tmp_path / "examples.jsonl")
    assert "\n" not in str(error.value)


def test_content_from_others_is_decoded_from_few_formats() -> None:
    # Pillow hands PostScript to a program outside, where that is installed.
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(DataError, match="is no image in one of the formats PNG, JPEG"):
        image_from_bytes(postscript, name="a.eps")
    with pytest.raises(DataError, match="is neither an image nor a sound"):
        item_from_bytes(postscript, name="a.eps")


def test_a_small_file_with_many_channels_of_silence_is_refused_before_it_fills_the_memory() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((4_000, 8), np.int16), 192_000, format="FLAC")
    with pytest.raises(DataError, match="has 32000 samples in all channels, at most 15360 are read"):
        sound_from_bytes(file.getvalue(), name="a.flac", limits=Limits(max_seconds=0.04))

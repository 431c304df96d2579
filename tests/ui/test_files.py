from __future__ import annotations

import base64
import io
import wave

import numpy as np
import pytest

from acclimate.errors import DataError
from acclimate.media import MediaExample, item_from_bytes
from acclimate.ui.files_view import answer_html, files_lab, sound_address, tried_html


def sound_file(hertz: float, *, seconds: float = 0.4) -> bytes:
    """Return a WAV file with a tone."""
    times = np.arange(int(16_000 * seconds)) / 16_000
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes((np.sin(2 * np.pi * hertz * times) * 12_000).astype("<i2").tobytes())
    return file.getvalue()


def test_sounds_are_played_as_they_were_given() -> None:
    item = item_from_bytes(sound_file(440), name="a.wav")
    kind, _, content = sound_address(item).partition(",")
    assert kind == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(content))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (16_000, 6400)
        played = np.frombuffer(sound.readframes(6400), "<i2") / 32767
    assert np.abs(played - item.values).max() < 1e-3


def test_an_answer_is_shown_with_its_evidence_and_markup_stays_text() -> None:
    lab = files_lab(16, "cpu")
    rng = np.random.default_rng(0)
    examples = [
        MediaExample(item_from_bytes(sound_file(hertz + rng.uniform(0, 30)), name=f"{label}{n}.wav"), label)
        for label, hertz in (("<b>low</b>", 200), ("high", 3000))
        for n in range(3)
    ]
    report = lab.ask(examples, item_from_bytes(sound_file(210), name="open.wav"))
    assert report.answer == "<b>low</b>"
    shown = answer_html(report)
    assert "&lt;b&gt;low&lt;/b&gt; is right with probability" in shown
    assert "<b>" not in shown
    assert all(tried.encoder in tried_html(report) for tried in report.tried)


def test_the_limits_of_the_server_hold() -> None:
    limits = files_lab(1, "cpu").engine.limits
    assert limits.max_bytes == 2**20
    with pytest.raises(DataError, match="at most"):
        item_from_bytes(b"RIFF" + b"x" * 2**20, name="large.wav", limits=limits)

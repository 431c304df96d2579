"""Conversations of images and sounds: answered, limited, and refused in one line."""

from __future__ import annotations

import base64
import io
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from PIL import Image

from acclimate.media import MediaEngine
from acclimate.media.encoders.gradients import Gradients
from acclimate.media.encoders.log_mel import LogMel
from acclimate.monitoring import Store
from acclimate.serve.app import create_app
from acclimate.serve.media_answers import MediaAnswers
from acclimate.serve.schemas import ChatRequest
from acclimate.serve.service import Service
from acclimate.serve.settings import ServerSettings
from acclimate.serve.telemetry import Telemetry
from acclimate.serve.worker import BusyError
from tests.language.models import small
from tests.media import making


def image_part(kind: str, seed: int) -> dict[str, Any]:
    target = io.BytesIO()
    Image.fromarray(making.shape_image(kind, seed)).save(target, "PNG")
    return data_url(target.getvalue())


def data_url(content: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def sound_part(hertz: float, seed: int, seconds: float = 0.3) -> dict[str, Any]:
    target = io.BytesIO()
    soundfile.write(target, making.tone(hertz, seed, seconds), 16_000, format="WAV")
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(target.getvalue()).decode(), "format": "wav"},
    }


def conversation(*turns: tuple[dict[str, Any], str], open_turn: dict[str, Any]) -> list[dict[str, Any]]:
    messages = []
    for part, label in turns:
        messages += [{"role": "user", "content": [part]}, {"role": "assistant", "content": label}]
    return [*messages, {"role": "user", "content": [open_turn]}]


def shapes(open_turn: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    turns = [(image_part(kind, seed), kind) for kind in ("lying", "upright") for seed in range(3)]
    return conversation(*turns, open_turn=open_turn or image_part("lying", 9))


def answers() -> MediaAnswers:
    """Answers with an encoder that needs no weights."""
    settings = ServerSettings(models=("llama",), max_examples=8, max_image_pixels=10_000, max_sound_s=1.0)
    found = MediaAnswers(settings)
    found._engine = MediaEngine(limits=found.limits, encoders=[Gradients()])
    return found


@pytest.fixture
def media() -> MediaAnswers:
    return answers()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "metrics.db"


@pytest.fixture(scope="module")
def client(database: Path) -> Iterator[TestClient]:
    service = Service(ServerSettings(models=("llama",)), {"llama": small()})
    service.media = answers()
    telemetry = Telemetry(service, store=Store(str(database)))
    app = create_app(service, telemetry=telemetry)
    app.state.store = telemetry.store
    with TestClient(app, base_url="http://127.0.0.1") as found:
        yield found


def store_of(client: TestClient) -> Store:
    found: Store = client.app.state.store  # type: ignore[attr-defined]
    return found


def post(client: TestClient, messages: list[dict[str, Any]], **more: Any) -> Any:
    return client.post("/v1/chat/completions", json={"model": "media", "messages": messages, **more})


def test_an_image_is_answered_in_openais_shape_and_recorded(client: TestClient, database: Path) -> None:
    answer = post(client, shapes())
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "lying"}
    assert body["media"]["held_out_examples"] == 6
    assert "media" in [model["id"] for model in client.get("/v1/models").json()["data"]]
    store_of(client).flush()
    with sqlite3.connect(database) as store:
        assert store.execute("SELECT pipeline, model FROM requests").fetchall() == [("media", "gradients")]


def test_sounds_are_answered(media: MediaAnswers) -> None:
    media._engine = MediaEngine(encoders=[LogMel()])
    turns = [(sound_part(hertz, seed), name) for name, hertz in (("low", 300), ("high", 2500)) for seed in range(3)]
    body = ChatRequest(model="media", messages=conversation(*turns, open_turn=sound_part(2500, 9)))
    assert media.answer(body).answer == "high"


def large() -> dict[str, Any]:
    target = io.BytesIO()
    Image.fromarray(np.zeros((200, 200), np.uint8)).save(target, "PNG")
    return data_url(target.getvalue())


@pytest.mark.parametrize(
    ("messages", "more", "said"),
    [
        (shapes(large()), {}, "turn 7: has 200 x 200 pixels, at most 10000 are read"),
        (shapes(data_url(b"no image")), {}, "turn 7: is no image in one of the formats"),
        (shapes({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}), {}, "no address is fetched"),
        (shapes({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}), {}, "not base64"),
        (shapes(sound_part(300, 0)), {}, "turn 7: is of kind audio"),
        (shapes(sound_part(300, 0, seconds=1.5)), {}, "lasts 1.5 s, at most 1 s"),
        (shapes({"type": "text", "text": "what is it?"}), {}, "turn 7 of the user holds 0 images and sounds"),
        (shapes()[:-1], {}, "cannot be read as examples"),
        (shapes()[1:], {}, "cannot be read as examples"),
        (shapes()[-1:], {}, "there are no examples"),
        ([*shapes()[:-1], *shapes()], {}, "12 examples given, at most 8"),
        (shapes(), {"stream": True}, "leave out stream and n"),
        (
            shapes(),
            {"model": "llama"},
            "'llama' reads text, and the messages hold images or sounds; ask the model 'media'",
        ),
        (shapes({"type": "video", "video": "x"}), {}, "content"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    client: TestClient, messages: list[dict[str, Any]], more: dict[str, Any], said: str
) -> None:
    answer = post(client, messages, **more)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert said in message
    assert "\n" not in message


def test_a_server_without_media_says_so() -> None:
    service = Service(ServerSettings(models=("llama",)), {"llama": small()})
    assert service.media is None
    with TestClient(create_app(service), base_url="http://127.0.0.1") as client:
        assert "media = true" in post(client, shapes()).json()["error"]["message"]


def test_further_requests_are_refused_while_many_wait(media: MediaAnswers) -> None:
    media._max_waiting = 1
    body = ChatRequest(model="media", messages=shapes())
    with media._one_at_a_time:
        waiting = [threading.Thread(target=media.answer, args=(body,)) for _ in range(2)]
        for thread in waiting:
            thread.start()
        while media._there < 2:
            pass
        with pytest.raises(BusyError, match="try again later"):
            media.answer(body)
    for thread in waiting:
        thread.join()
    assert media.answer(body).answer == "lying"

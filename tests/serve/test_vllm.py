"""Training here and generating elsewhere, against a stand-in for vLLM's server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from acclimate.errors import ConfigError, DataError
from acclimate.language import AskReport, LanguageModel, load
from acclimate.serve.access import api_error
from acclimate.serve.app import create_app
from acclimate.serve.schemas import ChatRequest, CompletionRequest
from acclimate.serve.service import Service
from acclimate.serve.settings import ServerSettings, read_settings
from acclimate.serve.vllm import VllmSettings
from tests.language.models import spark
from tests.serve.vllm_stand_in import StandIn, standing_in

WORDS = ("apple", "river", "stone", "cloud", "green", "house")
LOAD, UNLOAD, COMPLETE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"


@pytest.fixture(scope="module")
def there() -> LanguageModel:
    """The network of the stand-in: the same weights, and hooks of its own."""
    return load("spark", dtype=torch.float32)


@pytest.fixture
def vllm(there: LanguageModel) -> Iterator[tuple[str, StandIn]]:
    with standing_in(there, "base") as found:
        yield found


def service_of(url: str | None, folder: Path, **settings: Any) -> Service:
    given: dict[str, Any] = {"models": ("spark",), "record": False, "page": False}
    if url is not None:
        given |= {"generate_with": "vllm", "vllm_url": url, "vllm_model": "base", "vllm_adapter_folder": folder}
    read = ServerSettings(**given | settings)
    read.check()
    return Service(read, {"spark": spark()})


@contextmanager
def serving(url: str | None, folder: Path, **settings: Any) -> Iterator[Service]:
    found = service_of(url, folder, **settings)
    found.start()
    try:
        yield found
    finally:
        assert found.close()


def prompt(tag: str = "q", query: str = "melon") -> str:
    return "".join(f"{word} -> <{tag}>{word}</{tag}>\n" for word in WORDS) + f"{query} ->"


def chat(tag: str = "q", query: str = "melon", **more: Any) -> ChatRequest:
    body = {"model": "spark", "messages": [{"role": "user", "content": prompt(tag, query)}]}
    return ChatRequest.model_validate(body | more)


def ask(service: Service, body: ChatRequest | CompletionRequest) -> AskReport:
    return service.submit(service.prepare(body, ""), "").result.result(timeout=120)


REQUESTS: dict[str, ChatRequest | CompletionRequest] = {
    "gate": chat(logprobs=True, top_logprobs=3),
    "forced": chat("b", ttt={"mode": "force"}),
    "votes": chat("c", ttt={"votes": 3}),
    "off": chat(ttt={"mode": "off"}, max_tokens=20),
    "declined": chat("c", ttt={"confidence_threshold": 1.0}),
    "given": chat(messages=[{"role": "user", "content": "tiger"}], ttt={"examples": [
        {"input": word, "output": word.upper()} for word in WORDS]}),
    "completion": CompletionRequest(model="spark", prompt=prompt("d")),
    "stop": CompletionRequest(model="spark", prompt=prompt(), stop=["</"], max_tokens=30, ttt={"mode": "off"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(None, tmp_path_factory.mktemp("here")) as service:
        yield service


@pytest.fixture(scope="module")
def elsewhere(
    there: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, StandIn, Path]]:
    folder = tmp_path_factory.mktemp("adapters")
    with standing_in(there, "base") as (url, one), serving(url, folder) as service:
        yield service, one, folder


@pytest.mark.parametrize("kind", list(REQUESTS))
def test_answers_and_decisions_are_those_of_a_server_that_generates_itself(
    kind: str, here: Service, elsewhere: tuple[Service, StandIn, Path]
) -> None:
    service, one, _ = elsewhere
    expected, found = ask(here, REQUESTS[kind]), ask(service, REQUESTS[kind])
    for name in ("answer", "status", "reason", "icl_answer", "ttt_answer", "agreement", "complete", "answer_tokens"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.metadata.confidence_score == pytest.approx(expected.metadata.confidence_score, abs=1e-3)
    assert found.icl_confidence == pytest.approx(expected.icl_confidence, abs=1e-3)
    for mine, theirs in zip(found.chosen_tokens, expected.chosen_tokens, strict=True):
        assert (mine.token, len(mine.alternatives)) == (theirs.token, len(theirs.alternatives))
        assert mine.log_probability == pytest.approx(theirs.log_probability, abs=1e-3)
    assert not one.refusals


def test_an_adapter_is_written_once_in_the_format_and_rank_that_vllm_takes(
    elsewhere: tuple[Service, StandIn, Path],
) -> None:
    service, one, folder = elsewhere
    ask(service, chat("e"))
    loads = one.count(LOAD)
    assert ask(service, chat("e", "tiger")).cached
    assert one.count(LOAD) == loads
    newest = next(body for path, body in reversed(one.requests) if path == LOAD)
    config = json.loads((Path(newest["lora_path"]) / "adapter_config.json").read_text())
    assert config["r"] <= 16
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "base")
    assert Path(newest["lora_path"]).parent == folder.resolve()
    sent = next(body for path, body in reversed(one.requests) if path == COMPLETE and body["model"] != "base")
    assert sent["model"] == newest["lora_name"]
    # What vLLM would take from the model's own settings is given.
    assert (sent["temperature"], sent["top_k"], sent["repetition_penalty"]) == (0.0, -1, 1.0)
    with pytest.raises(DataError, match="rank is 17; at most 16"):
        service.prepare(chat(ttt={"rank": 17}), "")


def test_adapters_that_were_used_longest_ago_make_room(there: LanguageModel, tmp_path: Path) -> None:
    with standing_in(there, "base", max_adapters=2) as (url, one):
        with serving(url, tmp_path, vllm_adapters=2) as service:
            for tag in ("a", "b", "c", "a"):
                assert ask(service, chat(tag, ttt={"mode": "force"})).status == "adapted"
            assert (one.count(LOAD), one.count(UNLOAD), one.most_adapters) == (4, 2, 2)
            assert {path.name for path in tmp_path.iterdir()} == set(one.adapters)
        # Nothing is left behind.
        assert one.adapters == {}
        assert list(tmp_path.iterdir()) == []
        assert not one.refusals


def test_a_server_that_was_started_again_gets_the_adapters_again(vllm: tuple[str, StandIn], tmp_path: Path) -> None:
    url, one = vllm
    with serving(url, tmp_path) as service:
        first = ask(service, chat(ttt={"mode": "force"}))
        one.adapters.clear()
        assert ask(service, chat(ttt={"mode": "force"})).answer == first.answer
        assert one.count(LOAD) == 2
        # One that was asked for and is there already is no error: the answer to the first request was lost.
        generator = service.generator
        assert generator is not None
        generator._loaded.clear()
        assert ask(service, chat(ttt={"mode": "force"})).answer == first.answer
        assert one.count(LOAD) == 3


FAILURES = {
    "500": (502, "server_error"),
    "busy": (503, "server_error"),
    "hang": (504, "timeout_error"),
    "cut": (502, "server_error"),
    "error": (502, "server_error"),
    "malformed": (502, "server_error"),
    "refuse": (502, "server_error"),
}


@pytest.mark.parametrize("fails", [*FAILURES, "down"])
def test_a_failure_there_is_an_error_object_here_and_the_server_goes_on(
    fails: str, there: LanguageModel, tmp_path: Path
) -> None:
    status, kind = FAILURES.get(fails, (503, "server_error"))
    timeout_s = 1.5 if fails == "hang" else 240.0
    body = chat(ttt={"mode": "force"}).model_dump(exclude_none=True)
    with (
        standing_in(there, "base") as (url, one),
        TestClient(
            create_app(
                service_of("http://127.0.0.1:9" if fails == "down" else url, tmp_path, vllm_timeout_s=timeout_s)
            ),
            base_url="http://localhost",
            raise_server_exceptions=False,
        ) as client,
    ):
        one.fails = "" if fails == "down" else fails
        found = client.post("/v1/chat/completions", json=body)
        error = found.json()["error"]
        assert (found.status_code, error["type"], error["code"]) == (status, kind, "generation_failed"), found.text
        assert "/" not in error["message"]
        assert ("retry-after" in found.headers) == (status == 503)
        lines = client.post("/v1/chat/completions", json=body | {"stream": True}).text.strip().splitlines()
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-3].removeprefix("data: "))["error"]["code"] == "generation_failed"
        one.fails = ""
        one.released.set()
        if fails != "down":
            # On a busy machine an answer may take longer than the short limit.
            answers = (client.post("/v1/chat/completions", json=body) for _ in range(100))
            assert next(one for one in answers if one.status_code != 504).json()["ttt"]["used"] is True
            assert 'acclimate_vllm_events_total{event="failures"}' in client.get("/metrics").text
        assert not one.refusals


def test_the_key_is_sent_and_a_wrong_one_is_an_error(
    there: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_VLLM", "right")
    with standing_in(there, "base", key="right") as (url, _):
        with serving(url, tmp_path, vllm_api_key_env="KEY_OF_VLLM") as service:
            assert ask(service, chat()).status == "adapted"
            assert "right" not in repr(service.generator and service.generator.settings)
        with serving(url, tmp_path) as service, pytest.raises(Exception, match="does not accept the API key") as raised:
            ask(service, chat())
        assert api_error(raised.value).status == 502  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"), serving(url, tmp_path, vllm_api_key_env="NO_SUCH_KEY"):
        pass


def test_text_is_streamed_and_a_client_that_leaves_ends_the_answer_there(
    vllm: tuple[str, StandIn], tmp_path: Path
) -> None:
    url, one = vllm
    with serving(url, tmp_path) as service:
        pieces: list[str] = []
        long = chat(query="watermelonwatermelonwatermelon", ttt={"mode": "force"}, max_tokens=60)
        ticket = service.submit(service.prepare(long, ""), "", on_text=pieces.append)
        report = ticket.result.result(timeout=60)
        assert len(pieces) > 3
        assert "".join(pieces) == report.answer
        one.holds = True
        slow = service.submit(service.prepare(long, ""), "")
        until = time.monotonic() + 600
        while not one.held:
            assert time.monotonic() < until
            time.sleep(0.02)
        # Another one is trained and answered meanwhile.
        one.holds = False
        assert ask(service, chat("b")).answer
        assert not slow.result.done()
        slow.give_up()
        with pytest.raises(Exception, match="cancelled"):
            slow.result.result(timeout=600)
        while not one.left:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert service.models["spark"].worker.load().running == 0


def test_an_answer_ends_at_the_deadline_of_the_request(vllm: tuple[str, StandIn], tmp_path: Path) -> None:
    url, one = vllm
    one.holds = True
    with serving(url, tmp_path, request_timeout_s=2.0) as service:
        began = time.monotonic()
        with pytest.raises(Exception, match="took longer") as raised:
            ask(service, chat(query="watermelonwatermelonwatermelon", ttt={"mode": "force"}, max_tokens=60))
        assert time.monotonic() - began < 60
        assert api_error(raised.value).status == 504  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"generate_with": "vllm", "vllm_adapter_folder": "x"}, "needs vllm_url"),
        ({"generate_with": "vllm", "vllm_url": "http://127.0.0.1:1"}, "needs vllm_adapter_folder"),
        ({"vllm_url": "http://127.0.0.1:1"}, "vllm_url needs generate_with vllm"),
        ({"generate_with": "vllm", "vllm_url": "http://a", "vllm_adapter_folder": "x", "models": "a,b"}, "one model"),
        ({"generate_with": "vllm", "vllm_url": "http://a", "vllm_adapter_folder": "x", "engine": "ray"}, "engine ray"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_settings(settings, environment={})


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b@c", "http://a:x", "http://a?b=c"])
def test_only_an_address_of_http_is_taken(url: str) -> None:
    with pytest.raises(ConfigError, match="vllm_url must be like"):
        VllmSettings(url=url, model="m", folder=Path("x"))

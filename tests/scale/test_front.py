"""The address in front of several replicas: routing, names, retries, streams and metrics."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from acclimate.language import Engine, as_examples
from acclimate.scale.front import REPLICA_HEADER, routing_key
from acclimate.serve.keys import KeyFile
from acclimate.serve.schemas import ChatRequest, CompletionRequest
from tests.language.models import spark
from tests.scale.local_replicas import LocalReplicas, Message, fronted

WORDS = ("apple", "river", "stone", "cloud", "green", "house")
Front = tuple[httpx.Client, LocalReplicas]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "store"


@pytest.fixture(scope="module")
def front(shared: Path) -> Iterator[Front]:
    with fronted(shared) as found:
        yield found


@pytest.fixture
def short_lived(front: Front) -> Iterator[Front]:
    yield front
    front[1].begin_again()


def examples(tag: str) -> list[dict[str, str]]:
    return [{"input": word, "output": f"<{tag}>{word}</{tag}>"} for word in WORDS]


def prompt(tag: str, query: str = "melon") -> str:
    return "".join(f"{e['input']} -> {e['output']}\n" for e in examples(tag)) + f"{query} ->"


def body(tag: str = "q", query: str = "melon", **more: Any) -> dict[str, Any]:
    return {"model": "spark", "messages": [{"role": "user", "content": prompt(tag, query)}]} | more


def ask(client: httpx.Client, **more: Any) -> httpx.Response:
    found = client.post("/v1/chat/completions", json=body(**more))
    assert found.status_code == 200, found.text
    return found


def text_of(found: httpx.Response) -> str:
    return str(found.json()["choices"][0]["message"]["content"])


def events(client: httpx.Client, sent: dict[str, Any]) -> list[Any]:
    with client.stream("POST", "/v1/chat/completions", json=sent | {"stream": True}) as found:
        assert found.status_code == 200
        lines = [line.removeprefix("data: ") for line in found.iter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def streamed_text(found: list[Any]) -> str:
    return "".join(c["delta"].get("content", "") for e in found if isinstance(e, dict) for c in e.get("choices", ()))


def is_text(message: Message) -> bool:
    return b'"content": "' in message.get("body", b"") and b'"content": ""' not in message["body"]


def is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def counted(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def test_the_same_examples_go_to_one_replica_and_different_ones_to_all(front: Front) -> None:
    client, _ = front
    replicas: dict[str, set[str]] = {}
    for tag in ("a", "b", "c", "d"):
        for query in ("melon", "tiger"):
            replicas.setdefault(tag, set()).add(ask(client, tag=tag, query=query).headers[REPLICA_HEADER])
    assert all(len(found) == 1 for found in replicas.values())
    assert set.union(*replicas.values()) == {"0", "1"}
    assert ask(client, tag="a", query="lamp").json()["ttt"]["cached"]


def test_the_key_is_that_of_the_examples_however_they_are_given() -> None:
    def chat(**more: Any) -> str | None:
        sent = {"model": "spark", "messages": [{"role": "user", "content": "melon"}]} | more
        return routing_key("spark", ChatRequest.model_validate(sent), None)

    def complete(text: str) -> str | None:
        return routing_key("spark", CompletionRequest(model="spark", prompt=text), None)

    given = chat(ttt={"examples": examples("q")})
    assert given is not None
    assert given == chat(ttt={"examples": examples("q"), "rank": 2}) == chat(**body("q")) == complete(prompt("q"))
    turns = [
        turn
        for e in examples("q")
        for turn in ({"role": "user", "content": e["input"]}, {"role": "assistant", "content": e["output"]})
    ]
    assert given == chat(messages=[*turns, {"role": "user", "content": "tiger"}])
    assert given != chat(**body("x"))
    assert routing_key("other", CompletionRequest(model="other", prompt=prompt("q")), None) != given
    # Nothing is trained for these: any replica will do.
    assert chat() is None
    assert chat(ttt={"mode": "off"}, **body("q")) is None
    assert chat(messages=[{"role": "system", "content": "x"}]) is None
    long = "".join(f"{n} -> {n + 1}\n" for n in range(9000))
    assert complete(long + "5 ->") == complete(long + "6 ->") is not None


def test_a_named_adapter_is_asked_where_its_examples_are(front: Front) -> None:
    client, replicas = front
    where = ask(client, tag="n").headers[REPLICA_HEADER]
    sent = {"name": "named", "model": "spark", "examples": examples("n")}
    made = client.post("/v1/adapters", json=sent)
    assert (made.status_code, made.json()["id"], made.json()["examples"]) == (201, "spark:named", 6)
    assert made.json()["bytes"] > 0
    assert client.post("/v1/adapters", json=sent).status_code == 409
    assert client.get("/v1/adapters/spark:named").json() == made.json() == client.get("/v1/adapters").json()["data"][0]
    assert {"spark", "spark:named"} == {model["id"] for model in client.get("/v1/models").json()["data"]}
    asked = {"model": "spark:named", "messages": [{"role": "user", "content": "tiger"}]}
    found = client.post("/v1/chat/completions", json=asked)
    assert (text_of(found), found.headers[REPLICA_HEADER]) == ("<n>tiger</n>", where)
    assert client.delete("/v1/adapters/spark:named").status_code == 200
    assert client.post("/v1/chat/completions", json=asked).status_code == 404
    assert all(not one._service.library.of("", sees_all=True) for one in replicas.replicas if one is not None)
    # Another one under the name is another one, also in the same second.
    assert client.post("/v1/adapters", json=sent | {"examples": examples("m")}).status_code == 201
    assert text_of(client.post("/v1/chat/completions", json=asked)) == "<m>tiger</m>"
    assert client.delete("/v1/adapters/spark:named").status_code == 200


def test_errors_are_those_of_one_server(front: Front) -> None:
    client, _ = front
    for sent, status, said in (
        ({"model": "spark"}, 400, "messages"),
        (body(model="gone"), 404, "does not exist"),
        (body(max_tokens=10**6), 400, "max_tokens is 1000000"),
        (body() | {"tools": [1]}, 400, "tools are not supported"),
    ):
        found = client.post("/v1/chat/completions", json=sent)
        assert (found.status_code, said in found.json()["error"]["message"]) == (status, True), found.text
    assert client.post("/v1/adapters", json={"name": "x", "examples": examples("q")[:1]}).status_code == 400
    one = [{"input": "a", "output": "b"}] * 2
    refused = client.post("/v1/adapters", json={"name": "x", "examples": one})
    assert (refused.status_code, "usable examples" in refused.text) == (400, True), refused.text
    assert client.get("/v1/adapters/spark:x").status_code == 404
    assert client.get("/nothing").json()["error"]["type"] == "invalid_request_error"
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 421


def test_headers_are_set_once_and_no_header_of_a_client_is_believed(front: Front) -> None:
    client, _ = front
    found = client.post(
        "/v1/chat/completions", json=body(), headers={"x-request-id": "mine", "x-acclimate-replica": "7", "caller": "x"}
    )
    assert found.headers.get_list("x-request-id") == ["mine"]
    assert found.headers[REPLICA_HEADER] in ("0", "1")


def test_keys_scopes_and_rates_are_those_of_the_one_address(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    secrets = {name: keys.create(name, scopes)[1] for name, scopes in (("a", ["infer"]), ("b", ["infer", "train"]))}
    with fronted(tmp_path / "store", keys=keys, requests_per_minute=4) as (client, replicas):

        def sent(who: str, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
            return client.post(path, json=body(**more), headers={"authorization": f"Bearer {secrets.get(who, 'x')}"})

        assert client.post("/v1/chat/completions", json=body()).status_code == 401
        assert sent("nobody").status_code == 401
        # The replica knows what the key may do: this one may not adapt.
        assert sent("a", ttt={"mode": "force"}).status_code == 403
        assert sent("a").json()["ttt"]["used"] is False
        assert sent("b").json()["ttt"]["used"] is True
        made = client.post(
            "/v1/adapters",
            json={"name": "mine", "examples": examples("q")},
            headers={"authorization": f"Bearer {secrets['b']}"},
        )
        assert made.status_code == 201
        # Another key neither sees it nor learns that it is there.
        assert sent("a", model="spark:mine").status_code == 404
        asked = len(replicas.asked)
        statuses = [sent("a").status_code for _ in range(3)]
        assert statuses == [200, 429, 429]
        assert len(replicas.asked) == asked + 1
        assert client.get("/health").json() == {"replicas": {"live": 2, "wanted": 2}}


def test_a_request_of_a_replica_that_ended_is_begun_again_and_finds_the_adapter(short_lived: Front) -> None:
    client, replicas = short_lived
    first = ask(client, tag="r", query="tiger")
    where = int(first.headers[REPLICA_HEADER])
    assert not first.json()["ttt"]["cached"]
    before = counted(client, "acclimate_front_retries_total"), counted(client, "acclimate_front_lost_total")
    replicas.ends_before = lambda message: is_last(message) and replicas.asked[-1] == where
    found = ask(client, tag="r", query="tiger")
    assert found.headers[REPLICA_HEADER] == str(1 - where)
    assert text_of(found) == text_of(first) == "<r>tiger</r>"
    # Not trained again: fetched from the store.
    assert found.json()["ttt"]["cached"]
    assert counted(client, "acclimate_front_retries_total") == before[0] + 1
    assert counted(client, "acclimate_front_lost_total") == before[1]
    assert client.get("/health").json()["replicas"] == {"live": 1, "wanted": 2}


def test_a_stream_without_text_yet_goes_on_at_another_replica_as_one_stream(short_lived: Front) -> None:
    client, replicas = short_lived
    expected = streamed_text(events(client, body("s")))
    ended: list[int] = []

    def end_once(message: Message) -> bool:
        if is_text(message) and not ended:
            ended.append(replicas.asked[-1])
            return True
        return False

    replicas.ends_before = end_once
    found = events(client, body("s"))
    assert ended
    assert found[-1] == "[DONE]"
    assert streamed_text(found) == expected == "<s>melon</s>"
    assert len({event["id"] for event in found[:-1]}) == 1
    assert [c["delta"] for e in found[:-1] for c in e["choices"]].count({"role": "assistant", "content": ""}) == 1
    assert [e["ttt"]["status"] for e in found[:-1] if "ttt" in e] == ["adapted"]


def test_a_stream_with_text_is_not_begun_again_and_says_so(short_lived: Front) -> None:
    client, replicas = short_lived
    texts: list[Message] = []
    before = counted(client, "acclimate_front_lost_total")

    def end_at_second(message: Message) -> bool:
        texts.extend([message] if is_text(message) else [])
        return len(texts) == 2

    replicas.ends_before = end_at_second
    found = events(client, body(ttt={"mode": "off"}))
    assert found[-1] == "[DONE]"
    assert (found[-2]["error"]["code"], found[-2]["error"]["type"]) == ("replica_lost", "server_error")
    assert streamed_text(found)
    assert len(replicas.asked) == 1
    assert counted(client, "acclimate_front_lost_total") == before + 1


def test_a_request_that_ends_two_replicas_is_not_tried_again(short_lived: Front) -> None:
    client, replicas = short_lived
    replicas.ends_before = is_last
    found = client.post("/v1/chat/completions", json=body())
    assert (found.status_code, found.json()["error"]["code"]) == (503, "replica_lost")
    assert found.headers["retry-after"] == "1"
    assert sorted(replicas.asked) == [0, 1]
    assert client.get("/health").status_code == 503


def test_a_named_adapter_outlives_its_replica(short_lived: Front) -> None:
    client, replicas = short_lived
    assert client.post("/v1/adapters", json={"name": "lasting", "examples": examples("n")}).status_code == 201
    asked = {"model": "spark:lasting", "messages": [{"role": "user", "content": "tiger"}]}
    first = client.post("/v1/chat/completions", json=asked)
    replicas.replicas[int(first.headers[REPLICA_HEADER])] = None
    found = client.post("/v1/chat/completions", json=asked)
    assert found.headers[REPLICA_HEADER] != first.headers[REPLICA_HEADER]
    assert text_of(found) == text_of(first) == "<n>tiger</n>"
    assert client.delete("/v1/adapters/spark:lasting").status_code == 200


def test_a_named_adapter_that_the_store_has_lost_is_made_again(
    short_lived: Front, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, replicas = short_lived
    assert client.post("/v1/adapters", json={"name": "fleeting", "examples": examples("f")}).status_code == 201
    asked = {"model": "spark:fleeting", "messages": [{"role": "user", "content": "tiger"}]}
    first = client.post("/v1/chat/completions", json=asked)
    for file in shared.rglob("*.adapter"):
        file.unlink()
    replicas.replicas[int(first.headers[REPLICA_HEADER])] = None
    found = client.post("/v1/chat/completions", json=asked)
    assert found.status_code == 200, found.text
    assert text_of(found) == text_of(first)
    assert "is not in the store; it is made again" in caplog.text
    assert client.delete("/v1/adapters/spark:fleeting").status_code == 200


def test_an_adapter_from_a_folder_is_shared_by_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    pairs = as_examples([(e["input"], e["output"]) for e in examples("q")])
    Engine(spark()).prime(pairs).save(folder / "quotes")
    asked = {"model": "spark:quotes", "messages": [{"role": "user", "content": "tiger"}], "ttt": {"mode": "off"}}
    body = {"lora_name": "quotes", "lora_path": "quotes"}
    with fronted(tmp_path / "store", allow_lora_loading=True, lora_folder=folder) as (client, replicas):
        refused = client.post("/v1/load_lora_adapter", json=body | {"lora_path": "../store"})
        assert (refused.status_code, "there is no adapter" in refused.text) == (400, True)
        assert client.post("/v1/load_lora_adapter", json=body).text.startswith("Success")
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 400
        assert client.get("/v1/adapters/spark:quotes").json()["source"] == "folder"
        first = client.post("/v1/chat/completions", json=asked)
        shutil.rmtree(folder / "quotes")
        replicas.replicas[int(first.headers[REPLICA_HEADER])] = None
        found = client.post("/v1/chat/completions", json=asked)
        assert (found.status_code, text_of(found)) == (200, text_of(first)), found.text
        assert found.headers[REPLICA_HEADER] != first.headers[REPLICA_HEADER]
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "quotes"}).status_code == 200
        assert client.post("/v1/chat/completions", json=asked).status_code == 404


def _letters(drawn: random.Random) -> str:
    return "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=12))


@pytest.mark.slow
def test_a_client_that_leaves_ends_its_request(short_lived: Front) -> None:
    client, replicas = short_lived
    workers = [one._service.models["spark"].worker for one in replicas.started]

    def long(tag: str) -> dict[str, Any]:
        # Nothing can be learned from these, so that no loss ends the training early.
        drawn = random.Random(tag)
        pairs = [{"input": _letters(drawn), "output": _letters(drawn)} for _ in range(16)]
        return body(tag, ttt={"mode": "force", "steps": 64, "examples": pairs})

    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=client.base_url, timeout=0.5) as impatient:
        impatient.post("/v1/chat/completions", json=long("l1"))
    with client.stream("POST", "/v1/chat/completions", json=long("l2") | {"stream": True}) as found:
        next(line for line in found.iter_lines() if line.startswith(": training step"))
    until = time.monotonic() + 240
    while any(worker.load().running for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(worker.load().running for worker in workers)
    # Both ended before their training did.
    for tag in ("l1", "l2"):
        found = client.post("/v1/chat/completions", json=long(tag) | {"max_tokens": 1})
        assert found.status_code == 200, found.text
        assert not found.json()["ttt"]["cached"]


def test_metrics_of_all_replicas_are_on_one_page(short_lived: Front) -> None:
    client, _ = short_lived
    names = ("vllm:request_success_total", "acclimate_front_answers_total")
    before = [counted(client, name) for name in names]
    for tag in ("a", "b", "c", "d"):
        ask(client, tag=tag)
    assert client.post("/v1/chat/completions", json={}).status_code == 400
    assert [counted(client, name) for name in names] == [value + 4 for value in before]
    page = client.get("/metrics").text
    for replica in ("0", "1"):
        assert f'vllm:request_success_total{{finished_reason="stop",model_name="spark",replica="{replica}"}}' in page
    assert 'acclimate_requests_refused_total{replica="front",status="400"}' in page
    assert page.count("# HELP vllm:request_success_total") == 1
    assert counted(client, "acclimate_replicas_live") == counted(client, "acclimate_replicas_wanted") == 2


def test_a_front_that_ends_takes_no_further_requests(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from acclimate.scale.front import create_front
    from acclimate.serve.settings import ServerSettings

    settings = ServerSettings(models=("spark",), engine="ray", record=False)
    app, drain = create_front(LocalReplicas.__new__(LocalReplicas), settings, ["spark"])
    drain()
    with TestClient(app, base_url="http://localhost") as client:
        found = client.post("/v1/chat/completions", json=body())
        assert (found.status_code, "shutting down" in found.text) == (503, True)
        assert client.post("/v1/adapters", json={"name": "x", "examples": examples("q")}).status_code == 503

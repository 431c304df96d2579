"""A real server in its own process, asked by the clients that people have."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serve.process import Server, served

WORDS = ("apple", "river", "stone", "cloud", "green", "house")
PROMPT = "".join(f"{word} -> <q>{word}</q>\n" for word in WORDS) + "melon ->"
EXAMPLES = [{"input": word, "output": f"<q>{word}</q>"} for word in WORDS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def asked(text: str = PROMPT) -> Any:
    return [{"role": "user", "content": text}]


def test_the_openai_client_gets_an_adapted_answer(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="spark", messages=asked())
    assert raw.headers["x-acclimate-ttt"] == "adapted"
    assert len(raw.headers["x-request-id"]) == 32
    answer = raw.parse()
    assert answer.choices[0].message.content == "<q>melon</q>"
    assert answer.choices[0].finish_reason == "stop"
    report = answer.model_extra["ttt"]
    assert report["used"]
    assert report["pattern"] == "explicit_examples"
    assert (report["examples"], report["reason"]) == (6, None)
    assert 0.5 < report["confidence"] <= 1
    assert report["adapter_id"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.model_extra["trained_tokens"] > 0
    again = client.chat.completions.create(model="spark", messages=asked())
    assert again.model_extra["ttt"]["cached"]
    assert again.choices[0].message.content == "<q>melon</q>"


def test_the_openai_client_streams_what_it_would_get_whole(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="spark", messages=asked(), stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "<q>melon</q>"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].model_extra["ttt"]["status"] == "adapted"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


def test_the_async_client_gets_many_answers_at_once(server: Server) -> None:
    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="spark",
                        messages=asked("".join(f"{w} -> {mark}{w}\n" for w in WORDS) + "melon ->"),
                        extra_body={"ttt": {"mode": "force", "steps": 4}},
                    )
                    for mark in "abcdefgh"
                )
            )
            return [answer.choices[0].message.content for answer in answers]

    # In a thread of its own: a browser test that ran in this process before leaves an event loop in the main one.
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(lambda: asyncio.run(ask_all())).result()
    assert answers == [f"{mark}melon" for mark in "abcdefgh"]


def test_settings_of_a_request_reach_the_engine(client: openai.OpenAI) -> None:
    def ask(**ttt: Any) -> Any:
        answer = client.chat.completions.create(
            model="spark", messages=asked("melon"), extra_body={"ttt": {"examples": EXAMPLES, **ttt}}
        )
        return answer.model_extra["ttt"]

    assert ask(mode="off")["status"] == "plain"
    forced = ask(mode="force", steps=2, rank=2)
    assert (forced["used"], forced["steps"], forced["confidence"]) == (True, 2, None)
    assert ask(confidence_threshold=1.0)["reason"] == "low_confidence"
    assert ask(budget_s=0.0, steps=3)["reason"] == "timeout"
    assert ask(votes=3)["used"]


def test_examples_in_earlier_turns(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "system", "content": "Mark the word."}]
    for word in WORDS:
        turns += [{"role": "user", "content": word}, {"role": "assistant", "content": f"<q>{word}</q>"}]
    turns.append({"role": "user", "content": [{"type": "text", "text": "melon"}]})
    answer = client.chat.completions.create(model="spark", messages=turns)
    assert answer.choices[0].message.content == "<q>melon</q>"
    assert answer.model_extra["ttt"]["pattern"] == "conversation"


def test_sampling_choices_stops_and_probabilities(client: openai.OpenAI) -> None:
    def ask(**how: Any) -> Any:
        return client.chat.completions.create(
            model="spark", messages=asked("apple river"), extra_body={"ttt": {"mode": "off"}}, **how
        )

    drawn = ask(temperature=1.5, seed=5, n=3, max_completion_tokens=12)
    assert [choice.index for choice in drawn.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in drawn.choices}) > 1
    again = ask(temperature=1.5, seed=5, n=3, max_completion_tokens=12)
    assert [c.message.content for c in again.choices] == [c.message.content for c in drawn.choices]
    short = ask(max_tokens=1)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 1
    likely = ask(logprobs=True, top_logprobs=3, max_tokens=4)
    tokens = likely.choices[0].logprobs.content
    assert len(tokens) == likely.usage.completion_tokens
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.logprob == token.top_logprobs[0].logprob for token in tokens)
    whole = ask(max_tokens=12).choices[0].message.content
    letter = whole[2]
    assert ask(max_tokens=12, stop=[letter]).choices[0].message.content == whole[: whole.index(letter)]


def test_streams_of_plain_prompts_bring_text_before_the_end(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="spark",
        messages=asked("apple river"),
        stream=True,
        temperature=2,
        seed=1,
        max_tokens=60,
        n=2,
        extra_body={"ttt": {"mode": "off"}},
    )
    texts, pieces = {0: "", 1: ""}, 0
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            pieces += bool(choice.delta.content)
    assert pieces > 10
    whole = client.chat.completions.create(
        model="spark", messages=asked("apple river"), temperature=2, seed=1, max_tokens=60, n=2,
        extra_body={"ttt": {"mode": "off"}},
    )  # fmt: skip
    assert [choice.message.content for choice in whole.choices] == [texts[0], texts[1]]


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="spark", prompt=PROMPT)
    assert answer.choices[0].text == "<q>melon</q>"
    plain = client.completions.create(
        model="spark", prompt="apple", max_tokens=5, logprobs=2, extra_body={"ttt": {"mode": "off"}}
    )
    assert len(plain.choices[0].logprobs.tokens) == plain.usage.completion_tokens
    streamed = client.completions.create(model="spark", prompt=PROMPT, stream=True)
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == "<q>melon</q>"


def test_litellm(server: Server) -> None:
    import litellm

    answer = litellm.completion(
        model="openai/spark", messages=asked(), api_base=f"{server.url}/v1", api_key="none", num_retries=0
    )
    assert answer.choices[0].message.content == "<q>melon</q>"
    chunks = litellm.completion(
        model="openai/spark", messages=asked(), api_base=f"{server.url}/v1", api_key="none", stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "<q>melon</q>"


def test_curl(server: Server) -> None:
    body = json.dumps({"model": "spark", "messages": asked()})
    command = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "<q>melon</q>"
    new = json.dumps(
        {"model": "spark", "stream": True, "messages": asked(PROMPT.replace("q>", "z>")), "ttt": {"mode": "force"}}
    )
    done = subprocess.run([*command[:-1], new], capture_output=True, text=True, check=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line]
    # Progress of training, so that nothing in between gives the connection up.
    assert any(line.startswith(": training step 1 of at most 5") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith((": ", "data: ")) for line in lines)


def test_models_and_adapters(server: Server, client: openai.OpenAI) -> None:
    with httpx.Client(base_url=server.url, timeout=120) as http:
        made = http.post("/v1/adapters", json={"name": "quotes", "examples": EXAMPLES})
        assert made.status_code == 201
        assert made.json() | {"created": 0, "bytes": 0} == {
            "id": "spark:quotes", "object": "adapter", "name": "quotes", "base_model": "spark", "created": 0,
            "examples": 6, "rank": 8, "bytes": 0, "source": "examples",
        }  # fmt: skip
        taken = http.post("/v1/adapters", json={"name": "quotes", "examples": EXAMPLES})
        assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")
        assert [model.id for model in client.models.list()] == ["spark", "spark:quotes"]
        assert client.models.retrieve("spark:quotes").model_extra["parent"] == "spark"
        answer = client.chat.completions.create(model="spark:quotes", messages=asked("melon"))
        assert answer.choices[0].message.content == "<q>melon</q>"
        assert answer.model_extra["ttt"]["used"]
        assert http.get("/v1/adapters/spark:quotes").json()["examples"] == 6
        assert http.delete("/v1/adapters/spark:quotes").json()["deleted"]
        assert http.get("/v1/adapters").json()["data"] == []
        assert http.delete("/v1/adapters/spark:quotes").status_code == 404
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="spark:quotes", messages=asked("melon"))
    assert missing.value.code == "model_not_found"


def test_answers_are_rows_in_the_metrics_store(server: Server, client: openai.OpenAI, tmp_path: Path) -> None:
    sent = client.chat.completions.with_raw_response.create(
        model="spark", messages=asked(), extra_headers={"x-request-id": "order-17"}
    )
    assert sent.headers["x-request-id"] == "order-17"
    database = server.log.parent / "metrics.db"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        with sqlite3.connect(database) as connection:
            rows = connection.execute("select * from requests where request_id = 'order-17'").fetchall()
        if rows:
            break
        time.sleep(0.1)
    assert len(rows) == 1
    assert "melon" not in str(rows)
    assert "melon" not in server.log.read_text()


def test_metrics_use_the_names_that_dashboards_know(server: Server, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="spark", messages=asked())
    page = httpx.get(f"{server.url}/metrics").text
    for name in (
        'vllm:num_requests_running{model_name="spark"} 0.0',
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        'acclimate_ttt_requests_total{model_name="spark",reason="",status="adapted"}',
        "acclimate_pass_seconds_total",
    ):
        assert name in page, name
    assert "melon" not in page


def test_a_client_that_leaves_ends_its_request(server: Server) -> None:
    def steps() -> float:
        page = httpx.get(f"{server.url}/metrics").text
        found = re.search(r'acclimate_passes_total{kind="train",model_name="spark"} (\S+)', page)
        return float(found[1]) if found else 0.0

    before = steps()
    for stream in (False, True):
        # Different examples, so that the second request finds no adapter of the first.
        examples = [{"input": f"{a} {b}", "output": f"{b} {a}{stream}"} for a in WORDS for b in WORDS if a != b]
        body = {
            "model": "spark", "messages": asked("melon apple"), "stream": stream,
            "ttt": {"mode": "force", "steps": 64, "examples": examples},
        }  # fmt: skip
        with httpx.Client(timeout=httpx.Timeout(30, read=0.5)) as http:
            if stream:
                with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    http.post(f"{server.url}/v1/chat/completions", json=body)
        deadline = time.monotonic() + 240
        while 'num_requests_running{model_name="spark"} 0.0' not in httpx.get(f"{server.url}/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert steps() - before < 2 * 64


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format 'json_object' is not supported"),
        ({"tools": [{"type": "function"}]}, "tools are not supported"),
        ({"presence_penalty": 1.0}, "presence_penalty is not supported"),
        ({"n": 99}, "n is 99; at most 8"),
        ({"max_tokens": 10**9}, "max_tokens is 1000000000; at most 1024"),
        ({"temperature": -1}, "temperature"),
        ({"temprature": 1}, "temprature"),
        ({"ttt": {"mode": "sometimes"}}, "ttt.mode"),
        ({"ttt": {"examples": [{"input": "a", "output": ""}]}}, "ttt.examples.0.output"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the last message must be a text of the user"),
        ({"messages": [{"role": "user", "content": "apple " * 3000}]}, "the model reads 1024"),
        ({"messages": [{"role": "user", "content": "x" * 100_000}]}, "has 100000 characters"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ],
)
def test_bad_requests_are_explained_in_openais_shape(client: openai.OpenAI, body: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.post("/chat/completions", body={"model": "spark", "messages": asked()} | body, cast_to=object)
    assert refusal.value.type == "invalid_request_error"
    assert said in str(refusal.value.body)


def test_draining_finishes_what_was_begun_and_exits_with_zero(tmp_path: Path) -> None:
    with served(tmp_path) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        slow = {"model": "spark", "messages": asked("apple"), "temperature": 2, "max_tokens": 300, "seed": 1,
                "ttt": {"mode": "off"}}  # fmt: skip

        def ask() -> int:
            return httpx.post(f"{server.url}/v1/chat/completions", json=slow, timeout=120).status_code

        def stream() -> list[str]:
            body = slow | {"stream": True, "seed": 2}
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as answer:
                return [line for line in answer.iter_lines() if line]

        waiting = [pool.submit(ask) for _ in range(3)]
        streamed = pool.submit(stream)
        while 'num_requests_running{model_name="spark"} 4.0' not in httpx.get(f"{server.url}/metrics").text:
            if all(future.done() for future in waiting):
                break
        assert server.end(signal.SIGTERM) == 0
        assert [future.result() for future in waiting] == [200] * 3
        assert streamed.result()[-1] == "data: [DONE]"
        assert '"finish_reason": "' in streamed.result()[-2]


def _taken(metrics: str) -> float:
    """Return how many requests the server works on or has queued."""
    return sum(map(float, re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", metrics, re.MULTILINE)))


def test_what_is_not_finished_in_time_is_refused_in_openais_shape(tmp_path: Path) -> None:
    with (
        served(tmp_path, "--no-record", "--set", "drain_timeout_s=0.2") as server,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        examples = [{"input": f"{a} {b}", "output": f"{b} {a}"} for a in WORDS for b in WORDS if a != b]
        body = {"model": "spark", "messages": asked("melon apple"), "ttt": {"mode": "force", "steps": 64}}

        def ask(number: int) -> httpx.Response:
            mine = [{**example, "output": f"{example['output']} {number}"} for example in examples]
            sent = body | {"ttt": {"mode": "force", "steps": 64, "examples": mine}}
            return httpx.post(f"{server.url}/v1/chat/completions", json=sent, timeout=120)

        waiting = [pool.submit(ask, number) for number in range(12)]
        deadline = time.monotonic() + 240
        while _taken(httpx.get(f"{server.url}/metrics").text) < 12:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert server.end(signal.SIGTERM) == 0
        answers = [future.result() for future in waiting]
    assert {answer.status_code for answer in answers} <= {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert all(answer.json()["error"]["message"] and "retry-after" in answer.headers for answer in refused)


def test_rows_that_were_written_survive_being_killed(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        ids = []
        for number in range(20):
            headers = {"x-request-id": f"r{number}"}
            body = {"model": "spark", "messages": asked("apple"), "max_tokens": 2, "ttt": {"mode": "off"}}
            assert httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers).status_code == 200
            ids.append(f"r{number}")
        deadline = time.monotonic() + 240
        while _stored(tmp_path) < set(ids[:10]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        committed = _stored(tmp_path)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    assert committed <= _stored(tmp_path)
    with served(tmp_path) as again:
        assert httpx.get(f"{again.url}/readyz").status_code == 200


def _stored(folder: Path) -> set[str]:
    with sqlite3.connect(folder / "metrics.db") as connection:
        return {row[0] for row in connection.execute("select request_id from requests")}

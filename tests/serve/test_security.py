"""The claims of docs/security.md, each tested against a real server with API keys."""

from __future__ import annotations

import concurrent.futures
import json
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.language import as_examples
from acclimate.serve.admission import depth_of
from acclimate.serve.keys import KeyFile
from tests.language.models import spark
from tests.serve.process import Server, served

EXAMPLES = [{"input": word, "output": f"<q>{word}</q>"} for word in ("apple", "river", "stone", "cloud")]


@dataclass(frozen=True)
class Guarded:
    """A server with keys, and folders that it may and may not read."""

    server: Server
    keys: KeyFile
    secrets: dict[str, str]
    folder: Path

    def http(self, who: str | None) -> httpx.Client:
        headers = {} if who is None else {"authorization": f"Bearer {self.secrets.get(who, who)}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=120)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    keys = KeyFile(folder / "keys.json")
    secrets = {name: keys.create(name, scopes)[1] for name, scopes in {
        "ann": ["infer", "train"], "bob": ["infer", "train"], "reader": ["infer"], "boss": ["admin"],
    }.items()}  # fmt: skip
    from acclimate.language import Engine

    adapter = Engine(spark()).prime(as_examples([(e["input"], e["output"]) for e in EXAMPLES]))
    adapter.save(folder / "loras" / "quotes")
    adapter.save(folder / "outside")
    (folder / "loras" / "link").symlink_to(folder / "outside")
    (folder / "loras" / "broken").mkdir()
    arguments = ("--keys-file", str(keys.path), "--set", "allow_lora_loading=true", "--set", "max_body_mib=0.1",
                 "--set", f"lora_folder={folder / 'loras'}", "--set", "max_adapters_per_key=2")  # fmt: skip
    with served(folder, *arguments) as server:
        yield Guarded(server, keys, secrets, folder)


def body(**more: Any) -> dict[str, Any]:
    return {"model": "spark", "messages": [{"role": "user", "content": "apple"}], "max_tokens": 3, **more}


def test_nothing_is_answered_without_a_valid_key(guarded: Guarded) -> None:
    for who in (None, "nonsense", "acclimate_000000000000_" + "x" * 43, guarded.secrets["ann"][:-1] + "?"):
        with guarded.http(who) as http:
            for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics")):
                answer = http.request(method, path, json=body() if method == "POST" else None)
                assert answer.status_code == 401, (who, path)
                assert answer.json()["error"]["type"] == "authentication_error"
    with guarded.http(None) as http:
        assert http.get("/health").status_code == 200


def test_scopes_allow_what_they_say(guarded: Guarded) -> None:
    with guarded.http("reader") as http:
        assert http.post("/v1/chat/completions", json=body()).status_code == 200
        assert http.post("/v1/chat/completions", json=body(ttt={"mode": "force"})).status_code == 403
        assert http.post("/v1/adapters", json={"name": "a", "examples": EXAMPLES}).status_code == 403
        # Without the scope to train, a prompt with examples is answered as it stands.
        many = "".join(f"{e['input']} -> {e['output']}\n" for e in EXAMPLES) + "melon ->"
        told = http.post("/v1/chat/completions", json=body(messages=[{"role": "user", "content": many}])).json()
        assert told["ttt"]["status"] == "plain"
    with guarded.http("ann") as http:
        refusal = http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "quotes"})
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (403, "insufficient_scope")


def test_a_revoked_key_is_refused_at_once(guarded: Guarded) -> None:
    key, secret = guarded.keys.create("gone", ["infer"])
    with guarded.http(secret) as http:
        assert http.get("/v1/models").status_code == 200
        guarded.keys.revoke(key.id)
        assert http.get("/v1/models").status_code == 401


def test_adapters_belong_to_the_key_that_made_them(guarded: Guarded) -> None:
    with guarded.http("ann") as ann, guarded.http("bob") as bob, guarded.http("boss") as boss:
        for name in ("one", "two"):
            assert ann.post("/v1/adapters", json={"name": name, "examples": EXAMPLES, "steps": 1}).status_code == 201
        full = ann.post("/v1/adapters", json={"name": "three", "examples": EXAMPLES})
        assert (full.status_code, "delete one first" in full.text) == (400, True)
        asked = bob.post("/v1/chat/completions", json=body(model="spark:one"))
        assert (asked.status_code, asked.json()["error"]["code"]) == (404, "model_not_found")
        assert bob.get("/v1/adapters").json()["data"] == []
        assert bob.delete("/v1/adapters/spark:one").status_code == 404
        # The name is free for others: they cannot find out that it is taken.
        assert bob.post("/v1/adapters", json={"name": "one", "examples": EXAMPLES, "steps": 1}).status_code == 201
        assert {a["name"] for a in boss.get("/v1/adapters").json()["data"]} == {"one", "two"}
        for http, name in ((ann, "one"), (ann, "two"), (bob, "one")):
            assert http.delete(f"/v1/adapters/spark:{name}").status_code == 200


def test_adapters_are_loaded_from_below_the_folder_alone(guarded: Guarded) -> None:
    with guarded.http("boss") as http:

        def load(path: str, **more: Any) -> httpx.Response:
            return http.post("/v1/load_lora_adapter", json={"lora_name": "quotes", "lora_path": path, **more})

        for path in ("../outside", str(guarded.folder / "outside"), "link", ".", "", "/etc", "quotes/../../outside",
                     "nowhere", "quotes\x00", "broken", "a" * 4000):  # fmt: skip
            refusal = load(path)
            assert refusal.status_code == 400, path
            assert str(guarded.folder / "outside") not in refusal.text or path == str(guarded.folder / "outside")
        # A bad adapter is an error when it is loaded, and takes no name.
        assert load("quotes").text == "Success: LoRA adapter 'quotes' added successfully."
        assert load("quotes").status_code == 400
        assert load("quotes", load_inplace=True).status_code == 200
        answer = http.post("/v1/chat/completions", json=body(model="spark:quotes"))
        assert answer.status_code == 200
        gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "quotes"})
        assert gone.text == "Success: LoRA adapter 'quotes' removed successfully."
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "quotes"}).status_code == 404
        assert http.post("/v1/chat/completions", json=body(model="spark:quotes")).status_code == 404


def test_two_who_load_one_name_at_once_do_not_race(guarded: Guarded) -> None:
    with guarded.http("boss") as http, concurrent.futures.ThreadPoolExecutor(6) as pool:
        sent = [
            pool.submit(http.post, "/v1/load_lora_adapter", json={"lora_name": "r", "lora_path": "quotes"})
            for _ in range(6)
        ]
        assert sorted(future.result().status_code for future in sent) == [200, *[400] * 5]
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "r"}).status_code == 200


def test_large_deep_and_slow_requests_are_refused(guarded: Guarded) -> None:
    with guarded.http("ann") as http:
        large = body(messages=[{"role": "user", "content": "x" * 200_000}])
        assert http.post("/v1/chat/completions", json=large).status_code == 413

        def pieces() -> Iterator[bytes]:
            for _ in range(300):
                yield b" " * 1000

        assert http.post("/v1/chat/completions", content=pieces()).status_code == 413
        deep = b'{"model": "spark", "metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}"
        refusal = http.post("/v1/chat/completions", content=deep, headers={"content-type": "application/json"})
        assert (refusal.status_code, "nested deeper" in refusal.text) == (400, True)


def test_the_nesting_of_hostile_bytes_is_counted_in_linear_time() -> None:
    for shape in (b'\\"', b'"\\', b'"', b"[", b'{"', b'\\\\"'):
        costs = []
        for size in (200_000, 800_000):
            body = b'{"a": "' + shape * (size // len(shape))
            began = time.thread_time()
            depth_of(body)
            costs.append(time.thread_time() - began)
        # Quadratic time would be sixteen times as much, and at this size minutes.
        assert costs[1] < 10 * costs[0] + 0.5, shape


def test_a_damaged_keys_file_is_the_server_s_fault_and_not_shown(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    secret = keys.create("ann", ["infer"])[1]
    good = keys.path.read_text()
    with served(tmp_path, "--no-record", "--keys-file", str(keys.path)) as server:
        ask = {"headers": {"authorization": f"Bearer {secret}"}, "timeout": 60}
        assert httpx.get(f"{server.url}/v1/models", **ask).status_code == 200  # type: ignore[arg-type]
        for damaged in ("{", '{"keys": [{"id": []}]}', good.replace("argon2id", "argon\u00fcid")):
            keys.path.write_text(damaged)
            told = httpx.get(f"{server.url}/v1/models", **ask)  # type: ignore[arg-type]
            assert told.status_code in (401, 503)
            assert str(tmp_path) not in told.text
        keys.path.write_text(good)
        assert httpx.get(f"{server.url}/v1/models", **ask).status_code == 200  # type: ignore[arg-type]


def test_answers_carry_headers_against_browsers(guarded: Guarded) -> None:
    with guarded.http("ann") as http:
        for path in ("/v1/models", "/nowhere", "/health"):
            headers = http.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers
        cross = http.options(
            "/v1/models", headers={"origin": "http://evil.example", "access-control-request-method": "GET"}
        )
        assert "access-control-allow-origin" not in cross.headers


def test_names_that_point_here_are_refused_where_no_keys_are_used(tmp_path: Path) -> None:
    with served(tmp_path, "--no-record", "--set", "allowed_hosts=models.example") as server:
        port = server.url.rpartition(":")[2]
        for host, status in (("evil.example", 421), (f"evil.example:{port}", 421), ("models.example", 200),
                             (f"localhost:{port}", 200), (f"[::1]:{port}", 200), ("127.0.0.1", 200)):  # fmt: skip
            assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == status, host


def test_a_request_id_cannot_carry_anything_else(guarded: Guarded) -> None:
    with guarded.http("ann") as http:
        assert http.get("/v1/models", headers={"x-request-id": "a b<script>"}).headers["x-request-id"] != "a b<script>"
        assert http.get("/v1/models", headers={"x-request-id": "order-1"}).headers["x-request-id"] == "order-1"


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_requests_get_errors_of_the_client_alone(guarded: Guarded, count: int) -> None:
    rng = random.Random(0)
    good = body(ttt={"mode": "auto", "examples": EXAMPLES}, stop=["a"], seed=1, stream=False)
    wrong: list[Any] = [None, -1, 1e308, "", "x", [], {}, [[]], True, 2**70, "\ud800", {"a": 1}, [None], -0.5]
    paths = ["/v1/chat/completions", "/v1/completions", "/v1/adapters", "/v1/load_lora_adapter"]
    statuses: dict[int, int] = {}

    def damaged() -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randbytes(rng.randrange(200))
        value = json.loads(json.dumps(good))
        if kind == 1:
            name = rng.choice([*good, "extra", "prompt"])
            value[name] = rng.choice(wrong)
            value["model"] = "nowhere"
        elif kind == 2:
            value["ttt"][rng.choice(["mode", "examples", "rank", "steps", "votes"])] = rng.choice(wrong)
            value["model"] = "nowhere"
        else:
            text = bytearray(json.dumps(value | {"model": "nowhere"}).encode())
            for _ in range(rng.randrange(1, 6)):
                text[rng.randrange(len(text))] = rng.randrange(256)
            return bytes(text)
        return json.dumps(value).encode("utf-8", "surrogatepass")

    with guarded.http("boss") as http, concurrent.futures.ThreadPoolExecutor(8) as pool:
        bodies = [(rng.choice(paths), damaged()) for _ in range(count)]

        def send(one: tuple[str, bytes]) -> int:
            return http.post(one[0], content=one[1], headers={"content-type": "application/json"}).status_code

        for status in pool.map(send, bodies):
            statuses[status] = statuses.get(status, 0) + 1
        assert http.get("/health").status_code == 200
    assert all(400 <= status < 500 for status in statuses), statuses
    assert "Traceback" not in guarded.server.log.read_text()


def test_bytes_that_are_no_http_hurt_nobody(guarded: Guarded) -> None:
    rng = random.Random(1)
    address = ("127.0.0.1", int(guarded.server.url.rpartition(":")[2]))
    for _ in range(50):
        with socket.create_connection(address, timeout=240) as connection:
            connection.sendall(rng.randbytes(100) + b"\r\n\r\n")
    with guarded.http("ann") as http:
        assert http.get("/v1/models").status_code == 200


def test_secrets_are_compared_in_the_same_time(guarded: Guarded) -> None:
    """An unknown key id takes as long as a wrong secret: nobody learns which ids exist."""
    known = guarded.keys.create("timed", ["infer"])[1]
    wrong = "_".join([*known.split("_", 2)[:2], "x" * 43])
    unknown = "acclimate_" + "0" * 12 + "_" + "x" * 43
    best = dict.fromkeys((wrong, unknown), float("inf"))
    for _ in range(5):
        for sent in best:
            began = time.thread_time()
            assert guarded.keys.find(sent) is None
            best[sent] = min(best[sent], time.thread_time() - began)
    assert 0.5 < best[wrong] / best[unknown] < 2


@settings(max_examples=200)
@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_the_depth_of_json_is_counted_without_reading_it(value: Any) -> None:
    def depth(one: Any) -> int:
        inside = one.values() if isinstance(one, dict) else one if isinstance(one, list) else None
        return 0 if inside is None else 1 + max(map(depth, inside), default=0)

    assert depth_of(json.dumps(value).encode()) == depth(value)

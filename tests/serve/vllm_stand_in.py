"""A stand-in for vLLM's server: the documented requests, checked strictly, answered by a real network.

It is not vLLM. Unknown fields, which vLLM ignores, are refused here, so that a misspelt one is noticed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from acclimate.language import Adapter, LanguageModel
from acclimate.language.models.decoding import Sampling
from acclimate.language.models.generate import generate

#: The fields of each request, with their types; those of completions are OpenAI's and vLLM's own.
FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "/v1/load_lora_adapter": {"lora_name": (str,), "lora_path": (str,), "load_inplace": (bool,)},
    "/v1/unload_lora_adapter": {"lora_name": (str,), "lora_int_id": (int,)},
    "/v1/completions": {
        "model": (str,), "prompt": (list, str), "max_tokens": (int,), "temperature": (float, int),
        "top_p": (float, int), "seed": (int,), "stop": (list, str), "stream": (bool,), "logprobs": (int,), "n": (int,),
        "top_k": (int,), "min_p": (float, int), "repetition_penalty": (float, int), "presence_penalty": (float, int),
        "frequency_penalty": (float, int), "return_tokens_as_token_ids": (bool,),
    },
}  # fmt: skip
NEEDED = {
    "/v1/load_lora_adapter": ("lora_name", "lora_path"),
    "/v1/unload_lora_adapter": ("lora_name",),
    "/v1/completions": ("model", "prompt"),
}


class StandIn:
    """What the server knows and does.

    Attributes:
        adapters: by name.
        refusals: that were not wanted: a test that does nothing wrong leaves none.
        requests: paths with bodies, in order.
        fails: what goes wrong: ``500``, ``hang``, ``cut``, ``error``, ``malformed``, ``refuse``, ``busy``; or nothing.
        holds: answers that begin stop after two tokens, and the connection stays open.
        held: how many answers have stopped so.
        left: how many clients left in the middle of an answer.
    """

    def __init__(self, model: LanguageModel, name: str, *, key: str | None, max_adapters: int, max_rank: int) -> None:
        self.model, self.name, self.key = model, name, key
        self.max_adapters, self.max_rank = max_adapters, max_rank
        self.adapters: dict[str, Adapter] = {}
        self.refusals: list[str] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.fails, self.holds, self.held, self.left = "", False, 0, 0
        self.most_adapters = 0
        self.released = threading.Event()

    def count(self, path: str) -> int:
        return sum(known == path for known, _ in self.requests)

    def wrong(self, path: str, body: Any) -> str | None:
        """Return what is wrong with a body, or None."""
        fields = FIELDS[path]
        if not isinstance(body, dict):
            return "the body is no object"
        if unknown := sorted(set(body) - set(fields)):
            return f"unknown field {unknown[0]}"
        if missing := [name for name in NEEDED[path] if name not in body]:
            return f"missing field {missing[0]}"
        for name, value in body.items():
            if not isinstance(value, fields[name]) or (isinstance(value, bool) and bool not in fields[name]):
                return f"{name} is {value!r}"
        if path == "/v1/completions" and isinstance(body["prompt"], list):
            if not body["prompt"] or not all(type(token) is int for token in body["prompt"]):
                return "prompt is no list of tokens"
            if body.get("max_tokens", 16) < 1 or not 0 <= body.get("logprobs", 0) <= 20:
                return "max_tokens or logprobs is out of range"
        return None

    def load(self, body: Mapping[str, Any]) -> tuple[int, str]:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return 400, f"The lora adapter '{name}' has already been loaded."
        if not (folder / "adapter_config.json").is_file() or not folder.is_absolute():
            return 404, f"No adapter found for {folder}"
        config = json.loads((folder / "adapter_config.json").read_text())
        if config["r"] > self.max_rank:
            return 400, f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_rank}."
        if config["peft_type"] != "LORA" or config["base_model_name_or_path"] != self.name:
            return 400, "no LoRA adapter of this model"
        if len(self.adapters) >= self.max_adapters:
            return 400, "too many adapters"
        self.adapters[name] = Adapter.load(folder, self.model)
        self.most_adapters = max(self.most_adapters, len(self.adapters))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: Mapping[str, Any]) -> tuple[int, str]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, "The lora adapter cannot be found."
        return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def chunks(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of an answer."""
        sampling = Sampling(
            temperature=body["temperature"], top_p=body["top_p"], seed=body["seed"], alternatives=body["logprobs"]
        )
        adapter = self.adapters.get(body["model"])
        prompts = [tuple(body["prompt"])]

        def answered() -> Any:
            return generate(self.model, prompts, max_tokens=body["max_tokens"], sampling=sampling, open_ended=True)[0]

        if adapter is None:
            answer = answered()
        else:
            with adapter.installed(self.model.network):
                answer = answered()
        for number, chosen in enumerate(answer.chosen):
            is_last = number == len(answer.chosen) - 1
            finish = ("stop" if answer.complete else "length") if is_last else None
            best = {f"token_id:{token}": value for token, value in chosen.alternatives}
            yield {
                "id": "cmpl-1",
                "object": "text_completion",
                "created": 1,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "text": self.model.encoder.token_text(chosen.token),
                        "finish_reason": finish,
                        "logprobs": {
                            "text_offset": [0],
                            "tokens": [f"token_id:{chosen.token}"],
                            "token_logprobs": [chosen.log_probability],
                            "top_logprobs": [best],
                        },
                    }
                ],
            }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, *_: Any) -> None:
        return

    def do_POST(self) -> None:
        one = self.stand_in
        raw = self.rfile.read(int(self.headers["content-length"]))
        if one.key is not None and self.headers.get("authorization") != f"Bearer {one.key}":
            self._error(401, "Unauthorized")
            return
        if self.path not in FIELDS or self.headers["content-type"] != "application/json":
            self._refuse(404, f"no route {self.path}")
            return
        body = json.loads(raw)
        one.requests.append((self.path, body))
        if (wrong := one.wrong(self.path, body)) is not None:
            self._refuse(400, wrong)
        elif one.fails == "500":
            self._error(500, "Internal Server Error")
        elif one.fails == "busy":
            self._error(429, "too many requests")
        elif one.fails == "hang":
            one.released.wait(30)
            self.close_connection = True
        elif self.path == "/v1/load_lora_adapter" and one.fails == "refuse":
            self._error(400, "the adapter at /secret/path is refused")
        elif self.path == "/v1/completions":
            self._complete(body)
        else:
            status, text = one.load(body) if self.path == "/v1/load_lora_adapter" else one.unload(body)
            self._send(status, text.encode(), "text/plain") if status == 200 else self._refuse(status, text)

    def _complete(self, body: dict[str, Any]) -> None:
        one = self.stand_in
        if body["model"] != one.name and body["model"] not in one.adapters:
            self._error(404, f"The model `{body['model']}` does not exist.")
            return
        if not (body.get("stream") and body.get("return_tokens_as_token_ids") and isinstance(body["prompt"], list)):
            self._refuse(400, "the stand-in streams numbers of tokens alone")
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        holds = one.holds
        try:
            for number, chunk in enumerate(one.chunks(body)):
                one.held += number == 2 and holds
                while number == 2 and holds and not one.released.is_set():
                    time.sleep(0.05)
                    self.wfile.write(b": nothing yet\n\n")
                    self.wfile.flush()
                if number == 2 and one.fails == "cut":
                    return
                if number == 2 and one.fails == "error":
                    chunk = {"error": {"message": "engine is dead at /secret/path", "code": 500}}
                if number == 2 and one.fails == "malformed":
                    chunk["choices"][0]["logprobs"]["tokens"] = ["the"]
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            one.left += 1

    def _refuse(self, status: int, message: str) -> None:
        self.stand_in.refusals.append(message)
        self._error(status, message)

    def _error(self, status: int, message: str) -> None:
        error = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
        self._send(status, json.dumps(error).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        return


@contextmanager
def standing_in(
    model: LanguageModel, name: str, *, key: str | None = None, max_adapters: int = 8, max_rank: int = 16
) -> Iterator[tuple[str, StandIn]]:
    """Yield the address of a stand-in, and what it knows."""
    one = StandIn(model, name, key=key, max_adapters=max_adapters, max_rank=max_rank)
    handler = type("Handler", (_Handler,), {"stand_in": one})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", one
    finally:
        one.released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)

"""Spans and metrics reach a collector, with the names of the conventions and without any text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.serve.process import served

WORDS = ("apple", "river", "stone", "cloud", "green", "house")


class Collector(ThreadingHTTPServer):
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: dict[str, bytes] = {}


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received[self.path] = self.server.received.get(self.path, b"") + body
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_spans_and_metrics_are_sent_when_the_server_ends(tmp_path: Path, collector: Collector) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
        "OTEL_SERVICE_NAME": "models",
    }
    with served(tmp_path, "--no-record", "--set", "telemetry=true", environment=environment) as server:
        examples = [{"input": word, "output": f"<q>{word}</q>"} for word in WORDS]
        body = {"model": "spark", "messages": [{"role": "user", "content": "melon"}], "ttt": {"examples": examples}}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).status_code == 200
        assert server.end() == 0
    spans, metrics = collector.received["/v1/traces"], collector.received["/v1/metrics"]
    for name in (b"chat spark", b"train spark", b"gen_ai.operation.name", b"gen_ai.request.model",
                 b"gen_ai.usage.input_tokens", b"gen_ai.response.finish_reasons", b"acclimate.ttt.status"):  # fmt: skip
        assert name in spans, name
    for name in (b"gen_ai.server.request.duration", b"gen_ai.server.time_to_first_token", b"gen_ai.client.token.usage"):
        assert name in metrics, name
    assert b"models" in spans
    assert b"melon" not in spans + metrics
    assert b"apple" not in spans + metrics

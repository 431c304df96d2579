"""A server with the interface of S3, on this machine alone."""

from __future__ import annotations

import logging
import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Start a server and yield its address; variables of the environment name it and its keys."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    deadline = time.monotonic() + 60
    while server._server is None and time.monotonic() < deadline:
        time.sleep(0.05)
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    # Ray's workers inherit them.
    given = {**KEYS, "AWS_ENDPOINT_URL": address}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # File systems are kept by their arguments, and the address is none: one of a server before would be used again.
    S3FileSystem.clear_instance_cache()
    try:
        yield address
    finally:
        S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        server.stop()


@contextmanager
def checking_keys(address: str) -> Iterator[None]:
    """Inside the block the server refuses keys that it does not know, which are all."""
    _set_unchecked_requests(address, 0)
    try:
        yield
    finally:
        _set_unchecked_requests(address, 10**9)


def _set_unchecked_requests(address: str, count: int) -> None:
    request = urllib.request.Request(
        f"{address}/moto-api/reset-auth", data=str(count).encode(), headers={"Content-Type": "text/plain"}
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200

"""A real server of two replicas on Ray Serve, of which one is killed."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from acclimate.scale.front import REPLICA_HEADER
from tests.monitoring.databases import postgresql, postgresql_binaries
from tests.scale.test_front import body, counted, events, examples, text_of
from tests.serve.process import Server, refused, served

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Served:
    """A server with two replicas.

    Attributes:
        server: its process.
        client: of its address.
        folder: with ``store`` and ``metrics.db``.
    """

    server: Server
    client: httpx.Client
    folder: Path

    def ask(self, tag: str = "q", query: str = "melon", **more: Any) -> httpx.Response:
        found = self.client.post("/v1/chat/completions", json=body(tag, query, **more))
        assert found.status_code == 200, found.text
        return found

    def pids(self) -> dict[str, int]:
        page = self.client.get("/metrics").text
        return {m[2]: int(m[1]) for m in re.finditer(r'acclimate_replica_process\{pid="(\d+)",replica="(\d+)"\}', page)}

    def rows(self) -> list[str]:
        with sqlite3.connect(self.folder / "metrics.db") as store:
            return [str(row[0]) for row in store.execute("select request_id from requests order by request_id")]


@pytest.fixture(scope="module")
def ray_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ray-server")
    arguments = ("--engine", "ray", "--replicas", "2", "--adapter-store", str(folder / "store"))
    with (
        served(folder, *arguments) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield Served(server, client, folder)
        began = time.monotonic()
        assert server.end() == 0, server.log.read_text()
        assert time.monotonic() - began < 60


def until(holds: Callable[[], bool], *, timeout_s: float = 90.0) -> None:
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.2)


def bits(found: httpx.Response) -> Any:
    """Return the tokens of an answer with their log-probabilities, as they were sent."""
    return json.dumps([choice["logprobs"] for choice in found.json()["choices"]])


def test_replicas_are_reached_from_this_machine_alone(ray_server: Served) -> None:
    """Every process that descends from the server listens at loopback addresses."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A":
                inodes[parts[9]] = parts[1]
    parents = {
        int(entry.name): int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (entry / "stat").exists()
    }
    family = {ray_server.server.process.pid}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    assert set(ray_server.pids().values()) <= family
    found = set()
    for pid in family:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inode = re.match(r"socket:\[(\d+)\]", str(handle.readlink()))
            except FileNotFoundError:
                continue
            if inode and inode[1] in inodes:
                raw = bytes.fromhex(inodes[inode[1]].partition(":")[0])
                words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
                found.add(ipaddress.ip_address(words))
    assert found
    plain = {getattr(address, "ipv4_mapped", None) or address for address in found}
    assert all(address.is_loopback for address in plain), plain


def test_one_of_two_replicas_is_killed_in_the_middle(ray_server: Served) -> None:
    before = ray_server.pids()
    assert set(before) == {"0", "1"}
    assert ray_server.client.get("/health").json() == {"replicas": {"live": 2, "wanted": 2}}
    sent: list[str] = []

    def ask(tag: str, query: str = "melon", **more: Any) -> httpx.Response:
        found = ray_server.ask(tag, query, logprobs=True, top_logprobs=2, **more)
        sent.append(found.headers["x-request-id"])
        return found

    # The same examples to the same replica, different ones to both.
    first = {tag: ask(tag) for tag in ("a", "b", "c", "d", "e", "f")}
    where = {tag: found.headers[REPLICA_HEADER] for tag, found in first.items()}
    assert set(where.values()) == {"0", "1"}
    again = {tag: ask(tag) for tag in first}
    assert {tag: found.headers[REPLICA_HEADER] for tag, found in again.items()} == where
    assert all(found.json()["ttt"]["cached"] or found.json()["ttt"]["status"] == "declined" for found in again.values())
    tag = next(tag for tag in first if first[tag].json()["ttt"]["used"])
    assert bits(again[tag]) == bits(ask(tag))
    until(lambda: len(ray_server.rows()) == len(sent))

    # The replica of that set is killed while it trains for another request.
    victim = where[tag]
    other = {"0": "1", "1": "0"}[victim]
    busy = next(
        f"busy{n}" for n in range(50) if ask(f"busy{n}", ttt={"mode": "force"}).headers[REPLICA_HEADER] == victim
    )
    running: list[httpx.Response] = []
    options = {"mode": "force", "steps": 64}
    until(lambda: len(ray_server.rows()) == len(sent))
    thread = threading.Thread(target=lambda: running.append(ask(busy, ttt=options)))
    thread.start()
    training = re.compile(rf'acclimate_requests_training\{{model_name="spark",replica="{victim}"\}} [1-9]')
    until(lambda: training.search(ray_server.client.get("/metrics").text) is not None, timeout_s=20)
    os.kill(before[victim], signal.SIGKILL)
    thread.join(120)
    # It was begun again, by the other one.
    assert running[0].headers[REPLICA_HEADER] == other
    assert running[0].json()["ttt"]["steps"] > 0
    assert counted(ray_server.client, "acclimate_front_retries_total") == 1
    assert counted(ray_server.client, "acclimate_front_lost_total") == 0

    # The set of the killed one is answered by another, from the store, to the bit: there too it is the first answer
    # with the adapter. Later ones read the kept beginning of the prompt, and are rounded in another order.
    found = ask(tag)
    assert found.headers[REPLICA_HEADER] == other or ray_server.pids().get(victim) != before[victim]
    assert found.json()["ttt"]["cached"]
    assert (bits(found), text_of(found)) == (bits(first[tag]), text_of(first[tag]))

    # The new one takes the number of the killed one, and begins with the adapters of the store.
    until(lambda: len(ray_server.pids()) == 2)
    assert ray_server.pids()[victim] != before[victim]
    assert ray_server.client.get("/health").json() == {"replicas": {"live": 2, "wanted": 2}}
    page = ray_server.client.get("/metrics").text
    kept = re.search(rf'acclimate_cached_adapters\{{model_name="spark",replica="{victim}"\}} (\S+)', page)
    loads = re.search(rf'acclimate_adapter_loads_total\{{model_name="spark",replica="{victim}"\}} (\S+)', page)
    assert kept is not None
    assert loads is not None
    assert float(kept[1]) >= len(first)
    assert float(loads[1]) >= 1
    for known in first:
        later = ask(known)
        assert later.json()["ttt"]["cached"] or later.json()["ttt"]["status"] == "declined"
        assert text_of(later) == text_of(first[known])
        assert bits(later) in (bits(first[known]), bits(again[known]))

    # Every answer has its row, and was counted.
    until(lambda: len(ray_server.rows()) == len(sent), timeout_s=30)
    assert ray_server.rows() == sorted(sent)
    assert counted(ray_server.client, "acclimate_front_answers_total") == len(sent)


def test_streams_and_named_adapters_pass_through_ray(ray_server: Served) -> None:
    found = events(ray_server.client, body("z"))
    assert found[-1] == "[DONE]"
    assert len({event["id"] for event in found[:-1]}) == 1
    made = ray_server.client.post("/v1/adapters", json={"name": "named", "examples": examples("n")})
    assert made.status_code == 201, made.text
    asked = {"model": "spark:named", "messages": [{"role": "user", "content": "tiger"}]}
    answers = [ray_server.client.post("/v1/chat/completions", json=asked) for _ in range(2)]
    assert {text_of(answer) for answer in answers} == {"<n>tiger</n>"}
    assert len({answer.headers[REPLICA_HEADER] for answer in answers}) == 1
    # An error inside a replica is the client's error, in OpenAI's shape.
    bad = ray_server.client.post("/v1/adapters", json={"name": "bad", "examples": examples("n")[:1] * 2})
    assert (bad.status_code, "usable examples" in bad.json()["error"]["message"]) == (400, True)
    gone = ray_server.client.delete("/v1/adapters/spark:named")
    assert gone.json()["deleted"] is True
    assert ray_server.client.post("/v1/chat/completions", json=asked).status_code == 404


def test_both_replicas_write_to_one_postgresql(tmp_path: Path) -> None:
    """Every answer has one row there, also those that were begun again when a replica was killed."""
    if postgresql_binaries() is None:
        assert not os.environ.get("CI"), "PostgreSQL is not installed, and CI must test it"
        pytest.skip("PostgreSQL is not installed: initdb was not found")
    with (
        tempfile.TemporaryDirectory(prefix="acclimate-postgresql-") as place,
        postgresql(Path(place)) as url,
        served(
            tmp_path, "--engine", "ray", "--replicas", "2", "--adapter-store", str(tmp_path / "store"), "--db", url
        ) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        one = Served(server, client, tmp_path)

        def rows() -> list[tuple[str, str]]:
            with psycopg.connect(url) as connection:
                found = connection.execute("select request_id, writer_id from requests order by request_id")
                return [(str(name), str(writer)) for name, writer in found]

        sent: dict[str, str] = {}
        failed: list[int] = []

        def ask(tag: str, query: str = "melon") -> None:
            found = client.post("/v1/chat/completions", json=body(tag, query))
            if found.status_code != 200:
                failed.append(found.status_code)
                return
            sent[found.headers["x-request-id"]] = found.headers[REPLICA_HEADER]

        tags = ("a", "b", "c", "d", "e", "f")
        for tag in tags:
            ask(tag)
        assert set(sent.values()) == {"0", "1"}
        until(lambda: len(rows()) == len(sent))
        # Each replica is a writer of its own, and its rows are those of its answers.
        writers: dict[str, set[str]] = {}
        for name, writer in rows():
            writers.setdefault(sent[name], set()).add(writer)
        assert {replica: len(found) for replica, found in writers.items()} == {"0": 1, "1": 1}
        assert writers["0"] != writers["1"]
        # One page counts the answers of both.
        page = client.get("/metrics").text
        for replica in ("0", "1"):
            counts = re.findall(rf'vllm:request_success_total\{{.*replica="{replica}".*\}} (\S+)', page)
            assert sum(map(float, counts)) == sum(found == replica for found in sent.values())
        assert counted(client, "vllm:request_success_total") == len(sent)
        # One is killed while requests come; another takes its number and writes to the same database.
        before = one.pids()
        threads = [threading.Thread(target=ask, args=(f"{tag}{tag}",)) for tag in tags]
        for thread in threads:
            thread.start()
        os.kill(before["0"], signal.SIGKILL)
        for thread in threads:
            thread.join(120)
        assert failed == []
        until(lambda: len(one.pids()) == 2 and one.pids()["0"] != before["0"])
        for tag in tags:
            ask(tag, "tiger")
        until(lambda: {name for name, _ in rows()} >= set(sent), timeout_s=30)
        found = rows()
        assert [name for name, _ in found] == sorted(sent)
        assert len({writer for _, writer in found}) == 3
        assert server.end() == 0, server.log.read_text()


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    line = refused(
        tmp_path, "serve", "--engine", "ray", "--replicas", "1", "--port", "0", "--no-record", "--model",
        str(tmp_path / "gone"),
    )  # fmt: skip
    assert "gone" in line

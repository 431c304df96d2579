"""Load on the server from another process: how much sharing passes brings, against one request at a time.

Every figure compares runs on one machine, one after the other. Besides seconds, the processor time of the server is
reported: it does not count what other programs on the machine take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

LETTERS = "bcdfghjklmnprstvwz"
VOWELS = "aeiou"


@dataclass(frozen=True)
class Server:
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def server(model: str, threads: int, *settings: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [
            sys.executable,
            "-m",
            "acclimate",
            "serve",
            "--model",
            model,
            "--port",
            "0",
            "--threads",
            str(threads),
        ]
        # Long enough for a busy machine: a request that runs out of time is another benchmark.
        settings = ("adaptation_budget_s=600", "request_timeout_s=1200", *settings)
        command += ["--db", f"{folder}/metrics.db"] + [part for each in settings for part in ("--set", each)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stderr=file, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        try:
            while not (found := re.search(r"at (http://\S+)/v1", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            while True:
                try:
                    if httpx.get(f"{found[1]}/health", timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield Server(found[1], process.pid)
        finally:
            process.terminate()
            process.wait()


def word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3)))


def example_set(seed: int, repeats: int) -> list[tuple[str, str]]:
    """Return examples of one task: each word in marks of the task, ``repeats`` times."""
    rng = random.Random(seed)
    mark = word(rng)
    words = [word(rng) for _ in range(8)]
    return [(text, " ".join([f"{mark} {text}"] * repeats)) for text in words]


def body(model: str, examples: Sequence[tuple[str, str]], query: str, max_tokens: int, mode: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": query}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ttt": {"mode": mode, "examples": [{"input": a, "output": b} for a, b in examples]},
    }


def workload(kind: str, model: str, count: int, max_tokens: int, repeats: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    known = [example_set(number, repeats) for number in range(4)]
    found = []
    for number in range(count):
        share = number % 4
        if kind == "plain":
            found.append(body(model, known[number % 4], word(rng), max_tokens, "off"))
        elif kind == "repeated" or (kind == "mixed" and share < 2):
            found.append(body(model, known[number % 4], word(rng), max_tokens, "auto"))
        elif kind == "new" or share == 2:
            found.append(
                body(model, example_set(10_000 + seed * 1000 + number, repeats), word(rng), max_tokens, "auto")
            )
        else:
            found.append(body(model, known[number % 4], word(rng), max_tokens, "off"))
    return found


@dataclass
class Outcome:
    status: int
    first_s: float = 0.0
    whole_s: float = 0.0
    tokens: int = 0
    trained: int = 0
    ttt: str = ""


async def send(client: httpx.AsyncClient, url: str, request: dict[str, Any]) -> Outcome:
    began = time.perf_counter()
    outcome = Outcome(0)
    async with client.stream("POST", f"{url}/v1/chat/completions", json=request) as answer:
        outcome.status = answer.status_code
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                outcome.status = 500
            if not outcome.first_s and any(c["delta"].get("content") for c in chunk.get("choices", ())):
                outcome.first_s = time.perf_counter() - began
            if chunk.get("ttt"):
                outcome.ttt = chunk["ttt"]["status"]
            if chunk.get("usage"):
                outcome.tokens = chunk["usage"]["completion_tokens"]
                outcome.trained = chunk["usage"]["trained_tokens"]
    outcome.whole_s = time.perf_counter() - began
    return outcome


async def closed_loop(url: str, requests: Sequence[dict[str, Any]], clients: int) -> tuple[list[Outcome], float]:
    """Let ``clients`` send one request after the other."""
    left = iter(requests)
    outcomes: list[Outcome] = []

    async def one(client: httpx.AsyncClient) -> None:
        for request in left:
            outcomes.append(await send(client, url, request))

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return outcomes, time.perf_counter() - began


async def open_loop(url: str, requests: Sequence[dict[str, Any]], per_second: float) -> tuple[list[Outcome], float]:
    """Send requests at random times, whatever becomes of the others."""
    rng = random.Random(0)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        tasks = []
        for request in requests:
            tasks.append(asyncio.create_task(send(client, url, request)))
            await asyncio.sleep(rng.expovariate(per_second))
        outcomes = list(await asyncio.gather(*tasks))
    return outcomes, time.perf_counter() - began


def percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def summary(outcomes: Sequence[Outcome], wall_s: float, cpu_s: float) -> dict[str, Any]:
    good = [outcome for outcome in outcomes if outcome.status == 200]
    tokens = sum(outcome.tokens for outcome in good)
    return {
        "requests": len(outcomes),
        "refused": sum(outcome.status == 429 for outcome in outcomes),
        "failed": sum(outcome.status not in (200, 429) for outcome in outcomes),
        "adapted": sum(outcome.ttt == "adapted" for outcome in good),
        "requests_per_second": round(len(good) / wall_s, 3),
        "cpu_seconds_per_request": round(cpu_s / max(1, len(good)), 4),
        "tokens_per_second": round(tokens / wall_s, 1),
        "tokens_per_request": round(tokens / max(1, len(good)), 1),
        "first_token_s": percentiles([outcome.first_s for outcome in good]),
        "whole_s": percentiles([outcome.whole_s for outcome in good]),
    }


def measured(found: Server, requests: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
    cpu = found.cpu_seconds()
    outcomes, wall_s = asyncio.run(closed_loop(found.url, requests, clients))
    return summary(outcomes, wall_s, found.cpu_seconds() - cpu) | {"clients": clients, "wall_s": round(wall_s, 2)}


def transformers_alone(model: str, requests: Sequence[dict[str, Any]], threads: int) -> dict[str, Any]:
    """Answer the same prompts by transformers' own generation, one after the other, in a process of its own."""
    script = Path(__file__).with_name("transformers_loop.py")
    command = [sys.executable, str(script), model, str(threads)]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


#: spark's tokens are characters.
LONG = {"spark": 3, "smollm2": 8}
CASES = {
    # name: kind of load, tokens of an answer at most, repetitions in an answer
    "repeated, long answers": ("repeated", 64, 0),
    "repeated, short answers": ("repeated", 8, 1),
    "all new": ("new", 8, 1),
    "mixed": ("mixed", 16, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="spark")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=64, help="for each number of clients; fewer for one client")
    parser.add_argument("--alone", type=int, default=16, help="requests one at a time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=["load", "known", "overload", "memory"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--memory-requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    result: dict[str, Any] = {}
    if given.out.exists():
        result = json.loads(given.out.read_text())
    result |= {"model": given.model, "machine": platform.processor() or platform.machine(), "threads": given.threads}
    result["processor"] = _processor()

    def keep() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")

    if "load" in given.parts:
        for name, (kind, max_tokens, repeats) in CASES.items():
            if name not in given.cases:
                continue
            repeats = repeats or LONG.get(given.model, 8)
            rows = result.setdefault("load", {}).setdefault(name, {})
            alone = workload(kind, given.model, given.alone, max_tokens, repeats, seed=1)
            with server(given.model, given.threads) as found:
                asyncio.run(closed_loop(found.url, workload("repeated", given.model, 8, max_tokens, repeats, 0), 4))
                for clients in given.clients:
                    count = given.alone if clients == 1 else max(given.requests, 2 * clients)
                    load = workload(kind, given.model, count, max_tokens, repeats, seed=10 + clients)
                    rows[str(clients)] = measured(found, load, clients)
                    print(name, clients, rows[str(clients)], flush=True)
                    keep()
            rows["transformers"] = transformers_alone(given.model, alone, given.threads)
            print(name, rows["transformers"], flush=True)
            keep()
    if "known" in given.parts:
        with server(given.model, given.threads) as found:
            rows = result["known"] = {}
            for name, (max_tokens, repeats) in {"long": (64, LONG.get(given.model, 8)), "short": (8, 1)}.items():
                asyncio.run(closed_loop(found.url, workload("repeated", given.model, 8, max_tokens, repeats, 0), 1))
                asyncio.run(closed_loop(found.url, workload("plain", given.model, 8, max_tokens, repeats, 0), 1))
                # In turns, so that whatever else the machine does hits both.
                pairs = [
                    [
                        measured(found, workload(kind, given.model, 8, max_tokens, repeats, seed), 1)
                        for kind in ("plain", "repeated")
                    ]
                    for seed in range(3, 8)
                ]
                rows[name] = {}
                # The adapted model may answer at greater length than the base model.
                for what, per in (("cpu_ratio", "requests"), ("cpu_ratio_by_token", "tokens_per_request")):
                    costs = [
                        [row["cpu_seconds_per_request"] / (row[per] if per != "requests" else 1) for row in pair]
                        for pair in pairs
                    ]
                    ratios = [known / plain for plain, known in costs]
                    rows[name] |= {what: round(statistics.median(ratios), 3), f"{what}s": [round(r, 3) for r in ratios]}
                print("known", name, rows[name], flush=True)
                keep()
    if "overload" in given.parts:
        with server(given.model, given.threads, "max_running=16", "max_waiting=4") as found:
            asyncio.run(closed_loop(found.url, workload("repeated", given.model, 16, 16, 2, 0), 4))
            usual = measured(found, workload("repeated", given.model, 4 * given.requests, 16, 2, 1), 16)
            rate = 2 * usual["requests_per_second"]
            cpu = found.cpu_seconds()
            outcomes, wall_s = asyncio.run(
                open_loop(found.url, workload("repeated", given.model, 8 * given.requests, 16, 2, 2), rate)
            )
            over = summary(outcomes, wall_s, found.cpu_seconds() - cpu)
            ratio = over["whole_s"]["p95"] / usual["whole_s"]["p95"]
            result["overload"] = {"usual": usual, "twice": over, "p95_ratio": round(ratio, 2)}
            print("overload", result["overload"], flush=True)
            keep()
    if "memory" in given.parts:
        with server(given.model, given.threads) as found:
            points = []
            for _ in range(10):
                count = given.memory_requests // 10
                asyncio.run(closed_loop(found.url, workload("plain", given.model, count, 2, 1, len(points)), 16))
                # Some new sets as well: each is an adapter that is trained, kept and dropped again.
                asyncio.run(closed_loop(found.url, workload("new", given.model, 8, 4, 1, 50 + len(points)), 8))
                points.append(found.resident_bytes())
                print("memory", len(points) * count, points[-1] / 2**20, flush=True)
                result["memory"] = {
                    "requests": [count * (n + 1) for n in range(len(points))],
                    "resident_mib": [round(p / 2**20, 1) for p in points],
                    "growth_after_the_first_tenth": round(points[-1] / points[0] - 1, 4),
                }
                keep()


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    return (
        f"{name[1] if name else 'unknown'}, {'with' if 'amx_tile' in text else 'without'} AMX, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()

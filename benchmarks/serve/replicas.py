"""What replicas on Ray cost: processor time a request of one process, and of one and two replicas behind one address.

Processor time is that of the server and of every process that descends from it, Ray's own included. Requests come one
after the other, so that no passes are shared and only the way to the network differs. Every set of examples is new to
the first server and known to the later ones by the store, where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

WORDS = "apple river stone cloud table green house light water bread melon plant".split()
TAGS = "abcdefghijklmnopqrstuvwxyz"
CLOCK = os.sysconf("SC_CLK_TCK")


def family(root: int) -> dict[int, tuple[str, float]]:
    """Return name and processor seconds of a process and all that descend from it."""
    found: dict[int, tuple[int, str, float]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            head, _, rest = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        found[int(entry.name)] = (int(fields[1]), head.partition("(")[2], (int(fields[11]) + int(fields[12])) / CLOCK)
    members = {root}
    while more := {pid for pid, (parent, _, _) in found.items() if parent in members} - members:
        members |= more
    return {pid: found[pid][1:] for pid in members if pid in found}


class Server:
    def __init__(self, url: str, pid: int, with_ray: bool) -> None:
        self.pid, self.with_ray = pid, with_ray
        self.client = httpx.Client(base_url=url, timeout=900)

    def cpu(self) -> dict[str, float]:
        """Return processor seconds by part."""
        parts = {"front": 0.0, "replicas": 0.0, "ray": 0.0}
        for pid, (name, seconds) in family(self.pid).items():
            part = "front" if pid == self.pid else "replicas" if name.startswith("ray::ServeRepli") else "ray"
            parts[part] += seconds
        return parts

    def ask(self, tag: str, query: str, **more: Any) -> dict[str, Any]:
        prompt = "".join(f"{word} -> <{tag}>{word}</{tag}>\n" for word in WORDS[:8]) + f"{query} ->"
        body = {"model": "spark", "messages": [{"role": "user", "content": prompt}]} | more
        found = self.client.post("/v1/chat/completions", json=body)
        found.raise_for_status()
        return found.json() | {"replica": found.headers.get("x-acclimate-replica")}

    def metric(self, name: str, **labels: str) -> float:
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(name) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total


@contextmanager
def server(folder: Path, replicas: int, store: Path | None) -> Iterator[Server]:
    """Yield a server; 0 replicas are one process without Ray."""
    command = [sys.executable, "-m", "acclimate", "serve", "--model", "spark", "--port", "0", "--threads", "1"]
    command += [
        "--no-record",
        "--set",
        "page=false",
        "--set",
        "request_timeout_s=900",
        "--set",
        "adaptation_budget_s=900",
    ]
    command += ["--engine", "ray", "--replicas", str(replicas)] if replicas else []
    command += ["--adapter-store", str(store)] if store is not None else []
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stderr=file, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    try:
        until = time.monotonic() + 900
        while (found := re.search(r"serving .* at (http://\S+)/v1", log.read_text(errors="replace"))) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        one = Server(found[1], process.pid, replicas > 0)
        while one.client.get("/health").status_code != 200:
            time.sleep(0.1)
        yield one
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


def cost(one: Server, requests: list[tuple[str, str, dict[str, Any]]]) -> dict[str, Any]:
    """Return processor milliseconds a request, by part, what is spent while nothing is asked included."""
    before, began = one.cpu(), time.perf_counter()
    answers = [one.ask(tag, query, **more) for tag, query, more in requests]
    took, after = time.perf_counter() - began, one.cpu()
    each = {part: 1000 * (after[part] - before[part]) / len(requests) for part in before}
    return {
        "cpu_ms": sum(each.values()),
        **{f"{part}_ms": value for part, value in each.items()},
        "wall_s": took,
        "requests": len(requests),
        "cached": sum(bool(answer["ttt"]["cached"]) for answer in answers),
        "trained_tokens": sum(answer["usage"]["trained_tokens"] for answer in answers),
        "adapted": sum(answer["ttt"]["used"] for answer in answers),
        "replicas": sorted({answer["replica"] for answer in answers if answer["replica"]}),
    }


def idle(one: Server, seconds: float) -> dict[str, float]:
    before = one.cpu()
    time.sleep(seconds)
    after = one.cpu()
    return {part: 1000 * (after[part] - before[part]) / seconds for part in before}


def measured(folder: Path, replicas: int, sets: int, repeats: int) -> dict[str, Any]:
    tags = TAGS[:sets]
    store = folder / f"store-{replicas}"
    force = {"ttt": {"mode": "force"}}
    new = [(tag, "tiger", force) for tag in tags]
    known = [(tag, query, force) for query in WORDS[8:] for tag in tags] * repeats
    plain = [(tag, query, {"ttt": {"mode": "off"}, "max_tokens": 4}) for query in WORDS[8:] for tag in tags] * repeats
    result: dict[str, Any] = {"replicas": replicas}
    with server(folder, replicas, store) as one:
        # What a process does once: compiling patterns, the first passes.
        one.ask("warm", "tiger", ttt={"mode": "off"})
        result["start_cpu_s"] = one.cpu()
        result["idle_ms_per_s"] = idle(one, 10.0)
        result["new"] = cost(one, new)
        result["known"] = cost(one, known)
        result["plain"] = cost(one, plain)
        if replicas > 1:
            result["killed_replica"] = failure(one, tags)
    if not replicas:
        with server(folder, replicas, store) as one:
            one.ask("warm", "tiger", ttt={"mode": "off"})
            result["known to the store, after a restart"] = cost(one, new)
    return result


def failure(one: Server, tags: str) -> dict[str, Any]:
    """Return what a killed replica costs: requests again, and adapters that the other one has to train."""
    force = {"ttt": {"mode": "force"}}
    first = {tag: one.ask(tag, "tiger", **force) for tag in tags}
    pids = {
        match[2]: int(match[1])
        for match in re.finditer(
            r'acclimate_replica_process\{pid="(\d+)",replica="(\d+)"\}', one.client.get("/metrics").text
        )
    }
    victim = max(pids, key=lambda number: sum(answer["replica"] == number for answer in first.values()))
    held = [tag for tag in tags if first[tag]["replica"] == victim]
    # The counters of the killed one end with it.
    other = next(number for number in pids if number != victim)
    hits = one.metric("acclimate_adapter_store_fetches_total", result="hit", replica=other)
    time.sleep(1)
    os.kill(pids[victim], signal.SIGKILL)
    began = time.perf_counter()
    again = {tag: one.ask(tag, "lamp", **force) for tag in held}
    took = time.perf_counter() - began
    found = {
        "sets_of_the_killed_replica": len(held),
        "answered_again_from_the_store": sum(bool(answer["ttt"]["cached"]) for answer in again.values()),
        "trained_again": sum(answer["usage"]["trained_tokens"] > 0 for answer in again.values()),
        "wall_s": took,
        "store_hits": one.metric("acclimate_adapter_store_fetches_total", result="hit", replica=other) - hits,
        "retries": one.metric("acclimate_front_retries_total"),
    }
    until = time.monotonic() + 600
    while one.client.get("/health").json()["replicas"]["live"] < 2 and time.monotonic() < until:
        time.sleep(0.2)
    found["two_replicas_again_after_s"] = time.perf_counter() - began
    found["kept_by_the_new_one_at_its_start"] = one.metric("acclimate_cached_adapters", replica=victim)
    return found


def over_idle(one: dict[str, Any], kind: str, key: str) -> float:
    """Return processor milliseconds a request of one part, or of all, beyond what is spent without requests."""
    found, idle_ms = one[kind], one["idle_ms_per_s"]
    rest = sum(idle_ms.values()) if key == "cpu_ms" else idle_ms[key.removesuffix("_ms")]
    return float(found[key] - rest * found["wall_s"] / found["requests"])


def summary_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians by number of replicas, with what is spent while nothing is asked taken off.

    How long that is depends on what else the machine does.
    """
    found: dict[str, Any] = {}
    for replicas in sorted({one["replicas"] for one in rounds}):
        same = [one for one in rounds if one["replicas"] == replicas]
        name = f"{replicas} on Ray" if replicas else "one process"
        found[name] = {
            kind: {
                key: round(statistics.median(over_idle(one, kind, key) for one in same), 1)
                for key in ("cpu_ms", "front_ms", "replicas_ms", "ray_ms")
            }
            for kind in ("new", "known", "plain", "known to the store, after a restart")
            if kind in same[0]
        }
        for key, title in (
            ("idle_ms_per_s", "idle, ms of processor a second"),
            ("start_cpu_s", "start, s of processor"),
        ):
            found[name][title] = round(statistics.median(sum(one[key].values()) for one in same), 1)
        if "killed_replica" in same[-1]:
            found[name]["killed replica"] = same[-1]["killed_replica"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="*", default=[0, 1, 2], help="0 is one process without Ray.")
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processor", required=True, help="What the machine is, for the record.")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="Records whose rounds are added.")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rounds = [one for path in given.add for one in json.loads(path.read_text())["rounds"]]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for replicas in given.replicas:
                (place := Path(folder) / f"{number}-{replicas}").mkdir()
                one = {"sets": given.sets, "repeats": given.repeats}
                rounds.append(one | measured(place, replicas, given.sets, given.repeats))
                print(json.dumps(rounds[-1]), flush=True)
    record = {"processor": given.processor, "model": "spark", "summary": summary_of(rounds), "rounds": rounds}
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["summary"], indent=1))


if __name__ == "__main__":
    main()

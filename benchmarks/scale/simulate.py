"""Routing, caching and queues of a day of requests on replicas, from measured times of one GPU.

    python benchmarks/scale/simulate.py --out benchmarks/scale/results/simulation.json

Requests come at random times, with a peak of twice the mean in the afternoon. Each brings one of many sets of examples,
whose frequencies follow Zipf's law. A replica that has the adapter of the set answers; otherwise it trains one first,
together with up to 31 others that wait. Replicas share a store: an adapter that any of them trained is read from it.
Times are those of ``benchmarks/gpu/results/h200.json``: the adaptation of 1, 8 and 32 requests of 340 tokens, and a
pass of one token for up to 32 rows; while a replica trains, answers take twice as long. One replica ends in the busiest
hour and comes back after ten minutes; its requests are sent again.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import itertools
import json
import math
import random
import zlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DAY_S = 86_400
GPU_RESULTS = Path(__file__).parents[1] / "gpu" / "results" / "h200.json"


@dataclass(frozen=True)
class Times:
    """Measured seconds: of an adaptation by requests side by side, of a pass of one token, and of reading a prompt."""

    adaptation: Sequence[tuple[int, float]]
    token: float
    prompt: float

    @classmethod
    def measured(cls) -> Times:
        sections = json.loads(GPU_RESULTS.read_text())["sections"]
        rows = sections["training of adapters"]["result"]["rows"]
        adaptation = [(row["requests"], row["adaptation_ms"] / 1e3) for row in rows if row["tokens"] == 320]
        answers = sections["answers"]["result"]["rows"]
        return cls(adaptation, answers[-1]["token_pass_ms"] / 1e3, answers[0]["read_ms"] / 1e3)

    def training(self, requests: int) -> float:
        """Return the seconds of training ``requests`` adapters side by side, between the measured points by a line."""
        counts = [count for count, _ in self.adaptation]
        after = min(max(1, bisect.bisect_left(counts, requests)), len(counts) - 1)
        (low, low_s), (high, high_s) = self.adaptation[after - 1], self.adaptation[after]
        return low_s + (high_s - low_s) * (requests - low) / (high - low)


@dataclass
class Replica:
    cached: OrderedDict[int, None] = field(default_factory=OrderedDict)
    waiting: OrderedDict[int, list[int]] = field(default_factory=OrderedDict)
    queue: deque[int] = field(default_factory=deque)
    rows: int = 0
    is_training: bool = False
    busy_s: float = 0.0
    busy_since: float | None = None
    epoch: int = 0
    is_up: bool = True


class Simulation:
    """One day.

    Args:
        replicas: their number.
        routing: ``hash``: by the set of examples; ``random``.
        store: whether replicas share adapters through a store.
        requests: of the day; ``sets``: of examples; ``exponent``: of Zipf's law.
        cache: adapters that a replica keeps.
        rows: answers that it generates at a time; ``tokens``: of an answer.
    """

    def __init__(
        self, times: Times, *, replicas: int, routing: str, store: bool, requests: int, sets: int, exponent: float,
        cache: int = 2000, rows: int = 32, tokens: int = 24, seed: int = 0,
    ) -> None:  # fmt: skip
        self._times, self._routing, self._shares = times, routing, store
        self._cache, self._most_rows, self._tokens = cache, rows, tokens
        self._rng = random.Random(seed)
        self._replicas = [Replica() for _ in range(replicas)]
        self._stored: set[int] = set()
        weights = list(itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(sets)))
        self._set_of = self._rng.choices(range(sets), cum_weights=weights, k=requests)
        # A day with a peak of twice the mean.
        hours = [1 - math.cos(2 * math.pi * (hour + 0.5 - 3) / 24) for hour in range(24)]
        chosen = self._rng.choices(range(24), weights=hours, k=requests)
        self._arrival = sorted(3600 * (hour + self._rng.random()) for hour in chosen)
        self._events: list[tuple[float, int, str, Any]] = []
        self._numbers = itertools.count()
        self._latencies: list[float] = []
        self._counts = {"trained": 0, "from the store": 0, "cached": 0, "sent again": 0}

    def run(self) -> dict[str, Any]:
        for number, when in enumerate(self._arrival):
            self._at(when, "arrives", number)
        if len(self._replicas) > 1:
            self._at(15.25 * 3600, "ends", 0)
        while self._events:
            when, _, what, about = heapq.heappop(self._events)
            getattr(self, f"_{what}")(when, about)
        found = sorted(self._latencies)
        shares = {f"p{p}_s": round(found[min(len(found) - 1, int(len(found) * p / 100))], 2) for p in (50, 95, 99)}
        total = len(found)
        return {
            "answered": total,
            **{name: round(count / total, 4) for name, count in self._counts.items()},
            **shares,
            "longest_s": round(found[-1], 1),
            "busy": round(sum(r.busy_s for r in self._replicas) / len(self._replicas) / DAY_S, 3),
        }

    def _at(self, when: float, what: str, about: Any) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what, about))

    def _arrives(self, when: float, number: int) -> None:
        up = [index for index, replica in enumerate(self._replicas) if replica.is_up]
        which = self._set_of[number]
        if self._routing == "hash":
            # The highest of one number for each replica: a lost one moves only its own sets.
            index = max(up, key=lambda one: zlib.crc32(f"{which} {one}".encode()))
        else:
            index = self._rng.choice(up)
        replica = self._replicas[index]
        if which in replica.cached:
            self._counts["cached"] += 1
            replica.cached.move_to_end(which)
            self._answer(when, index, number)
        elif self._shares and which in self._stored:
            self._counts["from the store"] += 1
            self._keep(replica, which)
            self._answer(when, index, number)
        else:
            replica.waiting.setdefault(which, []).append(number)
            self._train(when, index)

    def _note(self, when: float, replica: Replica) -> None:
        """Count the time in which a replica trains or answers."""
        works = replica.is_training or replica.rows > 0
        if works and replica.busy_since is None:
            replica.busy_since = when
        elif not works and replica.busy_since is not None:
            replica.busy_s, replica.busy_since = replica.busy_s + when - replica.busy_since, None

    def _keep(self, replica: Replica, which: int) -> None:
        replica.cached[which] = None
        if len(replica.cached) > self._cache:
            replica.cached.popitem(last=False)

    def _train(self, when: float, index: int) -> None:
        replica = self._replicas[index]
        if replica.is_training or not replica.waiting or not replica.is_up:
            return
        batch = [replica.waiting.popitem(last=False) for _ in range(min(32, len(replica.waiting)))]
        replica.is_training = True
        taken = self._times.training(len(batch)) * (2 if replica.rows else 1)
        self._note(when, replica)
        self._at(when + taken, "trained", (index, replica.epoch, batch))

    def _trained(self, when: float, about: Any) -> None:
        index, epoch, batch = about
        replica = self._replicas[index]
        for which, numbers in batch:
            if epoch != replica.epoch:
                self._again(when, numbers)
                continue
            self._counts["trained"] += 1
            self._counts["cached"] += len(numbers) - 1
            self._stored.add(which)
            self._keep(replica, which)
            for number in numbers:
                self._answer(when, index, number)
        if epoch == replica.epoch:
            replica.is_training = False
            self._note(when, replica)
            self._train(when, index)

    def _answer(self, when: float, index: int, number: int) -> None:
        replica = self._replicas[index]
        if replica.rows >= self._most_rows:
            replica.queue.append(number)
            return
        replica.rows += 1
        self._note(when, replica)
        taken = self._times.prompt + self._tokens * self._times.token * (2 if replica.is_training else 1)
        self._at(when + taken, "answered", (index, replica.epoch, number))

    def _answered(self, when: float, about: Any) -> None:
        index, epoch, number = about
        replica = self._replicas[index]
        if epoch != replica.epoch:
            self._again(when, [number])
            return
        self._latencies.append(when - self._arrival[number])
        replica.rows -= 1
        self._note(when, replica)
        if replica.queue:
            self._answer(when, index, replica.queue.popleft())

    def _again(self, when: float, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._counts["sent again"] += 1
            self._arrives(when, number)

    def _ends(self, when: float, index: int) -> None:
        lost = self._replicas[index]
        self._replicas[index] = Replica(epoch=lost.epoch + 1, busy_s=lost.busy_s, is_up=False)
        self._at(when + 600, "returns", index)
        self._again(when, [*lost.queue, *(number for numbers in lost.waiting.values() for number in numbers)])

    def _returns(self, when: float, index: int) -> None:
        self._replicas[index].is_up = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--sets", type=int, default=200_000)
    given = parser.parse_args()
    times = Times.measured()
    rows = []
    for exponent, replicas, routing, store in (
        (1.0, 1, "hash", True), (1.0, 2, "hash", True), (1.0, 4, "hash", True), (1.0, 4, "random", True),
        (1.0, 4, "random", False), (1.0, 8, "hash", True), (0.7, 4, "hash", True), (1.3, 4, "hash", True),
    ):  # fmt: skip
        row: dict[str, Any] = {"zipf": exponent, "replicas": replicas, "routing": routing, "store": store}
        row |= Simulation(
            times, replicas=replicas, routing=routing, store=store, requests=given.requests, sets=given.sets,
            exponent=exponent,
        ).run()  # fmt: skip
        print(json.dumps(row), flush=True)
        rows.append(row)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"requests": given.requests, "sets": given.sets, "times": vars(times), "rows": rows}
        given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Time that a request takes."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """Time that was spent, or a point in time.

    Attributes:
        wall: seconds.
        cpu: CPU seconds of the process.
        encoding_cpu: those of them that encoders took, and making the views that they encode.
    """

    wall: float
    cpu: float
    encoding_cpu: float

    @classmethod
    def now(cls, encoding_cpu: float) -> Spent:
        """Return the present point in time; ``encoding_cpu`` is what encoders took up to it."""
        return cls(time.perf_counter(), time.process_time(), encoding_cpu)

    @property
    def other_cpu(self) -> float:
        """CPU seconds of everything but encoding."""
        return self.cpu - self.encoding_cpu

    def since(self, began: Spent) -> Spent:
        """Return what was spent between two points in time."""
        return Spent(self.wall - began.wall, self.cpu - began.cpu, self.encoding_cpu - began.encoding_cpu)

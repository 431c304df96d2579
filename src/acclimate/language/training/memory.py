"""How much memory a piece of work took beyond what was there when it began."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_STATM: Final = Path("/proc/self/statm")


class PeakMemory:
    """The most bytes in use since it was made, less those in use then.

    On a GPU this is what torch's allocator counted; else the resident memory of the process, sampled at every call.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._start = self._used()
        self.peak = 0

    def now(self) -> int:
        """Return the bytes in use now beyond the start, and remember the most seen."""
        used = max(0, self._used() - self._start)
        self.peak = max(self.peak, used)
        return used

    def _used(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if not _STATM.exists():
            import psutil

            return int(psutil.Process().memory_info().rss)
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES


def out_of_memory(error: Exception) -> bool:
    """Say whether an exception means that memory ran out, as Python, torch or its CPU allocator say it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

"""Timing of work on a GPU, and on a processor where there is none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, *, least_s: float = 0.5, most: int = 50) -> float:
    """Return the median seconds of one call of ``work``, after two that are not counted."""
    for _ in range(2):
        work()
    wait(device)
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - began < least_s and len(found) < most):
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def peak_mib(device: torch.device, work: Callable[[], Any]) -> float | None:
    """Return the most memory of the device that tensors held during ``work``; None on a processor."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def busy_share(device: torch.device, work: Callable[[], Any], *, calls: int = 3) -> dict[str, Any]:
    """Return the share of time in which the GPU computed, and how many kernels one call starts."""
    if device.type != "cuda":
        return {}
    try:
        return _busy_share(device, work, calls)
    except RuntimeError as error:
        # Not every machine lets a program profile its GPU.
        return {"profiler": str(error)[:200]}


def _busy_share(device: torch.device, work: Callable[[], Any], calls: int) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    work()
    wait(device)
    # The profiler slows the processor down, so the time is that of calls outside of it.
    start = time.perf_counter()
    for _ in range(calls):
        work()
    wait(device)
    whole = (time.perf_counter() - start) / calls
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            work()
        wait(device)
    kernels = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / calls / 1e6
    return {"busy_share": round(busy / whole, 3), "kernels": round(len(kernels) / calls)}

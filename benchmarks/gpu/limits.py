"""The limits of the device: matrix products, memory, transfers, and the time to start a kernel."""

from __future__ import annotations

import subprocess
from typing import Any

import torch
from measuring import seconds


def described(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit", "--format=csv"]
        shown = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip().splitlines()
        found["nvidia_smi"] = shown[-1] if shown else None
    else:
        found |= {"name": "processor", "threads": torch.get_num_threads()}
    return found


def measured(device: torch.device, *, small: bool) -> dict[str, Any]:
    side = 256 if small else 8192
    limits: dict[str, Any] = {"matmul_side": side}
    formats = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    for name, dtype in formats.items():
        torch.backends.cuda.matmul.allow_tf32 = False
        limits[f"{name}_tflops"] = _product_tflops(side, dtype, device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        limits["tf32_tflops"] = _product_tflops(side, torch.float32, device)
        torch.backends.cuda.matmul.allow_tf32 = False
    count = 2**20 if small else 2**30
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    limits["copy_gb_per_s"] = round(2 * count / seconds(lambda: target.copy_(source), device) / 1e9, 1)
    host = torch.zeros(count // 4, dtype=torch.uint8)
    limits["to_device_gb_per_s"] = round(host.numel() / seconds(lambda: host.to(device, copy=True), device) / 1e9, 2)
    if device.type == "cuda":
        pinned = host.pin_memory()
        copied = seconds(lambda: pinned.to(device, non_blocking=True), device)
        limits["to_device_pinned_gb_per_s"] = round(host.numel() / copied / 1e9, 2)
    tiny = torch.zeros(16, device=device)

    def thousand() -> None:
        for _ in range(1000):
            tiny.add_(1.0)

    limits["kernel_start_us"] = round(1e3 * seconds(thousand, device), 2)
    return limits


def _product_tflops(side: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return round(2 * side**3 / seconds(lambda: left @ right, device) / 1e12, 2)

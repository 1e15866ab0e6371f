"""Describes this machine and measures the ceilings that stages are held against."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import av
import torch

from benchmarks.results import Figure
from benchmarks.timing import seconds_of

CEILING = "ceiling"
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
_REPEATS = 5


def describe_machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Processor, memory, device and versions, as plain JSON values."""
    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "fast_bfloat16": has_fast_bfloat16(torch.device("cpu")),
        "device": device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = torch.cuda.get_device_name(device)
        machine["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        machine["cuda"] = torch.version.cuda
    return machine


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware there, rather than by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = next((line for line in _cpuinfo() if line.startswith("flags")), "").split()
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """The kinds of arithmetic worth measuring: what the device does in hardware, float32 first."""
    if device.type == "cuda":
        return ("float32", "tf32", "bfloat16", "float16")
    return ("float32", "bfloat16") if has_fast_bfloat16(device) else ("float32",)


def matmul_gflops(device: torch.device, precision: str, side: int | None = None) -> list[float]:
    """GFLOP/s of a large square product, of each repeat."""
    side = side or _MATRIX_SIDE.get(device.type, _MATRIX_SIDE["cuda"])
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        seconds = [seconds_of(lambda: a @ b, device) for _ in range(_REPEATS + 1)][1:]
    finally:
        torch.set_float32_matmul_precision(before)
    return [2 * side**3 / each / 1e9 for each in seconds]


def copy_gigabytes(device: torch.device, num_bytes: int | None = None) -> list[float]:
    """GB/s of copying a large block inside the device's memory (read and write counted once), of each repeat."""
    num_bytes = num_bytes or _COPY_BYTES.get(device.type, _COPY_BYTES["cuda"])
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = [seconds_of(lambda: target.copy_(source), device) for _ in range(_REPEATS + 1)][1:]
    return [num_bytes / each / 1e9 for each in seconds]


def upload_gigabytes(device: torch.device, num_bytes: int = 1 << 28) -> list[float]:
    """GB/s from pinned memory of the host to the device, of each repeat."""
    source = torch.ones(num_bytes, dtype=torch.uint8).pin_memory()
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    seconds = [seconds_of(lambda: target.copy_(source, non_blocking=True), device) for _ in range(_REPEATS + 1)][1:]
    return [num_bytes / each / 1e9 for each in seconds]


def decode_all(paths: Iterable[Path]) -> int:
    """Decode all frames of these files with FFmpeg, one thread, without converting them; returns how many."""
    num_frames = 0
    for path in paths:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            num_frames += sum(1 for _ in container.decode(video=0))
    return num_frames


def ceiling_figures(device: torch.device, quick: bool) -> dict[str, Figure]:
    """By precision (and float64, copy, upload): what stages are held against."""
    side, num_bytes = (256, 1 << 20) if quick else (None, None)
    found = {}
    for precision in (*precisions(device), "float64"):
        rates = matmul_gflops(device, precision, side)
        found[precision] = _ceiling(f"matmul {precision}", rates, "GFLOP/s")
    found["copy"] = _ceiling("memory copy", copy_gigabytes(device, num_bytes), "GB/s")
    if device.type == "cuda":
        found["upload"] = _ceiling("host to device", upload_gigabytes(device), "GB/s")
    return found


def _ceiling(name: str, rates: list[float], unit: str) -> Figure:
    return Figure(CEILING, name, statistics.median(rates), unit, min(rates), max(rates))


def _processor() -> str:
    named = next((line for line in _cpuinfo() if line.startswith("model name")), "")
    return named.partition(":")[2].strip() or platform.machine()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []

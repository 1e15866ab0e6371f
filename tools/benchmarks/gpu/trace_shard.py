"""Trace one shard: ``python -m benchmarks.gpu.trace_shard TRACE.json.gz [options of bench.py stages]``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch.profiler import profile, supported_activities

from benchmarks.inputs import Workbench
from benchmarks.options import BenchOptions
from benchmarks.shard import extract_shard
from benchmarks.timing import wait_for
from lrs3_loader.launch import cli
from lrs3_loader.runtime.device import pick_device

NUM_FRAMES = {"cpu": 64, "cuda": 4096}
_ROWS = 25


@dataclass(frozen=True)
class Args:
    trace: Annotated[Path, tyro.conf.Positional]
    """Where the trace goes: .json or .json.gz."""
    options: Annotated[BenchOptions, tyro.conf.arg(name="")]


def trace_shard(bench: Workbench, trace: Path) -> Iterator[str]:
    """Extract a shard twice, to warm up and on the record; yield lines that say what took the time.

    Args:
        bench: decoded clips and loaded models.
        trace: the file to write, in Chrome's format.
    """
    extract_shard(bench)
    wait_for(bench.device)
    started = time.perf_counter()
    with profile(activities=supported_activities()) as profiler:
        extract_shard(bench)
        wait_for(bench.device)
    seconds = time.perf_counter() - started
    profiler.export_chrome_trace(str(trace))
    by = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    yield profiler.key_averages().table(sort_by=by, row_limit=_ROWS, max_name_column_width=60)
    rate = bench.num_frames / seconds
    yield f"{bench.num_frames} frames in {seconds:.2f} s under the profiler: {rate:.0f} frames/s; trace in {trace.name}"


def main() -> int:
    args = cli.parse(Args, __doc__ or "")
    device = pick_device(args.options.device)
    with tempfile.TemporaryDirectory(dir=args.options.scratch) as scratch, torch.no_grad():
        bench = Workbench(args.options, device, Path(scratch), NUM_FRAMES)
        for line in trace_shard(bench, args.trace):
            print(line, flush=True)
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.main(main)

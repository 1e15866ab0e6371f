"""Timing: several ways in turn, so that whatever else the machine does falls on all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from lrs3_loader.runtime.memory import (
    LARGEST_THRESHOLD_OLDER,
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    disable_malloc_trim,
    mallopt,
)

Work = Callable[[], Any]


def wait_for(device: torch.device) -> None:
    """Until everything given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Work, device: torch.device) -> float:
    """Wall-clock time of one call, the device's work included."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def in_turn(ways: Mapping[str, Work], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each repeat of each way: a, b, a, b, ... Each should have been called once before."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with limited_threads():
        for _ in range(repeats):
            for name, work in ways.items():
                seconds[name].append(seconds_of(work, device))
    return seconds


def limited_threads() -> threadpool_limits:
    """Context in which every BLAS and OpenMP library loaded so far has as many threads as torch.

    Cores alone do not limit them: on one core two threads of OpenBLAS make numpy's small products ten times slower.
    """
    return threadpool_limits(torch.get_num_threads())


@contextmanager
def default_malloc() -> Iterator[None]:
    """Inside the block malloc works with glibc's own dynamic limits: for measuring code that does not change them."""
    mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD_OLDER)
    mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_THRESHOLD_OLDER)
    try:
        yield
    finally:
        disable_malloc_trim()


@contextmanager
def pinned(num_cores: int) -> Iterator[list[int]]:
    """Keep this process, and all that it starts, on so many of its cores: no package gets more threads than another.

    Raises:
        ValueError: it has not so many.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= num_cores <= len(allowed):
        raise ValueError(f"threads must lie in 1..{len(allowed)} (the cores of this process), got {num_cores}")
    threads = torch.get_num_threads()
    # From the end: the first core is where a machine's other work tends to be.
    chosen = allowed[-num_cores:]
    _move_all_threads(chosen)
    torch.set_num_threads(num_cores)
    try:
        yield chosen
    finally:
        _move_all_threads(allowed)
        torch.set_num_threads(threads)


def _move_all_threads(cores: list[int]) -> None:
    """A process's threads have a set of cores each; those that exist already must be told, too."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue

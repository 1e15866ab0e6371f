"""Runs numbered cases in processes that may hang, die or take too much memory, and goes on with the next case."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

DEADLINE_SECONDS = 30.0
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Lost:
    """A case without a result: its process hung or died."""

    why: str


@dataclass
class _Worker:
    numbers: range  # still to be done
    process: BaseProcess
    results: Connection


def run_cases(
    run: Callable[[int], Any],
    numbers: range,
    num_workers: int,
    deadline_seconds: float = DEADLINE_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> Iterator[tuple[int, Any]]:
    """Yield (number, result) for every case, as they end; the result is ``Lost`` where there is none.

    Args:
        run: called with a number, in a process forked from this one.
        deadline_seconds: a case that takes longer is lost.
        max_bytes: of memory that a case may ask for, beside what its process has.
    """
    shares = [numbers[place::num_workers] for place in range(num_workers)]
    workers = [_start(run, share, max_bytes) for share in shares if share]
    try:
        while workers:
            ready = multiprocessing.connection.wait([worker.results for worker in workers], deadline_seconds)
            for worker in list(workers):
                if worker.results in ready:
                    try:
                        result = worker.results.recv()
                    except EOFError:
                        worker.process.join()
                        result = Lost(f"ended with exit code {worker.process.exitcode}")
                elif not ready:
                    result = Lost(f"no end after {deadline_seconds:.0f} s")
                else:
                    continue
                yield worker.numbers[0], result
                worker.numbers = worker.numbers[1:]
                if isinstance(result, Lost) or not worker.numbers:
                    _end(worker)
                    workers.remove(worker)
                    if worker.numbers:
                        workers.append(_start(run, worker.numbers, max_bytes))
    finally:
        for worker in workers:
            _end(worker)


def _start(run: Callable[[int], Any], numbers: range, max_bytes: int) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, numbers, theirs, max_bytes), daemon=True)
    process.start()
    theirs.close()
    return _Worker(numbers, process, ours)


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.results.close()


def _work(run: Callable[[int], Any], numbers: range, results: Connection, max_bytes: int) -> None:
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + max_bytes, resource.RLIM_INFINITY))
    for number in numbers:
        results.send(run(number))

"""Start, supervision and end of decode processes, which may hang or die, and never outlive their parent.

Workers report their progress in a small table in shared memory. A thread of the parent reads it and kills a worker
whose row does not change for too long while it works on an item: a decoder can hang while it holds the interpreter
lock, where only SIGKILL helps. Time is counted in the thread's own ticks, so that workers are not late after a run was
stopped (Ctrl-Z) or suspended.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import os
import resource
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch

from lrs3_loader.decode.shared_memory import Channel, create_shared, map_shared
from lrs3_loader.errors import RunError
from lrs3_loader.runtime.memory import limit_malloc_cache

StartMethod = Literal["forkserver", "spawn"]
NUMBER, BEATS = 0, 1  # columns of the table
IDLE = 0  # number of the request of a worker that waits for one
MAX_OPEN_FILES = 2**20  # some programs iterate over all descriptors that the limit allows


class WorkTable:
    """Progress of the workers in shared memory: [workers, 2] i64, the current request (0: none) and a counter."""

    def __init__(self, num_workers: int, descriptor: int | None = None) -> None:
        num_bytes = 2 * 8 * num_workers
        self._descriptor = create_shared(num_bytes) if descriptor is None else descriptor
        self.rows = map_shared(self._descriptor, num_bytes).view(torch.int64).view(-1, 2)

    def __reduce__(self) -> Any:
        return _received_table, (len(self.rows), multiprocessing.reduction.DupFd(self._descriptor))

    def close(self) -> None:
        os.close(self._descriptor)

    @contextlib.contextmanager
    def working_on(self, worker: int, number: int) -> Iterator[None]:
        """In a worker: set its request for the duration of the block. A process that dies inside leaves it set."""
        self.rows[worker, NUMBER] = number
        try:
            yield
        finally:
            self.rows[worker, NUMBER] = IDLE

    def read(self, worker: int) -> tuple[int, int]:
        number, beats = self.rows[worker].tolist()
        return number, beats


def _received_table(num_workers: int, descriptor: Any) -> WorkTable:
    return WorkTable(num_workers, descriptor.detach())


Serve = Callable[[int, Channel, WorkTable], None]
"""What a worker does, given its number: it receives requests from the channel until ``EOFError``, and answers them."""


class WorkerPool:
    """Worker processes, each with a channel to this one. A module-level function or a picklable object is ``serve``."""

    def __init__(self, num_workers: int, deadline_seconds: float, start_method: StartMethod, serve: Serve) -> None:
        self.table = WorkTable(num_workers)
        self.hung: dict[int, int] = {}  # worker killed at its deadline -> the number of its request
        self._context = multiprocessing.get_context(start_method)
        self._serve = serve
        self._deadline_seconds = deadline_seconds
        # The workers hold the reading end, and see its end when this process dies in any way.
        self._lifeline, self._held = multiprocessing.Pipe(duplex=False)
        self.channels: list[Channel] = []
        self.processes: list[BaseProcess] = []
        for worker in range(num_workers):
            channel, process = self._start(worker)
            self.channels.append(channel)
            self.processes.append(process)
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._watch_deadlines, name="decode-deadline", daemon=True)
        self._watch.start()

    def _start(self, worker: int) -> tuple[Channel, BaseProcess]:
        ours, theirs = Channel.pair()
        arguments = (self._serve, worker, theirs, self.table, self._lifeline)
        process = self._context.Process(target=_work, args=arguments, daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        return ours, process

    def restart(self, worker: int) -> None:
        """Replace a worker that has ended."""
        self.channels[worker].close()
        self.table.rows[worker] = IDLE
        self.hung.pop(worker, None)
        self.channels[worker], self.processes[worker] = self._start(worker)

    def wait(self, seconds: float) -> list[int]:
        """Wait until a worker has sent something or ended; returns these workers, or none after that time."""
        links = [channel.link for channel in self.channels]
        sentinels = [process.sentinel for process in self.processes]
        ready = multiprocessing.connection.wait([*links, *sentinels], seconds)
        return [worker for worker, pair in enumerate(zip(links, sentinels, strict=True)) if set(pair) & set(ready)]

    def exit_code(self, worker: int, patience_seconds: float = 10.0) -> int | None:
        """The exit code of a worker whose channel has closed, which happens some time before it has ended."""
        self.processes[worker].join(patience_seconds)
        if not _has_ended(self.processes[worker]):
            self.processes[worker].kill()
            self.processes[worker].join()
        return self.processes[worker].exitcode

    def is_idle(self) -> bool:
        return bool((self.table.rows[:, NUMBER] == IDLE).all())

    def close(self) -> None:
        """End the supervision and kill every process."""
        self._closing.set()
        self._watch.join()
        for process in self.processes:
            process.kill()
        for process, channel in zip(self.processes, self.channels, strict=True):
            process.join()
            channel.close()
        self._held.close()
        self._lifeline.close()
        self.table.close()

    def _watch_deadlines(self) -> None:
        tick = min(0.5, self._deadline_seconds / 8)
        seen: list[tuple[int, int]] = [(IDLE, 0)] * len(self.processes)
        waited = [0.0] * len(self.processes)
        last = time.monotonic()
        while not self._closing.wait(tick):
            now = time.monotonic()
            elapsed, last = min(now - last, 2 * tick), now
            for worker, process in enumerate(self.processes):
                row = self.table.read(worker)
                waited[worker] = waited[worker] + elapsed if row == seen[worker] and row[0] != IDLE else 0.0
                seen[worker] = row
                # By the sentinel: is_alive() would read the exit code, which only one thread may do.
                if waited[worker] > self._deadline_seconds and not _has_ended(process):
                    self.hung[worker] = row[0]
                    process.kill()


def _has_ended(process: BaseProcess) -> bool:
    return bool(multiprocessing.connection.wait([process.sentinel], 0))


def _work(serve: Serve, worker: int, channel: Channel, table: WorkTable, lifeline: Connection) -> None:
    """Be a worker that ignores Ctrl-C, is killed when its parent exits, and uses one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    kill_on_parent_exit(lifeline)
    torch.set_num_threads(1)
    limit_malloc_cache()
    serve(worker, channel, table)


def kill_on_parent_exit(lifeline: Connection) -> None:
    """Make the kernel kill this process when the other end of the pipe closes.

    PR_SET_PDEATHSIG does not help: the parent of a worker is the fork server, which lives as long as a worker does.
    Nor does a thread that waits for the end: a hung decoder may hold the interpreter lock.
    """
    # A new file description, because the receiver of signals is set per description, which all workers would share.
    descriptor = os.open(f"/proc/self/fd/{lifeline.fileno()}", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    lifeline.close()
    if select.select([descriptor], [], [], 0)[0]:  # it closed before the signal was requested
        os._exit(1)


def prepare_parent(start_method: StartMethod, preload: list[str]) -> None:
    """Prepare this process for workers. Call it before the first one is created.

    It raises the soft limit of open files (each chunk in flight holds one), and starts the fork server with the
    ``preload`` modules imported and Ctrl-C ignored, both of which workers inherit.

    Raises:
        RunError: the fork server cannot be started.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if start_method == "forkserver":
        multiprocessing.set_forkserver_preload(preload)
        try:
            with _interrupts_ignored():
                forkserver.ensure_running()
        except OSError as error:  # of its socket: "AF_UNIX path too long", disk full, no permission
            raise RunError(
                f"decode workers cannot be started from {tempfile.gettempdir()} ({error.strerror or error}): "
                "set TMPDIR to a folder with a short name that can be written to"
            ) from error


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C in the block. No effect off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)

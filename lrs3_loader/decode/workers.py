"""Decode processes that may hang or die: how they are started, watched, replaced, and never outlive their parent.

Workers write what they are doing into a small table in shared memory. A thread of the parent reads it, and kills a
worker whose row does not change for too long while it is on one item: decoders can hang holding the interpreter lock,
where only SIGKILL helps. Time is counted in the thread's own ticks, so that a stopped (Ctrl-Z) or suspended run does
not find all its workers late.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Literal

import torch

from lrs3_loader.errors import RunError
from lrs3_loader.runtime.memory import limit_malloc_cache

StartMethod = Literal["forkserver", "spawn"]
TICKET, BEATS = 0, 1  # columns of the table
IDLE = 0  # ticket of a worker that waits for work
MAX_OPEN_FILES = 2**20  # some programs walk through all that are allowed


class WorkTable:
    """Shared memory [workers, 2] i64: the ticket that each worker is on (0: none), and a counter that it moves."""

    def __init__(self, num_workers: int) -> None:
        self.rows = torch.zeros((num_workers, 2), dtype=torch.int64).share_memory_()

    @contextlib.contextmanager
    def working_on(self, worker: int, ticket: int) -> Iterator[None]:
        """In a worker: mark the time that one item takes. A process that dies inside leaves its ticket behind."""
        self.rows[worker, TICKET] = ticket
        try:
            yield
        finally:
            self.rows[worker, TICKET] = IDLE

    def beat(self, worker: int) -> None:
        """In a worker: say that the item on hand is making progress."""
        self.rows[worker, BEATS] += 1

    def read(self, worker: int) -> tuple[int, int]:
        ticket, beats = self.rows[worker].tolist()
        return ticket, beats


class LocklessEvent:
    """``multiprocessing.Event`` as far as DataLoader uses it, but nobody can leave it locked.

    That one takes a lock even to look; a worker killed at that instant keeps it, and who sets it next waits for ever.
    """

    def __init__(self) -> None:
        self._flag = torch.zeros(1, dtype=torch.bool).share_memory_()

    def is_set(self) -> bool:
        return bool(self._flag)

    def set(self) -> None:
        self._flag.fill_(True)


class WorkerPool:
    """The processes of one DataLoader, which creates them through :attr:`context`."""

    def __init__(self, num_workers: int, deadline_seconds: float, start_method: StartMethod) -> None:
        self.table = WorkTable(num_workers)
        self.processes: list[BaseProcess] = []  # in the order of worker ids
        self.hung: dict[int, int] = {}  # worker killed for giving nothing -> the ticket it was on
        self.context = _RecordingContext(start_method, self.processes)
        self._deadline_seconds = deadline_seconds
        # The workers hold the reading end: it ends with this process, however that dies.
        self._lifeline, self._held = multiprocessing.Pipe(duplex=False)
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._watch_deadlines, name="decode-deadline", daemon=True)

    @property
    def worker_init(self) -> Callable[[int], None]:
        """The DataLoader's ``worker_init_fn``."""
        return functools.partial(init_worker, lifeline=self._lifeline)

    def start_watching(self) -> None:
        """Call once the DataLoader has created its processes."""
        self._watch.start()

    def dead(self, wait_seconds: float = 0.0) -> list[int]:
        """Ids of workers that have ended, after waiting up to ``wait_seconds`` for the first one."""
        multiprocessing.connection.wait([process.sentinel for process in self.processes], wait_seconds)
        dead = [worker for worker, process in enumerate(self.processes) if _has_ended(process)]
        for worker in dead:  # a process closes its files, the sentinel's too, a moment before it has an exit code
            self.processes[worker].join()
        return dead

    def is_idle(self) -> bool:
        return all(self.table.read(worker)[0] == IDLE for worker in range(len(self.processes)))

    def close(self) -> None:
        """End the watch and every process, whatever they are doing."""
        self._closing.set()
        if self._watch.ident is not None:
            self._watch.join()
        started = [process for process in self.processes if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()
        self._held.close()
        self._lifeline.close()

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
                # Asking the sentinel, not the process: that reads the exit code, which only one thread may.
                if waited[worker] > self._deadline_seconds and not _has_ended(process):
                    self.hung[worker] = row[0]
                    process.kill()


def _has_ended(process: BaseProcess) -> bool:
    return bool(multiprocessing.connection.wait([process.sentinel], 0))


class _RecordingContext(multiprocessing.context.BaseContext):
    """A start method that notes the processes it creates, so that they can be watched, and survives their deaths."""

    def __init__(self, start_method: StartMethod, processes: list[BaseProcess]) -> None:
        self._inner = multiprocessing.get_context(start_method)
        self._processes = processes

    def get_start_method(self, allow_none: bool = False) -> str:
        return self._inner.get_start_method()

    def get_context(self, method: str | None = None) -> Any:
        return self if method is None else self._inner.get_context(method)

    def Event(self) -> Any:  # noqa: N802 (BaseContext's name)
        return LocklessEvent()

    def Process(self, *args: Any, **kwargs: Any) -> BaseProcess:  # noqa: N802 (BaseContext's name)
        process = self._inner.Process(*args, **kwargs)  # type: ignore[attr-defined]
        self._processes.append(process)
        return process


def init_worker(worker: int, lifeline: Connection) -> None:
    """What every worker does first: leave Ctrl-C to the parent, die with it, use one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _quiet_about_the_parent
    kill_on_parent_exit(lifeline)
    torch.set_num_threads(1)
    limit_malloc_cache()


def _quiet_about_the_parent(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print uncaught exceptions, except that the parent has gone while it was being sent something."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def kill_on_parent_exit(lifeline: Connection) -> None:
    """Have the kernel kill this process when the other end of the pipe closes.

    PR_SET_PDEATHSIG would not do: the parent of a worker is the fork server, which lives as long as a worker does.
    A thread that waits for the end would not do either: a hung decoder may hold the interpreter lock.
    """
    # Opened anew: whom to signal belongs to the open pipe, which all workers would share.
    descriptor = os.open(f"/proc/self/fd/{lifeline.fileno()}", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    lifeline.close()
    if select.select([descriptor], [], [], 0)[0]:  # it closed before we asked
        os._exit(1)


def prepare_parent(start_method: StartMethod, preload: list[str]) -> None:
    """Let workers start fast and quietly: call before the first one is created.

    Raises the soft limit of open files (each tensor in flight holds one), and starts the fork server with the modules
    already imported and with Ctrl-C ignored, which workers inherit before their first instruction.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if start_method == "forkserver":
        multiprocessing.set_forkserver_preload(preload)
        try:
            with _signal_handler(signal.SIGINT, signal.SIG_IGN):
                forkserver.ensure_running()
        except OSError as error:  # its socket lies there: "AF_UNIX path too long", no room, no permission
            raise RunError(
                f"decode workers cannot be started from {tempfile.gettempdir()} ({error.strerror or error}): "
                "set TMPDIR to a folder with a short name that can be written to"
            ) from error


@contextlib.contextmanager
def own_child_signals() -> Iterator[None]:
    """Undo the SIGCHLD handler that DataLoader installs: it raises wherever the parent happens to be."""
    with _signal_handler(signal.SIGCHLD, None):
        yield


@contextlib.contextmanager
def _signal_handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Within, use ``handler`` (None: as is); afterwards, what was there before. Main thread only, else nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    if handler is not None:
        signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before if before is not None else signal.SIG_DFL)

"""Start, supervision and end of decode processes, which may hang or die, and never outlive their parent.

Workers report their progress in a small table in shared memory. A thread of the parent reads it and kills a worker
whose row does not change for too long while it works on an item: a decoder can hang while it holds the interpreter
lock, where only SIGKILL helps. Time is counted in the thread's own ticks, so that workers are not late after a run was
stopped (Ctrl-Z) or suspended.
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
IDLE = 0  # ticket number of a worker that waits for work
MAX_OPEN_FILES = 2**20  # some programs iterate over all descriptors that the limit allows


class WorkTable:
    """Progress of the workers in shared memory: [workers, 2] i64, the current ticket (0: none) and a counter."""

    def __init__(self, num_workers: int) -> None:
        self.rows = torch.zeros((num_workers, 2), dtype=torch.int64).share_memory_()

    @contextlib.contextmanager
    def working_on(self, worker: int, ticket: int) -> Iterator[None]:
        """In a worker: set its ticket for the duration of the block. A process that dies inside leaves it set."""
        self.rows[worker, TICKET] = ticket
        try:
            yield
        finally:
            self.rows[worker, TICKET] = IDLE

    def beat(self, worker: int) -> None:
        """In a worker: report progress on the current item."""
        self.rows[worker, BEATS] += 1

    def read(self, worker: int) -> tuple[int, int]:
        ticket, beats = self.rows[worker].tolist()
        return ticket, beats


class LocklessEvent:
    """The part of ``multiprocessing.Event`` that DataLoader uses, without a lock.

    The original takes a lock even in ``is_set``. A worker killed at that instant keeps it, and ``set`` blocks for ever.
    """

    def __init__(self) -> None:
        self._flag = torch.zeros(1, dtype=torch.bool).share_memory_()

    def is_set(self) -> bool:
        return bool(self._flag)

    def set(self) -> None:
        self._flag.fill_(True)


class WorkerPool:
    """The worker processes of one DataLoader, which creates them through :attr:`context`."""

    def __init__(self, num_workers: int, deadline_seconds: float, start_method: StartMethod) -> None:
        self.table = WorkTable(num_workers)
        self.processes: list[BaseProcess] = []  # in the order of worker ids
        self.hung: dict[int, int] = {}  # worker killed at its deadline -> its ticket
        self.context = _RecordingContext(start_method, self.processes)
        self._deadline_seconds = deadline_seconds
        # The workers hold the reading end, and see its end when this process dies in any way.
        self._lifeline, self._held = multiprocessing.Pipe(duplex=False)
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._watch_deadlines, name="decode-deadline", daemon=True)

    @property
    def worker_init(self) -> Callable[[int], None]:
        """The ``worker_init_fn`` for the DataLoader."""
        return functools.partial(init_worker, lifeline=self._lifeline)

    def start_watching(self) -> None:
        """Start to enforce deadlines. Call it once the DataLoader has created its processes."""
        self._watch.start()

    def dead(self, wait_seconds: float = 0.0) -> list[int]:
        """Return the ids of workers that have ended, after waiting up to ``wait_seconds`` for the first one."""
        multiprocessing.connection.wait([process.sentinel for process in self.processes], wait_seconds)
        dead = [worker for worker, process in enumerate(self.processes) if _has_ended(process)]
        for worker in dead:  # the sentinel closes a moment before the exit code is known
            self.processes[worker].join()
        return dead

    def is_idle(self) -> bool:
        return all(self.table.read(worker)[0] == IDLE for worker in range(len(self.processes)))

    def close(self) -> None:
        """End the supervision and kill every process."""
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
                # By the sentinel: is_alive() would read the exit code, which only one thread may do.
                if waited[worker] > self._deadline_seconds and not _has_ended(process):
                    self.hung[worker] = row[0]
                    process.kill()


def _has_ended(process: BaseProcess) -> bool:
    return bool(multiprocessing.connection.wait([process.sentinel], 0))


class _RecordingContext(multiprocessing.context.BaseContext):
    """A start method that records its processes and gives them events that survive their deaths."""

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
    """Initialize a worker: it ignores Ctrl-C, is killed when its parent exits, and uses one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _quiet_about_the_parent
    kill_on_parent_exit(lifeline)
    torch.set_num_threads(1)
    limit_malloc_cache()


def _quiet_about_the_parent(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print uncaught exceptions other than those caused by an exit of the parent."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


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

    It raises the soft limit of open files (each tensor in flight holds one), and starts the fork server with the
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
            with _signal_handler(signal.SIGINT, signal.SIG_IGN):
                forkserver.ensure_running()
        except OSError as error:  # of its socket: "AF_UNIX path too long", disk full, no permission
            raise RunError(
                f"decode workers cannot be started from {tempfile.gettempdir()} ({error.strerror or error}): "
                "set TMPDIR to a folder with a short name that can be written to"
            ) from error


@contextlib.contextmanager
def own_child_signals() -> Iterator[None]:
    """Remove the SIGCHLD handler that DataLoader installs, which raises at arbitrary points of the parent."""
    with _signal_handler(signal.SIGCHLD, None):
        yield


@contextlib.contextmanager
def _signal_handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Use ``handler`` (None: the present one) in the block and restore the original. No effect off the main thread."""
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

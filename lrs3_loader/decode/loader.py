"""Decodes clips in worker processes and yields them in order, even if workers hang or die."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Generic

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lrs3_loader.config import DecodeConfig, WorkerConfig
from lrs3_loader.decode.clip_queue import ChunkRequest, ClipQueue, Tag, Ticket
from lrs3_loader.decode.dataset import ClipDataset, Pitch
from lrs3_loader.decode.shared_memory import empty_shared, from_shared_memory, to_shared_memory
from lrs3_loader.decode.workers import StartMethod, WorkerPool, WorkTable, own_child_signals, prepare_parent
from lrs3_loader.errors import (
    ClipError,
    DecoderCrashedError,
    DecoderHungError,
    RunError,
)
from lrs3_loader.io.storage import Location
from lrs3_loader.types import Clip, DecodedChunk, Reject

logger = logging.getLogger(__name__)

POLL_SECONDS = 1
START_SECONDS = 300  # if processes neither work nor die for this long, they cannot be started here
DYING_SECONDS = 10.0
MAX_IDLE_DEATHS = 5  # successive deaths of workers without a clip; more have a cause outside of the clips


def import_ahead(pitch: Pitch, start_method: StartMethod = "forkserver") -> None:
    """Start the fork server, which imports the modules that workers need while this process continues."""
    prepare_parent(start_method, [__name__, pitch.__module__])


class _WatchedDataset(Dataset[tuple[int, torch.Tensor | None]]):
    """Runs the dataset in a worker: marks its work in the table and puts results into shared memory."""

    def __init__(self, dataset: ClipDataset, table: WorkTable) -> None:
        self.dataset = dataset
        self.table = table

    def __getitem__(self, item: tuple[int, ChunkRequest | None]) -> tuple[int, torch.Tensor | None]:
        number, request = item
        if request is None:
            return number, None
        info = get_worker_info()
        assert info is not None
        self.dataset.beat = lambda: self.table.beat(info.id)
        self.dataset.allocate = empty_shared
        with self.table.working_on(info.id, number):
            try:
                result: DecodedChunk | Reject | RunError = self.dataset[request]
            except RunError as error:  # raised by the parent, as one line without this process's traceback
                result = error
            return number, to_shared_memory(result)


def _as_is(item: Any) -> Any:
    return item


class ClipLoader(Generic[Tag]):
    """Decodes clips in worker processes and yields their chunks in the order of the clips.

    The items and their order depend neither on the number of workers nor on timing: all chunks of a clip one after
    another, or one Reject (after a chunk or more, if the clip fails late). A worker that dies or makes no progress for
    ``workers.deadline_seconds`` is replaced; its clip is tried ``workers.attempts`` times.

    Args:
        clips: pairs (tag, clip), drawn only as far as the workers' queues reach (``prefetch`` per worker, and those
            being decoded). It must not wait for items that this loader has yet to yield.
        root: folder or URL that the clips' paths are relative to.
        workers: number of processes, and how long to wait for them.
        pitch: computes F0, see :data:`Pitch`.
        prefetch: number of requests waiting at each worker.
        start_method: ``forkserver`` (a new worker takes a fraction of a second) or ``spawn``.

    Raises (while iterating):
        RunError: workers cannot run here at all (no shared memory, or something keeps killing them), or a remote
            corpus cannot be reached.
    """

    def __init__(
        self,
        clips: Iterable[tuple[Tag, Clip]],
        root: Location,
        config: DecodeConfig,
        workers: WorkerConfig,
        *,
        pitch: Pitch,
        prefetch: int = 2,
        start_method: StartMethod = "forkserver",
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, got {prefetch}")
        self.workers = workers
        self._dataset = ClipDataset(root, config, pitch)
        self._prefetch = prefetch
        self._start_method: StartMethod = start_method
        self._queue = ClipQueue(clips)
        self._idle_deaths = 0
        self._pool: WorkerPool | None = None
        self._results: Iterator[tuple[int, torch.Tensor | None]] | None = None
        self._stopped = threading.Event()

    def __enter__(self) -> ClipLoader[Tag]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """End the iteration early, within about a second. May be called from any thread."""
        self._stopped.set()

    def close(self) -> None:
        """End all workers immediately."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._results = None

    def __iter__(self) -> Iterator[tuple[Tag, DecodedChunk | Reject]]:
        while True:
            yield from self._queue.ready()
            if self._queue.is_done or self._stopped.is_set():
                self.close()
                return
            self._receive()

    def _receive(self) -> None:
        """Wait for one result, replacing the workers if one of them has failed."""
        if self._results is None:
            self._start()
            if self._queue.is_done:  # no clips were given
                return
        assert self._results is not None
        num_polls = 0
        while not self._stopped.is_set():
            try:
                number, packed = next(self._results)
                result = None if packed is None else from_shared_memory(packed)
            except (RuntimeError, OSError, EOFError) as error:
                # From DataLoader: "timed out", "worker exited unexpectedly"; otherwise the sender of a tensor has died.
                timed_out = str(error).startswith("DataLoader timed out")
                # A dying worker loses its connection some time before it has ended.
                patience = 0.0 if timed_out else 1.0 if isinstance(error, RuntimeError) else DYING_SECONDS
                if not self._replace_failed(patience):
                    if not timed_out:
                        raise
                    num_polls += 1
                    self._check_started(num_polls)
                    continue
                return
            if isinstance(result, RunError):
                raise result
            if self._queue.accept(number, result):
                self._idle_deaths = 0
            return

    def _start(self) -> None:
        import_ahead(self._dataset.pitch, self._start_method)
        pool = self._pool = WorkerPool(self.workers.num_workers, self.workers.deadline_seconds, self._start_method)
        with warnings.catch_warnings():
            # The user decides on the number of processes.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            self._results = self._connect(pool)
        pool.start_watching()

    def _connect(self, pool: WorkerPool) -> Iterator[tuple[int, torch.Tensor | None]]:
        loader: DataLoader[Any] = DataLoader(
            _WatchedDataset(self._dataset, pool.table),
            batch_size=None,
            sampler=self._queue,
            collate_fn=_as_is,
            num_workers=self.workers.num_workers,
            prefetch_factor=self._prefetch,
            multiprocessing_context=pool.context,
            worker_init_fn=pool.worker_init,
            timeout=POLL_SECONDS,
            generator=torch.Generator(),  # otherwise each start would draw from the global one
        )
        with own_child_signals():
            return iter(loader)

    def _replace_failed(self, wait_seconds: float) -> bool:
        """If workers have died, count failures of their clips and end all workers. Returns whether any had died."""
        pool = self._pool
        assert pool is not None
        dead = pool.dead(wait_seconds)
        if not dead:
            return False
        for worker in dead:
            number, _ = pool.table.read(worker)
            exit_code = pool.processes[worker].exitcode
            if exit_code == -signal.SIGBUS:
                raise RunError(f"a decode worker ran out of shared memory: {_shared_memory()}; give it more")
            killed_for = pool.hung.get(worker)
            if killed_for is not None and killed_for != number:
                continue  # it finished that item just before it was killed: the present item is not the cause
            ticket = self._queue.in_flight.get(number)
            if ticket is not None:
                self._count_failure(ticket, hung=killed_for is not None, exit_code=exit_code)
            else:
                self._idle_deaths += 1
                logger.warning("a decode worker ended while it had no clip (exit code %s); replaced", exit_code)
        if self._idle_deaths > MAX_IDLE_DEATHS:
            raise RunError(f"decode workers end without a cause in any clip (last exit code {exit_code})")
        self.close()
        self._queue.send_again()
        return True

    def _count_failure(self, ticket: Ticket[Tag], hung: bool, exit_code: int | None) -> None:
        """Count a worker's failure on this request; reject the clip after the last attempt."""
        ticket.num_failures += 1
        failures, clip = ticket.num_failures, ticket.job.clip
        error: ClipError
        if hung:
            error = DecoderHungError(
                f"{clip.video_path}: nothing decoded for {self.workers.deadline_seconds:g} s, "
                f"{failures} of {self.workers.attempts} times"
            )
        else:
            ended = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
            error = DecoderCrashedError(
                f"{clip.video_path}: the decode process ended with {ended}, {failures} of {self.workers.attempts} times"
            )
        logger.warning("%s", error)
        if failures >= self.workers.attempts:
            self._queue.accept(ticket.number, Reject(clip, error.reason, str(error)))

    def _check_started(self, num_polls: int) -> None:
        assert self._pool is not None
        if num_polls * POLL_SECONDS > START_SECONDS + self.workers.deadline_seconds and self._pool.is_idle():
            raise RunError(f"decode workers do not start within {num_polls * POLL_SECONDS} s")


def _shared_memory() -> str:
    stats = os.statvfs("/dev/shm")
    return f"/dev/shm has {stats.f_blocks * stats.f_frsize >> 20} MiB, {stats.f_bavail * stats.f_frsize >> 20} MiB free"

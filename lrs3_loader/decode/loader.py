"""Decodes clips in worker processes and yields them in order, even if workers hang or die."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from typing import Any, Generic

from lrs3_loader.config import DecodeConfig, WorkerConfig
from lrs3_loader.decode.clip_queue import PREFETCH, ChunkRequest, ClipQueue, Tag, Ticket
from lrs3_loader.decode.dataset import ClipDataset, Pitch
from lrs3_loader.decode.shared_memory import Channel
from lrs3_loader.decode.workers import BEATS, StartMethod, WorkerPool, WorkTable, prepare_parent
from lrs3_loader.errors import ClipError, DecoderCrashedError, DecoderHungError, RunError, TooLargeError
from lrs3_loader.io.storage import Location
from lrs3_loader.runtime.free_memory import available_bytes
from lrs3_loader.types import Clip, DecodedChunk, Reject

logger = logging.getLogger(__name__)

POLL_SECONDS = 1
START_SECONDS = 300  # if processes neither work nor die for this long, they cannot be started here
MAX_IDLE_DEATHS = 5  # successive deaths of workers without a clip; more have a cause outside of the clips


def frames_budget(workers: WorkerConfig) -> int:
    """The bytes of decoded frames that may be under way in this rank: its share of a quarter of the free memory."""
    if workers.frames_mebibytes is not None:
        return workers.frames_mebibytes << 20
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(available_bytes() // 4 // num_ranks, workers.num_workers << 30)


def import_ahead(pitch: Pitch, start_method: StartMethod = "forkserver") -> None:
    """Start the fork server, which imports the modules that workers need while this process continues."""
    prepare_parent(start_method, [__name__, pitch.__module__])


@dataclass(frozen=True)
class _DecodeService:
    """Runs the dataset in a worker."""

    dataset: ClipDataset

    def __call__(self, worker: int, channel: Channel, table: WorkTable) -> None:
        def beat() -> None:
            table.rows[worker, BEATS] += 1

        self.dataset.beat = beat
        self.dataset.allocate = channel.allocate
        try:
            while True:
                number, request = channel.receive()
                with table.working_on(worker, number):
                    try:
                        channel.send(number, self._answer(request))
                    except MemoryError as error:
                        channel.send(number, error)
        except (EOFError, ConnectionError):  # the rank has ended
            return

    def _answer(self, request: ChunkRequest) -> Any:
        try:
            return self.dataset[request]
        except RunError as error:  # raised by the parent, as one line without this process's traceback
            return error
        except MemoryError:
            raise
        except Exception as error:
            return ExceptionWithTraceback(error, error.__traceback__)


class ClipLoader(Generic[Tag]):
    """Decodes clips in worker processes and yields their chunks in the order of the clips.

    The items and their order depend neither on the number of workers nor on timing: all chunks of a clip one after
    another, or one Reject (after a chunk or more, if the clip fails late). A worker that dies or makes no progress for
    ``workers.deadline_seconds`` is replaced; its clip is tried ``workers.attempts`` times.

    Args:
        clips: pairs (tag, clip), at most two per worker of which are drawn ahead. It must not wait for items that this
            loader has yet to yield.
        root: folder or URL that the clips' paths are relative to.
        workers: number of processes, their memory, and how long to wait for them.
        pitch: computes F0, see :data:`Pitch`.
        start_method: ``forkserver`` (a new worker takes a fraction of a second) or ``spawn``.

    Raises (while iterating):
        RunError: workers cannot run here at all (something keeps killing them), or a remote corpus cannot be reached.
    """

    def __init__(
        self,
        clips: Iterable[tuple[Tag, Clip]],
        root: Location,
        config: DecodeConfig,
        workers: WorkerConfig,
        *,
        pitch: Pitch,
        start_method: StartMethod = "forkserver",
    ) -> None:
        self.workers = workers
        self._dataset = ClipDataset(root, config, pitch)
        self._start_method: StartMethod = start_method
        self._queue = ClipQueue(clips, workers.num_workers, frames_budget(workers), config.chunk_mebibytes << 20)
        self._idle_deaths = 0
        self._pool: WorkerPool | None = None
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
        self._pool = None

    def __iter__(self) -> Iterator[tuple[Tag, DecodedChunk | Reject]]:
        num_polls = 0
        while not self._stopped.is_set():
            for item in self._queue.ready():
                self._ask()
                yield item
            self._ask()
            if self._queue.is_done:
                break
            assert self._pool is not None
            changed = self._pool.wait(POLL_SECONDS)
            for worker in changed:
                self._receive(self._pool, worker)
            num_polls = 0 if changed else num_polls + 1
            if num_polls * POLL_SECONDS > START_SECONDS + self.workers.deadline_seconds and self._pool.is_idle():
                raise RunError(f"decode workers do not start within {num_polls * POLL_SECONDS} s")
        self.close()

    def _ask(self) -> None:
        """Send as many requests as the queue allows, to all workers in turn."""
        for worker in PREFETCH * list(range(self.workers.num_workers)):
            request = self._queue.request(worker)
            if request is None:
                continue
            if self._pool is None:
                import_ahead(self._dataset.pitch, self._start_method)
                service = _DecodeService(self._dataset)
                self._pool = WorkerPool(
                    self.workers.num_workers, self.workers.deadline_seconds, self._start_method, service
                )
            with contextlib.suppress(ConnectionError):  # the worker has ended, which ``_receive`` will see
                self._pool.channels[worker].send(*request)

    def _receive(self, pool: WorkerPool, worker: int) -> None:
        """Take a worker's next result, or replace the worker if it has ended."""
        try:
            number, result = pool.channels[worker].receive()
        except MemoryError as error:
            number, result = error.args[1], error
        except (EOFError, ConnectionError):
            self._replace(pool, worker)
            return
        if isinstance(result, MemoryError):
            self._shrink(number, result)
        elif isinstance(result, Exception):
            raise result
        elif self._queue.accept(number, result):
            self._idle_deaths = 0

    def _shrink(self, number: int, error: MemoryError) -> None:
        """Ask for smaller chunks; reject the clip if there is no memory for a single frame."""
        ticket = self._queue.in_flight.get(number)
        if ticket is None:
            return
        clip = ticket.job.clip
        cause = error.args[0] if error.args else "no more can be allocated"
        logger.warning("%s: out of memory (%s): decoding less at a time", clip.video_path, cause)
        if not self._queue.shrink(number):
            message = f"{clip.video_path}: not enough memory to decode it"
            self._queue.accept(number, Reject(clip, TooLargeError.reason, message))

    def _replace(self, pool: WorkerPool, worker: int) -> None:
        """Replace a worker that has ended, and count that as a failure of the clip that it worked on."""
        exit_code = pool.exit_code(worker)
        number, _ = pool.table.read(worker)
        killed_for = pool.hung.get(worker)
        ticket = self._queue.in_flight.get(number)
        if killed_for is not None and killed_for != number:
            pass  # it finished that item just before it was killed: the present item is not the cause
        elif ticket is not None:
            if exit_code in (-signal.SIGKILL, -signal.SIGBUS) and killed_for is None:  # perhaps by the kernel
                self._queue.budget_bytes //= 2
            self._count_failure(number, ticket, hung=killed_for is not None, exit_code=exit_code)
        else:
            self._idle_deaths += 1
            logger.warning("a decode worker ended while it had no clip (exit code %s); replaced", exit_code)
            if self._idle_deaths > MAX_IDLE_DEATHS:
                raise RunError(f"decode workers end without a cause in any clip (last exit code {exit_code})")
        self._queue.send_again(worker)
        pool.restart(worker)

    def _count_failure(self, number: int, ticket: Ticket[Tag], hung: bool, exit_code: int | None) -> None:
        """Count a worker's failure on this request; reject the clip after the last attempt."""
        ticket.part.num_failures += 1
        failures, clip = ticket.part.num_failures, ticket.job.clip
        times = f"{failures} of {self.workers.attempts} times"
        error: ClipError
        if hung:
            seconds = self.workers.deadline_seconds
            error = DecoderHungError(f"{clip.video_path}: nothing decoded for {seconds:g} s, {times}")
        else:
            ended = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
            error = DecoderCrashedError(f"{clip.video_path}: the decode process ended with {ended}, {times}")
        logger.warning("%s", error)
        if failures >= self.workers.attempts:
            self._queue.accept(number, Reject(clip, error.reason, str(error)))

"""Which frames each decode worker is asked for, within a budget of memory; without any processes or files.

A clip is cut into parts, each of which one worker decodes from its beginning to its end, in as many chunks as the
budget asks for. Results are passed on in the order of the clips, however they arrive.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lrs3_loader.types import Clip, DecodedChunk, Reject

Tag = TypeVar("Tag")

PREFETCH = 2  # requests that wait at a worker
PART_FRAMES = 128  # at least, as decoding begins at a key frame, often more than a hundred frames before a part


@dataclass(frozen=True)
class ChunkRequest:
    """A request for consecutive frames of a clip."""

    clip: Clip
    start: int = 0  # the first frame
    max_bytes: int | None = None  # of the frames, of which there is always one; None: the configured chunk


def part_length(frame_bytes: int, max_bytes: int) -> int:
    """The number of frames in the parts of a clip; only its last part may be shorter."""
    return max(PART_FRAMES, max_bytes // frame_bytes)


@dataclass(eq=False)
class Part:
    """Consecutive frames of a clip that one worker decodes."""

    start: int
    stop: int | None = None  # unknown until the first chunk of the clip has arrived
    next_start: int = 0  # the first frame that was not asked for yet
    worker: int | None = None
    num_failures: int = 0  # times that a worker hung or died on it
    num_shrunk: int = 0  # times that there was not enough memory for a chunk of it


@dataclass(eq=False)
class Job(Generic[Tag]):
    """A clip that is being decoded."""

    tag: Tag
    clip: Clip
    parts: list[Part] = field(default_factory=lambda: [Part(0)])  # those that have not arrived completely
    arrived: dict[int, DecodedChunk | Reject] = field(default_factory=dict)  # by first frame
    next_start: int = 0  # first frame of the next chunk to pass on
    frame_bytes: int = 0  # unknown until the first chunk has arrived


@dataclass(eq=False)
class Ticket(Generic[Tag]):
    """A request whose result has not arrived yet."""

    job: Job[Tag]
    part: Part
    start: int
    num_bytes: int  # at most, of its frames


class ClipQueue(Generic[Tag]):
    """Yields numbered requests for each worker; ``accept`` takes their results, and ``ready`` yields these in order.

    Args:
        clips: pairs (tag, clip), drawn only as they are needed: at most ``PREFETCH`` per worker are under way.
        num_workers: number of workers.
        budget_bytes: of the frames that were asked for and have not been passed on. Half of it is kept for those that
            are passed on next, which always get at least a frame, however large it is.
        chunk_bytes: the most in one chunk, unless a single frame is larger.
    """

    def __init__(
        self, clips: Iterable[tuple[Tag, Clip]], num_workers: int, budget_bytes: int, chunk_bytes: int
    ) -> None:
        self.in_flight: dict[int, Ticket[Tag]] = {}  # by number, in the order of sending
        self.budget_bytes = budget_bytes
        self._chunk_bytes = chunk_bytes
        self._num_workers = num_workers
        self._clips = iter(clips)
        self._exhausted = False
        self._numbers = itertools.count(1)
        self._order: deque[Job[Tag]] = deque()  # clips drawn, but not yet passed on completely

    @property
    def is_done(self) -> bool:
        return self._exhausted and not self._order

    @property
    def num_bytes(self) -> int:
        """Frames under way: asked for, or arrived and not passed on."""
        chunks = (chunk for job in self._order for chunk in job.arrived.values() if isinstance(chunk, DecodedChunk))
        asked = sum(ticket.num_bytes for ticket in self.in_flight.values())
        return asked + sum(chunk.frames.nbytes for chunk in chunks)

    def request(self, worker: int) -> tuple[int, ChunkRequest] | None:
        """Choose the next request for a worker; None if there is none now."""
        if sum(ticket.part.worker == worker for ticket in self.in_flight.values()) >= PREFETCH:
            return None
        job, part = self._next_part(worker)
        if job is None or part is None:
            return None
        num_bytes = min(self._chunk_bytes, self.budget_bytes // (2 * PREFETCH * self._num_workers))
        num_bytes = 0 if part.num_shrunk > 1 else num_bytes >> 4 * part.num_shrunk
        if part.stop is not None:
            num_bytes = min(max(1, num_bytes // job.frame_bytes), part.stop - part.next_start) * job.frame_bytes
        is_next = job is self._order[0] and part is job.parts[0]
        is_awaited = is_next and not any(ticket.part is part for ticket in self.in_flight.values())
        if not is_awaited and self.num_bytes + num_bytes > self.budget_bytes // (1 if is_next else 2):
            return None
        part.worker = worker
        number, ticket = next(self._numbers), Ticket(job, part, part.next_start, num_bytes)
        self.in_flight[number] = ticket
        part.next_start += num_bytes // job.frame_bytes if part.stop is not None else 1
        return number, ChunkRequest(job.clip, ticket.start, num_bytes)

    def _next_part(self, worker: int) -> tuple[Job[Tag] | None, Part | None]:
        """The first part with frames to ask this worker for, of a new clip if there is none."""
        for job in self._order:
            for part in job.parts:
                is_open = part.next_start == part.start if part.stop is None else part.next_start < part.stop
                if is_open and part.worker in (None, worker):
                    return job, part
        if self._exhausted or len(self._order) >= PREFETCH * self._num_workers:
            return None, None
        try:
            job = Job(*next(self._clips))
        except StopIteration:
            self._exhausted = True
            return None, None
        self._order.append(job)
        return job, job.parts[0]

    def accept(self, number: int, result: DecodedChunk | Reject) -> bool:
        """Take the result of a request. Returns False if it is not wanted, as the clip has been rejected since."""
        ticket = self.in_flight.pop(number, None)
        if ticket is None:
            return False
        job, part = ticket.job, ticket.part
        job.arrived[ticket.start] = result
        if isinstance(result, Reject):
            job.parts = [other for other in job.parts if other.start < part.start]
            self._drop(lambda other: other.job is job and other.start > ticket.start)
            return True
        if part.stop is None:
            job.frame_bytes = result.frames[0].nbytes
            length = part_length(job.frame_bytes, self._chunk_bytes)
            part.stop, part.next_start = min(length, result.num_frames), result.stop
            for start in range(part.stop, result.num_frames, length):
                job.parts.append(Part(start, min(start + length, result.num_frames), start))
        if result.stop == part.stop:
            job.parts.remove(part)
        return True

    def _drop(self, is_dropped: Callable[[Ticket[Tag]], bool]) -> None:
        self.in_flight = {number: ticket for number, ticket in self.in_flight.items() if not is_dropped(ticket)}

    def shrink(self, number: int) -> bool:
        """Ask again for fewer frames at a time, as there was not enough memory.

        Returns:
            False if the request was for a single frame.
        """
        ticket = self.in_flight.get(number)
        if ticket is None:
            return True
        self.budget_bytes //= 2
        if ticket.num_bytes <= ticket.job.frame_bytes or not ticket.num_bytes:
            return False
        ticket.part.num_shrunk += 1
        self._rewind(ticket)
        return True

    def _rewind(self, ticket: Ticket[Tag]) -> None:
        """Ask again for the frames of a part from this request on, of any worker."""
        part = ticket.part
        part.next_start, part.worker = min(part.next_start, ticket.start), None
        self._drop(lambda other: other.part is part and other.start >= ticket.start)

    def send_again(self, worker: int) -> None:
        """Ask again for all that a worker was asked for, because it has ended."""
        for ticket in [ticket for ticket in self.in_flight.values() if ticket.part.worker == worker]:
            self._rewind(ticket)
        for job in self._order:
            for part in job.parts:
                part.worker = None if part.worker == worker else part.worker

    def ready(self) -> Iterator[tuple[Tag, DecodedChunk | Reject]]:
        """Yield the results that have arrived, up to the first one missing in the order of the clips."""
        while self._order:
            job = self._order[0]
            result = job.arrived.pop(job.next_start, None)
            if result is None:
                return
            if isinstance(result, Reject) or result.is_last:
                self._order.popleft()
            else:
                job.next_start = result.stop
            yield job.tag, result

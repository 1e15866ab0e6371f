"""Order of requests to decode workers and of their results, without any processes or files.

Clips are drawn one at a time. The number of chunks of a clip is known once its first one has arrived; the others are
then requested before any further clip. Results are passed on in the order of the clips, however they arrive.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lrs3_loader.types import Clip, DecodedChunk, Reject

Tag = TypeVar("Tag")
NOOP = 0  # the ticket number of an empty request


@dataclass(frozen=True)
class ChunkRequest:
    """A request for one chunk of a clip: as many frames as fit, beginning at ``start``."""

    clip: Clip
    start: int = 0


@dataclass(eq=False)
class Job(Generic[Tag]):
    """A clip that is being decoded: the results that have arrived, and the position of the next one to pass on."""

    tag: Tag
    clip: Clip
    arrived: dict[int, DecodedChunk | Reject] = field(default_factory=dict)  # by first frame
    next_start: int = 0  # first frame of the next chunk to pass on


@dataclass(eq=False)
class Ticket(Generic[Tag]):
    """A request whose result has not arrived yet."""

    number: int
    job: Job[Tag]
    start: int
    num_failures: int = 0  # times that a worker hung or died on it


class ClipQueue(Generic[Tag]):
    """Yields numbered requests when iterated; ``accept`` takes their results, and ``ready`` yields these in order.

    A DataLoader asks for a request only when a result arrives. So while all clips have been requested, but further
    chunks of them may follow, iteration yields empty requests ``(NOOP, None)``. It ends when every clip is complete.
    """

    def __init__(self, clips: Iterable[tuple[Tag, Clip]]) -> None:
        self.in_flight: dict[int, Ticket[Tag]] = {}  # in the order of sending
        self._clips = iter(clips)
        self._exhausted = False
        self._numbers = itertools.count(NOOP + 1)
        self._order: deque[Job[Tag]] = deque()  # clips drawn, but not yet passed on completely
        self._front: deque[Ticket[Tag]] = deque()  # to be sent before the next clip is drawn

    @property
    def is_done(self) -> bool:
        return self._exhausted and not self._order

    def __iter__(self) -> Iterator[tuple[int, ChunkRequest | None]]:
        return self

    def __next__(self) -> tuple[int, ChunkRequest | None]:
        if not self._front and not self._exhausted:
            self._draw()
        if self._front:
            ticket = self._front.popleft()
            self.in_flight[ticket.number] = ticket
            return ticket.number, ChunkRequest(ticket.job.clip, ticket.start)
        if self.is_done:
            raise StopIteration
        return NOOP, None

    def _draw(self) -> None:
        try:
            tag, clip = next(self._clips)
        except StopIteration:
            self._exhausted = True
        else:
            job = Job(tag, clip)
            self._order.append(job)
            self._front.append(Ticket(next(self._numbers), job, 0))

    def accept(self, number: int, result: DecodedChunk | Reject | None) -> bool:
        """Take the result of a request. Returns False if it is not wanted, as the clip has been rejected since."""
        ticket = self.in_flight.pop(number, None)
        if ticket is None or result is None:
            return False
        job = ticket.job
        job.arrived[ticket.start] = result
        if isinstance(result, Reject):
            self._forget_after(ticket)
        elif ticket.start == 0 and not result.is_last:
            size = len(result.frames)
            for start in range(size, result.num_frames, size):
                self._front.append(Ticket(next(self._numbers), job, start))
        return True

    def _forget_after(self, last: Ticket[Tag]) -> None:
        """Drop all later requests for a rejected clip."""

        def is_wanted(ticket: Ticket[Tag]) -> bool:
            return ticket.job is not last.job or ticket.start < last.start

        self._front = deque(ticket for ticket in self._front if is_wanted(ticket))
        self.in_flight = {number: ticket for number, ticket in self.in_flight.items() if is_wanted(ticket)}

    def send_again(self) -> None:
        """Queue all requests without a result again, first and in the same order, because their workers are gone."""
        self._front.extendleft(reversed(self.in_flight.values()))
        self.in_flight.clear()

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

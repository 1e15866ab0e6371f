"""Which chunk of which clip is asked for next, and which results may be handed on: no processes, no files.

Clips are drawn one at a time. How many chunks a clip has is known once its first one has arrived; the others then go
ahead of all further clips. Results are handed on in the clips' own order, however they arrive.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lrs3_loader.types import Clip, DecodedChunk, Reject

Tag = TypeVar("Tag")
NOOP = 0  # the ticket number of a request for nothing


@dataclass(frozen=True)
class ChunkRequest:
    """Asks for the frames of a clip from ``start`` on, as many as fit one chunk."""

    clip: Clip
    start: int = 0


@dataclass(eq=False)
class Job(Generic[Tag]):
    """One clip on its way: what has arrived of it, and what has been handed on."""

    tag: Tag
    clip: Clip
    arrived: dict[int, DecodedChunk | Reject] = field(default_factory=dict)  # by first frame
    next_start: int = 0  # the chunk to hand on next


@dataclass(eq=False)
class Ticket(Generic[Tag]):
    """One request, from when it is known to when its result has arrived."""

    number: int
    job: Job[Tag]
    start: int
    num_failures: int = 0  # of the workers that were on it


class ClipQueue(Generic[Tag]):
    """Iterating gives requests (number, what); ``accept`` takes their results; ``ready`` hands them on.

    While requests are out whose results may lead to more, and nothing else is to be done, it gives requests for
    nothing, ``(NOOP, None)``, since a DataLoader asks only when a result arrives. It ends when every clip is
    complete.
    """

    def __init__(self, clips: Iterable[tuple[Tag, Clip]]) -> None:
        self.in_flight: dict[int, Ticket[Tag]] = {}  # in the order they went out
        self._clips = iter(clips)
        self._exhausted = False
        self._numbers = itertools.count(NOOP + 1)
        self._order: deque[Job[Tag]] = deque()  # clips drawn and not yet handed on whole
        self._front: deque[Ticket[Tag]] = deque()  # to go out before the next clip is drawn

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
        """Take the result of a request. False where nothing waits for it: the clip was given up meanwhile."""
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
        """Nothing that follows in a rejected clip is wanted any more."""

        def is_wanted(ticket: Ticket[Tag]) -> bool:
            return ticket.job is not last.job or ticket.start < last.start

        self._front = deque(ticket for ticket in self._front if is_wanted(ticket))
        self.in_flight = {number: ticket for number, ticket in self.in_flight.items() if is_wanted(ticket)}

    def send_again(self) -> None:
        """Everything that is out has been lost: it goes out again first, in the same order."""
        self._front.extendleft(reversed(self.in_flight.values()))
        self.in_flight.clear()

    def ready(self) -> Iterator[tuple[Tag, DecodedChunk | Reject]]:
        """Hand on what has arrived of the oldest clip, and of the next ones where it is complete."""
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

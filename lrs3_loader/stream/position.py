"""How far a pass has come, in numbers that mean the same for any number of workers and ranks.

A schedule's batches are numbered; batch ``g`` goes to rank ``g % world_size``, and the batches a rank has left go to
its DataLoader workers in turn, which is the order in which the DataLoader hands them on. So what has been delivered
after any batch follows from that batch's place alone, however far the workers have read ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from lrs3_loader.stream.schedule import BatchIds, equalize_batches


class Segment(NamedTuple):
    """What was delivered while the number of ranks stayed the same."""

    world_size: int
    done: int  # batches of every rank: all below ``done * world_size`` are delivered
    ahead: tuple[int, ...] = ()  # numbers of batches beyond that which are delivered too (only where tars were bad)


@dataclass(frozen=True)
class Position:
    """A place in a pass. More than one segment: the number of ranks was changed on the way."""

    epoch: int
    segments: tuple[Segment, ...] = ()
    worker: tuple[int, int, int] | None = None  # (worker, number of workers, its next place): inside one worker only

    def to_json(self) -> dict[str, Any]:
        segments = [[world_size, done, list(ahead)] for world_size, done, ahead in self.segments]
        return {"epoch": self.epoch, "segments": segments, "worker": list(self.worker) if self.worker else None}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Position:
        segments = tuple(Segment(int(size), int(done), tuple(ahead)) for size, done, ahead in plain["segments"])
        return cls(int(plain["epoch"]), segments, tuple(plain["worker"]) if plain["worker"] else None)

    def for_world_size(self, world_size: int) -> Position:
        """The same place, to be gone on from with this many ranks: its last segment has that size."""
        if self.segments and self.segments[-1].world_size == world_size:
            return self
        return Position(self.epoch, (*self.segments, Segment(world_size, 0)))


class ScheduledBatch(NamedTuple):
    """A batch that one rank has left."""

    place: int  # among those it has left in this pass
    number: int  # of all that were ever scheduled in this epoch: a running number over all ranks and segments
    batch: BatchIds


def remaining_batches(
    batches: Iterable[BatchIds], position: Position, rank: int, equal_batches: bool
) -> Iterator[ScheduledBatch]:
    """What a rank has left of a schedule, given what is delivered; ``position`` ends in the segment under way."""
    *earlier, current = position.segments
    offset = 0
    for segment in earlier:
        batches = _left(equalize_batches(batches, segment.world_size) if equal_batches else batches, segment)
        offset += segment.done * segment.world_size
    batches = equalize_batches(batches, current.world_size) if equal_batches else batches
    place = count()
    for number, batch in enumerate(batches):
        if number % current.world_size == rank and not _is_done(number, current):
            yield ScheduledBatch(next(place), number + offset, batch)


def _left(batches: Iterable[BatchIds], segment: Segment) -> Iterator[BatchIds]:
    return (batch for number, batch in enumerate(batches) if not _is_done(number, segment))


def _is_done(number: int, segment: Segment) -> bool:
    return number < segment.done * segment.world_size or number in segment.ahead


def after(start: Position, rank: int, place: int, num_workers: int, skipped: np.ndarray) -> Position:
    """The position once the batch at ``place`` has come out of the DataLoader, in a pass begun at ``start``.

    ``skipped`` [n >= place] bool marks the places at which nothing came out, because all of their samples were lost.
    Without such gaps exactly the places up to this one are delivered. A gap makes its worker run ahead of the others.
    """
    first, ahead = place + 1, []
    if skipped[: place + 1].any():
        settled = _settled(place, num_workers, skipped)
        first = min(settled)
        ahead = [p for worker, stop in enumerate(settled) for p in range(first, stop) if p % num_workers == worker]
        ahead = [p for p in ahead if p != first]
    current = start.segments[-1]
    numbers = _numbers(current, rank, max([first, *ahead]) + 1)
    bound = numbers[first]
    beyond = {numbers[p] for p in ahead} | {number for number in current.ahead if number > bound}
    segment = Segment(current.world_size, bound // current.world_size, tuple(sorted(beyond)))
    return Position(start.epoch, (*start.segments[:-1], segment))


def _settled(place: int, num_workers: int, skipped: np.ndarray) -> Sequence[int]:
    """For each worker its first place that is neither delivered nor skipped.

    The DataLoader takes one batch from each worker in turn: when worker w has delivered k batches, those before
    it have delivered k as well and those after it k - 1.
    """
    this = place % num_workers
    delivered = int((~skipped[this : place + 1 : num_workers]).sum())
    stops = []
    for worker in range(num_workers):
        want = delivered if worker <= this else delivered - 1
        at = worker
        while want and at < len(skipped):
            want -= not skipped[at]
            at += num_workers
        stops.append(at)
    return stops


def _numbers(segment: Segment, rank: int, num: int) -> list[int]:
    """Numbers, within the segment, of the first ``num`` batches that a rank has left."""
    numbers = (segment.done * segment.world_size + rank + k * segment.world_size for k in count())
    left = (number for number in numbers if number not in segment.ahead)
    return [next(left) for _ in range(num)]

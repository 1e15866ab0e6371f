"""Positions in an epoch, in numbers that are valid for any number of workers and ranks.

The batches of a schedule are numbered: batch ``g`` goes to rank ``g % world_size``. The batches that a rank has left
(numbered by *step*) go to its DataLoader workers in turn, which is also the order in which the DataLoader returns them.
The step of a batch therefore tells which batches have been delivered, however far the workers have read ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from lrs3_loader.stream.schedule import BatchIds, equalize_batches


class Segment(NamedTuple):
    """The batches delivered while the number of ranks stayed the same."""

    world_size: int
    done: int  # all batches below ``done * world_size`` are delivered
    ahead: tuple[int, ...] = ()  # numbers of later batches delivered as well (only where damage was skipped)


@dataclass(frozen=True)
class Position:
    """A position in an epoch. It has one segment for each number of ranks that the epoch was read with."""

    epoch: int
    segments: tuple[Segment, ...] = ()
    worker: tuple[int, int, int] | None = None  # (worker, number of workers, its next step), inside a worker

    def to_json(self) -> dict[str, Any]:
        segments = [[world_size, done, list(ahead)] for world_size, done, ahead in self.segments]
        return {"epoch": self.epoch, "segments": segments, "worker": list(self.worker) if self.worker else None}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Position:
        segments = tuple(Segment(int(size), int(done), tuple(ahead)) for size, done, ahead in plain["segments"])
        return cls(int(plain["epoch"]), segments, tuple(plain["worker"]) if plain["worker"] else None)

    def for_world_size(self, world_size: int) -> Position:
        """Return this position such that its last segment has this number of ranks."""
        if self.segments and self.segments[-1].world_size == world_size:
            return self
        return Position(self.epoch, (*self.segments, Segment(world_size, 0)))


class ScheduledBatch(NamedTuple):
    """A batch that one rank has left to read."""

    step: int  # number among those that the rank has left in this pass
    number: int  # number among all batches of this epoch, over all ranks and segments
    batch: BatchIds


def remaining_batches(
    batches: Iterable[BatchIds], position: Position, rank: int, equal_batches: bool
) -> Iterator[ScheduledBatch]:
    """Yield the batches of a schedule that a rank has left at a position, which ends in the current segment."""
    *earlier, current = position.segments
    offset = 0
    for segment in earlier:
        batches = _left(equalize_batches(batches, segment.world_size) if equal_batches else batches, segment)
        offset += segment.done * segment.world_size
    batches = equalize_batches(batches, current.world_size) if equal_batches else batches
    step = count()
    for number, batch in enumerate(batches):
        if number % current.world_size == rank and not _is_done(number, current):
            yield ScheduledBatch(next(step), number + offset, batch)


def _left(batches: Iterable[BatchIds], segment: Segment) -> Iterator[BatchIds]:
    return (batch for number, batch in enumerate(batches) if not _is_done(number, segment))


def _is_done(number: int, segment: Segment) -> bool:
    return number < segment.done * segment.world_size or number in segment.ahead


def position_after(start: Position, rank: int, step: int, num_workers: int, skipped: np.ndarray) -> Position:
    """Return the position after the DataLoader has returned the batch of a step.

    Without skipped batches, exactly the steps up to this one are delivered. A skipped batch makes its worker run ahead
    of the others.

    Args:
        start: position at which the pass began.
        rank: rank that reads.
        step: number of the batch among those that the rank had left at ``start``.
        num_workers: DataLoader workers of the rank.
        skipped: [n > step] bool, true for steps without a batch, because all of its samples were damaged.
    """
    first, ahead = step + 1, []
    if skipped[: step + 1].any():
        next_steps = _next_steps(step, num_workers, skipped)
        first = min(next_steps)
        ahead = [p for worker, stop in enumerate(next_steps) for p in range(first, stop) if p % num_workers == worker]
        ahead = [p for p in ahead if p != first]
    current = start.segments[-1]
    numbers = _numbers(current, rank, max([first, *ahead]) + 1)
    bound = numbers[first]
    beyond = {numbers[p] for p in ahead} | {number for number in current.ahead if number > bound}
    segment = Segment(current.world_size, bound // current.world_size, tuple(sorted(beyond)))
    return Position(start.epoch, (*start.segments[:-1], segment))


def _next_steps(step: int, num_workers: int, skipped: np.ndarray) -> Sequence[int]:
    """Return for each worker its first step that is neither delivered nor skipped.

    The DataLoader takes one batch from each worker in turn: when worker w has delivered k batches, those before
    it have delivered k as well and those after it k - 1.
    """
    this = step % num_workers
    delivered = int((~skipped[this : step + 1 : num_workers]).sum())
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
    """Return the numbers within a segment of the first ``num`` batches that a rank has left."""
    numbers = (segment.done * segment.world_size + rank + k * segment.world_size for k in count())
    left = (number for number in numbers if number not in segment.ahead)
    return [next(left) for _ in range(num)]

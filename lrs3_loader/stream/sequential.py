"""Batches of remote tars without a ledger, whose samples are known only as they are read.

Each reader (one DataLoader worker of one rank) has its own tars or, where there are fewer tars than readers, its share
of the samples of one. The same readers always give the same batches, so a position is a number of batches; to resume
there, everything before it is read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.run.tar import DamagedError, Sample, decode_sample
from lrs3_loader.stream.indexed import Cursor, LoadedBatch
from lrs3_loader.stream.readers import tar_samples
from lrs3_loader.stream.schedule import make_batches, shuffled_order
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.shared_state import SharedState
from lrs3_loader.stream.tasks import frames_of


@dataclass(frozen=True)
class SequentialPosition:
    """The number of batches that each worker of one rank has delivered."""

    epoch: int
    rank: int
    world_size: int
    delivered: tuple[int, ...] = ()  # by worker; empty at the start of an epoch

    def to_json(self) -> dict[str, Any]:
        readers = [self.rank, self.world_size]
        return {"epoch": self.epoch, "readers": readers, "delivered": list(self.delivered)}


class SequentialBatches:
    """The batches of one rank; see ``IndexedBatches`` for the methods."""

    unit_lost = "times given up half-way"  # unit of the counts in ``ShardStream.errors``

    num_filtered = None  # not known

    def __init__(self, urls: Sequence[str], settings: StreamSettings, shared: SharedState):
        self.shared = shared
        self._urls = urls
        self._settings = settings

    def identity(self) -> dict[str, Any]:
        return {"urls": list(self._urls)}

    def epoch_start(self, epoch: int) -> SequentialPosition:
        return SequentialPosition(epoch, self._settings.rank, self._settings.world_size)

    def restore(self, plain: dict[str, Any], identity: dict[str, Any]) -> SequentialPosition:
        """Return a position from its JSON.

        Raises:
            RunError: it was saved by another rank, or with another number of ranks.
        """
        rank, world_size = plain["readers"]
        ours = self._settings.rank, self._settings.world_size
        if (rank, world_size) != ours:
            raise RunError(
                f"this state is of rank {rank} of {world_size}, loaded by rank {ours[0]} of {ours[1]}: "
                "reading tars without a ledger can be resumed only by the same ranks, each with its own state"
            )
        return SequentialPosition(int(plain["epoch"]), rank, world_size, tuple(plain["delivered"]))

    def num_batches(self, position: SequentialPosition) -> int:
        raise TypeError("the length of an epoch is not known: these tars have no ledger")

    def load_batches(self, start: SequentialPosition, worker: int, num_workers: int) -> Iterator[LoadedBatch]:
        """Yield the batches that one worker has left; those it has delivered before are read and dropped.

        Raises:
            RunError: the position was saved with another number of workers.
        """
        if start.delivered and len(start.delivered) != num_workers:
            raise RunError(
                f"this state was saved with {len(start.delivered)} workers, now there are {num_workers}: "
                "reading tars without a ledger can be resumed only by as many"
            )
        done = start.delivered[worker] if start.delivered else 0
        reader = self._settings.rank + self._settings.world_size * worker
        tars = self._tars(start.epoch, reader, self._settings.world_size * num_workers)
        batches = _Batches(self._urls, tars, self._settings, self.shared)
        for number, samples in enumerate(batches.make([self._settings.seed, start.epoch, reader])):
            if number >= done:
                yield LoadedBatch(number - done, number, samples)

    def _tars(self, epoch: int, reader: int, num_readers: int) -> list[tuple[int, int, int]]:
        """Return (number of the tar, part of its samples, number of parts) of all that one reader reads."""
        order = shuffled_order([1] * len(self._urls), self._settings.shuffle, self._settings.seed, epoch).tolist()
        if len(order) >= num_readers:
            return [(tar, 0, 1) for tar in order[reader::num_readers]]
        place = reader % len(order)
        return [(order[place], reader // len(order), len(range(place, num_readers, len(order))))]

    def position_after(self, start: SequentialPosition, cursor: Cursor) -> SequentialPosition:
        """Return the position after the batch with this cursor; the DataLoader takes from each worker in turn."""
        before = start.delivered or (0,) * cursor.num_workers
        delivered = (done + cursor.step + (worker <= cursor.worker) for worker, done in enumerate(before))
        return replace(start, delivered=tuple(delivered))

    def position_in_worker(self, start: SequentialPosition, cursor: Cursor) -> SequentialPosition:
        """Return the position after that batch for one worker alone, whose state is saved with those of the others."""
        before = start.delivered or (0,) * cursor.num_workers
        delivered = (done + (cursor.step + 1 if worker == cursor.worker else 0) for worker, done in enumerate(before))
        return replace(start, delivered=tuple(delivered))


@dataclass
class _Batches:
    """Makes the batches of one reader from its tars; holds one shuffle block and the samples carried over."""

    urls: Sequence[str]
    tars: list[tuple[int, int, int]]
    settings: StreamSettings
    shared: SharedState
    held: dict[int, tuple[Sample, int]] = field(default_factory=dict)

    def make(self, seed: Sequence[int]) -> Iterator[list[Sample]]:
        for ids in make_batches(self._shuffle_blocks(), self._frames, self.settings.rule, seed):
            yield [self.held.pop(number)[0] for number in ids.tolist()]

    def _shuffle_blocks(self) -> Iterator[np.ndarray]:
        found = enumerate(self._samples())
        while block := dict(islice(found, self.settings.shuffle_buffer)):
            self.held |= block
            yield np.array(list(block))

    def _samples(self) -> Iterator[tuple[Sample, int]]:
        fields = self.settings.task.fields
        for tar, part, num_parts in self.tars:
            url = self.urls[tar]
            try:
                for place, (key, data) in enumerate(tar_samples(url, fields)):
                    if place % num_parts != part:
                        continue
                    sample = decode_sample(url, key, data, fields)
                    try:
                        num_frames = frames_of(sample)
                    except ValueError:
                        num_frames = 0  # none of its arrays has a time axis
                    num_frames = self.settings.frames_left(key, num_frames)
                    if self.settings.selects(key, num_frames):
                        yield sample, num_frames
            except DamagedError as error:
                self.shared.add_lost(tar, error)

    def _frames(self, ids: np.ndarray) -> np.ndarray:
        frames = np.array([self.held[number][1] for number in ids.tolist()], dtype=np.int64)
        return np.minimum(frames, self.settings.longest)

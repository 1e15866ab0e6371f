"""Decides which samples make up which batch: pure functions of lengths, seed and epoch that read nothing.

    order of shards -> partitions -> shuffle blocks -> batches -> interleaved -> equally many for every rank

A *sample id* numbers the samples of a stream. A *shuffle block* is what the shuffle buffer holds at a time: its samples
are shuffled, sorted by length and cut into batches of similar lengths, and the batches are shuffled. A *partition* is a
part of the sample order that is read sequentially, side by side with the others; local files need only one, because
any sample can be read by itself.

Every rank and worker computes the same schedule and reads its share of the batches. Nothing is negotiated while
reading, and a position is a number of batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from lrs3_loader.errors import RunError

Frames = Callable[[np.ndarray], np.ndarray]  # sample ids [n] -> 25 fps frames of each [n]


class BatchIds(NamedTuple):
    """The sample ids of one batch, and the partition that they are read from."""

    partition: int
    ids: np.ndarray  # [n], n > 0


@dataclass(frozen=True)
class BatchRule:
    """Decides when a batch is full."""

    batch_size: int | None  # most samples of a batch; exactly one of this and batch_frames is given
    batch_frames: int | None  # most frames, padding included; a longer clip is a batch by itself
    multiple: int  # frames of a batch are padded to a multiple of this
    shuffle: bool  # False: samples and batches stay in order

    def padded(self, frames: np.ndarray) -> np.ndarray:
        return -(-frames // self.multiple) * self.multiple

    def cut(self, ids: np.ndarray, frames: np.ndarray) -> list[np.ndarray]:
        """Cut samples (ids [n] and frames [n]) into batches; the last may not be full."""
        if self.batch_size is not None:
            return [ids[start : start + self.batch_size] for start in range(0, len(ids), self.batch_size)]
        assert self.batch_frames is not None
        cuts, start, longest = [], 0, 0
        for position, length in enumerate(self.padded(frames).tolist()):
            longest = max(longest, length)
            if position > start and (position + 1 - start) * longest > self.batch_frames:
                cuts.append(position)
                start, longest = position, length
        return [part for part in np.split(ids, cuts) if len(part)]


def shuffled_order(shard_sizes: Sequence[int], shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    """Return all sample ids [n], shard by shard, with the shards in the order of the epoch."""
    stops = np.cumsum(shard_sizes, dtype=np.int64)
    order = np.arange(len(shard_sizes))
    if shuffle:
        order = np.random.default_rng([seed, epoch]).permutation(order)
    ranges = [np.arange(stops[shard] - shard_sizes[shard], stops[shard]) for shard in order.tolist()]
    return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)


def repeated_order(shard_sizes: Sequence[int], counts: np.ndarray, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    """Return sample ids, each as often as ``counts`` [n] says, shard by shard.

    A shard is visited as often as its most frequent sample comes, at random moments of the epoch: the k-th visit gives
    the samples that come more than k times. With all counts 1 the order is that of ``shuffled_order``.
    """
    stops = np.cumsum(shard_sizes, dtype=np.int64)
    visits = []
    for shard, stop in enumerate(stops.tolist()):
        ids = np.arange(stop - shard_sizes[shard], stop)
        most = int(counts[ids].max(initial=0))
        visits += [ids[counts[ids] > visit] for visit in range(max(most, 1))]
    order = np.random.default_rng([seed, epoch]).permutation(len(visits)) if shuffle else np.arange(len(visits))
    return np.concatenate([visits[visit] for visit in order.tolist()]) if visits else np.zeros(0, np.int64)


def shuffle_blocks(ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut ids [n] into consecutive blocks of at most ``size``."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def make_batches(
    blocks: Iterable[np.ndarray], frames: Frames, rule: BatchRule, seed: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yield batches of ids, block by block; samples that do not fill a batch are carried into the next block.

    The random generator of a block is seeded with ``seed`` (numbers >= 0) and the number of the block.
    """
    carried = np.zeros(0, np.int64)
    for number, block in enumerate(blocks):
        random = np.random.default_rng([*seed, number])
        ids = np.concatenate([carried, random.permutation(block) if rule.shuffle else block])
        if rule.shuffle:
            ids = ids[np.argsort(rule.padded(frames(ids)), kind="stable")]
        cut = rule.cut(ids, frames(ids))
        full = rule.batch_size is not None and cut and len(cut[-1]) == rule.batch_size
        carried = np.zeros(0, np.int64) if full or not cut else cut.pop()
        yield from (cut[index] for index in (random.permutation(len(cut)) if rule.shuffle else range(len(cut))))
    if len(carried):
        yield carried


def interleave(
    order: np.ndarray, num_partitions: int, block_size: int, frames: Frames, rule: BatchRule, seed: Sequence[int]
) -> Iterator[BatchIds]:
    """Cut the order into partitions of equally many samples, and take from the batches of each in turn.

    Where a partition has fewer batches than another, its largest are split, as far as their samples allow.
    """
    partitions = [
        [
            BatchIds(partition, ids)
            for ids in make_batches(shuffle_blocks(part, block_size), frames, rule, [*seed, partition])
        ]
        for partition, part in enumerate(np.array_split(order, num_partitions))
    ]
    longest = max(map(len, partitions))
    for row in zip_longest(*(split_largest(partition, longest) for partition in partitions)):
        yield from (batch for batch in row if batch is not None)


def split_largest(batches: Iterable[BatchIds], count: int) -> list[BatchIds]:
    """Split batches in two, the largest first, until there are ``count`` of them or all hold one sample."""
    result = list(batches)
    while len(result) < count:
        index = max(range(len(result)), key=lambda k: (len(result[k].ids), k), default=-1)
        if index < 0 or len(result[index].ids) == 1:
            break
        partition, ids = result[index]
        half = (len(ids) + 1) // 2
        result[index : index + 1] = [BatchIds(partition, ids[:half]), BatchIds(partition, ids[half:])]
    return result


def equalize_batches(batches: Iterable[BatchIds], world_size: int) -> Iterator[BatchIds]:
    """Yield the batches, with a few of the last split in two so that ``world_size`` divides their number.

    Holds back no more batches than may have to be split, so the end of the schedule need not be known yet.

    Raises:
        RunError: there are too few samples.
    """
    if world_size == 1:
        yield from batches
        return
    held: deque[BatchIds] = deque()
    slack = 0  # how many more batches the held ones could become
    count = 0
    for batch in batches:
        held.append(batch)
        slack += len(batch.ids) - 1
        while slack - (len(held[0].ids) - 1) >= world_size - 1:
            first = held.popleft()
            slack -= len(first.ids) - 1
            count += 1
            yield first
    missing = -(count + len(held)) % world_size
    if missing > slack:
        raise RunError(
            f"{count + len(held)} batches cannot be shared evenly by {world_size} ranks, and they hold too few samples "
            "to be split: use smaller batches or fewer ranks, or equal_batches=False where ranks may end apart"
        )
    yield from split_largest(held, len(held) + missing)

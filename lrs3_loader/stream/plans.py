"""Plans schedule the batches of an epoch for all ranks: ``IndexedPlan`` for finished runs, ``FollowedPlan`` for others.

A plan gives the same schedule on every rank and in every worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream.catalog import Catalog, ClipFilter
from lrs3_loader.stream.follow import follow
from lrs3_loader.stream.position import ScheduledBatch
from lrs3_loader.stream.readers import FetchingReader, LocalReader, Reader, StreamReader
from lrs3_loader.stream.schedule import BatchIds, BatchRule, interleave, make_batches, shuffle_blocks, shuffled_order
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.sources import Listing

REMOTE_PARTITIONS = 12  # per rank: 1, 2, 3, 4, 6 or 12 workers get equally many


class IndexedPlan:
    """Schedules samples that are all known beforehand."""

    is_final = True  # all samples are known

    def __init__(
        self, listing: Listing, clip_filter: ClipFilter, rule: BatchRule, settings: StreamSettings, world_size: int
    ):
        self.catalog = Catalog(clip_filter).extend(listing.sources)
        self.max_batches = len(self.catalog)  # in any epoch
        self._samples = self.catalog.sha256()
        self._is_local = listing.is_local
        self._rule = rule
        self._settings = settings
        self._world_size = world_size
        self._num_partitions = settings.num_parallel_shards or (1 if self._is_local else REMOTE_PARTITIONS * world_size)
        self._cached: tuple[int, list[BatchIds]] = (-1, [])

    def identity(self) -> dict[str, Any]:
        """Return what must be equal when a saved position is loaded."""
        return {"samples": self._samples, "num_parallel_shards": self._num_partitions}

    def restore(self, identity: dict[str, Any]) -> None:
        """Use the number of partitions of a saved position, unless the user has chosen one."""
        if self._settings.num_parallel_shards is None:
            self._num_partitions = identity.get("num_parallel_shards", self._num_partitions)
            self._cached = (-1, [])

    def batches(self, epoch: int, log_waits: bool) -> list[BatchIds]:
        """Return the batches of an epoch in order."""
        if self._cached[0] != epoch:
            settings, catalog = self._settings, self.catalog
            order = shuffled_order(catalog.shard_sizes, settings.shuffle, settings.seed, epoch)
            partitions = max(1, min(self._num_partitions, len(order)))
            # A rank holds a shuffle block of each of its partitions: together they are its shuffle buffer.
            block_size = -(-settings.shuffle_buffer // -(-partitions // self._world_size))
            seed = [settings.seed, epoch]
            self._cached = (epoch, list(interleave(order, partitions, block_size, catalog.frames, self._rule, seed)))
        return self._cached[1]

    def reader(
        self, scheduled: Iterable[ScheduledBatch], fields: tuple[str, ...] | None
    ) -> tuple[Iterable[ScheduledBatch], Reader]:
        """Return the batches that were given, and a reader of their samples."""
        if self._is_local:
            return scheduled, LocalReader(self.catalog, fields)
        known = list(scheduled)
        return known, StreamReader(self.catalog, fields, (scheduled.batch for scheduled in known))


class FollowedPlan:
    """Schedules a run while it is written: shards in the order of the run's plan, shuffled only within themselves."""

    is_final = False

    def __init__(self, folder: RunFolder, clip_filter: ClipFilter, rule: BatchRule, settings: StreamSettings):
        self.folder = folder
        self.catalog = Catalog(clip_filter)
        self.max_batches = sum(len(shard.clips) for shard in folder.shards)
        self._clip_filter = clip_filter
        self._rule = rule
        self._settings = settings
        self._is_local = isinstance(folder.path, Path)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal when a saved position is loaded."""
        return {"run": self.folder.run_hash}

    def restore(self, identity: dict[str, Any]) -> None:
        """Do nothing: this schedule does not depend on the number of ranks."""

    def batches(self, epoch: int, log_waits: bool) -> Iterator[BatchIds]:
        """Yield the batches of an epoch in order, waiting for shards; ``log_waits`` says so in the log."""
        catalog = self.catalog = Catalog(self._clip_filter)
        seed = [self._settings.seed, epoch, 0]
        ids = make_batches(self._shuffle_blocks(catalog, log_waits), catalog.frames, self._rule, seed)
        return (BatchIds(0, batch) for batch in ids)

    def _shuffle_blocks(self, catalog: Catalog, log_waits: bool) -> Iterator[np.ndarray]:
        for source in follow(self.folder, self._settings.poll_seconds, log_waits):
            yield from shuffle_blocks(catalog.add(source), self._settings.shuffle_buffer)

    def reader(
        self, scheduled: Iterable[ScheduledBatch], fields: tuple[str, ...] | None
    ) -> tuple[Iterable[ScheduledBatch], Reader]:
        """Return the batches that were given, and a reader of their samples."""
        if self._is_local:
            return scheduled, LocalReader(self.catalog, fields)
        return scheduled, FetchingReader(self.catalog, fields)


Plan = IndexedPlan | FollowedPlan

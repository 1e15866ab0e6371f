"""Plans schedule the batches of an epoch: ``IndexedPlan`` for finished runs, ``FollowedPlan`` while a run is written.

A plan gives the same schedule on every rank and in every worker. A run is followed in the order of its own plan, which
stays the same after a restart; the extraction takes shards in this order as well, so the shard waited for is always
among those in progress.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream.catalog import Catalog
from lrs3_loader.stream.position import ScheduledBatch
from lrs3_loader.stream.readers import MAX_FETCHED_TARS, MAX_OPEN_TARS, Reader, StreamReader, TarReader
from lrs3_loader.stream.schedule import (
    BatchIds,
    interleave,
    make_batches,
    repeated_order,
    shuffle_blocks,
    shuffled_order,
)
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.sources import Listing, Source, published_source
from lrs3_loader.stream.weights import SampleWeights
from lrs3_loader.stream.where import Where

logger = logging.getLogger(__name__)

REMOTE_PARTITIONS = 12  # per rank: 1, 2, 3, 4, 6 or 12 workers get equally many
_MESSAGE_SECONDS = 60.0  # between two messages of one wait


class IndexedPlan:
    """Schedules samples that are all known beforehand."""

    is_final = True  # all samples are known

    def __init__(self, listing: Listing, settings: StreamSettings):
        self.catalog = Catalog(settings, listing.sources)
        self.weights = self._weigh(listing, settings)
        self.max_batches = self.weights.max_samples if self.weights is not None else len(self.catalog)  # in any epoch
        self._samples = self.catalog.sha256()
        self._is_local = listing.is_local
        self._settings = settings
        default = 1 if self._is_local else REMOTE_PARTITIONS * settings.world_size
        self._num_partitions = settings.num_parallel_shards or default
        self._cached: tuple[int, list[BatchIds]] = (-1, [])

    def identity(self) -> dict[str, Any]:
        """Return what must be equal when a saved position is loaded."""
        weights = {} if self.weights is None else {"weights": self.weights.sha256}
        return {"samples": self._samples, "num_parallel_shards": self._num_partitions, **weights}

    def restore(self, identity: dict[str, Any]) -> None:
        """Use the number of partitions of a saved position, unless the user has chosen one."""
        if self._settings.num_parallel_shards is None:
            self._num_partitions = identity.get("num_parallel_shards", self._num_partitions)
            self._cached = (-1, [])

    def batches(self, epoch: int, log_waits: bool) -> list[BatchIds]:
        """Return the batches of an epoch in order."""
        if self._cached[0] != epoch:
            settings, catalog = self._settings, self.catalog
            order = self._order(epoch)
            partitions = max(1, min(self._num_partitions, len(order)))
            # A rank holds a shuffle block of each of its partitions: together they are its shuffle buffer.
            block_size = -(-settings.shuffle_buffer // -(-partitions // settings.world_size))
            seed = [settings.seed, epoch]
            batches = interleave(order, partitions, block_size, catalog.frames, settings.rule, seed)
            self._cached = (epoch, list(batches))
        return self._cached[1]

    def _weigh(self, listing: Listing, settings: StreamSettings) -> SampleWeights | None:
        if settings.weights is None and settings.mix is None:
            return None
        if not listing.is_local:
            raise ValueError("weights and mix need local tars, since samples come more than once: copy the runs first")
        if settings.mix is not None and len(settings.mix) != settings.num_locations:
            raise ValueError(f"mix must have a share for each of {settings.num_locations} runs, got {settings.mix}")
        return SampleWeights(self.catalog, settings.weights, settings.mix)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the sample ids of an epoch in the order of their shards."""
        settings, sizes = self._settings, self.catalog.shard_sizes
        if self.weights is None:
            return shuffled_order(sizes, settings.shuffle, settings.seed, epoch)
        counts = self.weights.counts(settings.seed, epoch)
        return repeated_order(sizes, counts, settings.shuffle, settings.seed, epoch)

    def reader(
        self, scheduled: Iterable[ScheduledBatch], fields: tuple[str, ...] | None
    ) -> tuple[Iterable[ScheduledBatch], Reader]:
        """Return the batches that were given, and a reader of their samples."""
        if self._is_local:
            return scheduled, TarReader(self.catalog, fields)
        known = list(scheduled)
        return known, StreamReader(self.catalog, fields, (scheduled.batch for scheduled in known))


class FollowedPlan:
    """Schedules a run while it is written: shards in the order of the run's plan, shuffled only within themselves."""

    is_final = False

    def __init__(self, folder: RunFolder, settings: StreamSettings):
        self.folder = folder
        self.catalog = Catalog(settings)
        self.max_batches = folder.shards.num_clips
        self._settings = settings
        self._where = None if settings.where is None else Where(settings.where)

    def identity(self) -> dict[str, Any]:
        record = self.folder.record
        grown = {"manifest": record["manifest"]["sha256"]} if "manifest" in record else {}
        return {"run": self.folder.run_hash, **grown}

    def restore(self, identity: dict[str, Any]) -> None:
        """This schedule does not depend on the number of ranks."""

    def batches(self, epoch: int, log_waits: bool) -> Iterator[BatchIds]:
        """Yield the batches of an epoch in order, waiting for shards."""
        catalog = self.catalog = Catalog(self._settings)
        blocks = (
            block
            for source in self._published(log_waits)
            for block in shuffle_blocks(catalog.add(source), self._settings.shuffle_buffer)
        )
        ids = make_batches(blocks, catalog.frames, self._settings.rule, [self._settings.seed, epoch, 0])
        return (BatchIds(0, batch) for batch in ids)

    def _published(self, log_waits: bool) -> Iterator[Source]:
        """Yield every shard of the run, waiting for those not published and for tars that do not match their ledger."""
        shards = self.folder.shards
        for number, shard in enumerate(shards, 1):
            wait = _Wait(self._settings.poll_seconds, log_waits)
            source, problem = published_source(self.folder, shard, self._where)
            while source is None:
                trouble = f" ({problem})" if problem else ""
                wait.sleep(f"{shard.name}, shard {number} of {len(shards)}, in {self.folder.path}{trouble}")
                source, problem = published_source(self.folder, shard, self._where)
            wait.end()
            yield source

    def reader(
        self, scheduled: Iterable[ScheduledBatch], fields: tuple[str, ...] | None
    ) -> tuple[Iterable[ScheduledBatch], Reader]:
        most_open = MAX_OPEN_TARS if isinstance(self.folder.path, Path) else MAX_FETCHED_TARS
        return scheduled, TarReader(self.catalog, fields, most_open)


Plan = IndexedPlan | FollowedPlan


def wait_for_run(path: str, settings: StreamSettings) -> RunFolder:
    """Wait until a run has begun in a folder or at a URL, and open it."""
    wait = _Wait(settings.poll_seconds, log_waits=settings.rank == 0)
    while not RunFolder.exists(path):
        wait.sleep(f"a run to begin in {path}")
    wait.end()
    return RunFolder.open(path)


class _Wait:
    """Sleeps, and logs what it waits for at once and then every minute."""

    def __init__(self, poll_seconds: float, log_waits: bool):
        self._poll_seconds = poll_seconds
        # Warnings, so that they are seen without logging being configured in the worker process.
        self._level = logging.WARNING if log_waits else logging.DEBUG
        self._started = self._logged_at = 0.0

    def sleep(self, what: str) -> None:
        now = time.monotonic()
        self._started = self._started or now
        if not self._logged_at or now - self._logged_at >= _MESSAGE_SECONDS:
            self._logged_at = now
            logger.log(self._level, "waiting for %s (%.0f s so far)", what, now - self._started)
        time.sleep(self._poll_seconds)

    def end(self) -> None:
        if self._started:
            logger.log(self._level, "waited %.0f s, going on", time.monotonic() - self._started)

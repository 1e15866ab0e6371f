"""The schedule of an epoch over all ranks, and what reads it: for a finished run, and for one that is followed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream.catalog import Catalog, Choice
from lrs3_loader.stream.follow import follow
from lrs3_loader.stream.position import Turn
from lrs3_loader.stream.readers import FetchingReader, LocalReader, Reader, StreamReader
from lrs3_loader.stream.schedule import Batch, BatchRule, interleave, make_batches, pools, shuffled_order
from lrs3_loader.stream.settings import StreamSettings
from lrs3_loader.stream.sources import Listing

REMOTE_LANES = 12  # of each rank: whole lanes fall to each worker for 1, 2, 3, 4, 6 or 12 of them


class Plan(Protocol):
    """Schedules epochs, the same on every rank and in every worker."""

    catalog: Catalog
    max_batches: int  # no epoch has more
    is_final: bool  # the samples are all known

    def identity(self) -> dict[str, Any]:
        """What must not change between saving a position and going on from it."""
        ...

    def adopt(self, identity: dict[str, Any]) -> None:
        """Take over from a saved identity what may differ from one launch to the next."""
        ...

    def batches(self, epoch: int, speaks: bool) -> Iterable[Batch]:
        """The batches of an epoch in order; may wait, and says so if this reader is the one that speaks."""
        ...

    def reader(self, turns: Iterable[Turn], fields: tuple[str, ...] | None) -> tuple[Iterable[Turn], Reader]:
        """The turns again, and what reads their samples."""
        ...


class ListedPlan:
    """All samples are known beforehand."""

    is_final = True

    def __init__(self, listing: Listing, choice: Choice, rule: BatchRule, settings: StreamSettings, world_size: int):
        self.catalog = Catalog(choice).extend(listing.sources)
        self.max_batches = len(self.catalog)
        self._samples = self.catalog.sha256()
        self._is_local = listing.is_local
        self._rule = rule
        self._settings = settings
        self._world_size = world_size
        self._num_lanes = settings.lanes or (1 if self._is_local else REMOTE_LANES * world_size)
        self._cached: tuple[int, list[Batch]] = (-1, [])

    def identity(self) -> dict[str, Any]:
        return {"samples": self._samples, "lanes": self._num_lanes}

    def adopt(self, identity: dict[str, Any]) -> None:
        """Go on with as many lanes as a saved position was counted in, where they follow from the number of ranks."""
        if self._settings.lanes is None and identity.get("lanes", self._num_lanes) != self._num_lanes:
            self._num_lanes = identity["lanes"]
            self._cached = (-1, [])

    def batches(self, epoch: int, speaks: bool) -> list[Batch]:
        if self._cached[0] != epoch:
            settings, catalog = self._settings, self.catalog
            order = shuffled_order(catalog.shard_sizes, settings.shuffle, settings.seed, epoch)
            lanes = max(1, min(self._num_lanes, len(order)))
            # A rank holds the pools of all its lanes at once: together they are its shuffle buffer.
            pool_size = -(-settings.shuffle_buffer // -(-lanes // self._world_size))
            seed = [settings.seed, epoch]
            self._cached = (epoch, list(interleave(order, lanes, pool_size, catalog.frames, self._rule, seed)))
        return self._cached[1]

    def reader(self, turns: Iterable[Turn], fields: tuple[str, ...] | None) -> tuple[Iterable[Turn], Reader]:
        if self._is_local:
            return turns, LocalReader(self.catalog, fields)
        known = list(turns)
        return known, StreamReader(self.catalog, fields, (turn.batch for turn in known))


class FollowedPlan:
    """A run that may still be written: its shards in the order of the run's plan, none shuffled into another."""

    is_final = False

    def __init__(self, folder: RunFolder, choice: Choice, rule: BatchRule, settings: StreamSettings):
        self.folder = folder
        self.catalog = Catalog(choice)
        self.max_batches = sum(len(shard.clips) for shard in folder.shards)
        self._choice = choice
        self._rule = rule
        self._settings = settings
        self._is_local = isinstance(folder.path, Path)

    def identity(self) -> dict[str, Any]:
        return {"run": self.folder.run_hash}

    def adopt(self, identity: dict[str, Any]) -> None:
        """Nothing here follows from the number of ranks."""

    def batches(self, epoch: int, speaks: bool) -> Iterator[Batch]:
        catalog = self.catalog = Catalog(self._choice)
        seed = [self._settings.seed, epoch, 0]
        ids = make_batches(self._pools(catalog, speaks), catalog.frames, self._rule, seed)
        return (Batch(0, batch) for batch in ids)

    def _pools(self, catalog: Catalog, speaks: bool) -> Iterator[np.ndarray]:
        for source in follow(self.folder, self._settings.poll_seconds, speaks):
            yield from pools(catalog.add(source), self._settings.shuffle_buffer)

    def reader(self, turns: Iterable[Turn], fields: tuple[str, ...] | None) -> tuple[Iterable[Turn], Reader]:
        if self._is_local:
            return turns, LocalReader(self.catalog, fields)
        return turns, FetchingReader(self.catalog, fields)
